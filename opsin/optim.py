"""Optimisers: parameter groups with their own rates and decay, the one that torch lacks (Muon with SGD), and the EMA.

Every group carries `base_lr`; the loop multiplies it by the schedule's factor.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opsin import recipe
from opsin.errors import UsageError
from opsin.types import Progress


def build(model: nn.Module, spec: recipe.Optimizer) -> torch.optim.Optimizer:
    """The optimiser that `spec` describes, over the parameters of `model` that learn.

    Parameters fall into the groups of `spec.groups` by name (first match); what matches none has the optimiser's own
    rate and decay. A pattern that matches nothing is a `UsageError`: it is nearly always a misspelling.
    """
    every = dict(model.named_parameters())
    named = {name: parameter for name, parameter in every.items() if parameter.requires_grad}
    if not named:
        raise UsageError("nothing of the network learns: all of its stages are frozen, and its head has no parameters")
    filters = _filters(model) if isinstance(spec, recipe.Muon) else {}
    buckets: dict[tuple[Any, ...], list[Tensor]] = {}
    for name, parameter in named.items():
        group = next((g for g in spec.groups if fnmatch.fnmatchcase(name, g.match)), recipe.Group(match="*"))
        buckets.setdefault((filters.get(name), group), []).append(parameter)
    for group in spec.groups:
        if not any(fnmatch.fnmatchcase(name, group.match) for name in every):  # a frozen one is none to miss
            raise UsageError(
                f"optimizer.groups: no parameter's name matches {group.match!r}; names: {', '.join(named)}"
            )

    groups = []
    for (normalize, group), parameters in buckets.items():
        decay = spec.weight_decay if group.weight_decay is None else group.weight_decay
        settings = {"params": parameters, "weight_decay": decay, "until": group.until, "since": group.since}
        lr = spec.lr if not isinstance(spec, recipe.Muon) or normalize is not None else spec.sgd_lr
        settings["lr"] = settings["base_lr"] = lr * group.lr_scale
        if isinstance(spec, recipe.Muon):
            settings["rule"] = "sgd" if normalize is None else "muon"
            settings["momentum"] = spec.sgd_momentum if normalize is None else spec.momentum
            settings["normalize"] = bool(normalize)
        groups.append(settings)
    match spec:
        case recipe.SGD():
            return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov)
        case recipe.Adam():
            return torch.optim.Adam(groups, lr=spec.lr, betas=spec.betas)
        case recipe.AdamW():
            return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas)
        case recipe.Muon():
            return Muon(groups)


def _filters(model: nn.Module) -> dict[str, bool]:
    """The convolution filters by name, and whether their norm has no effect on the output.

    In this project a convolution without a bias is one that batch normalisation follows.
    """
    modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    return {f"{name}.weight": module.bias is None for name, module in modules.items()}


def set_rates(optimizer: torch.optim.Optimizer, factor: float, part: float) -> None:
    """Give every group its rate: base rate × `factor`, × a line to zero for a group that stops learning.

    part: how much of the training is over, 0–1. A group whose time is over, or has not come, has its gradients switched
    off, so that the backward pass does not compute them.
    """
    for group in optimizer.param_groups:
        # v2's groups have no beginning, and those in checkpoints of an older opsin neither.
        since, until = group.get("since", 0.0), group["until"]
        ends = until < 1
        group["lr"] = group["base_lr"] * (max(0.0, 1 - part / until) if ends and until > 0 else factor)
        if ends or since > 0:
            learns = since <= part < until or (since <= part and not ends)
            for parameter in group["params"]:
                parameter.requires_grad_(learns)
                if not learns:
                    parameter.grad = None


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024) for groups with `rule="muon"`, Nesterov SGD for groups with `rule="sgd"`: one optimiser.

    Muon: the momentum-averaged gradient of a filter, as a matrix [C_out, C_in·k·k], is replaced by the nearest
    semi-orthogonal matrix (three Newton–Schulz steps). With `normalize`, the filter is first rescaled to the norm
    √C_out: batch normalisation cancels its scale, and the rate then is the relative size of a step.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": 0.0, "weight_decay": 0.0, "rule": "sgd", "normalize": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the training loop computes the gradients itself"
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad
                if group["weight_decay"]:
                    gradient = gradient.add(parameter, alpha=group["weight_decay"])
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                buffer = state["momentum_buffer"].mul_(momentum).add_(gradient)
                update = gradient.add(buffer, alpha=momentum)
                if group["rule"] == "muon":
                    if group["normalize"]:
                        parameter.mul_(len(parameter) ** 0.5 / parameter.norm().clamp_min(1e-12))
                    update = orthogonalize(update.flatten(1)).view_as(parameter)
                parameter.add_(update, alpha=-lr)


def orthogonalize(matrix: Tensor, steps: int = 3) -> Tensor:
    """Nearly the semi-orthogonal matrix U·Vᵀ of the singular value decomposition U·S·Vᵀ of `matrix`, float [m, n].

    Each Newton–Schulz step applies the odd polynomial a·x + b·x³ + c·x⁵ to every singular value; the coefficients
    (Jordan 2024) pull them into about [0.7, 1.2] quickly instead of to 1 slowly.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class EMA:
    """An exponential moving average of a model's parameters and buffers, float ones averaged, others copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, progress: Progress) -> None:
        """Average in the model after a step t. The decay is at most (1 + t) / (10 + t): early noise is forgotten."""
        decay = min(self.decay, (1 + progress.step) / (10 + progress.step))
        for name, tensor in model.state_dict().items():
            average = self.tensors[name]
            if average.is_floating_point():
                average.lerp_(tensor, 1 - decay)
            else:
                average.copy_(tensor)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over an average that was saved, keeping the memory layout."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
