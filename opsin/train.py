"""The one training loop: a generator. Whoever iterates logs, evaluates, saves and stops, in ordinary code."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from opsin.errors import NonFiniteLoss
from opsin.optim import set_rates
from opsin.types import Progress

M = TypeVar("M", bound=nn.Module)


@dataclass
class TrainState(Generic[M]):
    """Everything that changes while a network trains."""

    model: M
    optimizer: torch.optim.Optimizer
    progress: Progress = Progress()


class StepEnd(NamedTuple):
    """After each optimiser step. `loss` is detached and stays on the device."""

    progress: Progress
    lr_factor: float
    loss: Tensor
    batch: Any
    output: Any


class EpochEnd(NamedTuple):
    """After each pass over the data."""

    progress: Progress


class Precision:
    """How numbers are held in the forward pass: float32, or under autocast bfloat16 or float16 (with loss scaling)."""

    def __init__(self, dtype: str = "float32", device: str = "cpu") -> None:
        self.device, self.dtype = device, getattr(torch, dtype)
        self.scaler = torch.amp.GradScaler(device, enabled=dtype == "float16")

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device, self.dtype)


def train(
    state: TrainState[M],
    batches: Callable[[int, int], Iterable[Any]],
    objective: Callable[[M, Any, Progress], tuple[Tensor, Any]],
    *,
    total_steps: int,
    until: Callable[[Progress], bool],
    schedule: Callable[[Progress, int], float],
    precision: Precision | None = None,
    accumulate: int = 1,
    clip: float = 0.0,
) -> Iterator[StepEnd | EpochEnd]:
    """Minimise `objective`, and yield after each optimiser step and each epoch.

    batches(epoch, start): the batches of an epoch from number `start` on, a pure function, so that a training
    resumed in the middle of an epoch goes on exactly. objective(model, batch, progress): the loss, float [], and
    whatever the caller wants to see of it. total_steps: what the schedule calls the whole training.
    accumulate: batches whose gradients are averaged into one step. clip: largest norm of the gradient, 0 for none.
    Raises `NonFiniteLoss` in the same step, before the weights are touched, also when the loss is finite and its
    gradient is not. Weights that a finite gradient makes infinite are found by the next step, and by `checkpoint.save`.
    """
    model, optimizer = state.model, state.optimizer
    precision = precision or Precision()
    while not until(state.progress):
        pending: tuple[float, Tensor, Any, Any] | None = None  # of the batches that are not yet a step
        count, losses = 0, torch.zeros(())
        for batch in batches(state.progress.epoch, state.progress.batch):
            model.train()
            progress = state.progress
            factor = schedule(progress, total_steps)
            set_rates(optimizer, factor, progress.step / max(1, total_steps))

            with precision.autocast():
                loss, output = objective(model, batch, progress)
            precision.scaler.scale(loss / accumulate).backward()
            losses = losses + loss.detach() if count else loss.detach()
            count += 1
            seen = progress.samples + len(batch[0])
            state.progress = progress._replace(batch=progress.batch + 1, samples=seen)
            pending = (factor, loss.detach(), batch, output)
            if count < accumulate:
                continue
            state.progress = state.progress._replace(step=progress.step + 1)
            _update(model, optimizer, precision, clip, losses, progress)
            yield StepEnd(state.progress, *pending)
            pending, count = None, 0
            if until(state.progress):
                return
        if pending is not None:  # the epoch's last batches, fewer than `accumulate`
            progress = state.progress
            state.progress = progress._replace(step=progress.step + 1)
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(accumulate / count)
            _update(model, optimizer, precision, clip, losses, progress)
            yield StepEnd(state.progress, *pending)
        state.progress = state.progress._replace(epoch=state.progress.epoch + 1, batch=0)
        yield EpochEnd(state.progress)


def _update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    clip: float,
    losses: Tensor,
    progress: Progress,
) -> None:
    """One step of the optimiser. losses: the sum over its batches, float []; progress: before them."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)  # 0.03 % of a step on the CPU
    if precision.scaler.is_enabled():  # which leaves out steps of an infinite gradient, by lowering its scale
        norm = torch.zeros_like(norm)
    numbers = torch.stack([losses.float(), norm.float().to(losses.device)])
    if not torch.isfinite(numbers).all():  # the one wait for the device in a step
        loss, gradient = numbers.tolist()
        what = f"gradient's norm became {gradient} at a loss of {loss:.4g}"
        if not math.isfinite(loss):
            what = f"loss became {loss}"
        raise NonFiniteLoss(
            f"the {what} in step {progress.step + 1} (epoch {progress.epoch + 1}); "
            "a lower learning rate or --set clip=1 usually helps"
        )
    if clip:
        precision.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    precision.scaler.step(optimizer)
    precision.scaler.update()
    optimizer.zero_grad(set_to_none=True)
