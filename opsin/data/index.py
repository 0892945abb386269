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

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from opsin.data.decode import decode
from opsin.data.rng import order
from opsin.errors import BadInput, DataError, UsageError

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


class Source(Protocol):
    """Where the pixels of an index come from. Safe to use from several threads."""

    def image(self, i: int, min_size: tuple[int, int] | None = None) -> Tensor:
        """Picture number i as uint8 [c, h, w], c 1 or 3; `BadInput` when it cannot be read."""
        ...

    def subset(self, indices: np.ndarray) -> Source: ...


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Pictures that are all of one size: uint8 [N, C, H, W] in memory."""

    images: np.ndarray

    def image(self, i: int, min_size: tuple[int, int] | None = None) -> Tensor:
        return torch.from_numpy(self.images[i].copy())

    def subset(self, indices: np.ndarray) -> ArraySource:
        return ArraySource(self.images[indices])


@dataclass(frozen=True)
class FileSource:
    """Picture files, decoded each time they are asked for."""

    paths: Sequence[str]

    def image(self, i: int, min_size: tuple[int, int] | None = None) -> Tensor:
        path = self.paths[i]
        return decode(read(path), printable(path), min_size=min_size)

    def subset(self, indices: np.ndarray) -> FileSource:
        return FileSource(pick(self.paths, indices))


@dataclass(frozen=True, eq=False)
class Index:
    """N pictures. labels: int64 [N], places in `classes`. skipped: bad pictures left out on request; ignored: files
    that were not taken for pictures."""

    keys: Sequence[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    source: Source
    skipped: tuple[BadInput, ...] = ()
    ignored: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, i: int, min_size: tuple[int, int] | None = None) -> Tensor:
        """Picture number i, uint8 [c, h, w], c 1 or 3. min_size: see `opsin.data.decode.decode`."""
        return self.source.image(i, min_size)

    def subset(self, indices: Iterable[int] | np.ndarray) -> Index:
        """These pictures, in this order; classes stay the same."""
        chosen = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices), dtype=np.int64)
        keys = pick(self.keys, chosen)
        return replace(self, keys=keys, labels=self.labels[chosen], source=self.source.subset(chosen))


Splits = dict[str, Index]  # "train", "test" and perhaps "val"
Parts = dict[str, Index]  # "train", "val" and "test", or some of these; or `WHOLE` alone, when there are no parts
WHOLE = "all"


def pick(names: Sequence[str], places: np.ndarray) -> list[str]:
    return [names[int(i)] for i in places]


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
    folders, files = _listing(root)
    bad: list[BadInput] = []
    ignored = [printable(os.path.join(root, name)) for name in files]
    return gather(
        printable(root),
        folders,
        lambda name: [os.path.relpath(path, root) for path in _pictures(os.path.join(root, name), bad, ignored)],
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


def _listing(folder: str) -> tuple[list[str], list[str]]:
    """Sorted names of the folders and of the other things in `folder`, without the hidden ones."""
    folders, others = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name.lower() not in CLUTTER:
                    (folders if os.path.isdir(entry.path) else others).append(entry.name)
    except OSError as error:
        raise DataError(f"{printable(folder)}: cannot be listed: {error.strerror or error}") from error
    return sorted(folders), sorted(others)


def _pictures(folder: str, bad: list[BadInput], ignored: list[str]) -> list[str]:
    """Sorted paths of the pictures in `folder` and below; what is none goes to `bad` or `ignored`."""
    pictures: list[str] = []
    waiting: list[tuple[str, tuple[str, ...]]] = [(folder, ())]
    while waiting:
        folder, above = waiting.pop()
        here = os.path.realpath(folder)
        if here in above:
            raise DataError(f"{printable(folder)}: a link to a folder that contains it; remove the link")
        folders, files = _listing(folder)
        waiting += [(os.path.join(folder, name), (*above, here)) for name in folders]
        for name in files:
            path = os.path.join(folder, name)
            try:
                mode = os.stat(path).st_mode
            except OSError as error:
                bad.append(BadInput(printable(path), f"cannot be read: {error.strerror or error}"))
                continue
            if not stat.S_ISREG(mode):
                bad.append(BadInput(printable(path), f"{kind_of_file(mode)}, not a regular file"))
            elif os.path.splitext(name)[1].lower() in EXTENSIONS:
                pictures.append(path)
            else:
                ignored.append(printable(path))
    return sorted(pictures)


def split_folders(folder: Path | str) -> dict[str, str]:
    """Folder name → split, of a folder that has train/ and val/ or test/ of class folders; empty for any other."""
    root = os.fspath(folder)
    return named_splits(_listing(root)[0], lambda name: bool(_listing(os.path.join(root, name))[0]))


def named_splits(names: Sequence[str], has_folders: Callable[[str], bool]) -> dict[str, str]:
    """`split_folders` of folders of these names, wherever they are."""
    parts = {name: SPLIT_FOLDERS[name.lower()] for name in names if name.lower() in SPLIT_FOLDERS}
    training = next((name for name, split in parts.items() if split == "train"), None)
    return parts if training is not None and len(parts) > 1 and has_folders(training) else {}


def scan_splits(folder: Path | str, *, seed: int = 0, on_bad_image: str = "error", workers: int = 2) -> Splits:
    """The splits of a folder: its train/, val/ and test/, or 80/10/10 of its class folders; see `scan_parts`.

    on_bad_image "skip": every picture is decoded once before anything is split, and those that cannot be are left out
    and listed in `skipped`.
    """
    parts = scan_parts(folder, on_bad_image=on_bad_image)
    parts = {name: checked(index, on_bad_image, workers) for name, index in parts.items()}
    return in_splits(parts, printable(folder), seed)


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
        return scan(os.path.join(root, name), on_bad_image=on_bad_image, prefix=f"{name}/" if name else "")

    return join_parts(printable(root), _listing(root)[0], split_folders(root), part)


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
    """In the order train, val, test; a val beside train, but no test, is the test."""
    if "train" in parts and "test" not in parts and "val" in parts:
        parts = {"train": parts["train"], "test": parts["val"]}
    return {name: parts[name] for name in ("train", "val", "test") if name in parts}


def split_stratified(index: Index, fractions: Mapping[str, float], seed: int) -> Splits:
    """Parts of an index with the same share of each class, chosen by the seed alone; pictures keep their order.

    Each class gives each part at least one picture, so a class needs as many pictures as there are parts; `DataError`
    names those that have fewer. Fractions must add up to 1. What the index skipped and ignored is listed once, in the
    first part.
    """
    if abs(sum(fractions.values()) - 1) > 1e-6 or min(fractions.values()) <= 0:
        raise UsageError(f"fractions: expected positive numbers whose sum is 1, received {dict(fractions)}")
    counts = np.bincount(index.labels, minlength=len(index.classes))
    few = [f"{name} ({n})" for name, n in zip(index.classes, counts, strict=True) if n < len(fractions)]
    if few:
        raise DataError(
            f"to be split into {', '.join(fractions)}, each class needs at least {len(fractions)} pictures; "
            f"too few in: {', '.join(few)}"
        )
    shares = np.array(list(fractions.values()))
    chosen: dict[str, list[np.ndarray]] = {name: [] for name in fractions}
    for label, n in enumerate(counts):
        members = np.flatnonzero(index.labels == label)[order(seed, label, int(n))]
        sizes = np.maximum(1, np.floor(shares * n + 0.5).astype(int))
        sizes[np.argmax(sizes)] += n - sizes.sum()  # what rounding left over or lacks
        for name, part in zip(fractions, np.split(members, np.cumsum(sizes)[:-1]), strict=True):
            chosen[name].append(part)
    splits = {name: index.subset(np.sort(np.concatenate(parts))) for name, parts in chosen.items()}
    first = next(iter(fractions))
    return {name: part if name == first else replace(part, skipped=(), ignored=()) for name, part in splits.items()}


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


def check(index: Index, workers: int = 2, progress: Callable[[int, int], None] | None = None) -> dict[int, BadInput]:
    """Decode every picture once and return the errors by place in the index, in its order. JPEGs are decoded at an
    eighth of their size, which reads all their bytes."""
    bad: dict[int, BadInput] = {}

    def try_one(i: int) -> None:
        try:
            index.image(i, (1, 1))
        except BadInput as error:
            bad[i] = error

    in_threads(try_one, len(index), workers, progress)
    return dict(sorted(bad.items()))


def checked(
    index: Index,
    on_bad_image: str = "error",
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """The index without the pictures that cannot be read, where on_bad_image is "skip"; else as it is."""
    return without(index, check(index, workers, progress)) if on_bad_image == "skip" else index


def without(index: Index, bad: Mapping[int, BadInput]) -> Index:
    """The index without these pictures, which are listed in `skipped`. `DataError` names a class that has none left."""
    if not bad:
        return index
    kept = index.subset([i for i in range(len(index)) if i not in bad])
    empty = [index.classes[k] for k in np.setdiff1d(index.labels, kept.labels)]
    if empty:
        first = next(iter(bad.values()))
        raise DataError(f"no picture that can be read is left in {', '.join(empty)}; the first that cannot: {first}")
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
