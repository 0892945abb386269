"""A linear probe: a frozen network's last layer replaced by one that is fitted to its features of these pictures.

Logistic regression is convex: no rate, no passes, nothing to tune but the strength of L2, which cross-validation on the
training pictures chooses. With a handful of pictures a class it takes seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from opsin.data.rng import order
from opsin.errors import UsageError
from opsin.models.smallnet import Scale
from opsin.types import Model

STRENGTHS = tuple(10.0**k for k in range(-5, 2))  # scikit-learn's C, the inverse of L2, for standardised features
FOLDS = 5
CHOOSING = 5_000  # pictures by which the strength is chosen, at most


class Fitted(NamedTuple):
    """weight float32 [K, D], bias float32 [K], and the strength C that was chosen, 0 < C."""

    weight: Tensor
    bias: Tensor
    strength: float


def last_linear(model: Model) -> tuple[nn.Linear, float]:
    """The layer that gives the logits, and the constant that they are multiplied by afterwards.

    `UsageError` for a head that ends in anything else, as a convolution.
    """
    layers = [layer for layer in getattr(model, "head", model).modules() if not list(layer.children())]
    factor = 1.0
    while layers and isinstance(last := layers[-1], Scale):
        factor *= last.factor
        layers.pop()
    if not layers or not isinstance(layers[-1], nn.Linear):
        end = type(layers[-1]).__name__ if layers else "nothing"
        raise UsageError(
            f"a probe replaces a fully-connected last layer, but this network ends in {end}; "
            "fine-tune it instead: without --probe, perhaps with --freeze"
        )
    return layers[-1], factor


@torch.no_grad()
def embeddings(model: Model, batches: Iterable[Tensor], progress: Callable[[int], None] | None = None) -> Tensor:
    """What the last layer sees of each picture, float32 [N, D] on the CPU. batches: normalised, float [B, C, H, W].
    progress: is called with the pictures done."""
    linear, _ = last_linear(model)
    seen: list[Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu()))
    model.eval()
    done = 0
    try:
        for images in batches:
            model(images)
            done += len(images)
            if progress is not None:
                progress(done)
    finally:
        hook.remove()
    return torch.cat(seen)


def fit(vectors: Tensor, labels: Tensor, num_classes: int, seed: int = 0, *, intercept: bool = True) -> Fitted:
    """Multinomial logistic regression with L2 on standardised features; the standardisation is folded into the result.

    vectors: float [N, D]. labels: int64 [N], every class among them. The strength has the least negative log-likelihood
    in cross-validation of `FOLDS` folds, fewer where a class has fewer pictures; with one picture a class it is 0.01.
    """
    x, y = vectors.double().numpy(), labels.numpy()
    counts = np.bincount(y, minlength=num_classes)
    if counts.min() < 1:
        raise UsageError(f"a probe needs pictures of every class; {int((counts < 1).sum())} of {num_classes} have none")
    z, mean, std = _standardised(x, intercept)
    results = _held_out(z, y, counts, seed, intercept)
    strength = STRENGTHS[int(np.argmin([loss for loss, _ in results]))] if results else 0.01
    weight, bias = _solve(z, y, strength, intercept)
    weight = weight / std
    bias = bias - weight @ mean
    return Fitted(torch.from_numpy(weight).float(), torch.from_numpy(bias).float(), strength)


def told(vectors: Tensor, labels: Tensor, seed: int = 0) -> float | None:
    """The part of the pictures that a probe tells in the folds it was not fitted to, 0–1, at the best strength.

    vectors: float [N, D]. labels: int64 [N]. Classes of fewer than two pictures are left out; None where fewer than two
    classes are left.
    """
    y = labels.numpy()
    enough = np.bincount(y)[y] >= 2
    x, y = vectors.double().numpy()[enough], np.unique(y[enough], return_inverse=True)[1]
    if len(np.unique(y)) < 2:
        return None
    return max(right for _, right in _held_out(_standardised(x, True)[0], y, np.bincount(y), seed, True))


def _standardised(x: np.ndarray, centred: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x - mean) / std, mean and std; a feature that never varies says nothing, and its std is infinite."""
    mean = x.mean(0) if centred else np.zeros(x.shape[1])
    std = x.std(0)
    std[std < 1e-6 * max(1e-12, std.max(initial=0.0))] = np.inf
    return (x - mean) / std, mean, std


def _held_out(
    z: np.ndarray, y: np.ndarray, counts: np.ndarray, seed: int, intercept: bool
) -> list[tuple[float, float]]:
    """For each of `STRENGTHS`, over the folds that were left out: the loss in all, and the part that is right."""
    folds = min(FOLDS, int(counts.min()))
    if folds < 2:
        return []
    fold = np.empty(len(y), np.int64)  # each class dealt out evenly, in a random order
    for k, n in enumerate(counts):
        fold[np.flatnonzero(y == k)[order(seed, k, int(n))]] = np.arange(n) % folds
    chosen = np.sort(order(seed, len(counts), len(y))[:CHOOSING])
    z, y, fold = z[chosen], y[chosen], fold[chosen]
    results = []
    for strength in STRENGTHS:
        total, right, n = 0.0, 0, 0
        for k in range(folds):
            known = np.unique(y[fold != k])
            held = (fold == k) & np.isin(y, known)
            if not held.any() or len(known) < 2:
                continue
            weight, bias = _solve(z[fold != k], y[fold != k], strength, intercept)
            logits = torch.from_numpy(z[held] @ weight.T + bias)
            truth = torch.from_numpy(np.searchsorted(known, y[held]))
            total += float(nn.functional.cross_entropy(logits, truth, reduction="sum"))
            right, n = right + int((logits.argmax(1) == truth).sum()), n + len(truth)
        results.append((total, right / max(1, n)))
    return results


def _solve(z: np.ndarray, y: np.ndarray, strength: float, intercept: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weights float64 [K, D] and bias float64 [K] of the classes in y, in their order."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(y)) == 1:  # nothing to be told apart
        return np.zeros((1, z.shape[1])), np.zeros(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest L2 of the search; it is not what is chosen
        found = LogisticRegression(C=strength, fit_intercept=intercept, max_iter=1000).fit(z, y)
    weight, bias = found.coef_, np.broadcast_to(found.intercept_, len(found.coef_))
    if len(weight) == 1:  # of two classes scikit-learn gives the second one's alone
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    return weight, np.asarray(bias)


@torch.no_grad()
def fold(model: Model, fitted: Fitted) -> None:
    """Make the fitted layer the network's last one."""
    linear, factor = last_linear(model)
    linear.weight.copy_(fitted.weight / factor)
    if linear.bias is not None:
        linear.bias.copy_(fitted.bias / factor)
