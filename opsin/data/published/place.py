"""Where a published data set lies: a folder as it unpacks, and in it perhaps its archives as they are.

The files of a set are named as its publisher names them, with "/". What is in no folder is looked for in the archives,
which are read in place. A name that comes out of a file is looked up only once `plain` has let it pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from opsin.data import tar
from opsin.data.index import FileSource, Source, absent, listed_but, printable, read
from opsin.errors import BadInput, DataError

if TYPE_CHECKING:
    from pathlib import Path

MAX_TEXT = 64 << 20
MAX_ROWS = 5_000_000
MAX_NAME = 1024


def plain(name: str) -> bool:
    """Whether a name is that of a file below a folder, and cannot be of any other."""
    return (
        0 < len(name) <= MAX_NAME
        and not any(part in ("", ".", "..") for part in name.split("/"))
        and not any(char in "\\\0" or "\ud800" <= char <= "\udfff" for char in name)
    )


class Place:
    """The files of one data set. archives: names of those to be looked into, where they are there. prefix: what comes
    before each name, with its "/"."""

    def __init__(self, folder: Path | str, archives: Sequence[str] = (), prefix: str = "") -> None:
        self.folder, self.prefix, self._archives = os.fspath(folder), prefix, archives

    def __str__(self) -> str:
        return self.label("").rstrip("/")

    def label(self, name: str) -> str:
        """How messages name a file."""
        return printable(os.path.join(self.folder, self.prefix, name))

    def below(self, prefix: str) -> Place:
        inner = Place(self.folder, self._archives, prefix)
        inner.members = self.members
        return inner

    @cached_property
    def members(self) -> list[tar.Members]:
        """The archives that are there."""
        paths = [os.path.join(self.folder, name) for name in self._archives]
        return [tar.Members(path) for path in paths if os.path.isfile(path)]

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, self.prefix, name)

    def _archive(self, name: str) -> tar.Members | None:
        return next((members for members in self.members if self.prefix + name in members), None)

    def has(self, name: str) -> bool:
        return os.path.isfile(self._path(name)) or self._archive(name) is not None

    def has_folder(self, name: str) -> bool:
        inside = self.prefix + name
        return os.path.isdir(self._path(name)) or any(members.has_folder(inside) for members in self.members)

    def read(self, name: str, max_bytes: int = MAX_TEXT) -> bytes:
        """The content of a file; `BadInput` when it is not there, or larger."""
        if not os.path.lexists(self._path(name)) and (members := self._archive(name)) is not None:
            return members.read(self.prefix + name, max_bytes)
        return read(self._path(name), max_bytes)

    def lacks(self, name: str) -> str:
        """Why there is no file of this name; "" when there is."""
        reason = absent(self._path(name))
        return "" if reason and self._archive(name) is not None else reason

    def listed_but(self, name: str, reason: str) -> BadInput:
        """The error for a file that is listed, and of which `lacks` gives a reason."""
        return listed_but(self._path(name), reason)

    def source(self, names: Sequence[str]) -> Source:
        """The pictures of these names, all of them there."""
        paths = [self._path(name) for name in names]
        if not self.members or all(os.path.isfile(path) for path in paths):
            return FileSource(paths)
        for members in self.members:
            if all(self.prefix + name in members for name in names):
                return members.source([self.prefix + name for name in names])
        raise DataError(f"{self}: the pictures are partly unpacked; expected all of them in folders, or in one archive")

    # -- lists ------------------------------------------------------------------------------------------------------

    def rows(self, name: str, columns: int, comment: str = "") -> Iterator[tuple[int, list[str]]]:
        """(number of the line, fields) of each line of a text file that is not empty; fields are divided by blanks, of
        which the last may hold some. comment: lines that begin with this are passed over."""
        try:
            text = self.read(name).decode()
        except UnicodeDecodeError as error:
            raise BadInput(self.label(name), f"is not UTF-8 at byte {error.start:,}") from error
        if "\0" in text:
            raise BadInput(self.label(name), "holds a zero byte; expected a text")
        for line, row in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
            fields = row.split(None, columns - 1)
            if not fields or (comment and row.startswith(comment)):
                continue
            if line > MAX_ROWS:
                raise BadInput(self.label(name), f"more than {MAX_ROWS:,} lines")
            if len(fields) < columns:
                raise BadInput(
                    self.label(name), f"line {line}: expected {columns} fields, received {len(fields)}: {row!r:.100}"
                )
            yield line, [field.strip() for field in fields]

    def table(self, name: str, columns: int) -> dict[int, list[str]]:
        """Number → the other fields, of a text file whose lines begin with a number of their own."""
        table: dict[int, list[str]] = {}
        for line, (first, *others) in self.rows(name, columns):
            number = self.number(name, line, first)
            if number in table:
                raise BadInput(self.label(name), f"line {line}: the number {number} is there before")
            table[number] = others
        return table

    def number(self, name: str, line: int, text: str) -> int:
        """A field that must be a whole number."""
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise BadInput(self.label(name), f"line {line}: expected a number, received {text!r:.40}")
        return int(text)
