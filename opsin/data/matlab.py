"""Numbers, text and cells in MATLAB 5 files (.mat), as published with Flowers-102 and Stanford Dogs.

"MAT-File Format" (MathWorks), chapter 1: a header of 128 bytes, then data elements of a tag (type, size) and their
bytes, padded to 8; an array is an element of elements: flags, dimensions, name, and then its numbers, its characters,
or one more such array for each cell, or for each field of each structure. Whatever else there is (objects, sparse and
complex arrays, text of several rows) is passed over; as a cell it is None.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Union

import numpy as np

from opsin.errors import BadInput

MAX_UNPACKED = 1 << 26
MAX_CELLS = 1 << 17  # in one file, those within others included
MAX_DEPTH = 4  # of cells in cells
MATRIX, COMPRESSED = 14, 15
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # table 1-1
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}  # table 1-3
COMPLEX = 0x800
CELL, STRUCTURE, CHAR = 1, 2, 4
TEXT = {1: "latin1", 2: "latin1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}  # table 1-1

# A list: the cells of an array, column by column, or its structures, each field → value.
Value = Union[np.ndarray, str, "list[Value]", "dict[str, Value]", None]


def read_mat(data: bytes, name: str) -> dict[str, Value]:
    """Name → value; arrays have at least two dimensions, as in MATLAB. `BadInput` with `name` for any damage."""
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128], "")
    if len(data) < 128 or not order or data[124:126] != (b"\0\1" if order == "<" else b"\1\0"):
        raise BadInput(name, "not a MATLAB 5 file: its header is another")
    values: dict[str, Value] = {}
    left = MAX_UNPACKED
    reader = _Reader(order)
    try:
        for kind, content in _elements(memoryview(data)[128:], order):
            if kind == COMPRESSED:
                unpacked = zlib.decompressobj().decompress(content, left + 1)
                left -= len(unpacked)
                if left < 0:
                    raise BadInput(name, f"unpacks to more than {MAX_UNPACKED:,} bytes")
                kind, content = next(_elements(memoryview(unpacked), order))
            if kind == MATRIX:
                key, value = reader.array(content)
                if value is not None:
                    values[key] = value
    except (ValueError, StopIteration, struct.error, zlib.error) as error:
        raise BadInput(name, f"damaged MATLAB file: {error or 'it ends within an element'}") from error
    return values


def integers(data: bytes, name: str, variable: str) -> np.ndarray:
    """The whole numbers of one array of a file, int64 [n]."""
    value = _variable(data, name, variable)
    if not isinstance(value, np.ndarray):
        raise BadInput(name, f"{variable}: expected numbers")
    if value.dtype.kind == "f" and not (np.isfinite(value).all() and (abs(value) < 2**53).all()):
        raise BadInput(name, f"{variable}: expected whole numbers")
    numbers = value.reshape(-1, order="F").astype(np.int64)
    if (numbers != value.reshape(-1, order="F")).any():
        raise BadInput(name, f"{variable}: expected whole numbers")
    return numbers


def texts(data: bytes, name: str, variable: str) -> list[str]:
    """The texts in the cells of one array of a file."""
    value = _variable(data, name, variable)
    cells = value if isinstance(value, list) else []
    found = [cell for cell in cells if isinstance(cell, str)]
    if not isinstance(value, list) or len(found) < len(cells):
        raise BadInput(name, f"{variable}: expected cells, each of one line of text")
    return found


def structures(data: bytes, name: str, variable: str) -> list[dict[str, Value]]:
    """The structures of one array of a file, each field → value."""
    value = _variable(data, name, variable)
    found = [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
    if not isinstance(value, list) or len(found) < len(value):
        raise BadInput(name, f"{variable}: expected structures")
    return found


def _variable(data: bytes, name: str, variable: str) -> Value:
    values = read_mat(data, name)
    if variable not in values:
        raise BadInput(name, f"holds {', '.join(values) or 'no arrays'}; expected {variable}")
    return values[variable]


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The type and the bytes of each element."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:  # a small one: its size in the upper half of the type, its bytes where the size would be
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            start = at + 8
            end = start + size + (-size % 8 if kind != COMPRESSED else 0)
        if start + size > (end if end == at + 8 else len(data)):
            raise ValueError(f"the element at byte {at} claims {size} bytes")
        yield kind, data[start : start + size]
        at = end


class _Reader:
    """The arrays of one file, and how many cells they have had so far."""

    def __init__(self, order: str) -> None:
        self.order, self.cells = order, 0

    def array(self, content: memoryview, depth: int = 0) -> tuple[str, Value]:
        """The name and the value of an array."""
        if not content and depth:  # an empty cell may be an element of no bytes
            return "", np.zeros((0, 0))
        parts = list(islice(_elements(content, self.order), MAX_CELLS + 4))
        if len(parts) < 3:
            raise ValueError("an array without flags, dimensions or name")
        (flags,) = struct.unpack_from(f"{self.order}I", parts[0][1])
        shape = np.frombuffer(parts[1][1], f"{self.order}i4").tolist()
        name, rest, kind = bytes(parts[2][1]).decode("latin1"), parts[3:], flags & 0xFF
        if min(shape, default=0) < 0:
            raise ValueError(f"an array of shape {shape}")
        if kind == CELL:
            return name, self._cells(rest, math.prod(shape), depth)
        if kind == STRUCTURE:
            return name, self._structures(rest, math.prod(shape), depth)
        if kind == CHAR:
            return name, self._text(rest, shape)
        if kind not in CLASSES or flags & COMPLEX:
            return name, None
        if not rest or rest[0][0] not in STORED:
            raise ValueError(f"an array of shape {shape} without numbers")
        values = np.frombuffer(rest[0][1], self.order + STORED[rest[0][0]])
        if len(values) != math.prod(shape):
            raise ValueError(f"{len(values)} numbers for an array of shape {shape}")
        with np.errstate(invalid="ignore", over="ignore"):  # what does not fit its class is nobody's number
            return name, values.astype(CLASSES[kind]).reshape(shape, order="F")

    def _cells(self, parts: Sequence[tuple[int, memoryview]], count: int, depth: int) -> list[Value]:
        self.cells += len(parts)
        if self.cells > MAX_CELLS or depth >= MAX_DEPTH:
            raise ValueError(f"more than {MAX_CELLS:,} cells, or {MAX_DEPTH} within each other")
        if len(parts) != count or any(kind != MATRIX for kind, _ in parts):
            raise ValueError(f"{len(parts)} elements where {count} cells are expected")
        return [self.array(content, depth + 1)[1] for _, content in parts]

    def _structures(self, parts: Sequence[tuple[int, memoryview]], count: int, depth: int) -> list[Value]:
        if len(parts) < 2 or len(parts[0][1]) != 4:
            raise ValueError("structures without names of their fields")
        (length,) = struct.unpack(f"{self.order}i", parts[0][1])
        texts = bytes(parts[1][1])
        if length < 1 or len(texts) % length:
            raise ValueError(f"names of fields of {length} bytes each in {len(texts)} bytes")
        fields = [texts[i : i + length].partition(b"\0")[0].decode("latin1") for i in range(0, len(texts), length)]
        if len(set(fields)) < len(fields) or not fields:
            raise ValueError(f"structures of the fields {fields[:5]}")
        values = self._cells(parts[2:], count * len(fields), depth)
        return [dict(zip(fields, values[i : i + len(fields)], strict=True)) for i in range(0, len(values), len(fields))]

    def _text(self, parts: Sequence[tuple[int, memoryview]], shape: list[int]) -> str | None:
        if math.prod(shape) == 0:
            return ""
        if len(shape) != 2 or shape[0] != 1:
            return None
        if not parts or parts[0][0] not in TEXT:
            raise ValueError(f"text of shape {shape} without characters")
        encoding = TEXT[parts[0][0]]
        if encoding == "utf-16":
            encoding += "-le" if self.order == "<" else "-be"
        return bytes(parts[0][1]).decode(encoding)
