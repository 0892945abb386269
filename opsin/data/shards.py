"""Packed pictures: shards, as WebDataset lays them out, and arrays; `opsin.data.pack` writes both.

    classes.txt                     a name a line, the first of number 0; where there is none, classes what .cls say
    train-000000.tar, …             members KEY.jpg, or another picture, and KEY.cls: the number or name of its class
    train.npy                       uint8 [N, C, H, W]
    train.labels.npy                int64 [N], or float32 [N, K] where a picture may have many labels
    train.keys.txt                  a name a line
    pack.json                       how it was made, and of how many pictures

Shards are read by offset: any picture in any order, so that a training shuffles, stops and goes on as with files.
Arrays are mapped into memory. The part of a shard is the word train, val or test in its name; without one, there are no
parts. KEY ends at the first dot of a file's name. What has another extension is passed over, but KEY.labels, in place
of KEY.cls, lists the numbers of many labels, those not known after a question mark: "3 17 ?5".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from opsin.data import tar
from opsin.data.index import (
    EXTENSIONS,
    SPLIT_FOLDERS,
    WHOLE,
    ArraySource,
    Index,
    Names,
    Parts,
    ordered,
    printable,
    read,
)
from opsin.errors import BadInput, DataError, StorageError
from opsin.storage import read_json

CLASSES, NOTE = "classes.txt", "pack.json"
MAX_CLASSES = 100_000
MAX_LABEL = 1 << 12  # bytes of a .cls
MAX_LABELS = 1 << 16  # bytes of a .labels
MAX_TEXT = 1 << 30
CLASS, MANY = "cls", "labels"


def found(folder: str) -> bool:
    """Whether it holds tars or our arrays, and no folders."""
    with os.scandir(folder) as entries:
        listed = [entry for entry in entries if not entry.name.startswith(".")]
    names = {entry.name for entry in listed}
    packed = NOTE in names or any(name.lower().endswith(".tar") for name in names)
    return packed and not any(entry.is_dir() for entry in listed)


def read_parts(folder: str, *, on_bad_image: str = "error") -> Parts:
    """The parts of a folder of shards or arrays; no picture is decoded. `BadInput` names the shard and the member that
    is malformed, whatever on_bad_image says: a label that cannot be read is no picture's fault."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    classes = _lines(os.path.join(folder, CLASSES)) if CLASSES in names else None
    if classes is not None and (len(set(classes)) < len(classes) or not all(classes)):
        raise BadInput(printable(os.path.join(folder, CLASSES)), "expected a name a line, each of them once")
    shards = _by_part(folder, [name for name in names if name.lower().endswith(".tar")])
    if shards:
        parts = _tars(folder, shards, classes)
    else:
        arrays = [name.removesuffix(".labels.npy") for name in names if name.endswith(".labels.npy")]
        if not arrays or classes is None:
            raise DataError(f"{printable(folder)}: expected shards (*.tar), or PART.npy, PART.labels.npy and {CLASSES}")
        parts = {part: _arrays(os.path.join(folder, part), classes) for part in arrays}
    if NOTE in names:
        _compare(os.path.join(folder, NOTE), parts)
    return ordered(parts)


def _lines(path: str) -> tuple[str, ...]:
    try:
        text = read(path, MAX_TEXT).decode()
    except UnicodeDecodeError as error:
        raise BadInput(printable(path), f"is not UTF-8 at byte {error.start:,}") from error
    return tuple(line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")) if text else ()


def _compare(path: str, parts: Parts) -> None:
    """That all is there that was packed."""
    try:
        listed = read_json(read(path), printable(path))["pictures"]
        expected = {str(part): int(count) for part, count in listed.items()}
    except (StorageError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(printable(path), f"cannot be read: {error}") from error
    if (here := {part: len(index) for part, index in parts.items()}) != expected:
        raise BadInput(printable(path), f"lists {expected} pictures, but there are {here}: some file is missing")


# ---------------------------------------------------------------------------------------------------------------------
# Tars
# ---------------------------------------------------------------------------------------------------------------------


def _by_part(folder: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Part → its shards."""
    parts: dict[str, list[str]] = {}
    for name in names:
        words = [SPLIT_FOLDERS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_FOLDERS]
        parts.setdefault(words[0] if len(words) == 1 else WHOLE, []).append(os.path.join(folder, name))
    if WHOLE in parts and len(parts) > 1:
        raise DataError(
            f"{printable(folder)}: expected train, val or test in the name of each shard, or of none; "
            f"{printable(parts[WHOLE][0])} says no part"
        )
    return parts


class _Shards:
    """What the shards of one part hold: one row for each picture."""

    def __init__(self) -> None:
        self.archives: list[tar.Archive] = []
        self.names: list[str] = []
        self.keys: list[str] = []
        self.places: list[tuple[int, int, int]] = []
        self.labels: list[str] = []
        self.many = set[bool]()  # whether the labels are those of .labels

    def add(self, path: str) -> None:
        archive = tar.Archive(path, keep_open=False)
        stem = printable(os.path.basename(path)).rpartition(".")[0]
        pictures: dict[str, tuple[str, int, int]] = {}
        labels: dict[str, tuple[str, int, int]] = {}
        for name, offset, size in tar.plain_files(archive):
            above, slash, file = name.removeprefix("./").rpartition("/")
            key, _, extension = file.partition(".")
            extension = extension.lower()
            if not key:  # hidden
                continue
            table = pictures if f".{extension}" in EXTENSIONS else labels if extension in (CLASS, MANY) else None
            if table is None:
                continue
            if (key := above + slash + key) in table:
                what = "picture" if table is pictures else "label"
                raise BadInput(archive.name, f"{printable(key)} has more than one {what}")
            table[key] = name, offset, size
        if lone := next((key for key in pictures if key not in labels), None):
            raise BadInput(archive.name, f"{printable(lone)} has a picture but no {CLASS} (nor {MANY}) member")
        if lone := next((key for key in labels if key not in pictures), None):
            raise BadInput(archive.name, f"{printable(lone)} has a label but no picture")
        number = len(self.archives)
        self.archives.append(archive)
        for key, (name, offset, size) in pictures.items():
            label, at, length = labels[key]
            many = label.lower().endswith(MANY)
            if length > (most := MAX_LABELS if many else MAX_LABEL):
                raise BadInput(f"{archive.name}/{printable(label)}", f"{length:,} bytes; expected at most {most:,}")
            try:
                text = archive.read(at, length).decode().strip()
            except UnicodeDecodeError as error:
                raise BadInput(f"{archive.name}/{printable(label)}", "is not UTF-8; expected a class") from error
            self.many.add(many)
            self.labels.append(text)
            self.names.append(printable(name))
            self.keys.append(f"{stem}/{printable(key)}")
            self.places.append((number, offset, size))

    def index(self, classes: tuple[str, ...], numbers: Mapping[str, int]) -> Index:
        many = True in self.many
        labels = (
            np.zeros((len(self.labels), len(classes)), np.float32) if many else np.zeros(len(self.labels), np.int64)
        )
        for row, text in enumerate(self.labels):
            if not many:
                labels[row] = self._number(row, text, numbers)
                continue
            for word in text.split():
                labels[row, self._number(row, word.removeprefix("?"), numbers)] = -1 if word[0] == "?" else 1
        places = np.array(self.places, dtype=np.int64).reshape(-1, 3)
        return Index(Names(self.keys), labels, classes, tar.TarSource(tuple(self.archives), Names(self.names), places))

    def _number(self, row: int, text: str, numbers: Mapping[str, int]) -> int:
        if text not in numbers:
            where = f"{self.archives[self.places[row][0]].name}/{self.names[row]}"
            most = max(numbers.values()) + 1
            raise BadInput(where, f"its class is {text!r:.60}; expected a number below {most} or a name")
        return numbers[text]


def _tars(folder: str, shards: Mapping[str, Sequence[str]], classes: tuple[str, ...] | None) -> Parts:
    tables: dict[str, _Shards] = {}
    for part, paths in shards.items():
        tables[part] = _Shards()
        for path in paths:
            tables[part].add(path)
        if not tables[part].keys:
            raise DataError(f"{printable(folder)}: no pictures with a {CLASS} member in the shards of {part}")
    if len(set().union(*(table.many for table in tables.values()))) > 1:
        raise DataError(f"{printable(folder)}: some pictures have .{CLASS} and others .{MANY}; expected one of these")
    if classes is None:
        said = set().union(*(table.labels for table in tables.values()))
        if True in next(iter(tables.values())).many:
            raise DataError(f"{printable(folder)}: pictures with .{MANY} need {CLASSES}")
        classes = _sorted(said)
        numbers = {name: number for number, name in enumerate(classes)}
    else:
        numbers = {name: number for number, name in enumerate(classes)}
        numbers |= {str(number): number for number in range(len(classes))}
    if not 0 < len(classes) <= MAX_CLASSES:
        raise DataError(f"{printable(folder)}: {len(classes):,} classes; expected 1 to {MAX_CLASSES:,}")
    return {part: table.index(classes, numbers) for part, table in tables.items()}


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    """Numbers by their value, other names in plain order."""
    return tuple(sorted(names, key=lambda name: (len(name), name) if name.isdecimal() else (1 << 30, name)))


# ---------------------------------------------------------------------------------------------------------------------
# Arrays
# ---------------------------------------------------------------------------------------------------------------------


def _arrays(stem: str, classes: tuple[str, ...]) -> Index:
    images, labels = _array(f"{stem}.npy", map_it=True), _array(f"{stem}.labels.npy")
    name = printable(f"{stem}.npy")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise BadInput(name, f"expected uint8 [N, 1 or 3, H, W], received {images.dtype} {list(images.shape)}")
    one = labels.dtype == np.int64 and labels.shape == (len(images),)
    many = labels.dtype == np.float32 and labels.shape == (len(images), len(classes))
    if not (one or many) or (one and not ((labels >= 0) & (labels < len(classes))).all()):
        raise BadInput(
            printable(f"{stem}.labels.npy"),
            f"expected int64 [{len(images)}] below {len(classes)} or float32 [{len(images)}, {len(classes)}], "
            f"received {labels.dtype} {list(labels.shape)}",
        )
    if many and not np.isin(labels, (-1, 0, 1)).all():
        raise BadInput(printable(f"{stem}.labels.npy"), "expected 1, 0 and -1 only")
    keys = _lines(f"{stem}.keys.txt")
    if len(keys) != len(images):
        raise BadInput(printable(f"{stem}.keys.txt"), f"{len(keys):,} names for {len(images):,} pictures")
    return Index(Names(keys), labels, classes, ArraySource(images))


def _array(path: str, map_it: bool = False) -> np.ndarray[Any, Any]:
    """An array as NumPy writes it; of objects, it is refused."""
    try:
        return np.load(path, mmap_mode="r" if map_it else None, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise BadInput(printable(path), f"cannot be read: {error}") from error
