"""Vocabularies against scikit-learn and against float64 in NumPy; samples that do not depend on batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from opsin.classical import sparse, vocabulary
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
    x = vectors(2000, 8)
    found = vocabulary.kmeans(x, 30, seed=1, batch=batch)
    assert found.inertia == pytest.approx(inertia(x, found.centres), rel=1e-5)
    theirs = np.median([KMeans(30, n_init=1, random_state=seed).fit(x.numpy()).inertia_ for seed in range(3)])
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


def test_mixture_is_as_likely_as_scikit_learns() -> None:
    x = vectors(1500, 6)
    found = vocabulary.mixture(x, 8, seed=1)
    theirs = GaussianMixture(8, covariance_type="diag", random_state=0).fit(x.numpy())
    assert found.likelihood >= theirs.score(x.numpy()) - 0.01 * abs(theirs.score(x.numpy()))
    # And its likelihood is what theirs says that these parameters have.
    theirs.weights_, theirs.means_, theirs.covariances_ = (part.double().numpy() for part in found[:3])
    theirs.precisions_cholesky_ = theirs.covariances_**-0.5
    assert found.likelihood == pytest.approx(theirs.score(x.double().numpy()), abs=1e-4)
    assert float(found.weights.sum()) == pytest.approx(1, abs=1e-6)


def test_mixture_step_is_that_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "CACHE", 200)  # many chunks
    x = vectors(400, 4)
    before, after = (vocabulary.mixture(x, 3, seed=2, iterations=n, tolerance=-1) for n in (0, 1))
    z = x.double().numpy()
    weights, means, variances = (part.double().numpy() for part in before[:3])
    log = -0.5 * (((z[:, None] - means) ** 2 / variances) + np.log(2 * np.pi * variances)).sum(2) + np.log(weights)
    total = np.logaddexp.reduce(log, axis=1)
    posterior = np.exp(log - total[:, None])
    assert before.likelihood == pytest.approx(total.mean(), abs=1e-4)
    close(after.weights, posterior.mean(0))
    means = posterior.T @ z / posterior.sum(0)[:, None]
    close(after.means, means)
    close(after.variances, np.einsum("nk,nkd->kd", posterior, (z[:, None] - means) ** 2) / posterior.sum(0)[:, None])
    assert after.likelihood > before.likelihood


def test_mixture_of_vectors_without_variance_is_finite() -> None:
    x = torch.cat([vectors(60, 2), torch.full((60, 1), 3.0)], 1)
    for found in (vocabulary.mixture(x, 4, seed=0), vocabulary.mixture(torch.ones(9, 2), 3, seed=0)):
        assert all(torch.isfinite(part).all() for part in found[:3]) and np.isfinite(found.likelihood)
        assert (found.variances > 0).all() and (found.weights > 0).all()


def sparse_sums(n: int, words: Tensor, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    chosen = torch.rand(n, len(words), generator=generator).topk(count).indices
    weights = torch.zeros(n, len(words)).scatter_(1, chosen, torch.randn(n, count, generator=generator))
    return weights @ words


def test_dictionary_finds_the_words_that_vectors_are_sums_of() -> None:
    words = torch.nn.functional.normalize(torch.randn(12, 16, generator=torch.Generator().manual_seed(6)))
    heard: list[tuple[int, int]] = []
    x = sparse_sums(1500, words, 3)
    found = vocabulary.dictionary(
        x, 12, seed=1, sparsity=3, iterations=30, batch=100, progress=lambda *of: heard.append(of)
    )
    torch.testing.assert_close(torch.linalg.vector_norm(found, dim=1), torch.ones(12))
    assert ((words @ found.T).abs().max(1).values > 0.99).sum() >= 11
    assert (x - sparse.omp(x, found, 3) @ found).square().sum() < 0.01 * x.square().sum()
    assert heard[-1] == (30, 30)


def test_dictionary_with_a_penalty_is_as_good_as_scikit_learns() -> None:
    x = sparse_sums(300, torch.randn(20, 8, generator=torch.Generator().manual_seed(6)), 3)

    def objective(words: Tensor) -> float:
        codes = sparse.fista(x, words, 0.2)
        return float((0.5 * (x - codes @ words).square().sum(1) + 0.2 * codes.abs().sum(1)).mean())

    found = vocabulary.dictionary(x, 16, seed=0, penalty=0.2, batch=60, iterations=5)
    theirs = MiniBatchDictionaryLearning(16, alpha=0.2, batch_size=60, max_iter=5, random_state=0).fit(x.numpy())
    assert objective(found) <= 1.01 * objective(torch.from_numpy(theirs.components_).float())


def test_what_no_dictionary_can_be_learnt_from() -> None:
    x = vectors(20, 3)
    for wrong in ({}, {"sparsity": 2, "penalty": 0.1}):
        with pytest.raises(UsageError, match="a sparsity or a penalty"):
            vocabulary.dictionary(x, 4, seed=0, **wrong)
    with pytest.raises(UsageError, match="4 words cannot be learnt from 3 vectors that are not zero"):
        vocabulary.dictionary(torch.cat([x[:3], torch.zeros(9, 3)]), 4, seed=0, sparsity=1)


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
    for size in (3, 64, 1000):
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
    counts = torch.zeros(50)
    for seed in range(200):
        sampler = vocabulary.Sampler(5, seed)
        for part in torch.arange(50).float()[:, None].split(33):
            sampler.add(part)
        counts[sampler.values()[:, 0].long()] += 1
    expected = 200 * 5 / 50
    # The sum of (observed - expected)² / expected · N / (N - n) is about χ² of 49: mean 49, deviation 10.
    assert abs(float(((counts - expected) ** 2 / expected).sum()) / 0.9 - 49) < 5 * 10


def test_a_sample_of_nothing() -> None:
    with pytest.raises(UsageError, match="no vectors"):
        vocabulary.Sampler(5, 0).values()
    with pytest.raises(UsageError, match="at least one"):
        vocabulary.Sampler(0, 0)
    sampler = vocabulary.Sampler(5, 0)
    sampler.add(torch.zeros(2, 3))
    with pytest.raises(UsageError, match=r"\[M, 3\], received \[2, 4\]"):
        sampler.add(torch.zeros(2, 4))
