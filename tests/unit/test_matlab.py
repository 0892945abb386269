"""MATLAB files, against scipy's reader, and what is no such file."""

from __future__ import annotations

import io

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.data.matlab import MAX_UNPACKED, read_mat
from opsin.errors import BadInput
from tests.make import mat, mutated

ARRAYS = {
    "labels": np.arange(300, dtype=np.uint16)[None],
    "bytes": np.array([[1, 2, 3]], np.uint8),  # three bytes: a small element
    "table": np.arange(6, dtype=np.int32).reshape(2, 3) - 3,
    "real": np.array([[0.5, np.inf], [1e300, -0.0]]),
    "none": np.zeros((0, 4), np.float64),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [True, False])
def test_arrays_of_numbers(packed: bool, order: str) -> None:
    data = mat(ARRAYS, packed, order)
    theirs, ours = scipy.io.loadmat(io.BytesIO(data)), read_mat(data, "x.mat")
    assert list(ours) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (ours[name].dtype, ours[name].tolist()) == (array.dtype, array.tolist())
        assert theirs[name].tolist() == array.tolist()


@pytest.mark.parametrize("packed", [True, False])
def test_what_scipy_writes_and_what_is_passed_over(packed: bool) -> None:
    file = io.BytesIO()
    others = {"text": "abc", "cells": np.array([1, "x"], dtype=object), "complex": np.array([[1j]]), "logic": {"a": 1}}
    scipy.io.savemat(file, {"small": np.float64(7), **others, "big": 10**6 * np.eye(3)}, do_compression=packed)
    ours = read_mat(file.getvalue(), "x.mat")
    assert {name: array.tolist() for name, array in ours.items()} == {
        "small": [[7.0]],
        "big": (10**6 * np.eye(3)).tolist(),
    }


def test_what_is_no_such_file() -> None:
    good = mat(ARRAYS)
    for data in (b"", good[:100], good[:124] + b"\0\2IM" + good[128:]):
        with pytest.raises(BadInput, match=r"^x\.mat: not a MATLAB 5 file"):
            read_mat(data, "x.mat")
    with pytest.raises(BadInput, match="damaged MATLAB file"):
        read_mat(good[:-5], "x.mat")
    with pytest.raises(BadInput, match="unpacks to more than"):
        read_mat(mat({"bomb": np.zeros((1, MAX_UNPACKED + 1), np.uint8)}), "x.mat")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_is_one_error(draw: st.DataObject) -> None:
    data = mutated(mat(ARRAYS, draw.draw(st.booleans()), draw.draw(st.sampled_from("<>"))), draw)
    try:
        arrays = read_mat(data, "x.mat")
    except BadInput as error:
        assert str(error).startswith("x.mat: ")
    else:
        assert all(array.size <= 10**4 for array in arrays.values())
