"""The one training loop: a generator. Whoever iterates logs, evaluates, saves and stops, in ordinary code."""

from __future__ import annotations

import contextlib
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
    Raises `NonFiniteLoss` in the same step, before the weights are touched.
    """
    model, optimizer = state.model, state.optimizer
    precision = precision or Precision()
    while not until(state.progress):
        pending: tuple[float, Tensor, Any, Any] | None = None  # of the batches that are not yet a step
        count = 0
        for batch in batches(state.progress.epoch, state.progress.batch):
            model.train()
            progress = state.progress
            factor = schedule(progress, total_steps)
            set_rates(optimizer, factor, progress.step / max(1, total_steps))

            with precision.autocast():
                loss, output = objective(model, batch, progress)
            if not torch.isfinite(loss):
                raise NonFiniteLoss(
                    f"the loss became {loss.item()} in step {progress.step + 1} (epoch {progress.epoch + 1}); "
                    "a lower learning rate or --set clip=1 usually helps"
                )
            precision.scaler.scale(loss / accumulate).backward()
            count += 1
            seen = progress.samples + len(batch[0])
            state.progress = progress._replace(batch=progress.batch + 1, samples=seen)
            pending = (factor, loss.detach(), batch, output)
            if count < accumulate:
                continue
            state.progress = state.progress._replace(step=progress.step + 1)
            _update(model, optimizer, precision, clip)
            yield StepEnd(state.progress, *pending)
            pending, count = None, 0
            if until(state.progress):
                return
        if pending is not None:  # the epoch's last batches, fewer than `accumulate`
            state.progress = state.progress._replace(step=state.progress.step + 1)
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(accumulate / count)
            _update(model, optimizer, precision, clip)
            yield StepEnd(state.progress, *pending)
        state.progress = state.progress._replace(epoch=state.progress.epoch + 1, batch=0)
        yield EpochEnd(state.progress)


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision, clip: float) -> None:
    if clip:
        precision.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    precision.scaler.step(optimizer)
    precision.scaler.update()
    optimizer.zero_grad(set_to_none=True)
