"""What a training minimises: softmax cross-entropy, and the ordinary objective: augmentation, network, loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from opsin.errors import UsageError
from opsin.recipe import CrossEntropy
from opsin.types import Batch, Model, Output, Progress


def cross_entropy(output: Output, targets: Tensor, spec: CrossEntropy) -> tuple[Tensor, list[Tensor]]:
    """Mean over the batch of -Σ_k q_k log softmax(logits)_k, plus the weighted same of each auxiliary head; and what
    each head added, unweighted, the network's own first.

    targets: float [B, K], rows that sum to one. Label smoothing ε (Szegedy et al. 2015, section 7):
    q = (1 - ε) · targets + ε / K.
    """
    if output.aux and len(output.aux) != len(spec.aux_weights):
        raise UsageError(
            f"loss.aux_weights: expected {len(output.aux)} weights, one for each auxiliary head, "
            f"received {spec.aux_weights}"
        )
    losses = [
        functional.cross_entropy(logits, targets, label_smoothing=spec.label_smoothing)
        for logits in (output.logits, *output.aux)
    ]
    weighted = (weight * loss for weight, loss in zip(spec.aux_weights, losses[1:], strict=False))
    return sum(weighted, losses[0]), losses


class Seen(NamedTuple):
    """What the ordinary objective shows of a batch, detached."""

    logits: Tensor  # float [B, K]
    losses: tuple[Tensor, ...]  # float [] of each head, unweighted: the network's own, then the auxiliary ones


@dataclass(frozen=True)
class Classify:
    """The ordinary objective: augment a batch, classify it, compare with its targets."""

    augment: Callable[[Batch, Progress], tuple[Tensor, Tensor]]
    loss: CrossEntropy

    def __call__(self, model: Model, batch: Batch, progress: Progress) -> tuple[Tensor, Seen]:
        images, targets = self.augment(batch, progress)
        output = model(images)
        loss, losses = cross_entropy(output, targets, self.loss)
        return loss, Seen(output.logits.detach(), tuple(each.detach() for each in losses))
