"""The small wide network for small pictures: frozen whitening, identity-like initialisation, no residuals.

The network of the public CIFAR-10 speed race (Jordan 2024, "94 % on CIFAR-10 in 3.29 seconds", section 3), which goes
back to Page 2018 ("How to train your ResNet") and to the whitening layer of Coates, Lee and Ng 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from opsin.models.convnet import ConvNet


class Scale(nn.Module):
    """Multiply by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class GlobalMax(nn.Module):
    """[B, C, H, W] to [B, C]: the maximum over the map."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).amax(2)


def smallnet(
    num_classes: int = 10, in_channels: int = 3, *, widths: tuple[int, ...] = (64, 256, 256), scale: float = 1 / 256
) -> ConvNet:
    """Whitening 2×2 (frozen), then a stage of two 3×3 convolutions for each of `widths`, global maximum, linear head.

    Least input 9 × 9 with three widths. At 32 × 32, 3 channels, 10 classes: 1,971,640 parameters besides the norms'
    fixed scales, 118 million multiply–adds. The logits are multiplied by `scale`; the head starts with unit variance.
    """
    directions = 2 * 4 * in_channels
    whitening = nn.Conv2d(in_channels, directions, 2)
    whitening.weight.requires_grad_(False)
    stages: dict[str, nn.Module] = {"whiten": nn.Sequential(whitening, nn.GELU())}
    channels = directions
    for number, width in enumerate(widths, 1):
        stages[f"stage{number}"] = _stage(channels, width)
        channels = width
    linear = nn.Linear(channels, num_classes, bias=False)
    with torch.no_grad():
        linear.weight.mul_(1 / linear.weight.std())
    return ConvNet(stages, nn.Sequential(GlobalMax(), linear, Scale(scale)), least_size=2 ** len(widths) + 1)


def _stage(in_channels: int, out_channels: int) -> nn.Sequential:
    """Convolution, pooling, norm; convolution, norm. Pooling comes before the norm: four times less to normalise."""
    return nn.Sequential(
        _convolution(in_channels, out_channels),
        nn.MaxPool2d(2),
        _norm(out_channels),
        nn.GELU(),
        _convolution(out_channels, out_channels),
        _norm(out_channels),
        nn.GELU(),
    )


def _convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    """3×3 without bias; the first `in_channels` filters start as the identity, the others at random."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    with torch.no_grad():
        same = min(in_channels, out_channels)
        nn.init.dirac_(convolution.weight[:same])
    return convolution


def _norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation whose scale stays 1, with fast running statistics for trainings of few steps."""
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


@torch.no_grad()
def whiten(model: ConvNet, images: Tensor, eps: float = 5e-4) -> None:
    """Set the first layer to the whitening directions of the 2×2 patches of `images`, and their negatives.

    images: normalised, float [N, C, H, W]; a few thousand are enough. Each direction is an eigenvector of the patches'
    uncentred covariance over the root of its eigenvalue, so that every output has unit second moment.
    """
    convolution = model.stages["whiten"].get_submodule("0")
    assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
    patches = functional.unfold(images.float().cpu(), 2).transpose(1, 2).flatten(0, 1).double()  # [N·(H-1)·(W-1), C·4]
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    # Largest direction first, and a fixed sign, so that the layer does not depend on the LAPACK that is there.
    vectors = vectors.flip(1)
    vectors = vectors * torch.where(vectors.sum(0) < 0, -1.0, 1.0)
    directions = (vectors / (values.flip(0).clamp_min(0) + eps).sqrt()).T.view(-1, images.shape[1], 2, 2)
    convolution.weight.copy_(torch.cat((directions, -directions)).to(convolution.weight.dtype))
    convolution.bias.zero_()
