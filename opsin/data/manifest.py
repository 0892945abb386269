"""Lists of pictures: `pictures.csv`, `.tsv`, and the `.txt` or `.lst` that ImageNet, Caffe and PaddlePaddle use.

CSV and TSV (RFC 4180, fields perhaps in double quotes). The first line may be a header, which then has at least the
columns `path` and `label`, in any order and among others; a column `labels` in place of `label` has the names of any
number of labels, divided by `|` (empty: the picture has none). A column `split` says train, val or test (and the other
names of `opsin.data.index.SPLIT_FOLDERS`). Without a header there are two columns, path and label.
Lists. A line is `path label`: divided at the last tab where there is one, else at the last run of blanks.

Paths are relative to the list's folder, or absolute; nothing is ever written to them. Text is UTF-8, with or without a
byte order mark. A label is the name of a class; when all labels are whole numbers, the classes are in their order,
else in plain sorted order. Empty lines are passed over. A row that cannot be used is an error that names its line.

A folder that holds train and val or test as such lists, all of one extension, is a data set too: the lists then say
what is in it.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from opsin.data.index import (
    SPLIT_FOLDERS,
    WHOLE,
    FileSource,
    Index,
    Parts,
    absent,
    listed_but,
    ordered,
    printable,
    read,
)
from opsin.errors import BadInput, DataError

TABLES = {".csv": ",", ".tsv": "\t"}
EXTENSIONS = (*TABLES, ".txt", ".lst")
MAX_BYTES = 256 << 20
MAX_ROWS = 5_000_000
MAX_PATH, MAX_LABEL = 4096, 200
MAX_CLASSES = 100_000
MAX_CELLS = 1 << 28  # pictures × classes of many labels, 4 bytes each
SHOWN = 5  # bad rows that a message names
HINT = "a first line that is a header must name the columns path and label"


class Row(NamedTuple):
    """What a line says. label: in its words. split: "train", "val", "test", or "" for none. problem: why it cannot be
    used; "" if it can. many: whether `label` is any number of names, divided by `|`."""

    line: int
    path: str
    label: str
    split: str = ""
    problem: str = ""
    many: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of its labels."""
        return tuple(filter(None, map(str.strip, self.label.split("|")))) if self.many else (self.label,)


def find(folder: Path | str) -> dict[str, str]:
    """Split → list, of a folder that holds train and val or test as lists of one extension; empty for any other."""
    for extension in EXTENSIONS:
        found = {
            split: os.path.join(folder, f"{name}{extension}")
            for name, split in SPLIT_FOLDERS.items()
            if os.path.isfile(os.path.join(folder, f"{name}{extension}"))
        }
        if "train" in found and len(found) > 1:
            return found
    return {}


def scan_parts(
    lists: Path | str | dict[str, str],
    *,
    on_bad_image: str = "error",
) -> Parts:
    """The parts of one list, by its column `split` or else as a whole, or of a list for each part, as `find` has them.

    Raises `BadInput` that names the list and the first lines that cannot be used. A picture that is not there, or is no
    regular file, is such a line, unless on_bad_image is "skip": then it is listed in `skipped`. No picture is opened.
    """
    files = lists if isinstance(lists, dict) else {"": os.fspath(lists)}
    keys: dict[str, list[str]] = {}
    paths: dict[str, list[str]] = {}
    labels: dict[str, list[tuple[str, ...]]] = {}
    forms: dict[bool, str] = {}  # whether many labels → the first list of that form
    bad: list[BadInput] = []
    seen: dict[str, tuple[str, int, str]] = {}  # path → list, line, label
    lost: dict[str, BadInput] = {}  # label → its first picture that is not there
    known: dict[tuple[str, ...], tuple[str, ...]] = {}  # each once in memory
    for part, file in files.items():
        name, folder = printable(file), os.path.dirname(os.path.abspath(file))
        problems, rows = [], 0
        for row in parse(read(file, MAX_BYTES), name, file):
            rows += 1
            forms.setdefault(row.many, name)
            path, problem = os.path.normpath(os.path.join(folder, row.path)), row.problem
            if not problem and path in seen:
                where, line, label = seen[path]
                at = f"line {line}" if where == name else f"line {line} of {where}"
                other = "" if label == row.label else f", there as {label!r}"
                problem = f"{row.path!r} is listed before, in {at}{other}"
            if not problem and (reason := absent(path)):
                if on_bad_image == "skip":
                    bad.append(listed_but(path, f"{reason} (line {row.line} of {name})"))
                    for label in row.names:
                        lost.setdefault(label, bad[-1])
                    continue
                problem = f"{row.path!r}: {reason}"
            if problem:
                problems.append((row, problem))
                continue
            names = known.setdefault(row.names, row.names)
            seen[path] = name, row.line, row.label
            split = part or row.split or WHOLE
            keys.setdefault(split, []).append(printable(os.path.normpath(row.path)))
            paths.setdefault(split, []).append(path)
            labels.setdefault(split, []).append(names)
        if problems:
            raise BadInput(name, _complaint(problems, rows, folder))
        if not rows:
            raise BadInput(name, "lists no pictures")
    here = {label for names in known for label in names}
    gone = [label for label in lost if label not in here]
    if gone:
        raise DataError(f"no picture is left in {', '.join(gone[:5])}; the first that is not there: {lost[gone[0]]}")
    if len(forms) > 1:
        raise BadInput(forms[True], f"has a column labels, where {forms[False]} has one label a picture")
    where = " and ".join(printable(file) for file in files.values())
    classes = _classes({split: [name for names in some for name in names] for split, some in labels.items()}, where)
    numbers = _many_numbers if True in forms else _numbers
    number = {label: i for i, label in enumerate(classes)}
    parts = {
        split: Index(keys[split], numbers(labels[split], number, where), classes, FileSource(paths[split]))
        for split in keys
    }
    first = next(iter(parts))
    parts[first] = Index(keys[first], parts[first].labels, classes, parts[first].source, skipped=tuple(bad))
    return ordered(parts)


def _numbers(labels: Sequence[tuple[str, ...]], number: dict[str, int], where: str) -> np.ndarray:
    """int64 [N] of the one label that each has."""
    return np.array([number[name] for (name,) in labels], dtype=np.int64)


def _many_numbers(labels: Sequence[tuple[str, ...]], number: dict[str, int], where: str) -> np.ndarray:
    """float32 [N, K], 1 for each label that a picture has and 0 for the others; `BadInput` where that is too large."""
    if len(labels) * len(number) > MAX_CELLS:
        raise BadInput(where, f"{len(labels):,} pictures by {len(number):,} labels; expected at most {MAX_CELLS:,}")
    table = np.zeros((len(labels), len(number)), dtype=np.float32)
    for row, names in enumerate(labels):
        table[row, [number[name] for name in names]] = 1
    return table


def _complaint(problems: Sequence[tuple[Row, str]], rows: int, folder: str) -> str:
    shown = "; ".join(f"line {row.line}: {problem}" for row, problem in problems[:SHOWN])
    more = f"; and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
    hint = f" ({HINT})" if problems[0][0].line == 1 else ""
    labels = [row.label for row, _ in problems[:SHOWN]]
    if all(label and not absent(os.path.join(folder, label)) for label in labels):
        hint = " (the labels are files: are the two columns the wrong way round?)"
    return f"{len(problems):,} of {rows:,} rows cannot be used: {shown}{more}{hint}"


def _classes(labels: dict[str, list[str]], where: str) -> tuple[str, ...]:
    """The names of the classes, in order. labels: of each part, as often as they occur. `BadInput` when they cannot be
    class names, or a part has classes of which train has no picture."""
    names, rows = {label for some in labels.values() for label in some}, sum(map(len, labels.values()))
    if not names:
        raise BadInput(where, "no picture has a label")
    if len(names) > MAX_CLASSES or (len(names) > 1000 and len(names) > 0.9 * rows):
        raise BadInput(
            where,
            f"{len(names):,} different labels in {rows:,} rows, such as {min(names)!r}: expected the names of at most "
            f"{MAX_CLASSES:,} classes, each of several pictures; is this the right column?",
        )
    for split in labels.keys() - {"train"}:
        extra = set(labels[split]) - set(labels["train"]) if "train" in labels else ()
        if extra:
            shown = ", ".join(sorted(extra)[:5])
            raise BadInput(where, f"{len(extra)} classes are only in the {split} part, not in train: {shown}")
    numbers = all(re.fullmatch(r"-?[0-9]{1,18}", name, re.ASCII) for name in names)
    return tuple(sorted(names, key=(lambda name: (int(name), name)) if numbers else None))


# ---------------------------------------------------------------------------------------------------------------------
# Lines
# ---------------------------------------------------------------------------------------------------------------------


def parse(data: bytes, name: str, file: str | os.PathLike[str] = "") -> Iterator[Row]:
    """The rows of a list; no file is looked at. file: tells by its extension how it is written (default: `name`).

    A row with a problem says so; `BadInput` for a file that has no rows to speak of: UTF-16, broken quotes, too many.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadInput(name, "is UTF-16; expected UTF-8: save it as that")
    # Bytes that are not UTF-8 become lone surrogates, so that each line with some can be named.
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    delimiter = TABLES.get(os.path.splitext(os.fspath(file) or name)[1].lower())
    for count, row in enumerate(_table(text, delimiter, name) if delimiter else _list(text), 1):
        if count > MAX_ROWS:
            raise BadInput(name, f"more than {MAX_ROWS:,} rows")
        yield row if row.problem else row._replace(problem=_problem(row))


def _problem(row: Row) -> str:
    if not row.path:
        return "no path"
    if not row.label and not row.many:
        return "no label"
    if len(set(row.names)) < len(row.names):
        return f"the same label twice in {row.label!r:.80}"
    if len(row.path) > MAX_PATH or any(len(name) > MAX_LABEL for name in row.names):
        return f"expected a path of at most {MAX_PATH} characters and a label of at most {MAX_LABEL}"
    if "\0" in row.path or "\0" in row.label:
        return "holds a zero byte"
    if re.search("[\ud800-\udfff]", row.path + row.label):
        return "is not UTF-8"
    return ""


def _list(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(" \t\r")
        if line:
            at = line.rfind("\t" if "\t" in line else " ")
            if at < 0:
                yield Row(number, line, "", problem="expected a path and a label, divided by a tab or blanks")
            else:
                yield Row(number, line[:at].rstrip(" \t"), line[at + 1 :].strip(" "))


def _table(text: str, delimiter: str, name: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    path, label, split, width, many = 0, 1, -1, 2, False
    line, first = 1, True
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise BadInput(name, f"line {line}: not {'CSV' if delimiter == ',' else 'TSV'}: {error}") from error
        if cells is None:
            return
        if not any(cells):
            continue
        if first:
            first = False
            header = [cell.strip().lower() for cell in cells]
            if "path" in header and ("label" in header or "labels" in header):
                twice = [column for column in ("path", "label", "labels", "split") if header.count(column) > 1]
                if twice:
                    raise BadInput(name, f"line {line}: the header names the column {twice[0]} twice")
                many = "labels" in header
                if many and "label" in header:
                    raise BadInput(name, f"line {line}: the header has the columns label and labels; expected one")
                path, label = header.index("path"), header.index("labels" if many else "label")
                width = len(header)
                split = header.index("split") if "split" in header else -1
                continue
        if len(cells) != width:
            few = f"path{delimiter}label" if width == 2 else "as the header has"
            yield Row(line, "", "", problem=f"expected {width} fields ({few}), received {len(cells)}")
            continue
        part = SPLIT_FOLDERS.get(cells[split].strip().lower(), "") if split >= 0 else ""
        wrong = f"split: expected train, val or test, received {cells[split]!r:.80}" if split >= 0 and not part else ""
        yield Row(line, cells[path], cells[label].strip(), part, wrong, many)
