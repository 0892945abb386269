"""From a decoded picture to what a network sees: one value, saved with every classifier, with no random part.

Training, evaluation, prediction, features, export and serving all use it; there is no second source of pixels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from opsin.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in JPEG and in Pillow's convert("L")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Geometry on the CPU (`prepare`), arithmetic on the device (`normalize`).

    size: (H, W) that the network sees. channels: 1 or 3; grey pictures are repeated, colour ones weighted (BT.601).
    crop: what happens to another aspect ratio. "crop" scales the shorter side to size / crop_fraction and cuts the
    centre; "pad" scales the longer side and fills the rest with `fill` (0–255); "squash" ignores the ratio.
    mean, std: per channel, for pixels scaled to [0, 1].
    """

    size: tuple[int, int]
    channels: int = 3
    crop: Literal["crop", "pad", "squash"] = "crop"
    crop_fraction: float = 1.0
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    fill: int = 0

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise UsageError(f"preprocess.channels: expected 1 or 3, received {self.channels}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise UsageError(
                f"preprocess.mean and .std: expected {self.channels} values each, received {self.mean} and {self.std}"
            )
        numbers = (*self.mean, *self.std, self.crop_fraction)
        if (
            min(self.size) < 1
            or min(self.std) <= 0
            or not 0 < self.crop_fraction <= 1
            or not all(map(isfinite, numbers))
        ):
            raise UsageError(
                "preprocess: expected size >= 1, finite mean, std > 0 and 0 < crop_fraction <= 1, "
                f"received {self.size}, {self.mean}, {self.std}, {self.crop_fraction}"
            )
        for name, known in (("crop", ("crop", "pad", "squash")), ("interpolation", ("bilinear", "bicubic", "nearest"))):
            if getattr(self, name) not in known:
                raise UsageError(
                    f"preprocess.{name}: expected one of {', '.join(known)}, received {getattr(self, name)!r}"
                )

    def prepare(self, image: Tensor) -> Tensor:
        """One decoded picture, uint8 [c, h, w] with c of 1 or 3, to uint8 [C, H, W]. Safe in any worker thread."""
        image = to_channels(image, self.channels)
        height, width = self.size
        h, w = image.shape[1:]
        if (h, w) == (height, width) and self.crop_fraction == 1.0:
            return image
        if self.crop == "squash":
            return resize(image, height, width, self.interpolation)
        if self.crop == "pad":
            scale = min(height / h, width / w)
            new_h, new_w = max(1, round(h * scale)), max(1, round(w * scale))
            top, left = (height - new_h) // 2, (width - new_w) // 2
            padded = image.new_full((self.channels, height, width), self.fill)
            put(padded[:, top : top + new_h, left : left + new_w], resize(image, new_h, new_w, self.interpolation))
            return padded
        scale = max(height / h, width / w) / self.crop_fraction
        new_h, new_w = max(height, round(h * scale)), max(width, round(w * scale))
        top, left = (new_h - height) // 2, (new_w - width) // 2
        return resize(image, new_h, new_w, self.interpolation)[:, top : top + height, left : left + width]

    def normalize(self, images: Tensor) -> Tensor:
        """Pixels, uint8 or float in 0–255 [B, C, H, W], to float32: (pixels / 255 - mean) / std, on their device."""
        import torch

        std = torch.tensor(self.std, device=images.device, dtype=torch.float32).view(-1, 1, 1)
        mean = torch.tensor(self.mean, device=images.device, dtype=torch.float32).view(-1, 1, 1)
        # One multiplication and one addition: pixels · 1/(255·std) - mean/std.
        return images.to(torch.float32, copy=True).mul_(1 / (255 * std)).sub_(mean / std)

    def pixels(self, images: Tensor) -> Tensor:
        """`normalize` undone, to be looked at: float [B, C, H, W] to uint8 on the CPU."""
        import torch

        std, mean = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (self.std, self.mean))
        return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).cpu().contiguous()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def to_channels(image: Tensor, channels: int) -> Tensor:
    """uint8 [c, h, w] to uint8 [channels, h, w]: repeat grey, weigh colour by BT.601."""
    import torch

    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise UsageError(f"expected a picture as uint8 [1 or 3, h, w], received {image.dtype} {tuple(image.shape)}")
    if image.shape[0] == channels:
        return image
    if channels == 3:
        return image.expand(3, -1, -1)
    weights = torch.tensor(LUMA, device=image.device).view(3, 1, 1)
    return (image * weights).sum(0, keepdim=True).add_(0.5).clamp_(0, 255).to(torch.uint8)


def put(where: Tensor, image: Tensor) -> None:
    """Copy one picture into its place, both uint8 [C, H, W] on the CPU. By NumPy: torch would copy with a team of
    threads for each worker, beside those that train, and they wait for each other for longer than the copy takes."""
    where.numpy()[:] = image.numpy()


def resize(image: Tensor, height: int, width: int, interpolation: str = "bilinear") -> Tensor:
    """uint8 [C, h, w] to uint8 [C, height, width], anti-aliased when it shrinks (within one level of Pillow's)."""
    import numpy as np
    import torch
    from torch.nn import functional

    if image.shape[1:] == (height, width):
        return image
    if not image.is_contiguous() and image.device.type == "cpu":
        # Part of a picture: laid out here, for the reason of `put`. A whole one lies so already.
        image = torch.from_numpy(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).permute(2, 0, 1)
    if interpolation == "nearest":
        return functional.interpolate(image[None], (height, width), mode="nearest-exact")[0]
    return functional.interpolate(image[None], (height, width), mode=interpolation, antialias=True)[0]
