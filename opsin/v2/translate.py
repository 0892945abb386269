"""Python 2 texts to code for this Python: what `python -m opsin.v2` does to a program, in memory.

fissix, a fork of lib2to3, rewrites syntax and names (print, xrange, iteritems, has_key, cPickle …). Division is ours,
on the syntax tree: `a / b` rounds down where both are integers at run time, also NumPy's, as in Python 2. Code keeps
the file name and the line numbers of the text that it comes from.

Which Python a text is: one that is valid Python 3 and uses syntax that Python 2 lacks (f-strings, annotations,
print(…, file=…) …) is Python 3, and is left alone. Every other is Python 2: also one that is valid in both, for these
are programs of 2017, whose `7 / 2` is 3. `from __future__ import division` is obeyed.
"""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import operator
import re
import sys
from collections.abc import Callable, Collection, Sequence
from types import CodeType
from typing import Any

from opsin.errors import UsageError

# ---------------------------------------------------------------------------------------------------------------------
# Which Python
# ---------------------------------------------------------------------------------------------------------------------

_ONLY_3 = (
    *(ast.AnnAssign, ast.AsyncFunctionDef, ast.Await, ast.FormattedValue, ast.JoinedStr, ast.Match, ast.MatMult),
    *(ast.NamedExpr, ast.Nonlocal, ast.TryStar, ast.YieldFrom),
)


def _only_3(node: ast.AST, future: Collection[str]) -> bool:
    match node:
        case ast.arguments():
            return bool(node.kwonlyargs or node.posonlyargs)
        case ast.arg():
            return node.annotation is not None
        case ast.FunctionDef():
            return node.returns is not None
        case ast.ClassDef():
            return bool(node.keywords)
        case ast.Raise():
            return node.cause is not None
        case ast.Call(func=ast.Name("print")):
            return bool(node.keywords) and "print_function" not in future
        case ast.Call(func=ast.Name("super")):
            return not node.args
    return isinstance(node, _ONLY_3)


def is_python3(text: str) -> bool:
    """Whether a text is valid Python 3 and uses syntax that Python 2 lacks."""
    future = future_features(text)
    return _valid3(text) and any(_only_3(node, future) for node in ast.walk(ast.parse(text)))


def all_python3(texts: Sequence[str]) -> bool:
    """Whether the cells of a notebook are valid Python 3 and use syntax that Python 2 lacks."""
    return all(map(_valid3, texts)) and any(map(is_python3, texts))


def _valid3(text: str) -> bool:
    try:
        return bool(ast.parse(text))
    except (SyntaxError, ValueError):
        return False


def future_features(text: str) -> frozenset[str]:
    """What a text imports from __future__."""
    found = re.findall(r"^from\s+__future__\s+import\s+(\([^)]*\)|[^\n;#]*)", text, re.MULTILINE)
    return frozenset(re.findall(r"\w+", " ".join(found)))


# ---------------------------------------------------------------------------------------------------------------------
# Syntax and names, by fissix
# ---------------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _fissix() -> tuple[Any, Any]:
    """Its refactoring tool, and its grammar without a print statement."""
    try:
        from fissix.pgen2 import driver, pgen
    except ImportError as error:
        raise UsageError(
            "this is a Python 2 program, and fissix, which translates it, is not installed: pip install 'opsin[v2]'"
        ) from error
    # By itself it would keep its grammar as a pickle in the person's cache, and read what lies there.
    driver.load_packaged_grammar = lambda package, source: pgen.generate_grammar(source)
    from fissix import pygram, refactor
    from fissix.fixes import fix_imports

    # What `opsin.v2.aliases` provides, and what HELPERS do: fissix would import these where it may be too late.
    provided = {"StringIO", "cStringIO"}
    fix_imports.FixImports.mapping = {old: new for old, new in fix_imports.MAPPING.items() if old not in provided}
    fixers = set(refactor.get_fixers_from_package("fissix.fixes"))
    fixers -= {f"fissix.fixes.fix_{name}" for name in ("reduce", "intern", "reload")}
    return refactor.RefactoringTool(sorted(fixers)), pygram.python_grammar_no_print_statement


def _parse2(text: str, name: str, future: Collection[str]) -> Any:
    """The tree of fissix; where the text is valid Python 3, `print(a, b)` is a call and prints no tuple."""
    tool, no_print = _fissix()
    from fissix.pgen2.parse import ParseError
    from fissix.pgen2.tokenize import TokenError

    tool.driver.grammar = no_print if _valid3(text) or "print_function" in future else tool.grammar
    try:
        tree = tool.driver.parse_string(text)
    except (ParseError, TokenError, IndentationError) as error:
        place = error.context[1] if isinstance(error, ParseError) else error.args[1]
        number, column = place[1:3] if isinstance(error, IndentationError) else place
        lines = text.splitlines() or [""]
        line = lines[max(0, min(number, len(lines)) - 1)]
        what = f"at {line[column:].strip() or 'its end'}" if isinstance(error, ParseError) else error.args[0]
        raise SyntaxError(
            f"neither Python 2 nor 3: {what}", (name, min(number, len(lines)), column + 1, line)
        ) from None
    finally:
        tool.driver.grammar = tool.grammar
    tree.future_features = frozenset(future)
    return tree


def _translate(text: str, name: str, future: Collection[str]) -> tuple[str, list[int]]:
    """The text for Python 3, and for each of its lines the one that it comes from."""
    text = text if text.endswith("\n") else f"{text}\n"
    tree = _parse2(text, name, future)
    _fissix()[0].refactor_tree(tree, name)
    origin: dict[int, int] = {}
    line = 1
    for leaf in tree.leaves():
        line += leaf.prefix.count("\n")
        if leaf.lineno:
            origin.setdefault(line, leaf.lineno)
        line += leaf.value.count("\n")
    lines = [1]
    for number in range(1, line + 1):
        lines.append(origin.get(number, lines[-1]))
    return str(tree), lines


# ---------------------------------------------------------------------------------------------------------------------
# Division
# ---------------------------------------------------------------------------------------------------------------------


def _whole(value: Any) -> bool:
    return isinstance(value, int) or getattr(getattr(value, "dtype", None), "kind", "") in ("i", "u")


def divide(a: Any, b: Any) -> Any:
    """a / b as in Python 2."""
    return a // b if _whole(a) and _whole(b) else a / b


def divide_in_place(a: Any, b: Any) -> Any:
    """What a is after a /= b as in Python 2."""
    return (operator.ifloordiv if _whole(a) and _whole(b) else operator.itruediv)(a, b)


class _Index:
    def __getitem__(self, index: Any) -> Any:
        return index


# What translated code needs among its globals, and functions that Python 2 had built in.
HELPERS: dict[str, Any] = {
    **{"_opsin_divide": divide, "_opsin_divide_in_place": divide_in_place, "_opsin_index": _Index()},
    **{"reduce": functools.reduce, "intern": sys.intern, "reload": importlib.reload},
    "cmp": lambda a, b: (a > b) - (a < b),
}


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _set(name: str, value: ast.expr) -> ast.Assign:
    return ast.Assign([ast.Name(name, ast.Store())], value)


class _Division(ast.NodeTransformer):
    """a / b → _opsin_divide(a, b); what a target of /= is made of is evaluated once."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Div):
            return node
        return _at(node, ast.Call(_name("_opsin_divide"), [node.left, node.right], []))

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST | list[ast.AST]:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Div):
            return node
        target, before = node.target, []
        if not isinstance(target, ast.Name):
            before = [_set("_opsin_1", target.value)]
            target.value = _name("_opsin_1")
        if isinstance(target, ast.Subscript):
            before.append(_set("_opsin_2", ast.Subscript(_name("_opsin_index"), target.slice, ast.Load())))
            target.slice = _name("_opsin_2")
        old = copy.copy(target)
        old.ctx = ast.Load()
        divided = ast.Call(_name("_opsin_divide_in_place"), [old, node.value], [])
        return [_at(node, statement) for statement in (*before, ast.Assign([target], divided))]


def _at(place: ast.AST, node: ast.AST) -> ast.AST:
    """`node`, and all that is new in it, at the place of another."""
    for inner in ast.walk(node):
        if "lineno" in inner._attributes and not hasattr(inner, "lineno"):
            ast.copy_location(inner, place)
    return node


# ---------------------------------------------------------------------------------------------------------------------
# All together
# ---------------------------------------------------------------------------------------------------------------------


def compile_text(text: str, name: str, *, python3: bool | None = None, future: Collection[str] = ()) -> CodeType:
    """Code for a module whose globals have `HELPERS`. name: its file, for tracebacks.

    python3: whether the text is left alone; None to look at the text. future: imported from __future__ before.
    Raises SyntaxError with file and line for what is neither Python 2 nor Python 3.
    """
    if is_python3(text) if python3 is None else python3:
        return compile(text, name, "exec", dont_inherit=True)
    future = future_features(text) | set(future)
    try:
        translated, lines = _translate(text, name, future)
    except SyntaxError:
        if not _valid3(text):
            raise
        return compile(text, name, "exec", dont_inherit=True)  # newer than fissix, hence no Python 2
    try:
        tree = ast.parse(translated, name)
    except TabError:  # for Python 2, a tab went to the next multiple of eight
        indents = re.compile(r"^[ \t]+", re.MULTILINE)
        tree = ast.parse(indents.sub(lambda space: space[0].expandtabs(8), translated), name)
    except SyntaxError as error:
        line = lines[min(error.lineno or 1, len(lines) - 1)]
        raise SyntaxError(error.msg, (name, line, None, text.splitlines()[line - 1])) from None
    if "division" not in future:
        tree = ast.fix_missing_locations(_Division().visit(tree))
    for node in ast.walk(tree):
        if "lineno" in node._attributes:
            # Columns are those of the translated line: none is better than a wrong one.
            node.lineno = lines[node.lineno]  # type: ignore[attr-defined]
            node.end_lineno = max(node.lineno, lines[node.end_lineno])  # type: ignore[attr-defined]
            node.col_offset = node.end_col_offset = -1  # type: ignore[attr-defined]
    return compile(tree, name, "exec", dont_inherit=True)


def without_magics(cell: str, name: str, report: Callable[[int, str], None]) -> str:
    """A notebook's cell without its indentation, and without what only IPython understands: `report`(line, text)."""
    lines = cell.splitlines()
    first = next((line for line in lines if line.strip()), "")
    indent = first[: len(first) - len(first.lstrip())]
    lines = [line.removeprefix(indent) for line in lines]
    if first.strip().startswith("%%"):
        at = lines.index(first.removeprefix(indent))
        report(at + 1, lines[at])
        rest = lines[at + 1 :] if lines[at].split()[0] in ("%%time", "%%capture") else []
        return "\n".join([*[""] * (at + 1), *rest])
    while (problem := _problem("\n".join(lines) + "\n", name)) is not None:
        line = lines[problem - 1] if problem <= len(lines) else ""
        if not re.match(r"\s*([%!?]|[\w.]+\?{1,2}\s*$)", line):
            break
        report(problem, line.strip())
        lines[problem - 1] = line[: len(line) - len(line.lstrip())] + "pass"
    return "\n".join(lines)


def _problem(text: str, name: str) -> int | None:
    """The number of the line at which a text is neither Python 3 nor Python 2."""
    try:
        if not _valid3(text):
            _parse2(text, name, ())
    except SyntaxError as error:
        return error.lineno
    return None
