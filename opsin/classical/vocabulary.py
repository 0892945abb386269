"""What is learnt from descriptors without labels: projections, centres, mixtures, dictionaries; and a sample of them.

These are the features that the chapter calls unsupervised. Everything runs in chunks that stay in a processor's cache
(`rows`), on any device, and every random draw is a function of a seed, made on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from opsin.classical import sparse
from opsin.data import rng
from opsin.errors import UsageError

Progress = Callable[[int, int], None]  # of what is done, and of how much

CACHE = 1 << 20  # floats of a chunk on the CPU: 4 MiB, which a third-level cache holds beside what it is made from
CHUNK = 1 << 26  # floats of a chunk on a GPU, which wants few and large ones


class Projection(NamedTuple):
    """An affine map of vectors: (x - mean) · matrix."""

    mean: Tensor  # float32 [D]
    matrix: Tensor  # float32 [D, d]

    def apply(self, x: Tensor) -> Tensor:
        """float32 [..., D] → [..., d]."""
        offset = -(self.mean.double() @ self.matrix.double()).float()
        return torch.addmm(offset, x.reshape(-1, x.shape[-1]), self.matrix).reshape(*x.shape[:-1], -1)


class KMeans(NamedTuple):
    """Centres, and the sum of the squared distances of all vectors to the nearest of them."""

    centres: Tensor  # float32 [K, D]
    inertia: float


class Mixture(NamedTuple):
    """Gaussians with diagonal covariances, and the mean log-likelihood of the vectors they were fitted to, in nats."""

    weights: Tensor  # float32 [K], which add up to 1
    means: Tensor  # float32 [K, D]
    variances: Tensor  # float32 [K, D]
    likelihood: float


class Sampler:
    """`count` vectors drawn uniformly, without replacement, from all that are added; the rest is forgotten.

    Each vector has a random key, a function of the seed and of its place among all that were added; those with the
    smallest keys are kept. So the sample does not depend on how the vectors were divided into batches. Memory:
    2 · count vectors.
    """

    def __init__(self, count: int, seed: int) -> None:
        if count < 1:
            raise UsageError(f"a sample has at least one vector, received count={count}")
        self.count, self.seed = count, seed
        self.seen = 0  # vectors added
        self._rows: Tensor | None = None  # [2 · count, D], of which the first `_used` are there
        self._keys = np.empty(2 * count)
        self._used = 0
        self._limit = np.inf  # vectors with larger keys cannot be among the sample any more

    def add(self, x: Tensor) -> None:
        """Consider vectors, float32 [M, D]."""
        if self._rows is None:
            self._rows = x.new_empty(2 * self.count, x.shape[-1])
        if x.ndim != 2 or x.shape[1] != self._rows.shape[1]:
            raise UsageError(f"vectors: expected [M, {self._rows.shape[1]}], received {list(x.shape)}")
        for part in x.split(self.count):
            places = np.arange(self.seen, self.seen + len(part))
            # Two draws of 24 bits are one of 48: of 10⁷ vectors hardly two have the same key.
            draws = rng.uniform(self.seed, 0, places, 2).double().numpy()
            keys = draws[:, 0] + draws[:, 1] * 2.0**-24
            found = np.flatnonzero(keys < self._limit)
            if self._used + len(found) > 2 * self.count:
                self._keep()
            end = self._used + len(found)
            self._rows[self._used : end] = part[torch.from_numpy(found).to(part.device)]
            self._keys[self._used : end] = keys[found]
            self._used = end
            self.seen += len(part)

    def values(self) -> Tensor:
        """The sample, float32 [min(count, vectors added), D], in random order: so is each first part of it."""
        if self._rows is None:
            raise UsageError("no vectors were added, there is nothing to sample from")
        self._keep()
        return self._rows[: self._used].clone()

    def _keep(self) -> None:
        """Forget all but the `count` smallest keys. Equal keys: the earlier vector, as rows before it came earlier."""
        assert self._rows is not None
        order = np.argsort(self._keys[: self._used], kind="stable")[: self.count]
        self._used = len(order)
        self._rows[: self._used] = self._rows[torch.from_numpy(order).to(self._rows.device)]
        self._keys[: self._used] = self._keys[order]
        if self._used == self.count:
            self._limit = self._keys[self._used - 1]


class Distances:
    """Squared Euclidean distances of vectors to centres, float32 [K, D], by one matrix product.

    |x|² - 2 x·c + |c|² is the product of (x, |x|², 1) and (-2c, 1, |c|²), so nothing is left to be added in a further
    pass over the distances. All vectors are first moved by the centres' mean, which takes least from the precision.
    """

    def __init__(self, centres: Tensor) -> None:
        self.mean = centres.mean(0)
        moved = centres - self.mean
        norms = moved.double().square().sum(1).float()
        self.table = torch.cat([-2 * moved.T, torch.ones_like(norms)[None], norms[None]]).contiguous()  # [D + 2, K]

    def squared(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """float32 [n, D] → [n, K]; rounding leaves numbers a little below zero where a vector is near a centre."""
        wide = x.new_empty(len(x), len(self.table))
        moved = wide[:, :-2]
        torch.sub(x, self.mean, out=moved)
        torch.linalg.vector_norm(moved, dim=1, out=wide[:, -2]).square_()
        wide[:, -1] = 1
        return torch.mm(wide, self.table, out=out)

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest centre of each vector, int64 [n], and its squared distance, [n]; the first of equal ones."""
        labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
        least = x.new_empty(len(x))
        step = rows(max(self.table.shape), x.device)
        work = x.new_empty(min(step, len(x)), self.table.shape[1])
        for part in slices(len(x), step):
            squared = self.squared(x[part], work[: part.stop - part.start])
            labels[part] = sparse.best(squared, least=True)
            least[part] = squared.gather(1, labels[part, None])[:, 0]
        return labels, least.clamp_(min=0)


def kmeans(
    x: Tensor,
    k: int,
    *,
    seed: int,
    iterations: int = 25,
    batch: int = 0,
    tolerance: float = 1e-4,
    progress: Progress | None = None,
) -> KMeans:
    """k centres of vectors, float32 [N, D], by k-means++ (Arthur and Vassilvitskii 2007) and Lloyd's iterations.

    batch: 0, or vectors after which the centres move by themselves, each towards the mean of all that it was ever given
    (Sculley 2010); an iteration is a pass over all vectors either way. tolerance: it ends early when a pass has made
    the inertia smaller by less than this part of it. A centre without a vector is put on a vector drawn with chances
    as its squared distances, as k-means++ draws.
    """
    x = checked(x, k)
    centres = _plus_plus(x, k, seed)
    before = np.inf
    for done in range(iterations):
        centres, inertia = _lloyd(x, centres, seed + done) if batch <= 0 else _batches(x, centres, seed, done, batch)
        if progress:
            progress(done + 1, iterations)
        if before - inertia <= tolerance * before and np.isfinite(before):
            break
        before = inertia
    return KMeans(centres, float(Distances(centres).nearest(x)[1].double().sum()))


def _lloyd(x: Tensor, centres: Tensor, seed: int) -> tuple[Tensor, float]:
    """The means of what is nearest to each centre, and the inertia before they moved."""
    labels, least = Distances(centres).nearest(x)
    sums, counts = sums_of(x, labels, len(centres))
    return _filled(x, sums / counts.clamp(min=1)[:, None], counts, least, seed), float(least.double().sum())


def _batches(x: Tensor, centres: Tensor, seed: int, epoch: int, batch: int) -> tuple[Tensor, float]:
    """A pass in batches, in a new order each; the inertia as it was for each batch before the centres moved by it.

    The weights of the centres begin anew with each pass: what a centre was given while it was elsewhere is forgotten.
    """
    order = torch.from_numpy(rng.order(seed, epoch, len(x))).to(x.device)
    total = x.new_zeros(len(centres))
    part, least, inertia = order, x.new_zeros(len(x)), 0.0
    for part in order.split(batch):
        labels, least = Distances(centres).nearest(rows_of_batch := x[part])
        sums, counts = sums_of(rows_of_batch, labels, len(centres))
        total += counts
        centres = centres + (sums - counts[:, None] * centres) / total.clamp(min=1)[:, None]
        inertia += float(least.double().sum())
    return _filled(x[part], centres, total, least, seed + epoch), inertia


def _filled(x: Tensor, centres: Tensor, counts: Tensor, least: Tensor, seed: int) -> Tensor:
    """The centres, those without a vector moved to vectors far from all others."""
    empty = torch.nonzero(counts == 0)[:, 0]
    if len(empty):
        centres[empty] = x[drawn(least, len(empty), _generator(seed))]
    return centres


def _plus_plus(x: Tensor, k: int, seed: int) -> Tensor:
    """k different rows of x, each drawn with chances as the squared distance to the nearest one drawn before.

    As in k-means|| (Bahmani et al. 2012) many are drawn from the same chances, here one for 16 that are there, so that
    the distances are few and large products; and 2¹⁶ or 32 k vectors of the sample are enough to choose from. The first
    ones matter most: they are the best of some draws, by the distances that they leave.
    """
    generator = _generator(seed)
    limit = max(1 << 16, 32 * k)
    if len(x) > limit:
        x = x[torch.from_numpy(rng.order(seed, 0, len(x))[:limit]).to(x.device)]
    chosen = drawn(x.new_ones(len(x)), 1, generator)
    least = _left(x, x.new_full((len(x),), torch.inf), chosen[None])[0]
    least[chosen] = 0  # and not what rounding makes of it
    while len(chosen) < k:
        count = min(k - len(chosen), max(1, len(chosen) // 16))
        draws = [drawn(least, count, generator) for _ in range(max(1, int(2 + np.log(k)) // count))]
        left = _left(x, least, torch.stack(draws))
        best = int(left.sum(1, dtype=torch.float64).argmin())
        chosen, least = torch.cat([chosen, draws[best]]), left[best]
        least[chosen] = 0
    return x[chosen]


def _left(x: Tensor, least: Tensor, draws: Tensor) -> Tensor:
    """What is left of the squared distances, [N], with the vectors of each draw, int64 [T, n], as centres: [T, N]."""
    distances = Distances(x[draws.flatten()])
    left = least.repeat(len(draws), 1)
    for part in slices(len(x), rows(max(distances.table.shape), x.device)):
        squared = distances.squared(x[part]).view(-1, *draws.shape).amin(2).T
        left[:, part] = torch.minimum(left[:, part], squared)
    return left.clamp_(min=0)


class Gaussians:
    """The posteriors of a mixture and sums over them, each one matrix product.

    With the features (x, x², 1) of vectors moved and scaled to mean 0 and variance 1 the logarithm of a Gaussian is a
    product with a table, and what a maximisation step or a Fisher vector need is posteriorᵀ · features.
    """

    def __init__(self, mixture: Mixture) -> None:
        weights, means, variances = (part.double() for part in mixture[:3])
        self.mean = (weights[:, None] * means).sum(0)
        self.scale = (weights[:, None] * (variances + (means - self.mean) ** 2)).sum(0).sqrt()
        self.means = (means - self.mean) / self.scale  # float64 [K, D], as all else, in the units of the features
        self.variances = variances / self.scale**2
        self.weights = weights
        constant = weights.log() - 0.5 * ((2 * np.pi * self.variances).log() + self.means**2 / self.variances).sum(1)
        table = [self.means / self.variances, -0.5 / self.variances, constant[:, None]]
        self.table = torch.cat(table, 1).T.float().contiguous()  # [2 D + 1, K]
        self.offset, self.factor = self.mean.float(), (1 / self.scale).float()

    def features(self, x: Tensor) -> Tensor:
        """float32 [n, D] → [n, 2 D + 1]."""
        wide = x.new_empty(len(x), len(self.table))
        d = x.shape[1]
        torch.sub(x, self.offset, out=wide[:, :d]).mul_(self.factor)
        torch.mul(wide[:, :d], wide[:, :d], out=wide[:, d:-1])
        wide[:, -1] = 1
        return wide

    def logarithms(self, features: Tensor) -> Tensor:
        """log (weight · density) of each Gaussian, float32 [n, K], in the units of the features."""
        return features @ self.table


def mixture(
    x: Tensor,
    k: int,
    *,
    seed: int,
    iterations: int = 50,
    tolerance: float = 1e-3,
    floor: float = 1e-4,
    progress: Progress | None = None,
) -> Mixture:
    """k Gaussians with diagonal covariances fitted to vectors, float32 [N, D], by expectation and maximisation
    (Dempster, Laird and Rubin 1977) from the clusters of k-means.

    tolerance: it ends early when a step has won less than so many nats per vector. floor: the least variance, as a part
    of the variance of all vectors in that dimension; a dimension without variance gets the floor as its variance.
    """
    x = checked(x, k)
    mean, variance = _moments(x)
    scale = torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()
    z = ((x - mean) / scale).float()
    centres = kmeans(z, k, seed=seed, iterations=10).centres
    labels = Distances(centres).nearest(z)[0]
    sums = torch.cat([sums_of(z, labels, k)[0], sums_of(z.square(), labels, k)[0]], 1).double()
    found = Mixture(z.new_full((k,), 1 / k), centres, torch.ones_like(centres), -np.inf)
    found = _maximised(found, sums, torch.bincount(labels, minlength=k).double(), floor)
    for done in range(iterations + 1):
        statistics, likelihood = _expected(z, found)
        won, found = likelihood - found.likelihood, found._replace(likelihood=likelihood)
        if progress:
            progress(min(done + 1, iterations), iterations)
        if done == iterations or won < tolerance:
            break
        found = _maximised(found, statistics[:, :-1], statistics[:, -1], floor)
    likelihood = found.likelihood - float(scale.log().sum())
    means, variances = mean + found.means.double() * scale, found.variances.double() * scale**2
    return Mixture(found.weights, means.float(), variances.float(), likelihood)


def _expected(z: Tensor, given: Mixture) -> tuple[Tensor, float]:
    """The sums of posterior · (z, z², 1), float64 [K, 2 D + 1], and the mean log-likelihood."""
    gaussians = Gaussians(given)
    sums = torch.zeros(len(given.weights), len(gaussians.table), dtype=torch.float64, device=z.device)
    total = 0.0
    for part in slices(len(z), rows(max(gaussians.table.shape), z.device)):
        features = gaussians.features(z[part])
        logarithms = gaussians.logarithms(features)
        highest = torch.logsumexp(logarithms, 1, keepdim=True)
        sums += logarithms.sub_(highest).exp_().T @ features
        total += float(highest.sum(dtype=torch.float64))
    # From the units of the features back to those of z.
    d = z.shape[1]
    first, second, counts = sums[:, :d] * gaussians.scale, sums[:, d:-1] * gaussians.scale**2, sums[:, -1:]
    second += 2 * gaussians.mean * first + gaussians.mean**2 * counts
    first += gaussians.mean * counts
    return torch.cat([first, second, counts], 1), total / len(z) - float(gaussians.scale.log().sum())


def _maximised(given: Mixture, sums: Tensor, counts: Tensor, floor: float) -> Mixture:
    """The mixture that the sums of (z, z²), float64 [K, 2 D], make most likely. A Gaussian that has less than a
    thousandth of a vector stays as it is.
    """
    first, second = (sums / counts.clamp(min=1e-3)[:, None]).chunk(2, 1)
    variances = (second - first**2).clamp(min=floor)
    there = (counts >= 1e-3)[:, None]
    weights = counts.clamp(min=1e-3)
    return Mixture(
        (weights / weights.sum()).float(),
        torch.where(there, first.float(), given.means),
        torch.where(there, variances.float(), given.variances),
        given.likelihood,
    )


def dictionary(
    x: Tensor,
    k: int,
    *,
    seed: int,
    sparsity: int = 0,
    penalty: float = 0.0,
    iterations: int = 10,
    batch: int = 512,
    progress: Progress | None = None,
) -> Tensor:
    """k words of unit length, float32 [k, D], of which vectors, float32 [N, D], are sums of few: learnt online (Mairal,
    Bach, Ponce and Sapiro 2010), with the codes of `sparse.omp` (sparsity) or of `sparse.fista` (penalty).

    iterations: passes over all vectors, in batches; after each batch every word is set to what is best for the codes of
    all batches, of which older ones count less and less. A word that no code uses is replaced by a vector.
    """
    x = checked(x, k)
    if (sparsity > 0) == (penalty > 0):
        raise UsageError(f"dictionary: expected a sparsity or a penalty, received {sparsity=}, {penalty=}")
    generator = _generator(seed)
    lengths = torch.linalg.vector_norm(x, dim=1)
    if (there := int((lengths > 0).sum())) < k:
        raise UsageError(f"{k} words cannot be learnt from {there} vectors that are not zero; expected 1 to {there}")
    little = 1e-6 * float(lengths.square().mean())
    words = functional.normalize(x[drawn(lengths.square(), k, generator)])
    used, wanted = x.new_zeros(k, k), x.new_zeros(k, x.shape[1])
    step = 0
    for done in range(iterations):
        for places in torch.from_numpy(rng.order(seed, done, len(x))).to(x.device).split(batch):
            some = x[places]
            codes = (
                sparse.omp(some, words, sparsity) if sparsity else sparse.fista(some, words, penalty, tolerance=1e-4)
            )
            step += 1
            keep = (1 - 1 / step) ** 2  # what step t gave weighs (t / step)²
            used.mul_(keep).addmm_(codes.T, codes)
            wanted.mul_(keep).addmm_(codes.T, some)
            for word, weight in enumerate(used.diagonal().tolist()):
                if weight > little:
                    better = words[word] + (wanted[word] - used[word] @ words) / weight
                    words[word] = functional.normalize(better, dim=0)
            unused = torch.nonzero(used.diagonal() <= little)[:, 0]
            if len(unused):
                words[unused] = functional.normalize(x[drawn(lengths.square(), len(unused), generator)])
        if progress:
            progress(done + 1, iterations)
    return words


def zca(x: Tensor, epsilon: float) -> Projection:
    """The whitening nearest to no change: V (Λ + ε)^-½ Vᵀ of the covariance V Λ Vᵀ of vectors, float32 [N, D] (Bell and
    Sejnowski 1997); ε keeps directions of hardly any variance from becoming as loud as the others.
    """
    mean, values, vectors = _principal(x)
    return Projection(mean, ((vectors / (values + _positive("epsilon", epsilon)).sqrt()) @ vectors.T).float())


def pca(x: Tensor, d: int, *, whiten: bool = False) -> Projection:
    """The d directions of largest variance of vectors, float32 [N, D], with the largest first; the component of largest
    magnitude of each is positive. whiten: to unit variance (a direction without variance stays zero).
    """
    if not 1 <= d <= x.shape[-1]:
        raise UsageError(f"pca: expected 1 to {x.shape[-1]} directions of vectors of that length, received {d}")
    mean, values, vectors = _principal(x)
    values, vectors = values[:d], vectors[:, :d]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    matrix = vectors * largest.sign()
    if whiten:
        kept = values > 1e-10 * values[0].clamp(min=1e-30)
        matrix = matrix * torch.where(kept, values.clamp(min=1e-30).rsqrt(), torch.zeros_like(values))
    return Projection(mean, matrix.float())


def _principal(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean float32 [D]; variances, the largest first, float64 [D]; and their directions, float64 [D, D] in columns."""
    x = checked(x, 1)
    mean = _moments(x)[0].float()
    products = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for part in slices(len(x), 1 << 14):
        moved = x[part] - mean
        products += moved.T @ moved
    values, vectors = torch.linalg.eigh(products / len(x))
    return mean, values.flip(0).clamp(min=0), vectors.flip(1)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of vectors, float64 [D]."""
    mean = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    variance = mean.clone()
    for part in slices(len(x), 1 << 14):
        mean += x[part].sum(0, dtype=torch.float64) / len(x)
    for part in slices(len(x), 1 << 14):
        variance += (x[part] - mean).square().sum(0) / len(x)
    return mean, variance


def checked(x: Tensor, k: int) -> Tensor:
    """Vectors that k things can be learnt from: float32 [N, D], finite, N ≥ k ≥ 1; `UsageError` otherwise."""
    if x.ndim != 2 or not x.shape[1]:
        raise UsageError(f"vectors: expected [N, D], received {list(x.shape)}")
    if not 1 <= k <= len(x):
        raise UsageError(f"{k} words cannot be learnt from {len(x)} vectors; expected 1 to {len(x)}")
    x = x.float().contiguous()
    if not all(bool(torch.isfinite(x[part]).all()) for part in slices(len(x), 1 << 16)):
        raise UsageError("vectors: expected finite numbers, received NaN or infinity")
    return x


def sums_of(x: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The sum of the vectors of each label, float32 [k, D], and how many they are, float32 [k]."""
    counts = torch.bincount(labels, minlength=k)
    starts = counts.cumsum(0) - counts
    return functional.embedding_bag(labels.argsort(stable=True), x, starts, mode="sum"), counts.float()


def drawn(chances: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different places, int64 [count], drawn with chances in proportion to numbers ≥ 0, [N]; where fewer than
    `count` are above zero, the rest is drawn from all others alike.

    By the smallest of exponential variables (Efraimidis and Spirakis 2006), whose draws do not depend on the device.
    """
    waits = torch.empty(len(chances), dtype=torch.float64).exponential_(generator=generator)
    numbers = chances.double().cpu()
    waits = torch.where(numbers > 0, waits / numbers, waits * 1e300)
    return waits.topk(count, largest=False).indices.to(chances.device)


def rows(width: int, device: torch.device) -> int:
    """How many rows of so many floats are one chunk."""
    return max(1, (CACHE if device.type == "cpu" else CHUNK) // width)


def slices(n: int, step: int) -> Iterator[slice]:
    """0 … n in parts of `step`, the last one with what is left."""
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed & rng.MASK)


def _positive(name: str, value: float) -> float:
    if not (np.isfinite(value) and value > 0):
        raise UsageError(f"{name}: expected a number above zero, received {value}")
    return value
