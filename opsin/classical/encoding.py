"""From descriptors to codes over a vocabulary, and from the codes of a picture to one vector, in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from opsin.classical import sparse
from opsin.classical.pooling import Pooler
from opsin.classical.vocabulary import Distances, Gaussians, Mixture, rows, slices
from opsin.errors import UsageError

NORMS = ("none", "region", "whole")


class Encoder(Protocol):
    """What gives each descriptor a code of its own."""

    words: int  # K

    def codes(self, vectors: Tensor, out: Tensor | None = None) -> Tensor:
        """float32 [B, N, D] → [B, N, K], written to `out` where it is given."""
        ...


class Hard:
    """1 for the nearest centre, 0 for all others (Sivic and Zisserman 2003): pooled by a sum, the counts of words."""

    def __init__(self, centres: Tensor) -> None:
        self.words = len(centres)
        self.distances = Distances(centres)

    def codes(self, vectors: Tensor, out: Tensor | None = None) -> Tensor:
        flat, codes = _flat(vectors, out, self.words)
        nearest = sparse.best(self.distances.squared(flat, codes), least=True)
        return codes.zero_().scatter_(1, nearest[:, None], 1.0).view(*vectors.shape[:-1], self.words)


class Triangle:
    """How much nearer than its average centre each centre is to a vector, and zero where it is not (Coates, Lee and Ng
    2011, section 3.2): max(0, mean of the distances - distance).
    """

    def __init__(self, centres: Tensor) -> None:
        self.words = len(centres)
        self.distances = Distances(centres)

    def codes(self, vectors: Tensor, out: Tensor | None = None) -> Tensor:
        flat, codes = _flat(vectors, out, self.words)
        # The square root as the reciprocal of 1 / √: on the CPU these two are twice as fast as torch's `sqrt`.
        self.distances.squared(flat, codes).clamp_(min=0).rsqrt_().reciprocal_()
        torch.sub(codes.mean(1, keepdim=True), codes, out=codes)
        return codes.relu_().view(*vectors.shape[:-1], self.words)


class MatchingPursuit:
    """Sparse codes by orthogonal matching pursuit over a dictionary of unit rows; see `sparse.omp`."""

    def __init__(self, dictionary: Tensor, sparsity: int) -> None:
        self.words, self.dictionary, self.sparsity = len(dictionary), dictionary, sparsity

    def codes(self, vectors: Tensor, out: Tensor | None = None) -> Tensor:
        flat, codes = _flat(vectors, out, self.words)
        return sparse.omp(flat, self.dictionary, self.sparsity, codes).view(*vectors.shape[:-1], self.words)


class Lasso:
    """Sparse codes with a penalty on their magnitudes (Olshausen and Field 1996); see `sparse.fista`."""

    def __init__(self, dictionary: Tensor, penalty: float, *, iterations: int = 500, tolerance: float = 1e-6) -> None:
        self.words, self.dictionary, self.penalty = len(dictionary), dictionary, penalty
        self.iterations, self.tolerance = iterations, tolerance
        self.bound = sparse.curvature(dictionary)

    def codes(self, vectors: Tensor, out: Tensor | None = None) -> Tensor:
        flat, codes = _flat(vectors, out, self.words)
        options = {"iterations": self.iterations, "tolerance": self.tolerance, "bound": self.bound}
        sparse.fista(flat, self.dictionary, self.penalty, out=codes, **options)
        return codes.view(*vectors.shape[:-1], self.words)


class LocalityConstrained:
    """A vector as a sum, with weights that add up to 1, of its nearest centres (Wang et al. 2010, section 4, the fast
    approximation): the least squares of the weights, with β · trace on the diagonal of their system.
    """

    def __init__(self, centres: Tensor, neighbours: int = 5, beta: float = 1e-4) -> None:
        if not 1 <= neighbours <= len(centres):
            raise UsageError(f"llc: expected 1 to {len(centres)} neighbours, received {neighbours}")
        if not 0 < beta < float("inf"):
            raise UsageError(f"llc: expected a beta above zero, received {beta}")
        self.words, self.centres, self.neighbours, self.beta = len(centres), centres, neighbours, beta
        self.distances = Distances(centres)

    def codes(self, vectors: Tensor, out: Tensor | None = None) -> Tensor:
        flat, codes = _flat(vectors, out, self.words)
        nearest = self.distances.squared(flat, codes).topk(self.neighbours, largest=False).indices
        away = (self.centres[nearest] - flat[:, None]).double()  # the system may be as bad as 1 / β
        system = away @ away.transpose(1, 2)
        trace = system.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-30)  # 0: all of them are the vector itself
        system.diagonal(dim1=1, dim2=2).add_(self.beta * trace[:, None])
        ones = torch.ones_like(system[:, :, :1])
        weights = torch.cholesky_solve(ones, torch.linalg.cholesky(system))[:, :, 0]
        weights = (weights / weights.sum(1, keepdim=True)).float()
        return codes.zero_().scatter_(1, nearest, weights).view(*vectors.shape[:-1], self.words)


class Fisher:
    """The gradient of a mixture's likelihood by its means and deviations (Perronnin, Sánchez and Mensink 2010, section
    2): what is pooled is posterior · (x, x², 1). Their "improved" vector is `encode` with power 0.5 and a norm.
    """

    def __init__(self, mixture: Mixture) -> None:
        self.gaussians = Gaussians(mixture)
        self.width = 2 * mixture.means.numel()

    def pooled(self, vectors: Tensor, pooler: Pooler) -> Tensor:
        """float32 [B, N, D] → [B, R, 2 · K · D]: for each box the gradients by all means, then by all deviations."""
        if pooler.how == "max":
            raise UsageError("pooling: a Fisher vector is an average or a sum, received 'max'")
        table = self.gaussians.table  # [2 D + 1, K]
        sums = pooler.empty(len(vectors), table.shape[1], len(table))
        for some, part, chunk in _chunks(vectors, pooler, max(table.shape)):
            features = self.gaussians.features(chunk.flatten(0, 1))
            posterior = self.gaussians.logarithms(features).softmax(1).view(*chunk.shape[:2], -1)
            features = features.view(*chunk.shape[:2], -1)
            for places, boxes in pooler.within(part):
                one = posterior[:, places].transpose(1, 2) @ features[:, places]
                for box in boxes:
                    sums[some, box] += one
        sums = pooler.finish(sums)
        means, deviations = self.gaussians.means.float(), self.gaussians.variances.sqrt().float()
        weights = self.gaussians.weights.sqrt().float()[:, None]
        d = means.shape[1]
        first, second, counts = sums[..., :d], sums[..., d:-1], sums[..., -1:]
        by_means = (first - counts * means) / (deviations * weights)
        by_deviations = second - 2 * means * first + (means**2 - deviations**2) * counts
        by_deviations /= deviations**2 * (2**0.5 * weights)
        return torch.cat([by_means.flatten(2), by_deviations.flatten(2)], 2)


def encode(
    encoder: Encoder | Fisher,
    grid: tuple[Tensor, Tensor],
    *,
    regions: Tensor,
    pooling: str,
    power: float = 1.0,
    norm: str = "none",
) -> Tensor:
    """The descriptors of pictures as one vector each, float32 [B, R · K] or, of a `Fisher`, [B, R · 2 · K · D].

    grid: vectors float32 [B, N, D] and their places [N, 2]. regions: boxes of `pooling.regions`. The codes are made and
    pooled in chunks that stay in cache; all of them are never there at once. power: v becomes sign(v) · |v|^power.
    norm: what is brought to Euclidean length 1, each "region" or the "whole" vector; zeros stay.
    """
    vectors, places = grid
    if vectors.ndim != 3 or not vectors.shape[1] or places.shape != (vectors.shape[1], 2):
        received = f"{list(vectors.shape)} and {list(places.shape)}"
        raise UsageError(f"descriptors: expected vectors [B, N, D] and places [N, 2], received {received}")
    if norm not in NORMS:
        raise UsageError(f"norm: expected {', '.join(NORMS)}, received {norm!r}")
    if not 0 < power <= 1:
        raise UsageError(f"power: expected a number above 0 and up to 1, received {power}")
    pooler = Pooler(places, regions, pooling)
    pooled = encoder.pooled(vectors, pooler) if isinstance(encoder, Fisher) else _pooled(encoder, vectors, pooler)
    if power != 1:
        pooled = pooled.sign() * pooled.abs().pow_(power)
    if norm == "region":
        pooled = functional.normalize(pooled, dim=2)
    return functional.normalize(pooled.flatten(1)) if norm == "whole" else pooled.flatten(1)


def _pooled(encoder: Encoder, vectors: Tensor, pooler: Pooler) -> Tensor:
    """float32 [B, N, D] → [B, R, K]."""
    total = pooler.empty(len(vectors), encoder.words)
    work = vectors.new_empty(0)
    for some, part, chunk in _chunks(vectors, pooler, encoder.words):
        size = chunk.shape[0] * chunk.shape[1] * encoder.words
        if len(work) < size:
            work = vectors.new_empty(size)
        codes = encoder.codes(chunk, work[:size].view(*chunk.shape[:2], encoder.words))
        pooler.add(total[some], codes, part)
    return pooler.finish(total)


def _chunks(vectors: Tensor, pooler: Pooler, width: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Vectors [B, N, D] in the pooler's order, as few at a time as `width` floats for each are one chunk: some whole
    pictures, or a part of one. Gives which pictures, which part of the order, and float32 [b, n, D].
    """
    most, count = rows(width, vectors.device), vectors.shape[1]
    step = -(-count // -(-count // most))  # parts of one size: a short last one would be slow for what it is
    pictures = max(1, most // step)
    for some in slices(len(vectors), pictures):
        ordered = vectors[some][:, pooler.order]
        for part in slices(count, step):
            yield some, part, ordered[:, part]


def _flat(vectors: Tensor, out: Tensor | None, words: int) -> tuple[Tensor, Tensor]:
    """The vectors as [B · N, D], and what their codes are written to, [B · N, K]."""
    flat = vectors.flatten(0, -2)
    return flat, flat.new_empty(len(flat), words) if out is None else out.view(len(flat), words)
