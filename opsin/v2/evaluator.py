"""Metrics: declared beside the layers, accumulated on tensors.

A metric belongs to every network that holds the layers it looks at. Its numbers are those of all samples since
`start`, as Python floats of float32 precision, as programs printed them in 2017.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opsin.errors import DeclarationError
from opsin.v2.graph import Layer, next_serial, unique_name


@dataclass(eq=False)
class EvaluatorConf:
    """A metric of a network. kind: Paddle's evaluator type. weight: float [B] or [B, 1] a sample, or None."""

    name: str
    kind: str
    input: Layer
    label: Layer
    weight: Layer | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    serial: int = field(default_factory=next_serial, repr=False)

    def __post_init__(self) -> None:
        self.input.evaluators.append(self)

    @property
    def inputs(self) -> tuple[Layer, ...]:
        return (self.input, self.label) if self.weight is None else (self.input, self.label, self.weight)

    def accumulator(self) -> Accumulator:
        return KINDS[self.kind](self)


def of_layers(layers: Iterable[Layer]) -> list[EvaluatorConf]:
    """The metrics whose layers are all among those given, in the order of creation."""
    layers = list(layers)
    known = set(map(id, layers))
    found = [conf for layer in layers for conf in layer.evaluators]
    return sorted((c for c in found if all(id(x) in known for x in c.inputs)), key=lambda conf: conf.serial)


class Accumulator(ABC):
    """start(), then eval(values) for each batch, then finish(). values: layer's name → its output, labels int64 [B]."""

    def __init__(self, conf: EvaluatorConf) -> None:
        self.conf = conf
        self.start()

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def add(self, output: Tensor, label: Tensor, weight: Tensor) -> None:
        """output: float [B, K]; label: int64 [B]; weight: float64 [B]."""

    @abstractmethod
    def result(self) -> dict[str, float]: ...

    def eval(self, values: Mapping[str, Tensor]) -> None:
        output, label = values[self.conf.input.name].detach(), values[self.conf.label.name]
        weight = torch.ones(len(output), dtype=torch.float64, device=output.device)
        if self.conf.weight is not None:
            weight = values[self.conf.weight.name].reshape(-1).double()
        self.add(output.flatten(1), label.reshape(len(output), -1)[:, 0].long(), weight)

    def tensors(self) -> dict[str, Tensor]:
        """All that was accumulated; `restore` takes it."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in tensors.items():
            setattr(self, name, value)

    def finish(self) -> dict[str, float]:
        return {name: float(np.float32(value)) for name, value in self.result().items()}


class ClassificationError(Accumulator):
    """Weight of the wrong over weight of all. Right: the label is among the top_k largest, of equal ones the first.

    One output a sample: right where (output > threshold) is the label.
    """

    def start(self) -> None:
        self.wrong = self.total = torch.zeros((), dtype=torch.float64)

    def add(self, output: Tensor, label: Tensor, weight: Tensor) -> None:
        if output.shape[1] == 1:
            wrong = (output[:, 0] > self.conf.attrs["threshold"]).long() != label
        else:
            own = output.gather(1, label[:, None])
            before = torch.arange(output.shape[1], device=output.device) < label[:, None]
            rank = ((output > own) | ((output == own) & before)).sum(1)
            wrong = (rank >= self.conf.attrs["top_k"]) | own[:, 0].isnan()
        self.wrong = self.wrong.to(output.device) + (weight * wrong).sum()
        self.total = self.total.to(output.device) + weight.sum()

    def result(self) -> dict[str, float]:
        wrong, total = float(self.wrong), float(self.total)
        return {self.conf.name: wrong / total if total else 0.0}


class Auc(Accumulator):
    """Area under the ROC curve of the last column, label 0 the negative class; scores are told apart to 2⁻²⁴."""

    def start(self) -> None:
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, output: Tensor, label: Tensor, weight: Tensor) -> None:
        self.parts.append((output[:, -1].cpu(), label.cpu(), weight.cpu()))

    def tensors(self) -> dict[str, Tensor]:
        names = ("score", "label", "weight")
        return {name: torch.cat(part) for name, *part in zip(names, *self.parts, strict=True)} if self.parts else {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.parts = [(tensors["score"], tensors["label"], tensors["weight"])] if tensors else []

    def result(self) -> dict[str, float]:
        if not self.parts:
            return {self.conf.name: 0.0}
        score, label, weight = (torch.cat(column).numpy() for column in zip(*self.parts, strict=True))
        bins, place = np.unique((score.astype(np.float64) * 2**24).astype(np.int64), return_inverse=True)
        positive = np.bincount(place, weight * (label != 0), len(bins))
        negative = np.bincount(place, weight * (label == 0), len(bins))
        below = np.cumsum(negative) - negative
        pairs = positive.sum() * negative.sum()
        return {self.conf.name: float((positive * (below + negative / 2)).sum() / pairs) if pairs else 0.0}


class PrecisionRecall(Accumulator):
    """Of the class positive_label; without one, the means over the classes, under both names."""

    def start(self) -> None:
        self.hits = self.named = self.there = torch.zeros(1, dtype=torch.float64)

    def add(self, output: Tensor, label: Tensor, weight: Tensor) -> None:
        classes, guess = output.shape[1], output.argmax(1)

        def count(places: Tensor, weights: Tensor) -> Tensor:
            return torch.zeros(classes, dtype=torch.float64, device=output.device).index_add_(0, places, weights)

        self.hits = self.hits.to(output.device) + count(label, weight * (guess == label))
        self.named = self.named.to(output.device) + count(guess, weight)
        self.there = self.there.to(output.device) + count(label, weight)

    def result(self) -> dict[str, float]:
        def ratio(part: Tensor, of: Tensor) -> Tensor:
            return torch.where(of > 0, part / of, 1.0)

        precisions, recalls = ratio(self.hits, self.named), ratio(self.hits, self.there)
        positive = self.conf.attrs["positive_label"]
        one = slice(None) if positive is None else slice(positive, positive + 1)
        precision, recall = float(precisions[one].mean()), float(recalls[one].mean())
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        table = {"precision": precision, "recal": recall, "F1-score": f1}
        if positive is None:
            table |= {
                "macro-average-precision": precision,
                "macro-average-recall": recall,
                "macro-average-F1-score": f1,
                "micro-average-precision": float(ratio(self.hits.sum(), self.named.sum())),
            }
        return {f"{self.conf.name}.{key}": value for key, value in table.items()}


KINDS: dict[str, type[Accumulator]] = {
    "classification_error": ClassificationError,
    "last-column-auc": Auc,
    "precision_recall": PrecisionRecall,
}


def _declare(kind: str, name: str | None, input: Layer, label: Layer, weight: Layer | None, **attrs: Any) -> None:
    for what, layer in (("input", input), ("label", label), ("weight", weight)):
        if not isinstance(layer, Layer) and not (what == "weight" and layer is None):
            raise DeclarationError(f"evaluator {kind}: {what}: expected a layer, got {layer!r}")
    EvaluatorConf(
        name or unique_name(f"{kind}_evaluator".replace("last-column-", "")), kind, input, label, weight, attrs
    )


def classification_error_evaluator(
    input: Layer,
    label: Layer,
    name: str | None = None,
    weight: Layer | None = None,
    top_k: int | None = None,
    threshold: float | None = None,
) -> None:
    """The share of samples whose label is not among the top_k (1) largest outputs."""
    _declare(
        "classification_error",
        name,
        input,
        label,
        weight,
        top_k=top_k or 1,
        threshold=0.5 if threshold is None else threshold,
    )


def auc_evaluator(input: Layer, label: Layer, name: str | None = None, weight: Layer | None = None) -> None:
    """The area under the ROC curve of the last output."""
    _declare("last-column-auc", name, input, label, weight)


def precision_recall_evaluator(
    input: Layer,
    label: Layer,
    positive_label: int | None = None,
    weight: Layer | None = None,
    name: str | None = None,
) -> None:
    """Precision, recall and F1 of one class, or averaged over the classes."""
    _declare("precision_recall", name, input, label, weight, positive_label=positive_label)


classification_error = classification_error_evaluator
auc = auc_evaluator
precision_recall = precision_recall_evaluator


def __getattr__(name: str) -> object:
    raise AttributeError(f"evaluator.{name} is not supported; there are classification_error, auc and precision_recall")
