"""The arrays of numbers in a MATLAB 5 file (.mat), as published with Flowers-102.

"MAT-File Format" (MathWorks), chapter 1: a header of 128 bytes, then data elements of a tag (type, size) and their
bytes, padded to 8; an array is an element of elements: flags, dimensions, name, numbers. Whatever is no plain array of
numbers (text, cells, structures, complex numbers) is passed over.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from opsin.errors import BadInput

MAX_UNPACKED = 1 << 26
MATRIX, COMPRESSED = 14, 15
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # table 1-1
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}  # table 1-3
COMPLEX = 0x800


def read_mat(data: bytes, name: str) -> dict[str, np.ndarray]:
    """Name → array, of at least two dimensions as MATLAB has them. `BadInput` with `name` for any damage."""
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128], "")
    if len(data) < 128 or not order or data[124:126] != (b"\0\1" if order == "<" else b"\1\0"):
        raise BadInput(name, "not a MATLAB 5 file: its header is another")
    arrays: dict[str, np.ndarray] = {}
    left = MAX_UNPACKED
    try:
        for kind, content in _elements(memoryview(data)[128:], order):
            if kind == COMPRESSED:
                unpacked = zlib.decompressobj().decompress(content, left + 1)
                left -= len(unpacked)
                if left < 0:
                    raise BadInput(name, f"unpacks to more than {MAX_UNPACKED:,} bytes")
                kind, content = next(_elements(memoryview(unpacked), order))
            if kind == MATRIX and (found := _matrix(content, order)):
                arrays[found[0]] = found[1]
    except (ValueError, StopIteration, struct.error, zlib.error) as error:
        raise BadInput(name, f"damaged MATLAB file: {error or 'it ends within an element'}") from error
    return arrays


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


def _matrix(content: memoryview, order: str) -> tuple[str, np.ndarray] | None:
    """The name and the values of an array of real numbers, None for any other."""
    parts = [(kind, bytes(part)) for kind, part in _elements(content, order)]
    if len(parts) < 3:
        raise ValueError("an array without flags, dimensions or name")
    (flags,) = struct.unpack_from(f"{order}I", parts[0][1])
    if flags & 0xFF not in CLASSES or flags & COMPLEX:
        return None
    shape = np.frombuffer(parts[1][1], f"{order}i4").tolist()
    if len(parts) < 4 or parts[3][0] not in STORED or min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape} without numbers")
    values = np.frombuffer(parts[3][1], order + STORED[parts[3][0]])
    if len(values) != math.prod(shape):
        raise ValueError(f"{len(values)} numbers for an array of shape {shape}")
    return parts[2][1].decode("latin1"), values.astype(CLASSES[flags & 0xFF]).reshape(shape, order="F")
