"""Pictures packed once, to be read fast many times: shards of smaller JPEGs, or arrays, for `opsin.data.shards`."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import simplejpeg

from opsin import __version__, storage
from opsin.data import datasets
from opsin.data.index import FileSource, Index, Parts
from opsin.data.loader import decode_size
from opsin.data.shards import CLASS, CLASSES, MANY, NOTE
from opsin.data.tar import TarSource
from opsin.errors import DataError, UsageError
from opsin.preprocess import Preprocess, resize, to_channels

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
SHARD_BYTES = 1 << 28
QUALITY = 90
SKIPPED = "skipped.txt"  # a picture that was left out in each line, and why
MAX_KEY = 60


class Packed(NamedTuple):
    """pictures: of each part. nbytes: of all files. skipped: pictures left out, each with its reason."""

    folder: Path
    pictures: dict[str, int]
    nbytes: int
    skipped: tuple[str, ...]


def pack(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size: int | None = None,
    uint8: bool = False,
    quality: int = QUALITY,
    data_dir: str | os.PathLike[str] = "",
    on_bad_image: str = "error",
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Write the pictures of a data set, all its parts, as the new folder `out`, which then is a data set itself.

    size: pixels of the shorter side; a smaller picture is never enlarged in shards. JPEGs that need no change are
    copied as they are; all others are encoded with `quality`, 4:2:0. uint8: arrays without loss; of larger pictures the
    centre square of `size` is kept, and no size means that all are of one size. The folder appears once all of it is on
    disk. Memory: some pictures, and the index. `StorageError` when there is something at `out` already.
    """
    if size is not None and size < 1:
        raise UsageError(f"size: expected at least 1 pixel, received {size}")
    if not 1 <= quality <= 100:
        raise UsageError(f"quality: expected 1 to 100, received {quality}")
    name = os.fspath(data)
    if name in datasets.DATASETS and not datasets.DATASETS[name].layout:
        parts = datasets.load(name, data_dir=data_dir, progress=progress)
    else:
        parts = datasets.read_parts(name, data_dir=data_dir, on_bad_image=on_bad_image, progress=progress)
    first = next(iter(parts.values()))
    if odd := [one for one in first.classes if not one.strip() or "\n" in one or "\r" in one]:
        raise DataError(f"{name}: a class is called {odd[0]!r}; expected a name of one line")
    skipped = tuple(str(bad) for index in parts.values() for bad in index.skipped)
    pictures = {part: len(index) for part, index in parts.items()}
    total, done = sum(pictures.values()), 0

    def count() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(min(done, total), total)

    note = {
        "version": 1,
        "opsin": __version__,
        "source": name,
        "form": "uint8 arrays" if uint8 else "JPEG shards",
        "size": size,
        "quality": None if uint8 else quality,
        "pictures": pictures,
        "classes": len(first.classes),
        "many_labels": first.many_labels,
        "skipped": len(skipped),
    }
    with storage.new_folder(os.fspath(out)) as folder:
        (folder / CLASSES).write_bytes("".join(f"{one}\n" for one in first.classes).encode())
        if uint8:
            _write_arrays(folder, parts, size, workers, count)
        else:
            for part, index in parts.items():
                _write_shards(folder, part, index, size, quality, workers, count)
        if skipped:
            (folder / SKIPPED).write_bytes("".join(f"{reason!r}\n" for reason in skipped).encode())
        (folder / NOTE).write_text(json.dumps(note, indent=1), encoding="utf-8")
        nbytes = sum(path.stat().st_size for path in folder.iterdir())
    return Packed(Path(out), pictures, nbytes, skipped)


def in_order(work: Callable[[int], T], n: int, workers: int) -> Iterator[T]:
    """`work(i)` for i in 0 … n-1, in threads, a few ahead of who asks."""
    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="opsin-pack")
    waiting: deque[Future[T]] = deque()
    try:
        for i in range(n):
            waiting.append(pool.submit(work, i))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _key(number: int, key: str) -> str:
    """A name for picture `number` that any archive can hold, and a person can trace back to its own."""
    return f"{number:07d}_{re.sub(r'[^A-Za-z0-9-]+', '_', key)[-MAX_KEY:].strip('_')}"


# ---------------------------------------------------------------------------------------------------------------------
# Shards
# ---------------------------------------------------------------------------------------------------------------------


def _write_shards(
    folder: Path, part: str, index: Index, size: int | None, quality: int, workers: int, count: Callable[[], None]
) -> None:
    made = enumerate(in_order(lambda i: _jpeg(index, i, size, quality), len(index), workers))
    number, following = 0, next(made, None)
    while following is not None:
        path = folder / f"{part}-{number:06d}.tar"
        with open(path, "xb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as shard:
            while following is not None and file.tell() < SHARD_BYTES:
                i, data = following
                key = _key(i, index.keys[i])
                _add(shard, f"{key}.jpg", data)
                _add(shard, f"{key}.{MANY if index.many_labels else CLASS}", _label(index.labels[i]))
                count()
                following = next(made, None)
        number += 1


def _add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    shard.addfile(member, io.BytesIO(data))
    shard.members.clear()  # it keeps them all  # pyright: ignore[reportAttributeAccessIssue]


def _label(label: np.ndarray) -> bytes:
    if label.ndim == 0:
        return b"%d" % int(label)
    words = [f"{'?' if label[k] < 0 else ''}{k}" for k in np.flatnonzero(label)]
    return " ".join(words).encode()


def _jpeg(index: Index, i: int, size: int | None, quality: int) -> bytes:
    """Picture number i as a JPEG whose shorter side is at most `size`: its own bytes where they are that already."""
    if isinstance(index.source, FileSource | TarSource):
        data = index.source.data(i)
        if data.startswith(b"\xff\xd8") and (size is None or _shorter_side(data) <= size):
            return data
    image = index.image(i, None if size is None else (2 * size, 2 * size))
    height, width = image.shape[1:]
    if size is not None and (scale := size / min(height, width)) < 1:
        image = resize(image, max(size, round(height * scale)), max(size, round(width * scale)))
    grey = len(image) == 1
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image.permute(1, 2, 0).numpy()),
        quality=quality,
        colorspace="GRAY" if grey else "RGB",
        colorsubsampling="Gray" if grey else "420",
    )


def _shorter_side(data: bytes) -> float:
    """In pixels; infinite for a JPEG that only Pillow can read."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return float("inf")
    return min(int(height), int(width))


# ---------------------------------------------------------------------------------------------------------------------
# Arrays
# ---------------------------------------------------------------------------------------------------------------------


class _Colour(Exception):
    """A picture in colour among grey ones."""


def _write_arrays(folder: Path, parts: Parts, size: int | None, workers: int, count: Callable[[], None]) -> None:
    first = next(iter(parts.values())).image(0)
    channels, height, width = first.shape
    shape = (channels, size or height, size or width)
    try:
        for part, index in parts.items():
            _write_array(folder / part, index, shape, size, workers, count)
    except _Colour:  # all of them, then
        for part, index in parts.items():
            _write_array(folder / part, index, (3, *shape[1:]), size, workers, count)


def _write_array(
    stem: Path, index: Index, shape: tuple[int, ...], size: int | None, workers: int, count: Callable[[], None]
) -> None:
    channels, *sides = shape
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    preprocess = Preprocess(size=(sides[0], sides[1]), channels=channels, mean=zeros, std=ones)
    least = None if size is None else decode_size(preprocess)

    def made(i: int) -> Tensor:
        image = index.image(i, least)
        if len(image) > channels:
            raise _Colour
        if size is None and list(image.shape[1:]) != sides:
            raise DataError(
                f"{index.source.name(i)}: {image.shape[1]}×{image.shape[2]} pixels, but the first picture has "
                f"{sides[0]}×{sides[1]}; arrays are of one size: give --size"
            )
        return to_channels(image, channels) if size is None else preprocess.prepare(image)

    with open(f"{stem}.npy", "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(index), *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for image in in_order(made, len(index), workers):
            file.write(np.ascontiguousarray(image.numpy()).data)
            count()
    with open(f"{stem}.labels.npy", "wb") as file:
        np.save(file, index.labels, allow_pickle=False)
    with open(f"{stem}.keys.txt", "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{_key(i, key)}\n" for i, key in enumerate(index.keys))
