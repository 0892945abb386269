"""Descriptors of pictures on a regular grid: dense SIFT, HOG, LBP and raw patches, of whole batches at once.

The first three are one idea: maps of what is where (gradients by orientation, codes of texture), of which each frame
of the grid takes weighted sums over a few bins. The weights are separable, so the sums are two products with small
matrices, one along the rows and one along the columns, in which neighbouring frames share the memory they read.
Pictures are taken in parts, so that the maps stay small (and in the processor's cache) however large the batch is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from opsin.errors import UsageError, near
from opsin.preprocess import LUMA

# Numbers in the maps of the pictures that are taken at once: 1 MiB on the CPU, 128 MiB elsewhere.
PART, LARGE_PART = 1 << 18, 1 << 25
BINS, ANGLES = 4, 8  # of SIFT: 4 × 4 bins of 8 orientations (Lowe 2004, section 6.1)
CLIP = 0.2  # of SIFT (Lowe 2004, section 6.1) and of HOG's L2-Hys (Dalal and Triggs 2005, section 6.4)


class Grid(NamedTuple):
    """Descriptors of B pictures of one size, N of each at the same places, row by row of the grid."""

    vectors: Tensor  # float32 [B, N, D]
    places: Tensor  # float32 [N, 2]: y, x of a descriptor's centre as parts 0–1 of the picture's height and width


def joined(grids: Sequence[Grid]) -> Grid:
    """Several grids of the same pictures as one, one after the other: several scales, or another step.

    Descriptors of another length (another kind, or of other planes) do not join: they need a vocabulary of their own.
    """
    shapes = {(len(grid.vectors), grid.vectors.shape[2]) for grid in grids}
    if len(shapes) != 1:
        found = ", ".join(f"{count} pictures × {length}" for count, length in sorted(shapes)) or "no grid"
        raise UsageError(f"joined: expected descriptors of the same pictures and of one length, received {found}")
    return Grid(torch.cat([grid.vectors for grid in grids], 1), torch.cat([grid.places for grid in grids]))


def planes(images: Tensor, space: Literal["grey", "rgb", "opponent"] = "grey") -> Tensor:
    """Pixels [B, 1 or 3, H, W] as float32 [B, 1 or 3, H, W], for descriptors of colour: a plane is a channel of them.

    "grey" is BT.601's luma; "opponent" red–green, yellow–blue and intensity (van de Sande et al. 2010, equation 5), the
    first two 0 where a picture is grey.
    """
    if space not in ("grey", "rgb", "opponent"):
        raise UsageError(f"planes: unknown space {space!r}; {near(space, ('grey', 'rgb', 'opponent'))}")
    _check(images)
    images, channels = images.to(torch.float32), images.shape[1]
    if channels not in (1, 3):
        raise UsageError(f"planes: expected pictures of 1 or 3 channels, received {channels}")
    if space == "grey":
        return images if channels == 1 else (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    images = images.expand(-1, 3, -1, -1)
    if space == "rgb":
        return images
    red, green, blue = images.unbind(1)
    return torch.stack(
        ((red - green) / math.sqrt(2), (red + green - 2 * blue) / math.sqrt(6), (red + green + blue) / math.sqrt(3)), 1
    )


def sift(
    images: Tensor,
    *,
    step: int,
    bin_size: int,
    window: Literal["gaussian", "flat"] = "gaussian",
    root: bool = False,
    smooth: float = 0.0,
    contrast: float = 0.005 * 255,
) -> Grid:
    """SIFT (Lowe 2004) of upright frames every `step` pixels, each channel by itself: D = 128 C, as [C, 4, 4, 8].

    Frames, gradients and weights are those of VLFeat's dsift (Vedaldi and Fulkerson 2010): bins `bin_size` pixels
    apart, their centres within the picture; votes shared linearly among bins and orientations; beyond the border the
    outermost gradients go on. Unit length, clipped at 0.2, unit length again.

    images: uint8 or float (0–255) [B, C, H, W]. window: "gaussian" weighs each pixel by its distance from the frame's
    centre (standard deviation: two bins), "flat" each bin by the mean of that, which is faster and nearly the same.
    root: RootSIFT (Arandjelović and Zisserman 2012), the square root of the descriptor of unit sum. smooth: standard
    deviation in pixels of a Gaussian blur before all this (VLFeat's phow takes bin_size / 6; 0 is none). contrast: the
    descriptor is zeros where the mean gradient, weighted alike, is below so many grey levels a pixel.
    """
    if window not in ("gaussian", "flat"):
        raise UsageError(f"sift: unknown window {window!r}; {near(window, ('gaussian', 'flat'))}")
    if not (smooth >= 0 and contrast >= 0 and math.isfinite(smooth)):
        raise UsageError(f"sift: expected smooth and contrast of at least 0, received {smooth} and {contrast}")
    _positive("sift", step=step, bin_size=bin_size)
    rows, columns, places = _frames("sift", images, (BINS - 1) * bin_size + 1, step)
    kernels, weights = _sift_weights(bin_size, window)
    margin = bin_size - 1  # how far a bin reaches beyond its centre
    blurs = [_blur(size, smooth, images.device) for size in images.shape[2:]] if smooth else []

    def describe(part: Tensor) -> Tensor:
        part = (_blurred(part, blurs) if smooth else part).permute(2, 0, 1).contiguous()
        maps = _orientations(*(_slopes(part, axis, margin) for axis in (0, 2)))
        if window == "gaussian":
            bins = _sums(maps, kernels.to(maps), step)
        else:  # one kernel serves all bins: summed wherever a bin of some frame is, then handed out
            stride = math.gcd(step, bin_size)
            sums = _sums(maps, kernels.to(maps), stride)[:, :, :, 0, 0]
            picture, row, column, one = sums.stride()
            apart, along = step // stride, bin_size // stride
            shape = (len(sums), rows, columns, BINS, BINS, ANGLES)
            strides = (picture, apart * row, apart * column, along * row, along * column, one)
            bins = sums.as_strided(shape, strides) * weights.to(maps)
        vectors = bins.flatten(3)
        strong = vectors.sum(-1, keepdim=True) >= contrast
        vectors = _unit(_unit(vectors).clamp_(max=CLIP), keep=strong)
        return functional.normalize(vectors, p=1.0, dim=-1).sqrt_() if root else vectors

    return Grid(_in_parts(images, rows, columns, BINS * BINS * ANGLES, ANGLES, describe), places)


def hog(images: Tensor, *, step: int, cell: int, block: int = 2, orientations: int = 9) -> Grid:
    """Histograms of oriented gradients (Dalal and Triggs 2005), each channel by itself: D = C · block² · orientations.

    A descriptor is a block of `block` × `block` cells of `cell` pixels, every `step` pixels; a cell is a histogram of
    its pixels' gradients over unsigned orientations; a block's length is 1, clipped at 0.2, and 1 again (L2-Hys).
    Differences of the two neighbours, none at the border; each pixel votes for one cell and one orientation: with
    step = cell and one channel these are scikit-image's `hog`. A block without gradients is zeros.

    images: uint8 or float (0–255) [B, C, H, W]. D is ordered [C, block, block, orientations].
    """
    _positive("hog", step=step, cell=cell, block=block, orientations=orientations)
    rows, columns, places = _frames("hog", images, block * cell, step)
    kernels = torch.eye(block).repeat_interleave(cell, 1) / cell

    def describe(part: Tensor) -> Tensor:
        across, down = torch.zeros_like(part), torch.zeros_like(part)
        across[:, :, 1:-1] = part[:, :, 2:] - part[:, :, :-2]
        down[:, 1:-1] = part[:, 2:] - part[:, :-2]
        across, down = across.permute(2, 0, 1), down.permute(2, 0, 1)
        # The little more keeps angles on an edge between two orientations in the upper one, however atan2 rounds.
        angle = torch.atan2(down, across).mul_(orientations / math.pi).add_(1e-5).floor_() % orientations
        known = torch.arange(orientations, device=part.device, dtype=part.dtype)
        maps = torch.where(angle[:, :, None] == known[:, None], torch.hypot(across, down)[:, :, None], 0.0)
        vectors = _sums(maps, kernels.to(maps), step).flatten(3)
        return _unit(_unit(vectors, 1e-5).clamp_(max=CLIP), 1e-5)

    return Grid(_in_parts(images, rows, columns, block * block * orientations, orientations, describe), places)


def lbp(
    images: Tensor,
    *,
    step: int,
    side: int,
    points: int = 8,
    radius: float = 1.0,
    method: Literal["uniform", "rotation"] = "uniform",
) -> Grid:
    """Local binary patterns: histograms of codes over squares of `side` pixels every `step`, each channel by itself.

    A pixel's code says which of `points` neighbours on a circle of `radius` pixels (between pixels: bilinear) are at
    least as bright. "uniform" (Ahonen et al. 2006) tells apart the patterns with at most two changes around the circle
    and has one more code for all others, points · (points - 1) + 3 in all (scikit-image calls it "nri_uniform");
    "rotation" (Ojala et al. 2002, riu2) counts the brighter neighbours of such patterns, points + 2 codes in all
    (scikit-image: "uniform"). Codes are numbered as scikit-image does; beyond the border the outermost pixels go on.

    images: uint8 or float (0–255) [B, C, H, W]. D = C · codes; the shares of each channel's codes have the sum 1. A
    flat picture has no dark neighbours: 1 at the code of all ones, 0 elsewhere.
    """
    if method not in ("uniform", "rotation"):
        raise UsageError(f"lbp: unknown method {method!r}; {near(method, ('uniform', 'rotation'))}")
    _positive("lbp", step=step, side=side, points=points)
    if points > 16 or not 0 < radius <= 64:
        raise UsageError(f"lbp: expected at most 16 points and a radius up to 64, received {points} and {radius}")
    rows, columns, places = _frames("lbp", images, side, step)
    table = _code_table(points, method)
    codes = int(table.max()) + 1
    square = math.gcd(step, side)  # counted once in squares of which all frames consist
    height, width = ((n - 1) * step + side for n in (rows, columns))
    kernel = torch.full((1, side // square), square / side)

    def describe(part: Tensor) -> Tensor:
        seen = table.to(part.device)[_patterns(part, points, radius)][:, :height, :width]
        shape = (width // square, len(part), codes, height // square)
        y = torch.arange(height, device=part.device)[:, None] // square
        x = torch.arange(width, device=part.device) // square
        picture = torch.arange(len(part), device=part.device)[:, None, None]
        places = ((x * shape[1] + picture) * shape[2] + seen) * shape[3] + y
        counts = torch.zeros(math.prod(shape), device=part.device)
        counts.scatter_add_(0, places.flatten(), counts.new_ones(1).expand(places.numel()))
        return _sums(counts.view(shape), kernel.to(counts) / square, step // square).flatten(3)

    return Grid(_in_parts(images, rows, columns, codes, codes, describe), places)


def patches(images: Tensor, *, side: int, step: int, contrast: float = 10.0) -> Grid:
    """Raw patches of side × side pixels, all channels together, less their mean, divided by √(variance + contrast).

    Coates and Ng 2011, section 3.1.1; the whitening that follows is learnt, so it is the vocabulary's. images: uint8 or
    float (0–255) [B, C, H, W]; D = C · side², ordered [C, side, side]. contrast: grey levels squared. A flat patch is
    zeros.
    """
    _positive("patches", step=step, side=side)
    if not contrast > 0:
        raise UsageError(f"patches: expected contrast above 0, received {contrast}")
    rows, columns, places = _frames("patches", images, side, step)
    cut = images.unfold(2, side, step).unfold(3, side, step)  # [B, C, rows, columns, side, side], a view
    cut = cut.permute(0, 2, 3, 1, 4, 5).to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    vectors = cut.view(len(images), rows * columns, images.shape[1] * side * side)
    vectors -= vectors.mean(-1, keepdim=True)
    variance = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).square_() / vectors.shape[-1]
    return Grid(vectors.mul_((variance + contrast).rsqrt_()), places)


def _check(images: Tensor) -> None:
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise UsageError(
            f"expected pictures as uint8 or float [B, C, H, W], received {images.dtype} {tuple(images.shape)}"
        )


def _positive(kind: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"{kind}: expected {name} of at least 1, received {size}")


def _frames(kind: str, images: Tensor, extent: int, step: int) -> tuple[int, int, Tensor]:
    """How many rows and columns of frames of `extent` pixels there are, and their centres as `Grid.places`."""
    _check(images)
    height, width = images.shape[2:]
    if min(height, width) < extent:
        raise UsageError(
            f"{kind}: expected pictures of at least {extent} × {extent} pixels, which one descriptor of these sizes "
            f"covers, received {height} × {width}; larger pictures or smaller bins, cells or sides would do"
        )
    rows, columns = ((size - extent) // step + 1 for size in (height, width))
    y = (torch.arange(rows) * step + extent / 2) / height
    x = (torch.arange(columns) * step + extent / 2) / width
    return rows, columns, torch.cartesian_prod(y, x).to(images.device)


def _in_parts(
    images: Tensor, rows: int, columns: int, length: int, maps: int, describe: Callable[[Tensor], Tensor]
) -> Tensor:
    """float32 [B, rows · columns, C · length] by `describe`: planes float32 [P, H, W] → [P, rows, columns, length].

    maps: how many numbers `describe` needs for a pixel, about.
    """
    count, channels, height, width = images.shape
    vectors = torch.empty(count, rows, columns, channels, length, device=images.device)
    limit = PART if images.device.type == "cpu" else LARGE_PART
    part = max(1, limit // max(1, maps * channels * height * width))
    for start in range(0, count, part):
        some = images[start : start + part]
        found = describe(some.to(torch.float32).flatten(0, 1)).unflatten(0, (len(some), channels))
        vectors[start : start + part] = found.permute(0, 2, 3, 1, 4)
    return vectors.view(count, rows * columns, channels * length)


def _banded(kernels: Tensor, step: int, count: int) -> Tensor:
    """Weights [n, size] of a window as those of `count` windows one after the other, [count · n, span]: products with
    few rows are slow, so some windows are one product, though most of its weights are zeros."""
    n, size = kernels.shape
    wide = kernels.new_zeros(count, n, (count - 1) * step + size)
    for i in range(count):
        wide[i, :, i * step : i * step + size] = kernels
    return wide.flatten(0, 1)


def _parts(length: int, kernels: Tensor, step: int) -> list[tuple[int, int, int]]:
    """Windows along an axis of so many pixels, in groups: the first window, how many groups, and windows of each."""
    n, size = kernels.shape
    windows = (length - size) // step + 1
    each = max(1, min(windows, 32 // n, 1 + 2 * size // step))
    parts = [(0, windows // each, each)]
    return [*parts, (windows - windows % each, 1, windows % each)] if windows % each else parts


def _sums(maps: Tensor, kernels: Tensor, step: int) -> Tensor:
    """Maps [W, P, T, H] and the weights [n, size] of each bin along either axis: [P, rows, columns, n, n, T]."""
    width, count, kinds, height = maps.shape
    n, size = kernels.shape
    columns, rows = ((length - size) // step + 1 for length in (width, height))
    across = maps.new_empty(columns, n, count, kinds, height)
    for first, groups, each in _parts(width, kernels, step):
        wide = _banded(kernels, step, each)
        seen = maps.flatten(1)[first * step :].unfold(0, wide.shape[1], each * step)[:groups].transpose(1, 2)
        out = across[first : first + groups * each].view(groups, each * n, -1)
        torch.bmm(wide.expand(groups, -1, -1), seen, out=out)
    sums = maps.new_empty(count, rows, columns, n, n, kinds)
    lines = across.view(-1, height)
    for first, groups, each in _parts(height, kernels, step):
        wide = _banded(kernels, step, each)
        seen = lines[:, first * step :].unfold(1, wide.shape[1], each * step)[:, :groups].transpose(0, 1)
        found = torch.bmm(seen, wide.T.expand(groups, -1, -1)).view(groups, columns, n, count, kinds, each, n)
        part = sums[:, first : first + groups * each].unflatten(1, (groups, each))
        part.copy_(found.permute(3, 0, 5, 1, 6, 2, 4))
    return sums


def _unit(vectors: Tensor, epsilon: float = 1e-12, keep: Tensor | None = None) -> Tensor:
    """In place, by √(length² + epsilon²). keep: bool, like a length; all others become zeros."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    scale = length.square_().add_(epsilon**2).rsqrt_()
    return vectors.mul_(scale if keep is None else scale.mul_(keep))


def _sift_weights(bin_size: int, window: str) -> tuple[Tensor, Tensor]:
    """Kernels float64 [4 or 1, size] along an axis and weights of the bins [4, 4, 1], such that all weights have the
    sum 1: the sum of the bins is then the frame's mean gradient."""
    offsets = torch.arange(1 - bin_size, bin_size, dtype=torch.float64)
    triangle = 1 - offsets.abs() / bin_size
    centres = (torch.arange(BINS, dtype=torch.float64) - (BINS - 1) / 2) * bin_size  # from the frame's centre
    gaussian = torch.exp(-0.5 * ((centres[:, None] + offsets) / (BINS / 2 * bin_size)) ** 2)
    if window == "flat":
        weights = gaussian.mean(1) / (gaussian.mean(1).sum() * triangle.sum())
        return triangle[None], torch.outer(weights, weights)[..., None]
    kernels = torch.zeros(BINS, (BINS - 1) * bin_size + len(offsets), dtype=torch.float64)
    for number, weights in enumerate(gaussian * triangle):
        kernels[number, number * bin_size : number * bin_size + len(offsets)] = weights
    return kernels / kernels.sum(), torch.ones(BINS, BINS, 1, dtype=torch.float64)


def _slopes(part: Tensor, axis: int, margin: int) -> Tensor:
    """Differences along an axis of [W, P, H], halved between two neighbours and whole at the ends, which go on for
    `margin` pixels around the picture."""
    width, count, height = part.shape
    found = part.new_empty(width + 2 * margin, count, height + 2 * margin)
    inner = found[margin : margin + width, :, margin : margin + height]
    size = part.shape[axis]
    torch.sub(part.narrow(axis, 2, size - 2), part.narrow(axis, 0, size - 2), out=inner.narrow(axis, 1, size - 2))
    inner.narrow(axis, 1, size - 2).mul_(0.5)
    torch.sub(part.narrow(axis, 1, 1), part.narrow(axis, 0, 1), out=inner.narrow(axis, 0, 1))
    torch.sub(part.narrow(axis, -1, 1), part.narrow(axis, -2, 1), out=inner.narrow(axis, -1, 1))
    if margin:
        rows = found[:, :, margin : margin + height]
        rows[:margin], rows[-margin:] = rows[margin], rows[-margin - 1]
        found[:, :, :margin] = found[:, :, margin : margin + 1]
        found[:, :, -margin:] = found[:, :, -margin - 1 : found.shape[2] - margin]
    return found


def _orientations(across: Tensor, down: Tensor) -> Tensor:
    """Gradients [W, P, H] as maps [W, P, 8, H]: the magnitude, shared linearly by the two nearest orientations."""
    angle = torch.atan2(down, across).mul_(ANGLES / (2 * math.pi))  # -4 … 4
    magnitude = torch.addcmul(across * across, down, down).sqrt_()
    centres = torch.tensor([0, 1, 2, 3, 4, -3, -2, -1], device=angle.device, dtype=angle.dtype)
    # magnitude · max(0, 1 - |angle - centre|), in as few passes over the maps as there can be.
    angle.mul_(magnitude)
    maps = torch.addcmul(angle[:, :, None], magnitude[:, :, None], centres[:, None], value=-1)
    maps[:, :, 4] = angle.abs_().sub_(magnitude, alpha=4)  # 4 and -4 are one
    return torch.sub(magnitude[:, :, None], maps.abs_(), out=maps).clamp_(min=0)


def _blur(size: int, sigma: float, device: torch.device) -> list[tuple[int, Tensor]]:
    """A Gaussian of `sigma` pixels, cut at four of them, on a line of so many pixels, beyond whose ends the outermost
    ones go on: for each 64 of them the first pixel that they are made from, and weights float32 [64 or fewer, seen]."""
    reach, block = math.ceil(4 * sigma), 64
    seen = torch.arange(-reach, size + reach)
    distance = (seen - torch.arange(size)[:, None]).to(torch.float64)
    weights = torch.exp(-0.5 * (distance / sigma) ** 2) * (distance.abs() <= reach)
    matrix = torch.zeros(size, size, dtype=torch.float64).index_add_(1, seen.clamp(0, size - 1), weights)
    matrix = (matrix / weights.sum(1, keepdim=True)).to(device, torch.float32)
    blocks = []
    for start in range(0, size, block):
        low, high = max(0, start - reach), min(size, start + block + reach)
        blocks.append((low, matrix[start : start + block, low:high].contiguous()))
    return blocks


def _blurred(part: Tensor, blurs: Sequence[list[tuple[int, Tensor]]]) -> Tensor:
    """[P, H, W] by the weights of each axis."""
    for axis, blocks in enumerate(blurs, 1):
        found = []
        for low, rows in blocks:
            some = part.narrow(axis, low, rows.shape[1])
            found.append(torch.matmul(rows, some) if axis == 1 else torch.matmul(some, rows.T))
        part = torch.cat(found, axis)
    return part


def _patterns(part: Tensor, points: int, radius: float) -> Tensor:
    """int64 [P, H, W]: bit i is set where neighbour i (anticlockwise, from the right) is at least as bright."""
    height, width = part.shape[1:]
    reach = math.ceil(radius)
    padded = functional.pad(part, (reach,) * 4, mode="replicate")
    found = torch.zeros(part.shape, dtype=torch.int64, device=part.device)
    for point in range(points):
        angle = 2 * math.pi * point / points
        # Five digits, as scikit-image has them: neighbours that are meant to lie on a pixel do.
        down, across = round(-radius * math.sin(angle), 5), round(radius * math.cos(angle), 5)
        brighter = torch.zeros_like(part)
        for y, weight_y in ((math.floor(down), 1 - down % 1), (math.floor(down) + 1, down % 1)):
            for x, weight_x in ((math.floor(across), 1 - across % 1), (math.floor(across) + 1, across % 1)):
                if weight := weight_y * weight_x:
                    top, left = reach + y, reach + x
                    other = padded[:, top : top + height, left : left + width]
                    brighter.add_(other - part, alpha=weight)
        # Less than the rounding of the line above makes of an equal neighbour is equal.
        found |= (brighter >= -2e-5).to(torch.int64) << point
    return found


def _code_table(points: int, method: str) -> Tensor:
    """int64 [2 ** points]: the code of each pattern, in scikit-image's order."""
    bits = (torch.arange(1 << points)[:, None] >> torch.arange(points)) & 1
    ones = bits.sum(1)
    mixed = (bits != bits.roll(1, 1)).sum(1) > 2
    if method == "rotation":
        return torch.where(mixed, points + 1, ones)
    start = (bits > bits.roll(1, 1)).to(torch.int64).argmax(1)  # of the one run of ones
    codes = 1 + (ones - 1) * points + -start % points
    codes = torch.where(ones == 0, 0, torch.where(ones == points, points * (points - 1) + 1, codes))
    return torch.where(mixed, points * (points - 1) + 2, codes)
