"""What a data set holds: names, labels, classes, and where the pixels come from.

Folders. Either class folders, `FOLDER/cat/001.jpg`, or those below `train/`, `val/` and `test/`. A class is a folder
that is not hidden; classes are in plain sorted order of their names, so they do not depend on the language settings.
Below a class folder any depth is its pictures. Which files count:
  hidden (name begins with a dot)           passed over, as are the likes of Thumbs.db
  extension of a picture (`EXTENSIONS`)     a picture; its format is told by its content when it is decoded
  other regular files                       not used, but listed in `Index.ignored`
  anything else with a name (pipes, sockets, devices, dangling links)  never opened; a bad picture, named as such
Links to files and folders are followed; a folder that contains itself is an error.
"""

from __future__ import annotations

import math
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from opsin.data.checked import Checked, Found
from opsin.data.decode import decode, format_of
from opsin.data.rng import order
from opsin.data.sandbox import Decoders
from opsin.errors import Absent, BadInput, DataError, DecoderStopped, UsageError

if TYPE_CHECKING:
    from torch import Tensor

EXTENSIONS = frozenset(
    f".{name}"
    for names in ("jpg jpeg jpe jfif", "png apng gif webp bmp dib", "tif tiff", "ppm pgm pbm pnm")
    for name in names.split()
)
CLUTTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MAX_FILE_BYTES = 1 << 29
CHECKERS = max(2, min(8, os.cpu_count() or 2))  # decode workers that check a data set


class Source(Protocol):
    """Where the pixels of an index come from. Safe to use from several threads."""

    def image(self, i: int, min_size: tuple[int, int] | None = None) -> Tensor:
        """Picture number i as uint8 [c, h, w], c 1 or 3; `BadInput` when it cannot be read."""
        ...

    def data(self, i: int) -> bytes:
        """The file of picture number i as it is; `BadInput` when it cannot be read. Arrays have none."""
        ...

    def name(self, i: int) -> str:
        """How messages name picture number i."""
        ...

    def subset(self, indices: np.ndarray) -> Source: ...


@runtime_checkable
class InFiles(Protocol):
    """A source whose pictures are files on disk, or parts of such."""

    def file(self, i: int) -> tuple[str, str]:
        """The path of the file, and what of it is picture number i, "" for all of it."""
        ...

    def name(self, i: int) -> str: ...


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Pictures that are all of one size: uint8 [N, C, H, W] in memory, or mapped from a file. rows: int64, those of a
    mapped file that count; None: all."""

    images: np.ndarray
    rows: np.ndarray | None = None

    def image(self, i: int, min_size: tuple[int, int] | None = None) -> Tensor:
        return torch.from_numpy(np.array(self.images[i if self.rows is None else self.rows[i]]))

    def copy(self) -> np.ndarray:
        """All of them, in memory."""
        return np.array(self.images if self.rows is None else self.images[self.rows])

    def data(self, i: int) -> bytes:
        raise NotImplementedError("pictures in an array have no files")

    def name(self, i: int) -> str:
        return f"picture {i}"

    def subset(self, indices: np.ndarray) -> ArraySource:
        if isinstance(self.images, np.memmap):
            return ArraySource(self.images, indices if self.rows is None else self.rows[indices])
        return ArraySource(self.images[indices])


@dataclass(frozen=True)
class FileSource:
    """Picture files, decoded each time they are asked for."""

    paths: Sequence[str]

    def image(self, i: int, min_size: tuple[int, int] | None = None) -> Tensor:
        return decode(self.data(i), self.name(i), min_size=min_size)

    def data(self, i: int) -> bytes:
        return read(self.paths[i])

    def file(self, i: int) -> tuple[str, str]:
        return self.paths[i], ""

    def name(self, i: int) -> str:
        return printable(self.paths[i])

    def subset(self, indices: np.ndarray) -> FileSource:
        return FileSource(pick(self.paths, indices))


@dataclass(frozen=True, eq=False)
class BoxSource:
    """The parts of pictures that lie in their boxes. boxes: float64 [N, 4], x, y, width and height in pixels."""

    source: Source
    boxes: np.ndarray

    def image(self, i: int, min_size: tuple[int, int] | None = None) -> Tensor:
        image = self.source.image(i)  # at full size: the box is in its pixels
        x, y, width, height = self.boxes[i].tolist()
        left, top = max(0, math.floor(x)), max(0, math.floor(y))
        part = image[:, top : max(0, math.ceil(y + height)), left : max(0, math.ceil(x + width))]
        if not part.numel():
            size = f"{image.shape[1]}×{image.shape[2]}"
            raise BadInput(self.name(i), f"its box {[x, y, width, height]} lies outside the picture of {size}")
        return part.contiguous()

    def data(self, i: int) -> bytes:
        return self.source.data(i)

    def name(self, i: int) -> str:
        return self.source.name(i)

    def subset(self, indices: np.ndarray) -> BoxSource:
        return BoxSource(self.source.subset(indices), self.boxes[indices])


@dataclass(frozen=True, eq=False)
class Index:
    """N pictures. labels: int64 [N], places in `classes`; or, where a picture may have many labels, float32 [N, K] of
    1 (it is there), 0 (it is not) and -1 (not known: neither learnt from nor counted). skipped: bad pictures left out
    on request; ignored: files that were not taken for pictures; notes: what else a person should be told."""

    keys: Sequence[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    source: Source
    skipped: tuple[BadInput, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def many_labels(self) -> bool:
        """Whether a picture may have any number of labels."""
        return self.labels.ndim == 2

    def counts(self) -> np.ndarray:
        """How many pictures have each label, int64 [K]."""
        if self.many_labels:
            return (self.labels == 1).sum(0)
        return np.bincount(self.labels, minlength=len(self.classes))

    def image(self, i: int, min_size: tuple[int, int] | None = None) -> Tensor:
        """Picture number i, uint8 [c, h, w], c 1 or 3. min_size: see `opsin.data.decode.decode`."""
        return self.source.image(i, min_size)

    def named(self, i: int) -> tuple[str, ...]:
        """The names of the classes that picture number i is known to have."""
        if self.many_labels:
            return tuple(self.classes[k] for k in np.flatnonzero(self.labels[i] == 1))
        return (self.classes[int(self.labels[i])],)

    def file(self, i: int) -> str:
        """The path of picture number i where it is a file of its own, else ""."""
        source = self.source.source if isinstance(self.source, BoxSource) else self.source
        path, part = source.file(i) if isinstance(source, InFiles) else ("", "")
        return "" if part else path

    def subset(self, indices: Iterable[int] | np.ndarray) -> Index:
        """These pictures, in this order; classes stay the same."""
        chosen = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices), dtype=np.int64)
        keys = pick(self.keys, chosen)
        return replace(self, keys=keys, labels=self.labels[chosen], source=self.source.subset(chosen))


Splits = dict[str, Index]  # "train", "test" and perhaps "val"
Parts = dict[str, Index]  # "train", "val" and "test", or some of these; or `WHOLE` alone, when there are no parts
WHOLE = "all"


class Names(Sequence[str]):
    """Many names in the memory of their letters: one text, and where each begins and ends."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode() for name in names]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._starts = self._ends - np.array([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return self.take(np.arange(len(self))[i])
        return self._text[self._starts[i] : self._ends[i]].decode()

    @classmethod
    def joined(cls, parts: Sequence[Names]) -> Names:
        """All of the names of all of these, in their order. Each must hold all of its text in its order."""
        whole = cls(())
        whole._text = b"".join(part._text for part in parts)
        before = np.cumsum([0, *(len(part._text) for part in parts)])
        for field in ("_starts", "_ends"):
            moved = [getattr(part, field) + start for part, start in zip(parts, before.tolist(), strict=False)]
            setattr(whole, field, np.concatenate([np.zeros(0, np.int64), *moved]))
        return whole

    def take(self, places: np.ndarray) -> Names:
        """These names, in this order; the text is shared."""
        chosen = Names(())
        chosen._text, chosen._starts, chosen._ends = self._text, self._starts[places], self._ends[places]
        return chosen


def pick(names: Sequence[str], places: np.ndarray) -> Sequence[str]:
    """The names of these places, in their order."""
    return names.take(places) if isinstance(names, Names) else [names[int(i)] for i in places]


def printable(name: str | os.PathLike[str]) -> str:
    """A file name that any output can hold: bytes that are not UTF-8 are written as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read(path: str | os.PathLike[str], max_bytes: int | None = None) -> bytes:
    """The bytes of a regular file; `BadInput` for anything else, also if it only now became something else, and for
    one of more than `max_bytes` (by default `MAX_FILE_BYTES`)."""
    name, most = printable(path), MAX_FILE_BYTES if max_bytes is None else max_bytes
    try:
        # Without O_NONBLOCK, opening a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadInput(name, f"{kind_of_file(status.st_mode)}, not a regular file")
            if status.st_size > most:
                raise BadInput(name, f"{status.st_size:,} bytes; expected at most {most:,}")
            data = file.read(most + 1)  # it may have grown since
            if len(data) > most:
                raise BadInput(name, f"more than {most:,} bytes; expected at most so many")
            return data
    except OSError as error:
        raise BadInput(name, f"cannot be read: {error.strerror or error}") from error


def absent(path: str) -> str:
    """Why there is no regular file at `path`; "" when there is."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        return str(getattr(error, "strerror", error))
    return "" if stat.S_ISREG(mode) else f"{kind_of_file(mode)}, not a regular file"


def listed_but(path: str, reason: str) -> BadInput:
    """The error for a file that is listed and cannot be used, for a `reason` that `absent` gave."""
    return (BadInput if os.path.lexists(path) else Absent)(printable(path), reason)


def kind_of_file(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
        stat.S_IFDIR: "a folder",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")


# ---------------------------------------------------------------------------------------------------------------------
# Folders of class folders
# ---------------------------------------------------------------------------------------------------------------------


def scan(folder: Path | str, *, on_bad_image: str = "error", prefix: str = "") -> Index:
    """The pictures of a folder of class folders, sorted by class and path; nothing is opened.

    on_bad_image: what a pipe, a socket, a device or a dangling link does: "error" raises `BadInput`, "skip" lists it in
    `skipped`. Keys are paths relative to the folder, after `prefix`. Raises `DataError` for a folder without class
    folders, and names the class folders without pictures.
    """
    root = os.fspath(folder)
    folders, files, _ = _listing(root)
    bad: list[BadInput] = []
    ignored = [printable(os.path.join(root, name)) for name in files]
    below = len(os.path.join(root, ""))
    return gather(
        printable(root),
        folders,
        lambda name: [path[below:] for path in _pictures(os.path.join(root, name), bad, ignored)],
        lambda names: FileSource([os.path.join(root, name) for name in names]),
        bad,
        ignored,
        on_bad_image=on_bad_image,
        prefix=prefix,
    )


def gather(
    where: str,
    folders: Sequence[str],
    pictures: Callable[[str], list[str]],
    source: Callable[[list[str]], Source],
    bad: list[BadInput],
    ignored: list[str],
    *,
    on_bad_image: str,
    prefix: str,
) -> Index:
    """The index of class folders wherever they are: `scan` for folders on disk, `opsin.data.tar` for those in a tar.

    folders: their names, sorted. pictures: class folder → sorted names of its pictures, from that folder's name on; it
    adds to `bad` and `ignored`. source: where the pixels of these names come from.
    """
    if not folders:
        raise DataError(
            f"{where}: expected class folders (as in FOLDER/cat/001.jpg) or train/, val/ and test/ of class "
            f"folders, found {f'{len(ignored)} files' if ignored else 'nothing'}"
        )
    names: list[str] = []
    labels: list[int] = []
    empty = []
    for label, folder in enumerate(folders):
        found = pictures(folder)
        names += found
        labels += [label] * len(found)
        if not found:
            empty.append(printable(folder))
    if bad and on_bad_image != "skip":
        raise first_of(bad)
    if empty:
        raise DataError(
            f"{where}: no pictures in the class folder{'s' * (len(empty) > 1)} {', '.join(empty)}: "
            "put some in or remove it"
        )
    classes = tuple(printable(folder) for folder in folders)
    if len(set(classes)) < len(classes):
        raise DataError(f"{where}: two class folders have the same name once written as UTF-8")
    keys = [prefix + printable(name).replace(os.sep, "/") for name in names]
    return Index(keys, np.array(labels, dtype=np.int64), classes, source(names), tuple(bad), tuple(ignored))


class _Listing(NamedTuple):
    folders: list[str]
    others: list[str]
    links: set[str]  # those of the others that the system does not list as regular files


def _listing(folder: str) -> _Listing:
    """Sorted names of the folders and of the other things in `folder`, without the hidden ones. The system lists what
    kind each is, so that only links cost a question of their own."""
    folders, others, links = list[str](), list[str](), set[str]()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or name.lower() in CLUTTER:
                    continue
                if entry.is_file(follow_symlinks=False):
                    others.append(name)
                elif os.path.isdir(entry.path):
                    folders.append(name)
                else:
                    others.append(name)
                    links.add(name)
    except OSError as error:
        raise DataError(f"{printable(folder)}: cannot be listed: {error.strerror or error}") from error
    return _Listing(sorted(folders), sorted(others), links)


def scan_any(folder: Path | str, *, on_bad_image: str = "error") -> Parts:
    """As `scan_parts`; or, where pictures lie beside the class folders or there are none, all pictures of the folder
    at any depth, of no class: labels [N, 0]. For what only looks at pictures; `DataError` where there is none."""
    root = os.fspath(folder)
    loose = any(os.path.splitext(name)[1].lower() in EXTENSIONS for name in _listing(root).others)
    if not loose:
        try:
            return scan_parts(root, on_bad_image=on_bad_image)
        except BadInput:
            raise
        except DataError:  # such as a class folder without pictures
            pass
    bad, ignored, below = list[BadInput](), list[str](), len(os.path.join(root, ""))
    paths = _pictures(root, bad, ignored)
    if bad and on_bad_image != "skip":
        raise first_of(bad)
    if not paths:
        found = f"; the first that cannot be used: {bad[0]}" if bad else f"; looked for {', '.join(sorted(EXTENSIONS))}"
        raise DataError(f"{printable(root)}: no pictures in this folder{found}")
    keys = [printable(path[below:]) for path in paths]
    return {WHOLE: Index(keys, np.zeros((len(keys), 0), np.float32), (), FileSource(paths), tuple(bad), tuple(ignored))}


def _pictures(folder: str, bad: list[BadInput], ignored: list[str]) -> list[str]:
    """Sorted paths of the pictures in `folder` and below; what is none goes to `bad` or `ignored`."""
    pictures: list[str] = []
    waiting: list[tuple[str, tuple[str, ...]]] = [(folder, ())]
    while waiting:
        folder, above = waiting.pop()
        here = os.path.realpath(folder)
        if here in above:
            raise DataError(f"{printable(folder)}: a link to a folder that contains it; remove the link")
        folders, files, links = _listing(folder)
        waiting += [(os.path.join(folder, name), (*above, here)) for name in folders]
        for name in files:
            path = os.path.join(folder, name)
            if name in links:
                try:
                    mode = os.stat(path).st_mode
                except OSError as error:
                    bad.append(BadInput(printable(path), f"cannot be read: {error.strerror or error}"))
                    continue
                if not stat.S_ISREG(mode):
                    bad.append(BadInput(printable(path), f"{kind_of_file(mode)}, not a regular file"))
                    continue
            if os.path.splitext(name)[1].lower() in EXTENSIONS:
                pictures.append(path)
            else:
                ignored.append(printable(path))
    return sorted(pictures)


def split_folders(folder: Path | str) -> dict[str, str]:
    """Folder name → split, of a folder that has train/ and val/ or test/ of class folders; empty for any other."""
    root = os.fspath(folder)
    return named_splits(_listing(root).folders, lambda name: bool(_listing(os.path.join(root, name)).folders))


def named_splits(names: Sequence[str], has_folders: Callable[[str], bool]) -> dict[str, str]:
    """`split_folders` of folders of these names, wherever they are."""
    parts = {name: SPLIT_FOLDERS[name.lower()] for name in names if name.lower() in SPLIT_FOLDERS}
    training = next((name for name, split in parts.items() if split == "train"), None)
    return parts if training is not None and len(parts) > 1 and has_folders(training) else {}


def in_splits(parts: Parts, where: str, seed: int) -> Splits:
    """What a training needs, "train" and "test": the parts that there are, or 80/10/10 of a whole."""
    if WHOLE in parts:
        return split_stratified(parts[WHOLE], {"train": 0.8, "val": 0.1, "test": 0.1}, seed)
    lacking = [name for name in ("train", "test") if name not in parts]
    if lacking:
        raise DataError(f"{where}: to train on it, {' and '.join(lacking)} pictures are needed; it has {[*parts]}")
    return parts


def scan_parts(folder: Path | str, *, on_bad_image: str = "error") -> Parts:
    """The parts of a folder: its train/, val/ and test/, or `WHOLE`; no picture is opened.

    The names in `SPLIT_FOLDERS` are known, in capitals too. A folder counts as split when train/ and one of the others
    are there; then nothing else may be. With train/ and val/ but no test/, as ImageNet is laid out, val/ is what the
    report is about: it is the "test" split. on_bad_image: see `scan`.
    """
    root = os.fspath(folder)

    def part(name: str) -> Index:
        if not name:
            return scan(root, on_bad_image=on_bad_image)
        return scan(os.path.join(root, name), on_bad_image=on_bad_image, prefix=f"{name}/")

    return join_parts(printable(root), _listing(root).folders, split_folders(root), part)


def join_parts(where: str, names: Sequence[str], parts: Mapping[str, str], part: Callable[[str], Index]) -> Parts:
    """The parts of folders of these names. parts: as `split_folders` gives it. part: folder → its index, "" → all."""
    if not parts:
        return {WHOLE: part("")}
    others = [name for name in names if name not in parts]
    if others:
        raise DataError(
            f"{where}: holds {', '.join(f'{name}/' for name in parts)} and also "
            f"{', '.join(f'{printable(name)}/' for name in others[:5])}: expected either class folders "
            "or only train/, val/ and test/"
        )
    if len(set(parts.values())) < len(parts):
        raise DataError(f"{where}: expected one folder for each split, found {', '.join(parts)}")
    training = next(name for name, split in parts.items() if split == "train")
    named = {split: part(name) for name, split in parts.items()}
    known = set(named["train"].classes)
    for name, split in parts.items():
        classes = set(named[split].classes)
        if classes != known:
            missing, extra = sorted(known - classes), sorted(classes - known)
            raise DataError(
                f"{where}: {name}/ and {training}/ must hold the same classes"
                + (f"; {name}/ lacks {', '.join(missing)}" if missing else "")
                + (f"; only {name}/ has {', '.join(extra)}" if extra else "")
            )
    return ordered(named)


def ordered(parts: Parts) -> Parts:
    """In the order train, val, test; a val beside train, but no test, is the test. `WHOLE` stays as it is."""
    if WHOLE in parts:
        return parts
    if "train" in parts and "test" not in parts and "val" in parts:
        parts = {"train": parts["train"], "test": parts["val"]}
    return {name: parts[name] for name in ("train", "val", "test") if name in parts}


def split_stratified(index: Index, fractions: Mapping[str, float], seed: int) -> Splits:
    """Parts of an index with the same share of each class, chosen by the seed alone; pictures keep their order.

    Each class gives each part at least one picture, so a class needs as many pictures as there are parts; `DataError`
    names those that have fewer. Where a picture may have many labels, shares are as near as `_iterative` comes, and a
    class of a few pictures may be absent from a part. Fractions must add up to 1. What the index skipped and ignored
    is listed once, in the first part.
    """
    if abs(sum(fractions.values()) - 1) > 1e-6 or min(fractions.values()) <= 0:
        raise UsageError(f"fractions: expected positive numbers whose sum is 1, received {dict(fractions)}")
    counts = index.counts()
    few = [f"{name} ({n})" for name, n in zip(index.classes, counts, strict=True) if n < len(fractions)]
    if few:
        raise DataError(
            f"to be split into {', '.join(fractions)}, each class needs at least {len(fractions)} pictures; "
            f"too few in: {', '.join(few)}"
        )
    shares = np.array(list(fractions.values()))
    part = np.zeros(len(index), dtype=np.int64)  # of each picture, its number among the fractions
    if index.many_labels:
        part = _iterative(index.labels == 1, shares, order(seed, 0, len(index)))
    else:
        for label, n in enumerate(counts):
            members = np.flatnonzero(index.labels == label)[order(seed, label, int(n))]
            part[members] = np.repeat(np.arange(len(shares)), _sizes(shares, int(n)))
    splits = {name: index.subset(np.flatnonzero(part == number)) for number, name in enumerate(fractions)}
    first = next(iter(fractions))
    return {
        name: part if name == first else replace(part, skipped=(), ignored=(), notes=())
        for name, part in splits.items()
    }


def _sizes(shares: np.ndarray, n: int) -> np.ndarray:
    """n pictures in shares, int64: whole numbers, each at least 1, whose sum is n."""
    sizes = np.maximum(1, np.floor(shares * n + 0.5).astype(np.int64))
    sizes[np.argmax(sizes)] += n - sizes.sum()  # what rounding left over or lacks
    return sizes


def _iterative(has: np.ndarray, shares: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The part of each picture, int64 [N], by iterative stratification (Sechidis et al. 2011, algorithm 1).

    has: bool [N, K], who has which label. places: a permutation, the order in which pictures are dealt out. The label
    with the fewest pictures left goes first, each picture to the part that still wants most of it; among equals to the
    part that wants most pictures, then to the first. Pictures without a label come last.
    """
    has = has[places]
    wanted = np.array([_sizes(shares, int(n)) for n in has.sum(0)], dtype=np.float64)  # [K, parts]
    room = shares * len(has)
    part, left = np.full(len(has), -1), has.sum(0)

    def deal(row: int, wants: np.ndarray) -> None:
        chosen = int(np.lexsort((-room, -wants))[0])
        part[row] = chosen
        wanted[has[row], chosen] -= 1
        room[chosen] -= 1
        left[has[row]] -= 1

    while left.any():
        label = int(np.where(left > 0, left, len(has) + 1).argmin())
        for row in np.flatnonzero(has[:, label] & (part < 0)).tolist():
            deal(row, wanted[label])
    for row in np.flatnonzero(part < 0).tolist():
        deal(row, room)
    return part[np.argsort(places)]


# ---------------------------------------------------------------------------------------------------------------------
# Bad pictures
# ---------------------------------------------------------------------------------------------------------------------


def first_of(bad: Sequence[BadInput], checked: int = 0) -> BadInput:
    """The error that names the first bad picture and counts the others. checked: pictures looked at, if all were."""
    others = len(bad) - 1
    if not others:
        return bad[0]
    total = f" of {checked:,} pictures" if checked else ""
    return BadInput(bad[0].path, f"{bad[0].reason} ({others:,} more{total} cannot be used either)")


class Findings(NamedTuple):
    """Of a check: the errors by place in the index, and how many pictures have which format by their content."""

    bad: dict[int, BadInput]
    formats: Counter[str]


def check(
    index: Index,
    workers: int = CHECKERS,
    progress: Callable[[int, int], None] | None = None,
    decoders: Decoders | None = None,
) -> Findings:
    """Read and decode every picture once, in decode workers, and say which cannot be used.

    What was found out about a file is remembered (`opsin.data.checked`), unless it stopped its decoder: then it is
    tried again the next time. Pictures that are arrays have nothing to be checked. decoders: whose workers to use, in
    place of `workers` own ones.
    """
    source = index.source.source if isinstance(index.source, BoxSource) else index.source
    if isinstance(source, ArraySource):
        return Findings({}, Counter({"array": len(index)}))
    memory = _Memory(source, len(index)) if isinstance(source, InFiles) and len(index) else None
    found: dict[int, tuple[str, BadInput | None]] = {}
    if memory is not None:
        found = {i: known for i in range(len(index)) if (known := memory.recall(i)) is not None}
    todo = [i for i in range(len(index)) if i not in found]
    if todo:
        use = decoders or Decoders(workers)

        def try_one(place: int) -> None:
            i, kind, bad = todo[place], "", None
            try:
                data = source.data(i)
                kind = format_of(data)
                use.check(data, source.name(i))
            except BadInput as error:
                bad = error
            found[i] = kind, bad
            if memory is not None and not isinstance(bad, DecoderStopped):
                memory.keep(i, kind, bad)

        try:
            # A worker takes as long to start as a hundred pictures to be decoded.
            in_threads(try_one, len(todo), min(workers, math.ceil(len(todo) / 100)), progress)
        finally:
            if use is not decoders:
                use.close()
            if memory is not None:
                memory.known.save()
    bad = {i: error for i, (_, error) in sorted(found.items()) if error is not None}
    return Findings(bad, Counter(kind for kind, _ in found.values()))


class _Memory:
    """What `Checked` knows of the n pictures of a source, by their place."""

    def __init__(self, source: InFiles, n: int) -> None:
        self.source = source
        folders = {os.path.dirname(os.path.abspath(source.file(i)[0])) for i in range(n)}
        self.folder = os.path.commonpath(list(folders))
        self.known = Checked(self.folder)
        self.stamps: dict[int, tuple[int, int, int]] = {}  # size, time of change, time of looking

    def _name(self, i: int) -> str:
        path, part = self.source.file(i)
        return os.path.relpath(path, self.folder) + part

    def recall(self, i: int) -> tuple[str, BadInput | None] | None:
        try:
            status = os.stat(self.source.file(i)[0])
        except OSError:  # found again, and said, when it is to be read
            return None
        self.stamps[i] = status.st_size, status.st_mtime_ns, time.time_ns()
        found = self.known.get(self._name(i), status.st_size, status.st_mtime_ns)
        if found is None:
            return None
        return found.format, BadInput(self.source.name(i), found.reason) if found.reason else None

    def keep(self, i: int, kind: str, bad: BadInput | None) -> None:
        if i in self.stamps:
            size, changed, now = self.stamps[i]
            self.known.put(self._name(i), Found(size, changed, kind, bad.reason if bad else ""), now)


def checked(
    index: Index,
    on_bad_image: str = "error",
    workers: int = CHECKERS,
    progress: Callable[[int, int], None] | None = None,
    decoders: Decoders | None = None,
    empty: bool = False,
) -> Index:
    """The index once all its pictures are known to be whole. Bad ones: "error" raises the first, "skip" leaves out.
    empty: as of `without`."""
    bad = check(index, workers, progress, decoders).bad
    if bad and on_bad_image != "skip":
        raise first_of(list(bad.values()), len(index))
    return without(index, bad, empty)


def without(index: Index, bad: Mapping[int, BadInput], empty: bool = False) -> Index:
    """The index without these pictures, which are listed in `skipped`. `DataError` names a class that has none left,
    unless it may be `empty`."""
    if not bad:
        return index
    kept = index.subset([i for i in range(len(index)) if i not in bad])
    lost = [index.classes[k] for k in np.flatnonzero((index.counts() > 0) & (kept.counts() == 0))]
    if lost and not empty:
        first = next(iter(bad.values()))
        raise DataError(f"no picture that can be read is left in {', '.join(lost)}; the first that cannot: {first}")
    return replace(kept, skipped=index.skipped + tuple(bad.values()))


def in_threads(
    work: Callable[[int], None], n: int, workers: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """`work(i)` for i in 0 … n-1, in `workers` threads (decoding releases the GIL). The first error, in order, is
    raised; nothing runs any more when this returns."""
    chunk = max(1, min(64, n // (4 * max(1, workers))))

    def run(start: int) -> None:
        for i in range(start, min(start + chunk, n)):
            work(i)

    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="opsin-prepare")
    try:
        tasks: list[Future[None]] = [pool.submit(run, start) for start in range(0, n, chunk)]
        for done, task in enumerate(tasks, 1):
            task.result()
            if progress:
                progress(min(done * chunk, n), n)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
