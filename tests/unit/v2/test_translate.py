"""Python 2 texts: what they mean, where their errors are, and which texts are left alone."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from opsin.v2 import translate


def run(text: str, **options: Any) -> dict[str, Any]:
    names: dict[str, Any] = dict(translate.HELPERS)
    exec(translate.compile_text(text, "program.py", **options), names)
    return names


def test_syntax_and_names_of_python_2(capsys: pytest.CaptureFixture[str]) -> None:
    run("""
import sys, cPickle
d = {"a": 1, "b": 2}
for key, value in sorted(d.iteritems()):
    print "%s=%d" % (key,
        value),
print
print >>sys.stderr, "to stderr", d.has_key("a")
try:
    raise ValueError, "reason"
except ValueError, error:
    print error, `3`, 3 <> 4, 0777, 10L
exec "x = 5"
print x, map(str, xrange(3)), filter(None, [0, 1]), range(3) + [3], zip("ab", "cd"), d.keys() + d.values()
print isinstance(u"x", basestring), unichr(97), reduce(lambda a, b: a + b, [1, 2, 3]), iter("q").next()
def second((a, b), c): return b
print second((1, 2), 3), ("a", "b")
""")
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "a=1 b=2 ",
        "reason 3 True 511 10",
        "5 ['0', '1', '2'] [1] [0, 1, 2, 3] [('a', 'c'), ('b', 'd')] ['a', 'b', 1, 2]",
        "True a 6 q",
        "2 ('a', 'b')",
    ]
    assert err == "to stderr True\n"


NUMBERS = st.one_of(st.integers(-50, 50), st.floats(-9, 9, allow_subnormal=False), st.booleans())


@given(NUMBERS, NUMBERS.filter(bool))
def test_division_is_that_of_python_2(a: Any, b: Any) -> None:
    expected = a // b if isinstance(a, int) and isinstance(b, int) else a / b
    names = dict(translate.HELPERS, a=a, b=b)
    exec(CODE, names)
    for name in ("plain", "name", "item", "part"):
        assert (type(names[name]), names[name]) == (type(expected), expected)


CODE = translate.compile_text(
    """
class Box: pass
plain = a / b
name = a
name /= b
items = [0, a]
items[-1] /= b
item = items[1]
box = Box()
box.part = a
box.part /= b
part = box.part
""",
    "program.py",
)


def test_division_of_arrays() -> None:
    names = run("""
import numpy as np
whole = np.array([7, -7]) / 2
scalar = np.int64(7) / 2
real = np.array([7, -7]) / 2.0
x = alias = np.array([1.0, 2.0])
x /= 2
pixels = np.array([[200, 100]], np.uint8)
pixels[0, :1] /= 3
""")
    assert names["whole"].tolist() == [3, -4] and names["scalar"] == 3 and names["real"].tolist() == [3.5, -3.5]
    assert names["alias"].tolist() == [0.5, 1.0], "in place, as NumPy does"
    assert names["pixels"].tolist() == [[66, 100]] and names["pixels"].dtype == np.uint8


def test_the_target_of_a_division_is_evaluated_once() -> None:
    names = run("""
calls = []
def f(value):
    calls.append(value)
    return value
class Private:
    def __init__(self): self.__x = 9
    def halve(self):
        self.__x /= 2
        return self.__x
x = [9, 8]
f(x)[f(0)] /= f(2)
half = Private().halve()
""")
    assert (names["x"], names["calls"], names["half"]) == ([4, 8], [[4, 8], 0, 2], 4)


def test_true_division_when_it_was_imported() -> None:
    assert run("from __future__ import division\nx = 7 / 2")["x"] == 3.5
    assert run("from __future__ import (print_function,\n  division)\nprint('', end='')\nx = 7 / 2")["x"] == 3.5
    assert run("x = 7 / 2", future=["division"])["x"] == 3.5


@pytest.mark.parametrize(
    "text",
    [
        "x = f'{7 / 2}'",
        "def f(a: int): pass",
        "def f() -> int: pass",
        "def f(*, a): pass",
        "x: int = 7",
        "print(1, file=None)",
        "class A(metaclass=type): pass",
        "class A:\n def f(self): super().f()",
        "async def f(): pass",
        "def f():\n a = 1\n def g(): nonlocal a",
        "try: pass\nexcept Exception as e: raise KeyError from e",
        "x = a @ b",
        "if (n := 3): pass",
    ],
)
def test_python_3_is_left_alone(text: str) -> None:
    assert translate.is_python3(text)
    assert run(f"if 0:\n {text.replace(chr(10), chr(10) + ' ')}\nhalf = 7 / 2")["half"] == 3.5
    assert run("half = 7 / 2", python3=True)["half"] == 3.5


def test_what_is_newer_than_the_translator_is_python_3() -> None:
    names = run(
        "with (open(__file__) as a, open(__file__) as b):\n    half = 7 / 2\n".replace("__file__", repr(__file__))
    )
    assert names["half"] == 3.5


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("print('a', 7 / 2)", "a 3\n"),  # valid in both: a program of 2017, whose print of two is not a tuple
        ("print ('a', 7 / 2)\nprint 'b'", "('a', 3)\nb\n"),
        ("from __future__ import print_function\nprint('a', 7 / 2, end='!')", "a 3!"),
    ],
)
def test_print(text: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(text)
    assert capsys.readouterr().out == printed


def test_tabs_go_to_the_next_multiple_of_eight() -> None:
    assert run("if 1:\n        x = 1\n\ty = x / 2\nprint ''")["y"] == 0


LONG = '''"""A module
of several lines."""
import os, sys
print "%s" % (
    reduce(max, [1]))
def f((a, b)):
    """Text."""
    try:
        pass
    except ValueError, (x, y):
        pass
    text = """a
b"""
    return a / b, `a`
def g():
    return f((1,
              0))
g()
'''


def test_tracebacks_have_the_lines_of_the_original(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run(LONG)
    frames = traceback.extract_tb(caught.tb)
    assert [(x.name, x.lineno) for x in frames if x.filename == "program.py"] == [
        ("<module>", 18),
        ("g", 16),
        ("f", 14),
    ]
    assert {x.colno for x in frames if x.filename == "program.py"} == {None}


@given(st.integers(1, 30), st.data())
@settings(max_examples=40, deadline=None, phases=[Phase.generate])
def test_every_line_keeps_its_number(count: int, data: st.DataObject) -> None:
    pieces = {
        "print 'a', 'b'": 1,
        "x = (1,\n  2)": 2,
        "# a comment": 1,
        "": 1,
        "def f((a, b), c): return a / b": 1,
        "try: pass\nexcept ValueError, e: print e": 2,
        "s = '''\n\n'''": 3,
        "if 1:\n\n    # inside\n    y = reduce(max, [1])": 4,
        "class A:\n    __metaclass__ = type\n    def next(self): return 1": 3,
        "import urllib2, os": 1,
        "exec 'pass' in {}": 1,
    }
    chosen = data.draw(st.lists(st.sampled_from(sorted(pieces)), min_size=count, max_size=count))
    text = "\n".join(chosen) + "\n1 / 0\n"
    with pytest.raises(ZeroDivisionError) as caught, contextlib.redirect_stdout(io.StringIO()):
        run(text)
    frames = [x for x in traceback.extract_tb(caught.tb) if x.filename == "program.py"]
    assert [x.lineno for x in frames] == [sum(pieces[piece] for piece in chosen) + 1]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("print 1\nx = (2\n", 2, "EOF in multi-line"),
        ("print 1\nif x\n  y\n", 2, "neither Python 2 nor 3: at its end"),
        ("print 1\nx = '\n", 2, "at '"),
        ("print 1\nif 1:\n    a\n  b\n", 4, "unindent"),
        ("print 1\nreturn = 1\n", 2, "at = 1"),
        ("x = 1\nfor x in 3 print\n", 2, "at print"),
        ("\0", 1, "at"),
    ],
)
def test_what_is_neither_python_is_a_syntax_error_with_its_line(text: str, line: int, message: str) -> None:
    with pytest.raises(SyntaxError, match="neither Python 2 nor 3") as caught:
        translate.compile_text(text, "program.py")
    assert (caught.value.filename, caught.value.lineno) == ("program.py", line) and message in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab1 \n\t()[]{}:=,.'\"%!?/\\#@$é\0printdeflambda"), max_size=40))
def test_any_text_is_code_or_a_syntax_error(text: str) -> None:
    try:
        translate.compile_text(text, "program.py")
    except (SyntaxError, ValueError) as error:
        assert isinstance(error, SyntaxError) or "null bytes" in str(error)


@pytest.mark.parametrize(
    ("cell", "expected", "skipped"),
    [
        ("    a = 1\n    if a:\n        b = 2", "a = 1\nif a:\n    b = 2", []),
        ("  a = 1\nb = 2", "a = 1\nb = 2", []),
        ("%matplotlib inline\nprint 1", "pass\nprint 1", [(1, "%matplotlib inline")]),
        ("x = 7 \\\n  % 4\ny = '''\n%cd\n!ls\n'''", "x = 7 \\\n  % 4\ny = '''\n%cd\n!ls\n'''", []),
        ("if 1:\n  !ls -l\nos.path?\nprint 1", "if 1:\n  pass\npass\nprint 1", [(2, "!ls -l"), (3, "os.path?")]),
        ("%%bash\nrm -r x", "\n", [(1, "%%bash")]),
        ("\n%%time\nx = 1", "\n\nx = 1", [(2, "%%time")]),
        ("", "", []),
    ],
)
def test_cells(cell: str, expected: str, skipped: list[tuple[int, str]]) -> None:
    told: list[tuple[int, str]] = []
    assert translate.without_magics(cell, "cell", lambda *what: told.append(what)).rstrip("\n") == expected.rstrip("\n")
    assert told == skipped


def test_the_translator_keeps_no_pickle(tmp_path: Path) -> None:
    """fissix would write its grammar into the person's cache, and read what lies there."""
    home = tmp_path / "home"
    code = "from opsin.v2 import translate\ntranslate.compile_text('print 1', 'x')\nimport fissix.pygram"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not home.exists()
