"""What a training minimises: softmax cross-entropy, and the ordinary objective: augmentation, network, loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from opsin.errors import UsageError
from opsin.recipe import CrossEntropy
from opsin.types import Batch, Model, Output, Progress


def cross_entropy(output: Output, targets: Tensor, spec: CrossEntropy) -> Tensor:
    """Mean over the batch of -Σ_k q_k log softmax(logits)_k, plus the weighted same of each auxiliary head.

    targets: float [B, K], rows that sum to one. Label smoothing ε (Szegedy et al. 2015, section 7):
    q = (1 - ε) · targets + ε / K.
    """
    loss = functional.cross_entropy(output.logits, targets, label_smoothing=spec.label_smoothing)
    if output.aux and len(output.aux) != len(spec.aux_weights):
        raise UsageError(
            f"loss.aux_weights: expected {len(output.aux)} weights, one for each auxiliary head, "
            f"received {spec.aux_weights}"
        )
    for logits, weight in zip(output.aux, spec.aux_weights, strict=False):
        loss = loss + weight * functional.cross_entropy(logits, targets, label_smoothing=spec.label_smoothing)
    return loss


@dataclass(frozen=True)
class Classify:
    """The ordinary objective: augment a batch, classify it, compare with its targets."""

    augment: Callable[[Batch, Progress], tuple[Tensor, Tensor]]
    loss: CrossEntropy

    def __call__(self, model: Model, batch: Batch, progress: Progress) -> tuple[Tensor, Output]:
        images, targets = self.augment(batch, progress)
        output = model(images)
        return cross_entropy(output, targets, self.loss), output
