"""Readers made of arrays and files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from opsin.v2.reader.decorator import Reader


def np_array(x: Any) -> Reader:
    """The rows of an array, or the one value of an array without dimensions."""
    rows = np.asarray(x)
    return lambda: iter(rows if rows.ndim else [rows])


def text_file(path: str | os.PathLike[str]) -> Reader:
    """The lines of a text file (UTF-8), without their ends."""

    def lines() -> Iterator[str]:
        with open(path, encoding="utf-8") as file:
            for line in file:
                yield line.rstrip("\n")

    return lines


def __getattr__(name: str) -> object:
    if name in ("recordio", "cloud_reader"):
        raise AttributeError(
            f"reader.creator.{name}: RecordIO files are not supported; there are np_array and text_file"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
