"""The machine that a training runs on: which device, how memory is laid out, how the allocator behaves."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys

import torch
from torch import nn

from opsin.errors import UsageError
from opsin.recipe import Recipe


def choose(name: str) -> torch.device:
    """The device called `name`; "auto": the first CUDA device, else Apple's, else the CPU. `UsageError` when absent."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device: expected auto, cpu, cuda, cuda:N or mps, received {name!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device: {name} is not there; torch sees {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device: mps is not there")
    return device


def channels_last(recipe: Recipe, device: torch.device, model: nn.Module) -> bool:
    """Whether the network's tensors are laid out [B, H, W, C] in memory.

    "auto" follows benchmarks/results/layout.csv: on CPU 1.16 to 1.19 times as fast for three of four networks, the same
    for VGG; on CUDA it is what tensor cores want (not measured by us). Never where `crashes_channels_last`, as in a
    very narrow ResNet.
    """
    if device.type == "cpu":
        for m in model.modules():
            if isinstance(m, nn.Conv2d) and crashes_channels_last(m.kernel_size, m.stride, m.in_channels):
                return False
    return recipe.channels_last == "on" or (recipe.channels_last == "auto" and device.type in ("cpu", "cuda"))


def crashes_channels_last(kernel_size: tuple[int, ...], stride: tuple[int, ...], in_channels: int) -> bool:
    """Whether it is a strided 1×1 convolution of fewer than 8 channels: the gradient of one, laid out [B, H, W, C] on
    the CPU, writes beyond its memory in torch 2.13, and the process crashes sooner or later.
    """
    return kernel_size == (1, 1) and stride != (1, 1) and in_channels < 8


def tune() -> None:
    """Settings of this process that only change speed: memory is kept instead of being mapped afresh for each step,
    and numbers too small for a normal float count as zero. `OPSIN_MALLOC=off` leaves the allocator alone.
    """
    torch.set_flush_denormal(True)
    torch.backends.cudnn.deterministic = True  # a resumed run must meet the uninterrupted one's bits
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc" and os.environ.get("OPSIN_MALLOC") != "off":
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-4, 0)  # M_MMAP_MAX: large blocks from the heap too
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: and kept there
