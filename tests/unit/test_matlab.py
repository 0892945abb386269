"""MATLAB files, against scipy's reader, and what is no such file."""

from __future__ import annotations

import io

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.data import matlab
from opsin.data.matlab import MAX_UNPACKED, integers, read_mat, texts
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
        found = ours[name]
        assert isinstance(found, np.ndarray) and (found.dtype, found.tolist()) == (array.dtype, array.tolist())
        assert theirs[name].tolist() == array.tolist()


@pytest.mark.parametrize("packed", [True, False])
def test_what_scipy_writes_and_what_is_passed_over(packed: bool) -> None:
    file = io.BytesIO()
    cells = np.array([1, "x", "Größe"], dtype=object)
    passed = {"complex": np.array([[1j]]), "table": {"a": 1}, "lines": np.array(["ab", "cd"])}
    values = {"small": np.float64(7), "text": "abc", "cells": cells, **passed, "big": 10**6 * np.eye(3)}
    scipy.io.savemat(file, values, do_compression=packed)
    ours = read_mat(file.getvalue(), "x.mat")
    plain = {name: value.tolist() for name, value in ours.items() if isinstance(value, np.ndarray)}
    assert plain == {"small": [[7.0]], "big": (10**6 * np.eye(3)).tolist()}
    found = ours["cells"]
    assert ours.keys() == {"small", "big", "text", "cells", "table"} and ours["table"] == [{"a": np.array([[1]])}]
    assert ours["text"] == "abc" and isinstance(found, list)
    assert np.array_equal(found[0], [[1]]) and found[1:] == ["x", "Größe"]  # pyright: ignore


def test_one_variable_of_a_kind() -> None:
    file = io.BytesIO()
    names = np.array(["a/b.jpg", "c.jpg"], dtype=object)
    scipy.io.savemat(file, {"names": names, "mixed": np.array(["a", 1], dtype=object), "n": [[1, 2]], "part": 0.5})
    data = file.getvalue()
    assert texts(data, "x.mat", "names") == ["a/b.jpg", "c.jpg"] and integers(data, "x.mat", "n").tolist() == [1, 2]
    for read, variable in ((texts, "n"), (texts, "mixed"), (integers, "names"), (integers, "part"), (texts, "none")):
        with pytest.raises(BadInput, match=rf"^x\.mat: .*{variable}"):
            read(data, "x.mat", variable)


def test_cells_in_cells_and_too_many_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matlab, "MAX_CELLS", 50)
    for count, depth, reason in ((50, 1, ""), (51, 1, "more than 50 cells"), (1, 4, ""), (1, 5, "within each other")):
        value = np.array(["x"] * count, dtype=object)
        for _ in range(depth - 1):
            inner, value = value, np.empty(1, dtype=object)
            value[0] = inner
        file = io.BytesIO()
        scipy.io.savemat(file, {"cells": value}, do_compression=True)
        if reason:
            with pytest.raises(BadInput, match=reason):
                read_mat(file.getvalue(), "x.mat")
        else:
            assert isinstance(read_mat(file.getvalue(), "x.mat")["cells"], list)


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
    file = io.BytesIO()
    cells = np.array(["n02085620-Chihuahua/1.jpg", "x", 3.0], dtype=object)
    scipy.io.savemat(file, {"cells": cells}, do_compression=draw.draw(st.booleans()))
    order = draw.draw(st.sampled_from("<>"))
    data = mutated(file.getvalue() if draw.draw(st.booleans()) else mat(ARRAYS, draw.draw(st.booleans()), order), draw)
    try:
        arrays = read_mat(data, "x.mat")
    except BadInput as error:
        assert str(error).startswith("x.mat: ")
    else:
        assert all(value.size <= 10**4 for value in arrays.values() if isinstance(value, np.ndarray))
