"""Vocabularies against scikit-learn and against float64 in NumPy; samples that do not depend on batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from opsin.classical import vocabulary
from opsin.errors import UsageError


def vectors(n: int, d: int, seed: int = 0) -> Tensor:
    """Descriptor-like: correlated, of unequal variances, in some loose groups, away from the origin."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator) * torch.linspace(2, 0.1, d)
    groups = torch.randn(20, d, generator=generator)
    x = torch.randn(n, d, generator=generator) + 2 * groups[torch.randint(20, (n,), generator=generator)]
    return x @ mix + 5


def inertia(x: Tensor, centres: Tensor) -> float:
    distances = ((x.double()[:, None] - centres.double()) ** 2).sum(2)
    return float(distances.min(1).values.sum())


def close(got: Tensor, wanted: np.ndarray, part: float = 1e-4) -> None:
    assert got.shape == wanted.shape and got.dtype == torch.float32
    assert np.abs(got.double().numpy() - wanted).max() <= part * np.abs(wanted).max()


@pytest.mark.parametrize("batch", [0, 500])
def test_kmeans_is_as_good_as_scikit_learns(batch: int) -> None:
    x = vectors(4000, 16)
    found = vocabulary.kmeans(x, 50, seed=1, batch=batch)
    assert found.inertia == pytest.approx(inertia(x, found.centres), rel=1e-5)
    theirs = np.median([KMeans(50, n_init=1, random_state=seed).fit(x.numpy()).inertia_ for seed in range(5)])
    assert found.inertia <= 1.01 * theirs


def test_kmeans_lloyd_step_is_the_means_of_the_nearest() -> None:
    x = vectors(700, 5)
    start = vocabulary.kmeans(x, 9, seed=3, iterations=0)
    step = vocabulary.kmeans(x, 9, seed=3, iterations=1)
    labels = ((x.double()[:, None] - start.centres.double()) ** 2).sum(2).argmin(1)
    close(step.centres, np.stack([x.double()[labels == k].mean(0).numpy() for k in range(9)]))


def test_kmeans_draws_depend_on_the_seed_alone() -> None:
    x = vectors(500, 4)
    state = torch.get_rng_state()
    one, again, other = (vocabulary.kmeans(x, 8, seed=seed, iterations=2) for seed in (1, 1, 2))
    assert torch.equal(one.centres, again.centres) and one.inertia == again.inertia
    assert not torch.equal(one.centres, other.centres)
    assert torch.equal(torch.get_rng_state(), state)


def test_kmeans_starts_on_different_vectors_and_leaves_no_centre_empty() -> None:
    x = torch.cat([torch.zeros(990, 3), torch.eye(3) * 7, torch.ones(7, 3)])
    start = vocabulary.kmeans(x, 5, seed=0, iterations=0)
    assert start.inertia == 0  # as many centres as there are different vectors, so each of them is one
    found = vocabulary.kmeans(x, 8, seed=0)  # more centres than different vectors
    assert found.inertia == 0 and torch.isfinite(found.centres).all()


def test_kmeans_of_every_vector() -> None:
    x = vectors(40, 3)
    assert vocabulary.kmeans(x, 40, seed=0).inertia == pytest.approx(0, abs=1e-3)


def test_kmeans_hears_of_its_progress() -> None:
    heard: list[tuple[int, int]] = []
    vocabulary.kmeans(vectors(300, 4), 5, seed=0, iterations=3, tolerance=-1, progress=lambda *of: heard.append(of))
    assert heard == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("x", "k", "match"),
    [
        (torch.zeros(3, 2), 4, "4 words cannot be learnt from 3 vectors"),
        (torch.zeros(3, 2), 0, "expected 1 to 3"),
        (torch.zeros(3), 1, r"expected \[N, D\], received \[3\]"),
        (torch.tensor([[0.0, float("nan")]]), 1, "NaN"),
    ],
)
def test_what_cannot_be_learnt_from(x: Tensor, k: int, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        vocabulary.kmeans(x, k, seed=0)


def test_pca_and_zca_are_those_of_the_covariance() -> None:
    x = vectors(600, 7)
    double = x.double().numpy()
    covariance = np.cov(double.T, bias=True)
    values, directions = np.linalg.eigh(covariance)
    white = vocabulary.zca(x, 0.1)
    close(white.apply(x), (double - double.mean(0)) @ directions @ np.diag((values + 0.1) ** -0.5) @ directions.T)
    for whiten in (False, True):
        found = vocabulary.pca(x, 3, whiten=whiten)
        top = directions[:, ::-1][:, :3]
        top = top * np.sign(np.take_along_axis(top, np.abs(top).argmax(0)[None], 0))
        wanted = (double - double.mean(0)) @ top
        close(found.apply(x), wanted / wanted.std(0) if whiten else wanted)
    assert torch.equal(found.apply(x.view(6, 100, 7)), found.apply(x).view(6, 100, 3))


def test_directions_without_variance_stay_silent() -> None:
    x = torch.cat([vectors(100, 2), torch.full((100, 2), 3.0)], 1)
    assert vocabulary.pca(x, 4, whiten=True).apply(x)[:, 2:].abs().max() == 0
    assert torch.isfinite(vocabulary.zca(torch.ones(5, 4), 0.1).apply(torch.ones(1, 4))).all()
    with pytest.raises(UsageError, match="expected 1 to 4 directions"):
        vocabulary.pca(x, 5)
    with pytest.raises(UsageError, match="epsilon"):
        vocabulary.zca(x, 0)


def test_a_sample_does_not_depend_on_the_batches() -> None:
    stream = torch.arange(1000.0)[:, None]
    samples = []
    for size in (1, 7, 64, 1000):
        sampler = vocabulary.Sampler(50, seed=4)
        for part in stream.split(size):
            sampler.add(part)
        samples.append(sampler.values())
    assert all(torch.equal(sample, samples[0]) for sample in samples)
    assert len(samples[0].unique()) == 50 and set(samples[0][:, 0].tolist()) <= set(range(1000))
    few = vocabulary.Sampler(50, seed=4)
    few.add(stream[:20])
    assert sorted(few.values()[:, 0].tolist()) == list(range(20))
    few.add(stream[20:])  # having looked does not change it
    assert torch.equal(few.values(), samples[0])


def test_a_sample_is_uniform() -> None:
    counts = torch.zeros(200)
    for seed in range(400):
        sampler = vocabulary.Sampler(20, seed)
        for part in torch.arange(200).float()[:, None].split(33):
            sampler.add(part)
        counts[sampler.values()[:, 0].long()] += 1
    expected = 400 * 20 / 200
    # The sum of (observed - expected)² / expected · N / (N - n) is about χ² of 199: mean 199, deviation 20.
    assert abs(float(((counts - expected) ** 2 / expected).sum()) / 0.9 - 199) < 5 * 20


def test_a_sample_of_nothing() -> None:
    with pytest.raises(UsageError, match="no vectors"):
        vocabulary.Sampler(5, 0).values()
    with pytest.raises(UsageError, match="at least one"):
        vocabulary.Sampler(0, 0)
    sampler = vocabulary.Sampler(5, 0)
    sampler.add(torch.zeros(2, 3))
    with pytest.raises(UsageError, match=r"\[M, 3\], received \[2, 4\]"):
        sampler.add(torch.zeros(2, 4))
