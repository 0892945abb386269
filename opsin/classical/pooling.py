"""From the codes of a picture's descriptors to one vector: pooled over the boxes of a spatial pyramid."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from opsin.errors import UsageError

HOW = ("max", "average", "sum")


def regions(text: str) -> Tensor:
    """The boxes of a pyramid such as "1x1+2x2+3x1", float32 [R, 4]: top, left, bottom, right as parts of a picture.

    Each grid is ROWSxCOLUMNS, its boxes in reading order: 1x1 the whole picture, 2x2 its quadrants, 3x1 three stripes
    one above the other (Lazebnik, Schmid and Ponce 2006). ROWSxCOLUMNS/N: as many boxes, evenly spread, but each of an
    N-th of the height and width: in 3x3/2 nine of a quadrant's size, each of which shares half with its neighbour.
    """
    boxes = []
    for part in text.replace("×", "x").split("+"):
        found = re.fullmatch(r"\s*([1-9]\d?)x([1-9]\d?)(?:/([1-9]\d?))?\s*", part)
        if not found:
            raise UsageError(
                "regions: expected grids such as 1x1+2x2+3x1 (rows x columns, 1 to 99) or 3x3/2 (boxes of half the "
                f"size), received {text!r}"
            )
        spans = [_spans(int(count), int(found[3]) if found[3] else int(count)) for count in found.groups()[:2]]
        boxes += [(top, left, bottom, right) for top, bottom in spans[0] for left, right in spans[1]]
    return torch.tensor(boxes, dtype=torch.float64).float()


def _spans(count: int, parts: int) -> list[tuple[float, float]]:
    """`count` spans of 1 / parts each, evenly spread from 0 to 1; a single one is in the middle."""
    if parts == count:
        return [(i / count, (i + 1) / count) for i in range(count)]
    size = 1 / parts
    starts = [i * (1 - size) / (count - 1) for i in range(count)] if count > 1 else [(1 - size) / 2]
    return [(start, start + size) for start in starts]


def members(places: Tensor, boxes: Tensor) -> Tensor:
    """Which descriptors are in which box, bool [R, N], of places, float32 [N, 2], and boxes, float32 [R, 4].

    A box holds its upper and left edges and not the lower and right ones, but for those of the picture: every place is
    in exactly one box of a grid.
    """
    boxes = boxes.to(places.device)
    low, high = boxes[:, None, :2], boxes[:, None, 2:]  # [R, 1, 2]
    return ((places >= low) & ((places < high) | (high >= 1))).all(2)


class Pooler:
    """Pools what comes in parts of a picture's descriptors, in the order `order`. In it descriptors of the same boxes
    stand together, as a cell: a part meets few cells, and a cell of several boxes is pooled once.
    """

    def __init__(self, places: Tensor, boxes: Tensor, how: str) -> None:
        if how not in HOW:
            raise UsageError(f"pooling: expected {', '.join(HOW)}, received {how!r}")
        inside = members(places, boxes)
        self.how = how
        self.order = torch.from_numpy(np.lexsort(inside.cpu().numpy())).to(places.device)
        self.counts = inside.sum(1)
        cells, sizes = torch.unique_consecutive(inside[:, self.order], dim=1, return_counts=True)
        ends = sizes.cumsum(0).tolist()
        # Of each cell: where it begins and ends in the order, and its boxes.
        self.cells = [
            (end - size, end, cell.nonzero()[:, 0].tolist())
            for end, size, cell in zip(ends, sizes.tolist(), cells.T, strict=True)
        ]

    def within(self, part: slice) -> Iterator[tuple[slice, list[int]]]:
        """The cells in a part of the order: where each is in that part, and its boxes."""
        for start, end, boxes in self.cells:
            start, end = max(start, part.start), min(end, part.stop)
            if start < end and boxes:
                yield slice(start - part.start, end - part.start), boxes

    def empty(self, pictures: int, *width: int) -> Tensor:
        """What to pool into, float32 [B, R, …]."""
        start = -torch.inf if self.how == "max" else 0.0
        return torch.full((pictures, len(self.counts), *width), start, device=self.counts.device)

    def add(self, total: Tensor, codes: Tensor, part: slice) -> None:
        """Pool the codes of the descriptors `part` of the order, float32 [B, n, K], into the total, in place."""
        for places, boxes in self.within(part):
            chosen = codes[:, places]
            one = chosen.amax(1) if self.how == "max" else chosen.sum(1)
            for box in boxes:
                if self.how == "max":
                    torch.maximum(total[:, box], one, out=total[:, box])
                else:
                    total[:, box] += one

    def finish(self, total: Tensor) -> Tensor:
        """What was pooled, in place; zeros of a box without a descriptor."""
        counts = self.counts.view(1, -1, *[1] * (total.ndim - 2))
        if self.how == "max":
            return total.masked_fill_(counts == 0, 0.0)
        return total.div_(counts.clamp(min=1)) if self.how == "average" else total


def pool(codes: Tensor, places: Tensor, boxes: Tensor, how: str) -> Tensor:
    """The codes in each box, float32 [B, N, K] → [B, R, K]: their largest, their average or their sum. A box without a
    descriptor gives zeros.
    """
    pooler = Pooler(places, boxes, how)
    total = pooler.empty(len(codes), codes.shape[2])
    pooler.add(total, codes[:, pooler.order], slice(0, codes.shape[1]))
    return pooler.finish(total)
