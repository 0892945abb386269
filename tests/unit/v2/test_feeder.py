"""Rows to feeds: what the original's own tests asked, and what its users stumbled over."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opsin.errors import DataError
from opsin.v2 import data_type
from opsin.v2.data_feeder import DataFeeder

PICTURE = ("picture", data_type.dense_vector(6))
LABEL = ("label", data_type.integer_value(10))


def rows(n: int = 3) -> list[tuple[np.ndarray, int]]:
    return [(np.arange(6, dtype=np.float32) + i, i) for i in range(n)]


def test_columns_are_taken_in_the_order_of_the_data_layers() -> None:
    feed = DataFeeder([PICTURE, LABEL]).convert(rows())
    assert list(feed) == ["picture", "label"]
    assert feed["picture"].dtype == torch.float32 and feed["picture"].shape == (3, 6)
    assert feed["label"].dtype == torch.int64 and feed["label"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(feed["picture"].numpy(), np.stack([row[0] for row in rows()]))
    # A label declared first reads the first column: such programs pass `feeding`.
    with pytest.raises(ValueError, match="data layer 'label', column 0"):
        DataFeeder([LABEL, PICTURE]).convert(rows())


@pytest.mark.parametrize("feeding", [{"picture": 1, "label": 0}, ["label", "picture"], ("label", "picture")])
def test_feeding_names_the_columns(feeding: object) -> None:
    turned = [(label, picture) for picture, label in rows()]
    feed = DataFeeder([PICTURE, LABEL], feeding)(turned)  # type: ignore[arg-type]
    assert feed["label"].tolist() == [0, 1, 2] and feed["picture"][1].tolist() == [1, 2, 3, 4, 5, 6]


def test_feeding_may_leave_out_double_and_name_too_many() -> None:
    other = ("other", data_type.dense_vector(6))
    feed = DataFeeder([other, PICTURE], {"picture": 2, "other": 2, "nobody": 7}).convert([(0, "x", [1.0] * 6)])
    assert feed["picture"].tolist() == feed["other"].tolist() == [[1.0] * 6]


@pytest.mark.parametrize(
    "make", [np.asarray, list, tuple, lambda a: np.asarray(a, np.float64), lambda a: a.astype(int)]
)
def test_dense_samples_of_any_kind_become_float32(make: object) -> None:
    feed = DataFeeder([PICTURE]).convert([(make(rows()[0][0]),)])  # type: ignore[operator]
    assert feed["picture"].dtype == torch.float32 and feed["picture"].tolist() == [[0, 1, 2, 3, 4, 5]]


def test_maps_of_any_size_pass_with_their_height_and_width() -> None:
    grey = DataFeeder([PICTURE]).convert([(np.zeros((4, 5)),), (np.ones((4, 5)),)])
    assert grey["picture"].shape == (2, 1, 4, 5)
    assert DataFeeder([PICTURE]).convert([(np.zeros((3, 4, 5)),)])["picture"].shape == (1, 3, 4, 5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([3.0], "The input should be a vector, please check your input data. Received 3.0"),
        ([np.zeros((1, 1, 2, 3))], "cannot be greater than 3"),
        ([np.zeros(7)], "The data size must be equal to it in data layer. Expected 6, received 7"),
        ([np.zeros(6), np.zeros(5)], r"same in one mini-batch. Received \(6,\) and \(5,\)"),
        (["black"], "data layer 'picture', column 0: could not convert"),
    ],
)
def test_dense_samples_that_do_not_fit(values: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataFeeder([PICTURE]).convert([(value,) for value in values])


@pytest.mark.parametrize("value", [10, -1, 3.0, "3", None, np.zeros(10)])
def test_labels_that_are_none(value: object) -> None:
    with pytest.raises(DataError, match="data layer 'label', column 1"):
        DataFeeder([PICTURE, LABEL]).convert([(np.zeros(6), value)])
    assert DataFeeder([LABEL]).convert([(np.int64(9),), (np.uint8(0),)])["label"].tolist() == [9, 0]


def test_wrong_feedings_and_short_samples() -> None:
    for wrong in ("picture", 3):
        with pytest.raises(TypeError, match="Feeding should be dict or sequence"):
            DataFeeder([PICTURE], wrong)  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="no column for the data layer 'label'"):
        DataFeeder([PICTURE, LABEL], {"picture": 0})
    with pytest.raises(IndexError, match="'label' reads column 1, but a sample has 1"):
        DataFeeder([PICTURE, LABEL]).convert([(np.zeros(6),)])
    with pytest.raises(ValueError, match=r"one column alone is written \(x,\)"):
        DataFeeder([LABEL]).convert([3])  # type: ignore[list-item]


def test_sparse_samples_become_dense() -> None:
    kinds = [("tags", data_type.sparse_binary_vector(4)), ("bag", data_type.sparse_float_vector(4))]
    feed = DataFeeder(kinds).convert([([0, 3], [(1, 0.5)]), ([], [])])
    assert feed["tags"].tolist() == [[1, 0, 0, 1], [0, 0, 0, 0]] and feed["bag"].tolist() == [[0, 0.5, 0, 0], [0] * 4]
    with pytest.raises(ValueError, match="from 0 to 3, received 4"):
        DataFeeder(kinds).convert([([4], [])])
