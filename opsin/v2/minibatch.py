"""From a reader of samples to a reader of mini-batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from opsin.errors import UsageError


def batch(
    reader: Callable[[], Iterable[Any]], batch_size: int, drop_last: bool = False
) -> Callable[[], Iterator[list[Any]]]:
    """Lists of `batch_size` samples; the last may be shorter, unless drop_last leaves it out."""
    if batch_size < 1:
        raise UsageError(f"batch_size: expected at least 1, received {batch_size}")

    def batches() -> Iterator[list[Any]]:
        samples = iter(reader())
        while samples_of_one := list(itertools.islice(samples, batch_size)):
            if len(samples_of_one) == batch_size or not drop_last:
                yield samples_of_one

    return batches
