"""Flowers-102 (Nilsback and Zisserman 2008): (float32 [3 · 224 · 224], label 0–101).

As in the original, the largest part of the published division is the training: train is "tstid" (6,149 pictures), test
is "trnid" and valid is "valid" (1,020 each). The archive is read in place, in its order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from opsin.data import index, matlab, tar
from opsin.data.datasets import File
from opsin.errors import BadInput
from opsin.v2 import image
from opsin.v2.dataset import common
from opsin.v2.reader.decorator import Reader, map_readers, xmap_readers

_HOSTS = ("https://www.robots.ox.ac.uk/~vgg/data/flowers/102", "http://paddlemodels.bj.bcebos.com/flowers")


def _file(name: str, size: int, md5: str) -> File:
    return File(name=name, size=size, md5=md5, urls=tuple(f"{host}/{name}" for host in _HOSTS))


# The archive was published in two forms that hold the same pictures.
DATA = _file("102flowers.tgz", 0, "52808999861908f626f3c1f4e79d11fa or 33bfc11892f1e405ca193ae9a9f2a118")
LABELS = _file("imagelabels.mat", 502, "e0620be6f572b9609742df49c70aed4d")
SETS = _file("setid.mat", 14989, "a5357ecc9cb78c4bef273ce3793fc85c")
MEAN = (103.94, 116.78, 123.68)  # blue, green, red

Mapper = Callable[[tuple[bytes, int]], Any]


def default_mapper(is_train: bool, sample: tuple[bytes, int]) -> tuple[np.ndarray, int]:
    """(bytes of a JPEG, label) → (float32 [3 · 224 · 224], label): shorter side 256, a square of 224, minus `MEAN`."""
    picture, label = sample
    pixels = image.simple_transform(image.load_image_bytes(picture), 256, 224, is_train, mean=MEAN)
    return pixels.reshape(-1), label


train_mapper, test_mapper = partial(default_mapper, True), partial(default_mapper, False)


def _numbers(file: File, variable: str) -> np.ndarray:
    path = common.get(file, "flowers")
    arrays = matlab.read_mat(index.read(path), path)
    if variable not in arrays:
        raise BadInput(path, f"holds {', '.join(arrays) or 'no arrays'}; expected {variable}")
    return arrays[variable].reshape(-1).astype(np.int64)


def _reader(variable: str, mapper: Mapper, buffered_size: int, use_xmap: bool) -> Reader:
    archive, labels, wanted = common.get(DATA, "flowers"), _numbers(LABELS, "labels"), _numbers(SETS, variable)
    if wanted.min(initial=1) < 1 or wanted.max(initial=1) > len(labels):
        raise BadInput(SETS.name, f"{variable}: pictures {wanted.min()} to {wanted.max()}, but {len(labels)} labels")
    label_of = {f"jpg/image_{number:05d}.jpg": int(labels[number - 1]) - 1 for number in wanted.tolist()}

    def pictures() -> Iterator[tuple[bytes, int]]:
        missing = set(label_of)
        for name, data in tar.files(archive):
            if name in label_of:
                missing.discard(name)
                yield data, label_of[name]
        if missing:
            raise BadInput(archive, f"lacks {len(missing)} of the pictures of {variable}, for instance {min(missing)}")

    if use_xmap:
        return xmap_readers(mapper, pictures, os.cpu_count() or 1, buffered_size)
    return map_readers(mapper, pictures)


def train(mapper: Mapper = train_mapper, buffered_size: int = 1024, use_xmap: bool = True) -> Reader:
    """The 6,149 pictures of "tstid", each as `mapper` makes it of (bytes of a JPEG, label)."""
    return _reader("tstid", mapper, buffered_size, use_xmap)


def test(mapper: Mapper = test_mapper, buffered_size: int = 1024, use_xmap: bool = True) -> Reader:
    """The 1,020 pictures of "trnid"."""
    return _reader("trnid", mapper, buffered_size, use_xmap)


def valid(mapper: Mapper = test_mapper, buffered_size: int = 1024, use_xmap: bool = True) -> Reader:
    """The 1,020 pictures of "valid"."""
    return _reader("valid", mapper, buffered_size, use_xmap)


def fetch() -> None:
    """Download the three files unless they are here."""
    for file in (DATA, LABELS, SETS):
        common.get(file, "flowers")
