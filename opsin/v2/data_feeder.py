"""From rows of samples to the tensors of the data layers."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opsin.errors import DataError
from opsin.v2.data_type import DataType, InputType

__all__ = ["DataFeeder", "FeedError"]

Feeding = Mapping[str, int] | Sequence[str] | None


class FeedError(DataError, ValueError):
    """A sample does not fit its data layer."""


class DataFeeder:
    """Rows, each with a column for every data layer, to layer's name → tensor.

    data_types: (name, type) of each data layer. feeding: name → column, or the names in the order of the columns;
    None for the order of `data_types`. Columns may serve several layers or none. What it makes: float32 [B, dim],
    [B, 1, H, W] or [B, C, H, W] of dense samples with 1, 2 or 3 dimensions; int64 [B] of class indices; float32
    [B, dim] of sparse ones.
    """

    def __init__(
        self,
        data_types: Sequence[tuple[str, InputType]],
        feeding: Feeding = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if feeding is None:
            feeding = [name for name, _ in data_types]
        if isinstance(feeding, Mapping):
            columns = dict(feeding)
        elif isinstance(feeding, Sequence) and not isinstance(feeding, str):
            columns = {name: column for column, name in enumerate(feeding)}
        else:
            raise TypeError(f"Feeding should be dict or sequence or None. Received {feeding!r}.")
        for name, _ in data_types:
            if name not in columns:
                raise KeyError(
                    f"feeding: no column for the data layer {name!r}; it names {', '.join(map(str, columns))}"
                )
        self.slots = [(name, kind, columns[name]) for name, kind in data_types]
        self.device = device

    def convert(self, rows: Sequence[Sequence[Any]]) -> dict[str, Tensor]:
        """The feed of one mini-batch. `FeedError` (a ValueError) for a sample that does not fit its layer."""
        if not len(rows):
            raise FeedError("an empty mini-batch: the reader has to give at least one sample at a time")
        return {name: self._slot(name, kind, column, rows).to(self.device) for name, kind, column in self.slots}

    __call__ = convert

    def _slot(self, name: str, kind: InputType, column: int, rows: Sequence[Sequence[Any]]) -> Tensor:
        values = [_column(row, column, name) for row in rows]
        try:
            if kind.type == DataType.Dense:
                return _dense(values, kind.dim)
            if kind.type == DataType.Index:
                return torch.tensor([_index(value, kind.dim) for value in values], dtype=torch.int64)
            return _sparse(values, kind)
        except (ValueError, TypeError, OverflowError) as error:
            raise FeedError(f"data layer {name!r}, column {column}: {error}") from error


def _column(row: Sequence[Any], column: int, name: str) -> Any:
    if not isinstance(row, Sequence | np.ndarray) or isinstance(row, str | bytes):
        raise FeedError(
            f"a sample should be a tuple of columns, received {type(row).__name__}; one column alone is written (x,)"
        )
    try:
        return row[column]
    except IndexError:
        raise IndexError(
            f"data layer {name!r} reads column {column}, but a sample has {len(row)}; see `feeding`"
        ) from None


def _dense(values: Sequence[Any], dim: int) -> Tensor:
    """float32 [B, dim], or maps as they are. The messages are those of 2017, with what came."""
    arrays = [np.asarray(value, dtype=np.float32) for value in values]
    shape = arrays[0].shape
    if len(shape) > 3:
        raise ValueError(f"The dimension of input cannot be greater than 3. Received the shape {shape}.")
    if not shape:
        raise ValueError(
            "The input should be a vector, please check your input data. "
            f"Received {values[0]!r}: columns in another order, see `feeding`, or a sample that is not a tuple."
        )
    if len(shape) == 1 and shape[0] != dim:
        raise ValueError(f"The data size must be equal to it in data layer. Expected {dim}, received {shape[0]}.")
    if odd := next((array.shape for array in arrays if array.shape != shape), None):
        raise ValueError(f"The data shape must be same in one mini-batch. Received {shape} and {odd}.")
    made = torch.from_numpy(np.stack(arrays))
    return made[:, None] if len(shape) == 2 else made


def _index(value: Any, classes: int) -> int:
    index = operator.index(value)
    if not 0 <= index < classes:
        raise ValueError(f"expected an integer from 0 to {classes - 1}, received {index}")
    return index


def _sparse(values: Sequence[Any], kind: InputType) -> Tensor:
    made = torch.zeros(len(values), kind.dim)
    for row, value in zip(made, values, strict=True):
        pairs = [(place, 1.0) for place in value] if kind.type == DataType.SparseNonValue else value
        for place, number in pairs:
            row[_index(place, kind.dim)] = float(number)
    return made
