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

from opsin.data import index, tar
from opsin.data.datasets import DATASETS
from opsin.data.published import flowers as published
from opsin.errors import BadInput
from opsin.v2 import image
from opsin.v2.dataset import common
from opsin.v2.reader.decorator import Reader, map_readers, xmap_readers

DATA, LABELS, SETS = DATASETS["flowers102"].files
MEAN = (103.94, 116.78, 123.68)  # blue, green, red

Mapper = Callable[[tuple[bytes, int]], Any]


def default_mapper(is_train: bool, sample: tuple[bytes, int]) -> tuple[np.ndarray, int]:
    """(bytes of a JPEG, label) → (float32 [3 · 224 · 224], label): shorter side 256, a square of 224, minus `MEAN`."""
    picture, label = sample
    pixels = image.simple_transform(image.load_image_bytes(picture), 256, 224, is_train, mean=MEAN)
    return pixels.reshape(-1), label


train_mapper, test_mapper = partial(default_mapper, True), partial(default_mapper, False)


def _reader(variable: str, mapper: Mapper, buffered_size: int, use_xmap: bool) -> Reader:
    archive, labels, sets = (common.get(file, "flowers") for file in (DATA, LABELS, SETS))
    label_of = published.pictures(index.read(labels), labels, index.read(sets), sets, variable)

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
