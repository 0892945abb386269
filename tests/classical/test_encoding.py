"""Encodings and their pooling against slow float64 versions in NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from opsin.classical import encoding, pooling, vocabulary
from opsin.errors import UsageError

B, N, D, K = 3, 35, 6, 11


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


VECTORS, CENTRES = draw(B, N, D) + 1, draw(K, D, seed=1) + 1
PLACES = torch.cartesian_prod((torch.arange(5) + 0.5) / 5, (torch.arange(7) + 0.5) / 7)


def close(got: Tensor, wanted: np.ndarray, part: float = 1e-4) -> None:
    assert got.shape == wanted.shape and got.dtype == torch.float32
    assert np.abs(got.double().numpy() - wanted).max() <= part * np.abs(wanted).max()


def triangle(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    distances = np.sqrt(((x[None] - centres) ** 2).sum(1))
    return np.maximum(0, distances.mean() - distances)


def each(of: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    words = CENTRES.double().numpy()
    return np.stack([[of(x, words) for x in picture] for picture in VECTORS.double().numpy()])


CODES = {"triangle": (encoding.Triangle(CENTRES), each(triangle))}


@pytest.mark.parametrize("name", CODES)
def test_codes(name: str) -> None:
    encoder, wanted = CODES[name]
    assert encoder.words == wanted.shape[2]
    close(encoder.codes(VECTORS), wanted)


def pooled(codes: np.ndarray, regions: str, how: str) -> np.ndarray:
    """[B, R · K] by loops over boxes and places."""
    parts = []
    for grid in regions.split("+"):
        down, across = map(int, grid.split("x"))
        cell = [(int(y * down), int(x * across)) for y, x in PLACES.double().numpy()]
        for box in np.ndindex(down, across):
            chosen = codes[:, [place == box for place in cell]]
            if not chosen.shape[1]:
                parts.append(np.zeros_like(codes[:, 0]))
            else:
                parts.append({"max": chosen.max, "sum": chosen.sum, "average": chosen.mean}[how](axis=1))
    return np.concatenate(parts, 1)


@pytest.mark.parametrize("chunk", [1, 7 * K, 2 * N * K, 1 << 20])  # a descriptor, part of a picture, some, all
@pytest.mark.parametrize("how", pooling.HOW)
@pytest.mark.parametrize("name", CODES)
def test_encode_pools_the_codes(name: str, how: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, codes = CODES[name]
    monkeypatch.setattr(vocabulary, "CACHE", chunk)
    boxes = pooling.regions("1x1+2x2+3x1+4x4")
    got = encoding.encode(encoder, VECTORS, PLACES, regions=boxes, pooling=how)
    close(got, pooled(codes, "1x1+2x2+3x1+4x4", how))


@pytest.mark.parametrize("how", pooling.HOW)
def test_a_box_without_descriptors_gives_zeros(how: str) -> None:
    codes = draw(2, N, 4) - 5  # below zero: a maximum must not find the zeros of a box that is empty
    boxes = pooling.regions("1x1+8x8")
    got = pooling.pool(codes, PLACES, boxes, how)
    close(got.flatten(1), pooled(codes.double().numpy(), "1x1+8x8", how))
    assert (got == 0).all(2).any() and (got[:, 0] != 0).all()


def test_every_place_is_in_one_box_of_a_grid() -> None:
    edges = torch.cartesian_prod(torch.linspace(0, 1, 13), torch.linspace(0, 1, 13))
    for grid in ("1x1", "2x2", "3x1", "4x4", "1x5"):
        assert (pooling.members(edges, pooling.regions(grid)).sum(0) == 1).all()


def test_regions() -> None:
    assert pooling.regions("1x1+2×1").tolist() == [[0, 0, 1, 1], [0, 0, 0.5, 1], [0.5, 0, 1, 1]]
    assert len(pooling.regions("1x1+2x2+3x1+4x4")) == 1 + 4 + 3 + 16
    for text in ("", "2", "0x1", "2x2+", "2x-1", "100x1"):
        with pytest.raises(UsageError, match=r"grids such as 1x1\+2x2"):
            pooling.regions(text)


def test_what_cannot_be_encoded() -> None:
    encoder, boxes = encoding.Triangle(CENTRES), pooling.regions("1x1")
    with pytest.raises(UsageError, match="expected max, average, sum, received 'mean'"):
        encoding.encode(encoder, VECTORS, PLACES, regions=boxes, pooling="mean")
    with pytest.raises(UsageError, match=r"places \[N, 2\]"):
        encoding.encode(encoder, VECTORS, PLACES[1:], regions=boxes, pooling="sum")
