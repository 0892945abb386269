"""Run an unmodified program of 2017: `python -m opsin.v2 [--python3] PROGRAM.py|NOTEBOOK.ipynb [arguments …]`.

`paddle.v2` is importable then, and Python 2 is translated in memory (`opsin.v2.translate`): the program, and whatever
it imports from its own folder or from folders that it puts on sys.path. A notebook runs cell by cell. Nothing on disk
is touched; no bytecode is written for the program.
"""

from __future__ import annotations

import argparse
import json
import linecache
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import decode_source, spec_from_file_location
from types import CodeType, ModuleType
from typing import Any

from opsin.data import index
from opsin.errors import BadInput, OpsinError, UsageError
from opsin.v2 import translate

MAX_NOTEBOOK = 1 << 28  # bytes; its outputs hold pictures


class Loader(SourceFileLoader):
    """Loads a file of the program, translated. python3: no translation; None to look at each text."""

    def __init__(self, fullname: str, path: str, python3: bool | None = None) -> None:
        super().__init__(fullname, path)
        self.python3 = python3

    def get_code(self, fullname: str) -> CodeType:
        text = decode_source(self.get_data(self.path))
        return translate.compile_text(text, self.path, python3=self.python3)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__.update(translate.HELPERS)
        super().exec_module(module)


class NotebookLoader(Loader):
    """Runs the code cells of a notebook, one after the other, in one module."""

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__.update(translate.HELPERS)
        cells = read_notebook(self.path)
        names = [f"{self.path}, code cell {number}" for number in range(1, len(cells) + 1)]
        for i, name in enumerate(names):
            cells[i] = translate.without_magics(cells[i], name, lambda line, text, name=name: _skip(name, line, text))
            linecache.cache[name] = len(cells[i]), None, cells[i].splitlines(keepends=True), name
        python3 = translate.all_python3(cells) if self.python3 is None else self.python3
        future: frozenset[str] = frozenset()
        for name, cell in zip(names, cells, strict=True):
            future |= translate.future_features(cell)
            exec(translate.compile_text(cell, name, python3=python3, future=future), module.__dict__)


def _skip(name: str, line: int, text: str) -> None:
    sys.stderr.write(f"{name}, line {line}: skipped, only IPython understands it: {text}\n")


def read_notebook(path: str) -> list[str]:
    """The texts of the code cells of a notebook (nbformat 4)."""
    try:
        notebook = json.loads(index.read(path, MAX_NOTEBOOK))
        sources = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
        return [source if isinstance(source, str) else "".join(source) for source in sources]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(path, f"not a Jupyter notebook of format 4: {type(error).__name__}: {error}") from error


class Finder(MetaPathFinder):
    """Finds the modules of the program: in its own folder, and where it adds to sys.path. before: sys.path without."""

    def __init__(self, folder: str, before: Sequence[str], python3: bool | None) -> None:
        self.folder, self.before, self.python3 = folder, frozenset(before), python3

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if path is None:
            path = [place for place in sys.path if place == self.folder or place not in self.before]
        elif not isinstance(getattr(sys.modules.get(fullname.rpartition(".")[0]), "__loader__", None), Loader):
            return None  # part of a package that is not the program's
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None or type(spec.loader) is not SourceFileLoader:
            return None
        loader = Loader(fullname, spec.origin, self.python3)
        inside = spec.submodule_search_locations
        return spec_from_file_location(fullname, spec.origin, loader=loader, submodule_search_locations=inside)


def prepare(program: str, arguments: Sequence[str] = (), python3: bool | None = None) -> tuple[Loader, ModuleType]:
    """Set this process up for a program: the names it imports, sys.path, sys.argv and `__main__`.

    Returns the module `__main__`, and the loader whose `exec_module` runs the program in it.
    """
    if not os.path.isfile(program):
        raise UsageError(f"{program}: no such file; expected a program (.py) or a notebook (.ipynb)")
    from opsin.v2 import aliases  # with torch and all

    folder = os.path.dirname(os.path.realpath(program))
    kind = NotebookLoader if program.endswith(".ipynb") else Loader
    loader, main = kind("__main__", program, python3), ModuleType("__main__")
    main.__file__, main.__loader__ = program, loader
    aliases.install()
    aliases.restore()
    if sys.path and sys.path[0] in ("", os.getcwd()):  # put there by `python -m`; a program finds its folder there
        del sys.path[0]
    sys.meta_path.insert(sys.meta_path.index(PathFinder), Finder(folder, sys.path, python3))
    sys.path.insert(0, folder)
    sys.argv[:] = [program, *arguments]
    sys.modules["__main__"] = main
    return loader, main


def report(error: BaseException) -> str:
    """The traceback of a program's error, without the frames of this file and of the import system."""
    shown = traceback.TracebackException.from_exception(error)
    waiting, ours = [shown], (__file__, translate.__file__)
    while waiting:
        part = waiting.pop()
        frames = [x for x in part.stack if x.filename not in ours and not x.filename.startswith("<frozen ")]
        part.stack = traceback.StackSummary.from_list(frames)
        waiting += [other for other in (part.__cause__, part.__context__) if other]
    return "".join(shown.format() if shown.stack else shown.format_exception_only())


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 1 after the traceback of an exception; the code of an error of opsin."""
    parser = argparse.ArgumentParser(prog="python -m opsin.v2", description="Run a program written for paddle.v2.")
    parser.add_argument("--python3", action="store_true", help="the program is Python 3: do not translate it")
    parser.add_argument("program", help="a Python file or a notebook (.ipynb)")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the program finds in sys.argv")
    given = parser.parse_args(arguments)
    log = logging.getLogger("paddle")
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)
    try:
        loader, module = prepare(given.program, given.arguments, given.python3 or None)
        loader.exec_module(module)
    except (Exception, KeyboardInterrupt) as error:
        sys.stdout.flush()
        sys.stderr.write(report(error))
        if isinstance(error, KeyboardInterrupt):
            return 130
        return error.exit_code if isinstance(error, OpsinError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
