"""Readers of the published formats: CIFAR-10 and CIFAR-100 (Python and binary version), MNIST's IDX.

Archives are read in place: regular members only, a cap on what they unpack to, nothing written to disk. The Python
version is pickled; a pickle is opened only when its MD5 is the published one, and then by an unpickler that can make
dicts, lists, numbers, bytes and arrays of bytes, and nothing else.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import pickletools
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opsin.data.index import printable, read
from opsin.errors import BadInput, DataError

MAX_UNPACKED = 1 << 29  # CIFAR, the largest, unpacks to 187 MB
GZIP = b"\x1f\x8b"


class Arrays(NamedTuple):
    """One split: images uint8 [N, C, H, W], labels int64 [N]."""

    images: np.ndarray
    labels: np.ndarray


# ---------------------------------------------------------------------------------------------------------------------
# CIFAR (Krizhevsky 2009): https://www.cs.toronto.edu/~kriz/cifar.html describes both versions
# ---------------------------------------------------------------------------------------------------------------------


class Cifar(NamedTuple):
    """How one version of a CIFAR set is laid out.

    In binary records, `label_bytes` come before the pixels; the last of them is the label.
    """

    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    meta: str
    names: bytes  # key of the class names in the pickled `meta`; b"" marks a binary version, where `meta` is text
    label_key: bytes = b""
    label_bytes: int = 1


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
CIFAR: dict[str, tuple[Cifar, ...]] = {
    "cifar10": (
        Cifar(
            "cifar-10-batches-py",
            "cifar-10-python.tar.gz",
            _BATCHES,
            "test_batch",
            "batches.meta",
            b"label_names",
            b"labels",
        ),
        Cifar(
            "cifar-10-batches-bin",
            "cifar-10-binary.tar.gz",
            tuple(f"{name}.bin" for name in _BATCHES),
            "test_batch.bin",
            "batches.meta.txt",
            b"",
        ),
    ),
    "cifar100": (
        Cifar(
            "cifar-100-python",
            "cifar-100-python.tar.gz",
            ("train",),
            "test",
            "meta",
            b"fine_label_names",
            b"fine_labels",
        ),
        Cifar(
            "cifar-100-binary",
            "cifar-100-binary.tar.gz",
            ("train.bin",),
            "test.bin",
            "fine_label_names.txt",
            b"",
            label_bytes=2,
        ),
    ),
}


def find_cifar(name: str, place: Path) -> tuple[Cifar, Path] | None:
    """The version of "cifar10" or "cifar100" that lies at `place`, and its folder or archive; None when there is none.

    `place` may be that folder, the archive, or a folder that holds either. `DataError` for a folder that holds a part.
    """
    incomplete = ""
    for version in CIFAR[name]:
        for folder in (place, place / version.folder):
            wanted = (*version.train, version.test, version.meta)
            missing = [file for file in wanted if not (folder / file).is_file()]
            if not missing:
                return version, folder
            if len(missing) < len(wanted) - 1:
                incomplete = f"{printable(folder)}: not the whole data set: lacks {', '.join(missing)}"
    for version in CIFAR[name]:
        for archive in (place, place / version.archive):
            if archive.is_file() and archive.name == version.archive:
                return version, archive
    if incomplete:
        raise DataError(incomplete)
    return None


def read_cifar(version: Cifar, place: Path, checksums: Mapping[str, str]) -> tuple[dict[str, Arrays], tuple[str, ...]]:
    """The splits "train" and "test" and the class names. checksums: MD5 of each pickled file by its name.

    Raises `BadInput` naming the file for a wrong checksum, before anything is unpickled, and for any other damage.
    """
    wanted = (*version.train, version.test, version.meta)
    files = _from_folder(place, wanted) if place.is_dir() else _from_archive(place, wanted)
    classes = _class_names(version, place, files[version.meta], checksums)

    def batch(file: str) -> Arrays:
        name = f"{printable(place)}/{file}"
        if version.names:
            values = unpickle(files[file], name, checksums.get(file, "none known"))
            pixels, labels = _pickled(values, version, name)
        else:
            pixels, labels = _records(files[file], version.label_bytes, name)
        if labels.size and (labels.min() < 0 or labels.max() >= len(classes)):
            raise BadInput(name, f"labels from {labels.min()} to {labels.max()}; expected 0 to {len(classes) - 1}")
        return Arrays(pixels.reshape(-1, 3, 32, 32), labels)

    batches = [batch(file) for file in version.train]
    train = Arrays(np.concatenate([b.images for b in batches]), np.concatenate([b.labels for b in batches]))
    return {"train": train, "test": batch(version.test)}, classes


def _records(data: bytes, label_bytes: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    size = label_bytes + 3072
    if not data or len(data) % size:
        raise BadInput(name, f"{len(data):,} bytes; expected a multiple of {size:,} (records of label and pixels)")
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    return records[:, label_bytes:].copy(), records[:, label_bytes - 1].astype(np.int64)


def _pickled(values: Any, version: Cifar, name: str) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(values, dict) or not {b"data", version.label_key} <= values.keys():
        raise BadInput(name, f"expected a dictionary with the keys data and {version.label_key.decode()}")
    labels, pixels = values[version.label_key], _array(values[b"data"], name)
    if pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise BadInput(name, f"data has the shape {pixels.shape}; expected N × 3072")
    if not isinstance(labels, list) or not all(type(x) is int and 0 <= x < 1000 for x in labels):
        raise BadInput(name, "labels: expected a list of numbers")
    if len(labels) != len(pixels):
        raise BadInput(name, f"{len(labels)} labels for {len(pixels)} pictures")
    return pixels, np.array(labels, dtype=np.int64)


def _class_names(version: Cifar, place: Path, data: bytes, checksums: Mapping[str, str]) -> tuple[str, ...]:
    name = f"{printable(place)}/{version.meta}"
    names: Any = data.split()
    if version.names:
        values = unpickle(data, name, checksums.get(version.meta, "none known"))
        names = values.get(version.names) if isinstance(values, dict) else None
    count = 100 if version in CIFAR["cifar100"] else 10
    if (
        not isinstance(names, list)
        or len(names) != count
        or not all(isinstance(x, bytes) and x.isascii() for x in names)
    ):
        raise BadInput(name, f"expected {count} class names")
    return tuple(x.decode() for x in names)


# ---------------------------------------------------------------------------------------------------------------------
# Pickles
# ---------------------------------------------------------------------------------------------------------------------

_ALLOWED = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINSTRING SHORT_BINSTRING BINBYTES
SHORT_BINBYTES BINUNICODE SHORT_BINUNICODE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE APPEND APPENDS SETITEM SETITEMS TUPLE
TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT BINGET LONG_BINGET MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
"""
_OPCODES = frozenset(_ALLOWED.split())


class _Array:
    """Stands for numpy's array, or a part of one, while a pickle is read: keeps what it is given, does nothing."""

    __slots__ = ("arguments", "state")

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Encode:
    """Stands for `_codecs.encode`, by which Python 3 writes bytes in protocol 2."""

    __slots__ = ()

    def __new__(cls, text: Any, encoding: Any) -> Any:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError(f"_codecs.encode of {type(text).__name__} as {encoding!r}")
        return text.encode("latin1")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Array,
    ("_codecs", "encode"): _Encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which is not allowed here")
        return _KNOWN[module_name, global_name]


def unpickle(data: bytes, name: str, checksum: str) -> Any:
    """The value in a pickle whose MD5 is `checksum`; arrays come as stand-ins, see `_array`.

    Nothing of the pickle is executed: every name that it may ask for stands for one of the two classes above.
    Raises `BadInput`, naming expected and received MD5, or what the pickle holds that is not allowed.
    """
    received = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if received != checksum:
        raise BadInput(name, f"is not the published file: expected MD5 {checksum}, received {received}")
    try:
        for done, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if opcode.name not in _OPCODES:
                raise pickle.UnpicklingError(f"it uses {opcode.name}, which is not allowed here")
            # The unpickler makes room for as many values as the largest number says.
            if opcode.name == "LONG_BINPUT" and (argument or 0) > done:
                raise pickle.UnpicklingError(f"it numbers a value {argument} which is at most number {done}")
        return _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a pickle is a program: what its interpreter may raise has no list
        raise BadInput(name, f"cannot be unpickled: {error or type(error).__name__}") from error


def _array(value: Any, name: str) -> np.ndarray:
    """The array of bytes for which a stand-in stands: its state is (version, shape, dtype, column order, bytes)."""
    state = value.state if isinstance(value, _Array) else None
    if isinstance(state, tuple) and len(state) == 5:
        _, shape, dtype, by_columns, data = state
        kind = dtype.arguments[0] if isinstance(dtype, _Array) and dtype.arguments else None
        sized = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
        if kind in (b"u1", "u1") and not by_columns and sized and isinstance(data, bytes):
            count = 1
            for size in shape:
                count *= size
            if count == len(data):
                return np.frombuffer(data, np.uint8).reshape(shape).copy()
    raise BadInput(name, "expected an array of bytes, in rows")


# ---------------------------------------------------------------------------------------------------------------------
# Folders and archives
# ---------------------------------------------------------------------------------------------------------------------


def _from_folder(folder: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    return {name: read(folder / name) for name in wanted}


class _Capped(io.RawIOBase):
    """A stream that refuses to give more than `MAX_UNPACKED` bytes."""

    def __init__(self, stream: io.BufferedIOBase, name: str) -> None:
        self.stream, self.name, self.left = stream, name, MAX_UNPACKED

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(min(size if size >= 0 else self.left + 1, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise BadInput(self.name, f"unpacks to more than {MAX_UNPACKED:,} bytes")
        return data


def _plain(member: tarfile.TarInfo) -> bool:
    """A regular file that is all in the archive: the holes of a sparse one would be unpacked without a limit."""
    return member.isreg() and not member.issparse()


def _from_archive(archive: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """The wanted members of a .tar.gz or .tar, by their last name, read as a stream."""
    name = printable(archive)
    files: dict[str, bytes] = {}
    packed = io.BytesIO(read(archive))
    stream = gzip.GzipFile(fileobj=packed) if packed.getbuffer()[:2] == GZIP else packed
    try:
        with tarfile.open(fileobj=_Capped(stream, name), mode="r|", bufsize=1 << 20) as tar:
            for member in tar:
                file = member.name.rpartition("/")[2]
                content = tar.extractfile(member) if file in wanted and _plain(member) else None
                if content is not None:
                    if file in files:
                        raise BadInput(name, f"holds {file} twice")
                    files[file] = content.read()
                if len(files) == len(wanted):
                    break
    except BadInput:
        raise
    except Exception as error:  # tarfile and zlib raise a dozen kinds of error on damaged bytes
        raise BadInput(name, f"damaged archive: {error or type(error).__name__}") from error
    missing = [file for file in wanted if file not in files]
    if missing:
        raise BadInput(name, f"lacks {', '.join(missing)}")
    return files


# ---------------------------------------------------------------------------------------------------------------------
# MNIST (LeCun, Cortes and Burges 1998): the IDX format
# ---------------------------------------------------------------------------------------------------------------------

_IDX = {"train": "train", "test": "t10k"}


def find_mnist(place: Path) -> dict[str, tuple[Path, Path]] | None:
    """Split → the paths of pictures and labels, when all four files lie in `place` or its usual subfolders."""

    def file(folder: Path, stem: str, kind: str) -> Path | None:
        names = [f"{stem}{dot}{kind}-ubyte{end}" for dot in "-." for end in (".gz", "")]
        return next((folder / name for name in names if (folder / name).is_file()), None)

    for folder in (place, place / "mnist", place / "MNIST" / "raw", place / "raw"):
        found = {
            split: (file(folder, f"{stem}-images", "idx3"), file(folder, f"{stem}-labels", "idx1"))
            for split, stem in _IDX.items()
        }
        complete = {split: (x, y) for split, (x, y) in found.items() if x and y}
        if len(complete) == len(_IDX):
            return complete
    return None


def read_mnist(images: Path, labels: Path) -> Arrays:
    """One split from its two IDX files, plain or gzipped. `BadInput` for anything but bytes of the right shape."""
    pixels, numbers = read_idx(read(images), printable(images), 3), read_idx(read(labels), printable(labels), 1)
    if pixels.shape[1:] != (28, 28):
        raise BadInput(printable(images), f"pictures of {pixels.shape[1]}×{pixels.shape[2]}; expected 28×28")
    if len(pixels) != len(numbers):
        raise BadInput(printable(labels), f"{len(numbers)} labels for {len(pixels)} pictures")
    if numbers.size and numbers.max() > 9:
        raise BadInput(printable(labels), f"label {numbers.max()}; expected 0 to 9")
    return Arrays(pixels[:, None], numbers.astype(np.int64))


def read_idx(data: bytes, name: str, ndim: int) -> np.ndarray:
    """An IDX file of bytes with `ndim` dimensions, as uint8. Its length must be exactly what its header says."""
    if data[:2] == GZIP:
        data = _gunzip(data, name)
    start = bytes([0, 0, 8, ndim])
    if data[:4] != start:
        raise BadInput(
            name, f"begins with {data[:4].hex(' ')}; expected {start.hex(' ')} (IDX, bytes, {ndim} dimensions)"
        )
    head = 4 + 4 * ndim
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, head, 4)]
    expected = head
    if len(data) >= head:
        size = 1
        for length in shape:
            size *= length
        expected = head + size
    if len(data) != expected:
        raise BadInput(name, f"{len(data):,} bytes; expected {expected:,} from its header {shape}")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape).copy()


def _gunzip(data: bytes, name: str) -> bytes:
    try:
        stream = _Capped(gzip.GzipFile(fileobj=io.BytesIO(data)), name)
        return b"".join(iter(lambda: stream.read(1 << 20), b""))
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(name, f"damaged gzip file: {error}") from error


def check_counts(splits: Mapping[str, Arrays], counts: Mapping[str, int], place: str) -> None:
    """`DataError` unless every split has its published number of pictures."""
    received = {split: len(arrays.labels) for split, arrays in splits.items()}
    if received != dict(counts):
        raise DataError(f"{place}: not the whole data set: expected {dict(counts)} pictures, found {received}")
