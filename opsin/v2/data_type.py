"""What a data layer is fed with: a dense vector or a class index for each sample."""

from __future__ import annotations

from dataclasses import dataclass


class SequenceType:
    NO_SEQUENCE = 0
    SEQUENCE = 1
    SUB_SEQUENCE = 2

    @classmethod
    def tostring(cls, value: int) -> str:
        return f"SequenceType.{('NO_SEQUENCE', 'SEQUENCE', 'SUB_SEQUENCE')[value]}"


class DataType:
    Dense = 0
    SparseNonValue = 1
    SparseValue = 2
    Index = 3

    @classmethod
    def tostring(cls, value: int) -> str:
        return f"DataType.{('Dense', 'SparseNonValue', 'SparseValue', 'Index')[value]}"


@dataclass(frozen=True, repr=False)
class InputType:
    """dim: elements of a dense vector, or the number of classes. The other two: see `SequenceType`, `DataType`."""

    dim: int
    seq_type: int
    type: int

    def __repr__(self) -> str:
        sequence, kind = SequenceType.tostring(self.seq_type), DataType.tostring(self.type)
        return f"InputType(dim={self.dim}, seq_type={sequence}, type={kind})"


def dense_vector(dim: int, seq_type: int = SequenceType.NO_SEQUENCE) -> InputType:
    """`dim` numbers, float32."""
    return InputType(dim, seq_type, DataType.Dense)


dense_array = dense_vector


def integer_value(value_range: int, seq_type: int = SequenceType.NO_SEQUENCE) -> InputType:
    """An integer from 0 to value_range − 1."""
    return InputType(value_range, seq_type, DataType.Index)


def sparse_binary_vector(dim: int, seq_type: int = SequenceType.NO_SEQUENCE) -> InputType:
    """`dim` numbers 0 or 1, given as the places of the ones."""
    return InputType(dim, seq_type, DataType.SparseNonValue)


def sparse_float_vector(dim: int, seq_type: int = SequenceType.NO_SEQUENCE) -> InputType:
    """`dim` numbers, given as (place, value) of those that are not 0."""
    return InputType(dim, seq_type, DataType.SparseValue)


sparse_vector = sparse_float_vector


def __getattr__(name: str) -> object:
    if name.endswith("_sequence"):
        raise AttributeError(f"data_type.{name}: sequences are not supported; this is for image classification")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
