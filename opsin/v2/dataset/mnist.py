"""MNIST: (float32 [784] in −1 to 1, label)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from opsin.data import datasets
from opsin.v2.dataset import common

Reader = Callable[[], Iterator[tuple[np.ndarray, int]]]


def _reader(split: str) -> Reader:
    images, labels = common.arrays("mnist", "mnist", split)

    def samples() -> Iterator[tuple[np.ndarray, int]]:
        for image, label in zip(images, labels.tolist(), strict=True):
            yield image.reshape(-1).astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1), label

    return samples


def train() -> Reader:
    """The 60,000 training pictures."""
    return _reader("train")


def test() -> Reader:
    """The 10,000 test pictures."""
    return _reader("test")


def fetch() -> None:
    """Download the four files unless they are here."""
    datasets.fetch("mnist")
