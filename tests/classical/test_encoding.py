"""Encodings and their pooling against slow float64 versions in NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.linear_model import LassoLars
from torch import Tensor

from opsin.classical import encoding, pooling, vocabulary
from opsin.errors import UsageError

B, N, D, K = 2, 35, 6, 11


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


VECTORS, CENTRES = draw(B, N, D) + 1, draw(K, D, seed=1) + 1
WORDS = torch.nn.functional.normalize(CENTRES - 1)
PLACES = torch.cartesian_prod((torch.arange(5) + 0.5) / 5, (torch.arange(7) + 0.5) / 7)


def close(got: Tensor, wanted: np.ndarray, part: float = 1e-4) -> None:
    assert got.shape == wanted.shape and got.dtype == torch.float32
    assert np.abs(got.double().numpy() - wanted).max() <= part * np.abs(wanted).max()


def triangle(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    distances = np.sqrt(((x[None] - centres) ** 2).sum(1))
    return np.maximum(0, distances.mean() - distances)


def each(of: Callable[[np.ndarray, np.ndarray], np.ndarray], words_of: Tensor = CENTRES) -> np.ndarray:
    words = words_of.double().numpy()
    return np.stack([[of(x, words) for x in picture] for picture in VECTORS.double().numpy()])


def hard(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.eye(K)[((x[None] - centres) ** 2).sum(1).argmin()]


def llc(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    nearest = ((x[None] - centres) ** 2).sum(1).argsort()[:5]
    away = centres[nearest] - x
    system = away @ away.T
    weights = np.linalg.solve(system + 1e-4 * np.trace(system) * np.eye(5), np.ones(5))
    code = np.zeros(K)
    code[nearest] = weights / weights.sum()
    return code


def omp(x: np.ndarray, words: np.ndarray) -> np.ndarray:
    left, chosen = x, []
    for _ in range(3):
        chosen.append(int(np.argmax(np.abs(words @ left) * [k not in chosen for k in range(K)])))
        weights = np.linalg.lstsq(words[chosen].T, x, rcond=None)[0]
        left = x - weights @ words[chosen]
    code = np.zeros(K)
    code[chosen] = weights
    return code


def lasso(x: np.ndarray, words: np.ndarray) -> np.ndarray:
    """By least angle regression, which is exact; its loss is divided by the number of observations."""
    return LassoLars(alpha=0.3 / D, fit_intercept=False).fit(words.T, x).coef_


CODES = {
    "hard": (encoding.Hard(CENTRES), each(hard)),
    "triangle": (encoding.Triangle(CENTRES), each(triangle)),
    "omp": (encoding.MatchingPursuit(WORDS, 3), each(omp, WORDS)),
    "lasso": (encoding.Lasso(WORDS, 0.3), each(lasso, WORDS)),
    "llc": (encoding.LocalityConstrained(CENTRES), each(llc)),
}


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
    got = encoding.encode(encoder, (VECTORS, PLACES), regions=boxes, pooling=how)
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
    assert pooling.regions("1x2/2+1x1/4").tolist() == [
        [0.25, 0, 0.75, 0.5],
        [0.25, 0.5, 0.75, 1],
        [0.375] * 2 + [0.625] * 2,
    ]
    for text in ("", "2", "0x1", "2x2+", "2x-1", "100x1", "3x3/", "3x3/0"):
        with pytest.raises(UsageError, match=r"grids such as 1x1\+2x2"):
            pooling.regions(text)


@pytest.mark.parametrize("how", pooling.HOW)
def test_boxes_may_overlap(how: str) -> None:
    codes = draw(2, N, 4)
    got = pooling.pool(codes, PLACES, pooling.regions("3x3/2"), how).unflatten(1, (3, 3))
    quadrants = pooling.pool(codes, PLACES, pooling.regions("2x2"), how).unflatten(1, (2, 2))
    close(got[:, ::2, ::2], quadrants.double().numpy())
    inside = ((PLACES >= 0.25) & (PLACES < 0.75)).all(1)
    middle = codes[:, inside]
    slow = {"max": middle.amax(1), "sum": middle.sum(1), "average": middle.mean(1)}[how]
    close(got[:, 1, 1], slow.double().numpy())


def test_what_cannot_be_encoded() -> None:
    encoder, boxes = encoding.Triangle(CENTRES), pooling.regions("1x1")
    with pytest.raises(UsageError, match="expected max, average, sum, received 'mean'"):
        encoding.encode(encoder, (VECTORS, PLACES), regions=boxes, pooling="mean")
    with pytest.raises(UsageError, match=r"places \[N, 2\]"):
        encoding.encode(encoder, (VECTORS, PLACES[1:]), regions=boxes, pooling="sum")
    with pytest.raises(UsageError, match="received 'max'"):
        encoding.encode(encoding.Fisher(MIXTURE), (VECTORS, PLACES), regions=boxes, pooling="max")
    for wrong, match in [
        ({"norm": "l2"}, "none, region, whole"),
        ({"power": 0.0}, "above 0"),
        ({"power": 2.0}, "up to"),
    ]:
        with pytest.raises(UsageError, match=match):
            encoding.encode(encoder, (VECTORS, PLACES), regions=boxes, pooling="sum", **wrong)
    with pytest.raises(UsageError, match="neighbours, received 12"):
        encoding.LocalityConstrained(CENTRES, 12)
    with pytest.raises(UsageError, match="beta"):
        encoding.LocalityConstrained(CENTRES, beta=0.0)


MIXTURE = vocabulary.Mixture(
    torch.tensor([0.5, 0.2, 0.3]), draw(3, D, seed=2) + 1, draw(3, D, seed=3).square() + 0.3, 0.0
)


def fisher(regions: str, how: str) -> np.ndarray:
    """By the definition, descriptor by descriptor."""
    weights, means, variances = (part.double().numpy() for part in MIXTURE[:3])
    deviations = np.sqrt(variances)
    gradients = np.zeros((B, N, 2 * 3 * D))
    for index in np.ndindex(B, N):
        z = (VECTORS[index].double().numpy() - means) / deviations
        density = weights * np.exp(-0.5 * (z**2).sum(1)) / deviations.prod(1)
        posterior = (density / density.sum())[:, None]
        by_means = posterior * z / np.sqrt(weights)[:, None]
        by_deviations = posterior * (z**2 - 1) / np.sqrt(2 * weights)[:, None]
        gradients[index] = np.concatenate([by_means.ravel(), by_deviations.ravel()])
    return pooled(gradients, regions, how)


@pytest.mark.parametrize("chunk", [7, 4 * N * (2 * D + 1), 1 << 20])
@pytest.mark.parametrize("how", ["average", "sum"])
def test_fisher(how: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "CACHE", chunk)
    boxes = pooling.regions("1x1+3x1+2x2")
    got = encoding.encode(encoding.Fisher(MIXTURE), (VECTORS, PLACES), regions=boxes, pooling=how)
    close(got, fisher("1x1+3x1+2x2", how))


def test_fisher_is_scikit_images() -> None:
    feature = pytest.importorskip("skimage.feature")
    from sklearn.mixture import GaussianMixture

    theirs = GaussianMixture(3, covariance_type="diag")
    theirs.weights_, theirs.means_, theirs.covariances_ = (part.double().numpy() for part in MIXTURE[:3])
    theirs.precisions_cholesky_ = theirs.covariances_**-0.5
    wanted = [feature.fisher_vector(x.double().numpy(), theirs, improved=True, alpha=0.5) for x in VECTORS]
    encoder, boxes = encoding.Fisher(MIXTURE), pooling.regions("1x1")
    got = encoding.encode(encoder, (VECTORS, PLACES), regions=boxes, pooling="average", power=0.5, norm="whole")
    means = np.stack(wanted)[:, 3 : 3 + 3 * D]  # theirs begins with the gradient by the weights, which the paper omits
    ours = got.double().numpy()[:, : 3 * D]
    close(
        torch.from_numpy(ours / np.linalg.norm(ours, axis=1)[:, None]).float(),
        means / np.linalg.norm(means, axis=1)[:, None],
    )


def test_fisher_of_far_vectors_is_finite() -> None:
    got = encoding.encode(
        encoding.Fisher(MIXTURE), (VECTORS * 1e4, PLACES), regions=pooling.regions("2x2"), pooling="average", power=0.5
    )
    assert torch.isfinite(got).all() and got.any()


@pytest.mark.parametrize("norm", encoding.NORMS)
def test_power_and_norm(norm: str) -> None:
    boxes = pooling.regions("1x1+2x2")
    got = encoding.encode(CODES["omp"][0], (VECTORS, PLACES), regions=boxes, pooling="sum", power=0.5, norm=norm)
    wanted = pooled(CODES["omp"][1], "1x1+2x2", "sum")
    wanted = np.sign(wanted) * np.abs(wanted) ** 0.5
    parts = wanted.reshape(B, 5, K)
    if norm == "region":
        wanted = (parts / np.linalg.norm(parts, axis=2, keepdims=True)).reshape(B, -1)
    elif norm == "whole":
        wanted = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    close(got, wanted, 2e-4 if norm != "none" else 1e-4)


@pytest.mark.parametrize("name", CODES)
def test_flat_and_repeated_descriptors_have_finite_codes(name: str) -> None:
    encoder, _ = CODES[name]
    x = torch.cat([torch.zeros(1, 2, D), CENTRES[None, :2], WORDS[None, :2], torch.full((1, 2, D), 1e3)], 1)
    codes = encoder.codes(x)
    assert torch.isfinite(codes).all()
    torch.testing.assert_close(codes[:, 0], codes[:, 1])
    if name in ("omp", "lasso"):
        assert not codes[:, 0].any()
    if name == "llc":
        torch.testing.assert_close(codes.sum(2), torch.ones(1, x.shape[1]))


def test_omp_of_words_that_repeat() -> None:
    words = torch.eye(3)[[0, 0, 1, 2]]
    code = encoding.MatchingPursuit(words, 4).codes(torch.tensor([[[3.0, 0, 1], [0, 0, 0]]]))
    torch.testing.assert_close(code @ words, torch.tensor([[[3.0, 0, 1], [0, 0, 0]]]))
    assert code[0, 0].count_nonzero() == 2
    with pytest.raises(UsageError, match="1 to 4"):
        encoding.MatchingPursuit(words, 5).codes(torch.zeros(1, 1, 3))
