"""CIFAR-10 and CIFAR-100: (float32 [3072] in 0–1, planes red, green, blue; label). The fine labels of CIFAR-100.

The archives are looked for when a function here is called; iterating reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from opsin.data import datasets
from opsin.v2.dataset import common

Reader = Callable[[], Iterator[tuple[np.ndarray, int]]]


def _reader(name: str, split: str) -> Reader:
    images, labels = common.arrays(name, "cifar", split)

    def samples() -> Iterator[tuple[np.ndarray, int]]:
        for image, label in zip(images, labels.tolist(), strict=True):
            yield image.reshape(-1).astype(np.float32) / np.float32(255), label

    return samples


def train10() -> Reader:
    """The 50,000 training pictures of CIFAR-10."""
    return _reader("cifar10", "train")


def test10() -> Reader:
    """The 10,000 test pictures of CIFAR-10."""
    return _reader("cifar10", "test")


def train100() -> Reader:
    """The 50,000 training pictures of CIFAR-100."""
    return _reader("cifar100", "train")


def test100() -> Reader:
    """The 10,000 test pictures of CIFAR-100."""
    return _reader("cifar100", "test")


def fetch() -> None:
    """Download both archives unless they are here."""
    for name in ("cifar10", "cifar100"):
        datasets.fetch(name)
