"""Augmentation of whole batches, on the device. Every random number is a function of (seed, epoch, place in the data
set): the same for any batch size, any number of workers, and on resume.

The pixels end in `Preprocess.normalize`, the very method that the classifier calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from opsin.data.rng import MASK, uniform
from opsin.errors import UsageError
from opsin.preprocess import LUMA, Preprocess, resize, to_channels
from opsin.recipe import Augment
from opsin.types import Batch, Progress

# Which of a picture's random numbers each part uses. Fixed places: switching one part on leaves the others' alone.
SHIFT, FLIP, AFFINE, COLOUR, ERASE, CUTOUT, TRIVIAL, FIRST_FLIP = 0, 2, 3, 9, 12, 17, 19, 22
DRAWS = 23


@dataclass(frozen=True)
class Augmenter:
    """`Augment` at work: a batch to what the network sees in training.

    total_steps: of the whole training, for progressive resolution. cropped: the loader has already cropped at random
    (it does so where it decodes the picture, from the full resolution).
    """

    spec: Augment
    preprocess: Preprocess
    num_classes: int
    seed: int = 0
    total_steps: int = 1
    channels_last: bool = False
    cropped: bool = False

    def __post_init__(self) -> None:
        if min(self.preprocess.size) <= self.spec.shift and self.spec.padding == "reflect":
            raise UsageError(
                f"augment.shift: expected less than the picture's side {min(self.preprocess.size)}, "
                f"received {self.spec.shift}"
            )

    def __call__(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
        """float32 [B, C, h, w] and targets float32 [B, K]; h, w are the size at this point of the training.

        Targets are distributions; of many labels 0 to 1 each, and -1 where it is not known.
        """
        spec = self.spec
        draws = uniform(self.seed, batch.epoch, batch.indices, DRAWS).to(batch.images.device)
        images = shift_and_flip(
            batch.images, draws[:, SHIFT : SHIFT + 2], self._flips(batch, draws), spec.shift, spec.padding
        )
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        crop = 0.0 if self.cropped else spec.crop
        if crop or spec.rotate or spec.zoom:
            height, width = self.preprocess.size
            matrix = affine(draws[:, AFFINE : AFFINE + 6], crop, spec.rotate, spec.zoom, width / height)
            images = warp(images, matrix, self.preprocess.fill)
        if spec.trivial:
            images = trivial_augment(images, draws[:, TRIVIAL : TRIVIAL + 3], self.preprocess.fill)
        if spec.colour:
            images = colour_jitter(images, 1 + spec.colour * (2 * draws[:, COLOUR : COLOUR + 3] - 1))
        images = self.preprocess.normalize(images)
        if spec.erase:
            images = erase(images, draws[:, ERASE : ERASE + 5], spec.erase)
        if spec.cutout:
            images = cutout(images, draws[:, CUTOUT : CUTOUT + 2], spec.cutout)
        targets = batch.labels
        if targets.ndim == 1:
            targets = functional.one_hot(targets, self.num_classes).to(torch.float32)
        if spec.mixup or spec.cutmix:
            images, targets = mix(images, targets, self._mixer(progress), spec.mixup, spec.cutmix)
        side = self.side(progress)
        if side:
            size = tuple(max(1, round(s * side / max(self.preprocess.size))) for s in self.preprocess.size)
            if size != tuple(images.shape[2:]):
                images = functional.interpolate(images, size, mode="bilinear", antialias=True)
        return images, targets

    def side(self, progress: Progress) -> int:
        """The longer side in pixels at this point of the training; 0 is full size."""
        part = progress.step / max(1, self.total_steps)
        return next((side for start, side in reversed(self.spec.sizes) if part >= start), 0)

    def _flips(self, batch: Batch, draws: Tensor) -> Tensor | None:
        if self.spec.flip == "random":
            return draws[:, FLIP] < 0.5
        if self.spec.flip == "alternating":
            # Jordan 2024, section 3.6: a random side in the first epoch, then the other one in turn, so that two
            # epochs in a row always show both.
            first = uniform(self.seed, 0, batch.indices, DRAWS)[:, FIRST_FLIP].to(draws.device) < 0.5
            return first ^ bool(batch.epoch % 2)
        return None

    def _mixer(self, progress: Progress) -> np.random.Generator:
        """Partners and strength belong to the batch, so they come from its number."""
        key = np.array([self.seed & MASK, ((progress.epoch << 32) + progress.batch) & MASK], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key))


def random_crop(image: Tensor, draws: Tensor, area: float, preprocess: Preprocess) -> Tensor:
    """A random-resized-crop of one decoded picture, uint8 [c, h, w], from its full resolution: uint8 [C, H, W].

    draws: [DRAWS], the picture's random numbers of this epoch. For loaders that decode while training runs.
    """
    h, w = image.shape[1:]
    height, width, top, left = (float(part) for part in crop_box(draws[None, AFFINE : AFFINE + 4], area, w / h))
    y, x = round(top * h), round(left * w)
    cut = image[:, y : y + max(1, round(height * h)), x : x + max(1, round(width * w))]
    return resize(to_channels(cut, preprocess.channels), *preprocess.size, preprocess.interpolation)


def shift_and_flip(images: Tensor, draws: Tensor, flips: Tensor | None, shift: int, padding: str) -> Tensor:
    """Pad by `shift` pixels, cut at random, mirror where `flips` says so: one gather, nothing is padded in memory.

    images: [B, C, H, W] of any type; draws: [B, 2] in [0, 1) for the row and the column; flips: bool [B] or None.
    """
    if not shift:
        return images if flips is None else torch.where(flips.view(-1, 1, 1, 1), images.flip(3), images)
    height, width = images.shape[2:]
    moves = (draws * (2 * shift + 1)).long() - shift  # [B, 2] in -shift … shift
    rows = torch.arange(height, device=images.device) + moves[:, :1]  # [B, H]
    columns = torch.arange(width, device=images.device) + moves[:, 1:]  # [B, W]
    if flips is not None:
        columns = torch.where(flips.view(-1, 1), columns.flip(1), columns)
    outside = None
    if padding == "zero":
        outside = ((rows < 0) | (rows >= height))[:, :, None] | ((columns < 0) | (columns >= width))[:, None]
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    else:
        rows, columns = _reflect(rows, height), _reflect(columns, width)
    batch, channel = (
        torch.arange(len(images), device=images.device),
        torch.arange(images.shape[1], device=images.device),
    )
    cut = images[batch.view(-1, 1, 1, 1), channel.view(1, -1, 1, 1), rows[:, None, :, None], columns[:, None, None]]
    return cut if outside is None else cut.masked_fill_(outside[:, None], 0)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Indices beyond the border mirrored at it, the border itself not repeated."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def affine(draws: Tensor, crop: float, rotate: float, zoom: float, aspect: float = 1.0) -> Tensor:
    """One matrix a picture, [B, 2, 3], from output to input coordinates in [-1, 1].

    draws: [B, 6]. crop: least area of a random-resized-crop, aspect ratio 3/4 to 4/3 (Szegedy et al. 2014, section 6).
    rotate: degrees, zoom: relative size, both uniform in ±. aspect: width over height of the pictures.
    """
    count = len(draws)
    matrix = torch.eye(3, device=draws.device).expand(count, 3, 3)
    if crop:
        height, width, top, left = crop_box(draws[:, :4], crop, aspect)
        # A box [top, top + height] of a picture of side 1, as a scale and a shift in [-1, 1].
        matrix = matrix @ _matrix(width, 0 * width, 2 * left + width - 1, 0 * height, height, 2 * top + height - 1)
    if rotate or zoom:
        angle = math.radians(rotate) * (2 * draws[:, 4] - 1)
        scale = 1 / (1 + zoom * (2 * draws[:, 5] - 1))
        cos, sin, none = scale * angle.cos(), scale * angle.sin(), torch.zeros(count, device=draws.device)
        matrix = matrix @ _matrix(cos, -sin / aspect, none, sin * aspect, cos, none)
    return matrix[:, :2]


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, f: Tensor) -> Tensor:
    last = torch.tensor([0.0, 0.0, 1.0], device=a.device).expand(len(a), 1, 3)
    return torch.cat((torch.stack((a, b, c, d, e, f), 1).view(-1, 2, 3), last), 1)


def crop_box(draws: Tensor, area: float, aspect: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Height, width, top and left, [B] each, as parts of the picture's sides, of a random crop of at least `area`.

    draws: [B, 4]. aspect: the picture's width over its height; the crop's own ratio is 3/4 to 4/3 in pixels.
    """
    parts = area + (1 - area) * draws[:, 0]
    ratio = torch.exp(math.log(4 / 3) * (2 * draws[:, 1] - 1)) / aspect
    height, width = (parts / ratio).sqrt().clamp(max=1), (parts * ratio).sqrt().clamp(max=1)
    return height, width, draws[:, 2] * (1 - height), draws[:, 3] * (1 - width)


def warp(images: Tensor, matrix: Tensor, fill: float = 0.0) -> Tensor:
    """Bilinear resampling of [B, C, H, W] (any type, float32 out) by [B, 2, 3] matrices; `fill` where nothing is."""
    images = images.to(torch.float32) - fill
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + fill


def colour_jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation by `factors` [B, 3]; pixels 0–255 [B, C, H, W], float32 out, clipped."""
    images = images.to(torch.float32)
    brightness, contrast, saturation = factors.view(-1, 3, 1, 1, 1).unbind(1)
    images = (images * brightness).clamp_(0, 255)
    images = _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), contrast)
    return _blend(images, _grey(images), saturation) if images.shape[1] == 3 else images


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    return (images * torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (other + (images - other) * factor).clamp_(0, 255)


def trivial_augment(images: Tensor, draws: Tensor, fill: float = 0.0) -> Tensor:
    """TrivialAugment (Müller and Hutter 2021, section 3, wide space): one operation a picture, of uniform strength.

    images: pixels 0–255 [B, C, H, W], float32 out. draws: [B, 3] for the operation, its strength and its sign.
    """
    images = images.to(torch.float32)
    chosen = (draws[:, 0] * len(OPERATIONS)).long()
    out = images.clone()
    for number, operation in enumerate(OPERATIONS):
        rows = (chosen == number).nonzero().flatten()
        if len(rows):
            sign = torch.where(draws[rows, 2] < 0.5, -1.0, 1.0)
            out[rows] = operation(images[rows], draws[rows, 1], sign, fill)
    return out


def _identity(images: Tensor, strength: Tensor, sign: Tensor, fill: float) -> Tensor:
    return images


def _autocontrast(images: Tensor, strength: Tensor, sign: Tensor, fill: float) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) * (255 / (high - low).clamp_min(1e-6)), images)


def _equalize(images: Tensor, strength: Tensor, sign: Tensor, fill: float) -> Tensor:
    """Each channel's levels mapped by their cumulative frequency."""
    flat = images.round().long().flatten(2)  # [B, C, H·W]
    counts = torch.zeros(*flat.shape[:2], 256, device=images.device).scatter_add_(
        2, flat, torch.ones_like(flat, dtype=torch.float32)
    )
    below = counts.cumsum(2) - counts / 2
    return (below / flat.shape[2] * 255).gather(2, flat).view_as(images)


def _posterize(images: Tensor, strength: Tensor, sign: Tensor, fill: float) -> Tensor:
    step = 2.0 ** (6 * strength).round().view(-1, 1, 1, 1)  # keeps 8 … 2 bits
    return (images / step).floor() * step


def _solarize(images: Tensor, strength: Tensor, sign: Tensor, fill: float) -> Tensor:
    threshold = 255 * (1 - strength).view(-1, 1, 1, 1)
    return torch.where(images >= threshold, 255 - images, images)


def _brightness(images: Tensor, strength: Tensor, sign: Tensor, fill: float) -> Tensor:
    return _blend(images, torch.zeros_like(images), _factor(strength, sign))


def _contrast(images: Tensor, strength: Tensor, sign: Tensor, fill: float) -> Tensor:
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), _factor(strength, sign))


def _saturation(images: Tensor, strength: Tensor, sign: Tensor, fill: float) -> Tensor:
    return _blend(images, _grey(images), _factor(strength, sign))


def _sharpness(images: Tensor, strength: Tensor, sign: Tensor, fill: float) -> Tensor:
    blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return _blend(images, blurred, _factor(strength, sign))


def _factor(strength: Tensor, sign: Tensor) -> Tensor:
    return (1 + 0.99 * strength * sign).view(-1, 1, 1, 1)


def _geometric(kind: str) -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    def operation(images: Tensor, strength: Tensor, sign: Tensor, fill: float) -> Tensor:
        amount, one, none = strength * sign, torch.ones_like(strength), torch.zeros_like(strength)
        if kind == "rotate":
            angle = math.radians(135) * amount
            aspect = images.shape[3] / images.shape[2]
            values = (angle.cos(), -angle.sin() / aspect, none, angle.sin() * aspect, angle.cos(), none)
        else:
            shear, move = 0.99 * amount, 2 * amount * min(1.0, 32 / max(images.shape[2:]))
            values = {
                "shear_x": (one, shear, none, none, one, none),
                "shear_y": (one, none, none, shear, one, none),
                "translate_x": (one, none, move, none, one, none),
                "translate_y": (one, none, none, none, one, move),
            }[kind]
        return warp(images, _matrix(*values)[:, :2], fill)

    return operation


OPERATIONS: tuple[Callable[[Tensor, Tensor, Tensor, float], Tensor], ...] = (
    _identity,
    _autocontrast,
    _equalize,
    _posterize,
    _solarize,
    _brightness,
    _contrast,
    _saturation,
    _sharpness,
    *map(_geometric, ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")),
)


def erase(images: Tensor, draws: Tensor, probability: float) -> Tensor:
    """Random erasing (Zhong et al. 2017, algorithm 1): 2–40 % of the area, ratio 0.3–3.3, set to the mean (0 here).

    images: normalised [B, C, H, W]; draws: [B, 5].
    """
    area, ratio = 0.02 + 0.38 * draws[:, 1], torch.exp(math.log(3.3) * (2 * draws[:, 2] - 1))
    size = torch.stack(((area / ratio).sqrt(), (area * ratio).sqrt()), 1).clamp(max=1)
    size = torch.where((draws[:, :1] < probability), size, torch.zeros_like(size))
    corner = draws[:, 3:5] * (1 - size)
    return images.masked_fill(_rectangles(images, corner, corner + size), 0)


def cutout(images: Tensor, draws: Tensor, side: int) -> Tensor:
    """A square of `side` pixels about a random centre set to the mean (DeVries and Taylor 2017); it may hang over."""
    sides = torch.tensor(images.shape[2:], device=images.device)
    corner = draws - side / sides / 2
    return images.masked_fill(_rectangles(images, corner, corner + side / sides), 0)


def _rectangles(images: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """bool [B, 1, H, W]: pixels whose centre lies in the rectangle from `low` to `high` [B, 2], parts of the sides."""
    height, width = images.shape[2:]
    y = (torch.arange(height, device=images.device) + 0.5) / height
    x = (torch.arange(width, device=images.device) + 0.5) / width
    rows = (y >= low[:, :1]) & (y < high[:, :1])
    columns = (x >= low[:, 1:]) & (x < high[:, 1:])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def mix(
    images: Tensor, targets: Tensor, generator: np.random.Generator, mixup: float, cutmix: float
) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2017) or CutMix (Yun et al. 2019) of each picture with another one of the batch.

    A target that is -1, not known, in either of the two is not known of the mixture.
    """
    cut = cutmix > 0 and (mixup == 0 or generator.random() < 0.5)
    part = float(generator.beta(cutmix, cutmix) if cut else generator.beta(mixup, mixup))
    keep = max(part, 1 - part)  # both pictures of a pair are in the batch: this only says which of the two is meant
    partners = torch.from_numpy(generator.permutation(len(images))).to(images.device)
    if cut:
        height, width = images.shape[2:]
        cut_h, cut_w = round(height * math.sqrt(1 - keep)), round(width * math.sqrt(1 - keep))
        top, left = int(generator.integers(height - cut_h + 1)), int(generator.integers(width - cut_w + 1))
        images = images.clone()
        box = (slice(None), slice(None), slice(top, top + cut_h), slice(left, left + cut_w))
        images[box] = images[partners][box]
        keep = 1 - cut_h * cut_w / (height * width)  # what was cut in whole pixels decides the targets
    else:
        images = torch.lerp(images[partners], images, keep)
    others = targets[partners]
    return images, torch.lerp(others, targets, keep).masked_fill_((targets < 0) | (others < 0), -1)
