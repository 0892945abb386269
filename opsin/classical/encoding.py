"""From descriptors to codes over a vocabulary, and from the codes of a picture to one vector, in chunks."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from opsin.classical.pooling import Pooler
from opsin.classical.vocabulary import Distances, rows, slices
from opsin.errors import UsageError


class Encoder(Protocol):
    """What gives each descriptor a code of its own."""

    words: int  # K

    def codes(self, vectors: Tensor, out: Tensor | None = None) -> Tensor:
        """float32 [B, N, D] → [B, N, K], written to `out` where it is given."""
        ...


class Triangle:
    """How much nearer than its average centre each centre is to a vector, and zero where it is not (Coates, Lee and Ng
    2011, section 3.2): max(0, mean of the distances - distance).
    """

    def __init__(self, centres: Tensor) -> None:
        self.words = len(centres)
        self.distances = Distances(centres)

    def codes(self, vectors: Tensor, out: Tensor | None = None) -> Tensor:
        flat = self.distances.squared(vectors.flatten(0, 1), None if out is None else out.flatten(0, 1))
        # The square root, as the reciprocal of 1 / √: torch's own `sqrt` is three times as slow as these two on the CPU.
        flat.clamp_(min=0).rsqrt_().reciprocal_()
        torch.sub(flat.mean(1, keepdim=True), flat, out=flat)
        return flat.relu_().view(*vectors.shape[:-1], self.words)


def encode(encoder: Encoder, vectors: Tensor, places: Tensor, *, regions: Tensor, pooling: str) -> Tensor:
    """The descriptors of pictures, float32 [B, N, D] at places [N, 2], as vectors, float32 [B, R · K]: their codes,
    pooled over each box of `pooling.regions`. The codes are made and pooled in chunks that stay in cache.
    """
    check_places(vectors, places)
    pooler = Pooler(places, regions, pooling)
    total = pooler.empty(len(vectors), encoder.words)
    limit = rows(encoder.words, vectors.device)
    step = min(limit, vectors.shape[1])
    pictures = max(1, min(limit // step, len(vectors)))
    work = vectors.new_empty(pictures * step * encoder.words)
    for some in slices(len(vectors), pictures):
        ordered = vectors[some][:, pooler.order]
        for part in slices(vectors.shape[1], step):
            chunk = ordered[:, part]
            out = work[: chunk.shape[0] * chunk.shape[1] * encoder.words].view(*chunk.shape[:2], encoder.words)
            pooler.add(total[some], encoder.codes(chunk, out), part)
    return pooler.finish(total).flatten(1)


def check_places(vectors: Tensor, places: Tensor) -> None:
    if vectors.ndim != 3 or places.shape != (vectors.shape[1], 2) or not len(places):
        raise UsageError(
            f"descriptors: expected vectors [B, N, D] and places [N, 2], received {list(vectors.shape)} and "
            f"{list(places.shape)}"
        )
