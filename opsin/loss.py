"""What a training minimises: the losses of a recipe, and the ordinary objective: augmentation, network, loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from opsin.errors import UsageError
from opsin.recipe import BinaryCrossEntropy, CrossEntropy, Focal, Loss
from opsin.types import Batch, Model, Output, Progress

EFFECTIVE = 0.999  # β of Cui et al. 2019: a class counts as at most 1 / (1 - β) pictures


class Labels(NamedTuple):
    """What losses ask of the training labels. many: whether a picture may have any number of them."""

    many: bool
    present: Tensor  # float [K]: pictures that have the label
    absent: Tensor  # float [K]: pictures of which it is known that they have not

    @staticmethod
    def of(labels: Tensor, num_classes: int) -> Labels:
        """Of labels as a loader has them, int64 [N] or float [N, K]."""
        if labels.ndim == 2:
            return Labels(True, (labels == 1).sum(0).float(), (labels == 0).sum(0).float())
        present = torch.bincount(labels, minlength=num_classes).float()
        return Labels(False, present, len(labels) - present)


def compare(output: Output, targets: Tensor, spec: Loss, labels: Labels | None = None) -> tuple[Tensor, list[Tensor]]:
    """The loss of a batch, plus the weighted same of each auxiliary head; and what each head added, unweighted, the
    network's own first.

    targets: float [B, K], rows that sum to one; of many labels 0 to 1 each, and -1 for what is not known. labels: of
    the training pictures; without them they are taken to be single, and `spec` may not ask for their counts.
    """
    if output.aux and len(output.aux) != len(spec.aux_weights):
        raise UsageError(
            f"loss.aux_weights: expected {len(output.aux)} weights, one for each auxiliary head, "
            f"received {spec.aux_weights}"
        )
    losses = [_of_head(logits, targets, spec, labels) for logits in (output.logits, *output.aux)]
    weighted = (weight * loss for weight, loss in zip(spec.aux_weights, losses[1:], strict=False))
    return sum(weighted, losses[0]), losses


def _of_head(logits: Tensor, targets: Tensor, spec: Loss, labels: Labels | None) -> Tensor:
    weights = class_weights(spec.class_weights, labels)
    if isinstance(spec, CrossEntropy):
        if spec.tau:
            # Menon et al. 2020, equation 10: the network learns what the frequencies do not explain.
            logits = logits + spec.tau * torch.log_softmax(_counted(labels).present.clamp(min=1).log(), 0)
        return functional.cross_entropy(logits, targets, weights, label_smoothing=spec.label_smoothing)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # sums of float16 overflow
    if isinstance(spec, BinaryCrossEntropy):
        return _binary(logits, targets, weights, spec.label_smoothing, 0.0)
    if labels is not None and labels.many:
        return _binary(logits, targets, weights, 0.0, spec.gamma)
    logs = torch.log_softmax(logits, 1)
    costs = -targets * (1 - logs.exp()) ** spec.gamma * logs
    return (costs if weights is None else costs * weights).sum(1).mean()


def _binary(logits: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float, gamma: float) -> Tensor:
    """Mean over the labels that are known of -w · q · (1 - p)^γ log p - (1 - q) · p^γ log (1 - p), p = sigmoid(logits).

    γ of Lin et al. 2017, equation 4; 0 is cross-entropy. Label smoothing ε: q = (1 - ε) · target + ε / 2.
    """
    known = targets >= 0
    q = (1 - smoothing) * targets.clamp(min=0) + smoothing / 2
    there, away = -functional.logsigmoid(logits), -functional.logsigmoid(-logits)
    if gamma:
        there, away = there * torch.sigmoid(-logits) ** gamma, away * torch.sigmoid(logits) ** gamma
    if weights is not None:
        there = there * weights
    costs = q * there + (1 - q) * away
    return costs.masked_fill(~known, 0).sum() / known.sum().clamp(min=1)


def class_weights(kind: str, labels: Labels | None) -> Tensor | None:
    """float [K]; None for all alike. Single labels: the cost of a picture of each class, 1 in the mean over pictures.
    Many: the cost of a label that is there beside that of the same label where it is not.

    "balanced": by the inverse frequency. "effective": by the inverse of the effective number of pictures,
    (1 - βⁿ) / (1 - β) (Cui et al. 2019, equation 4), which stops to grow where more pictures show nothing new.
    """
    if not kind:
        return None
    labels = _counted(labels)
    present, absent = ((n if kind == "balanced" else 1 - EFFECTIVE**n) for n in labels[1:])
    least = 1.0 if kind == "balanced" else 1 - EFFECTIVE  # of one picture
    if labels.many:
        return absent.clamp(min=least) / present.clamp(min=least)
    weights = 1 / present.clamp(min=least)
    return weights * labels.present.sum() / (weights * labels.present).sum()


def _counted(labels: Labels | None) -> Labels:
    if labels is None:
        raise UsageError("loss: class weights and logit adjustment need the labels of the training pictures")
    return labels


def of_ignorance(spec: Loss, labels: Labels) -> float:
    """The loss of a network that knows nothing, whose logits are all 0, on the training pictures.

    ln K for plain cross-entropy, ln 2 for the binary one.
    """
    targets = labels.present / (labels.present + labels.absent).clamp(min=1)  # losses are linear in the targets
    return float(_of_head(torch.zeros_like(targets)[None], targets[None], spec, labels))


class Seen(NamedTuple):
    """What the ordinary objective shows of a batch, detached."""

    logits: Tensor  # float [B, K]
    losses: tuple[Tensor, ...]  # float [] of each head, unweighted: the network's own, then the auxiliary ones


@dataclass(frozen=True)
class Classify:
    """The ordinary objective: augment a batch, classify it, compare with its targets.

    labels: of the training pictures, where the loss asks for them. `UsageError` for a loss that is not for such labels.
    """

    augment: Callable[[Batch, Progress], tuple[Tensor, Tensor]]
    loss: Loss
    labels: Labels | None = None

    def __post_init__(self) -> None:
        many = self.labels is not None and self.labels.many
        if isinstance(self.loss, CrossEntropy if many else BinaryCrossEntropy):
            has, wants, fitting = "one", "many", CrossEntropy.__name__
            if many:
                has, wants, fitting = "many", "one", BinaryCrossEntropy.__name__
            raise UsageError(
                f"loss: {type(self.loss).__name__} is for pictures with {wants} of the labels, these have {has}: "
                f"--set loss={fitting} or --set loss={Focal.__name__}"
            )

    def __call__(self, model: Model, batch: Batch, progress: Progress) -> tuple[Tensor, Seen]:
        images, targets = self.augment(batch, progress)
        output = model(images)
        loss, losses = compare(output, targets, self.loss, self.labels)
        return loss, Seen(output.logits.detach(), tuple(each.detach() for each in losses))
