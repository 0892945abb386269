"""Linear classifiers of vectors, fitted: ½‖w‖² + C Σ loss, minimised by L-BFGS over rows that are read in blocks.

The vectors may be most of the memory there is (50,000 × 20,000 float32 are 4 GB). They are never copied: a step reads
them twice, once for the margins of its direction and once for the gradient. All else is small: margins [N, K] and a
dozen of weights [K, D]. As margins are linear in the weights, the best step along a direction is found on the margins
alone, exactly, and no evaluation is ever thrown away. Standardised features are the same vectors: mean and deviation
go into the weights. Weights, margins and sums are float64, the products with the vectors float32.

Features of pictures go together, so that the objective is steep along some directions and flat along most: hundreds of
steps would not be enough. Where the products of all pairs of features fit into memory, the steps begin from the inverse
of ridge regression's second derivative, and tens are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from opsin.classical.kernels import AdditiveMap
from opsin.errors import UsageError

HISTORY = 10  # pairs of L-BFGS
LINE = 30  # steps of a line search at most; five or so are taken
BLOCK = 1 << 24  # numbers of a block of rows, 64 MiB
PAIRED = 16_000  # features up to which their pairs are taken: 2 GB of float64


class Loss(Protocol):
    """A convex loss of margins [N, K], summed over pictures. joint: whether the classes share it, as softmax; otherwise
    each class is a problem of its own. slope and curvature: the first derivative [N, K], and what the second one along
    `direction` [N, K] sums up from."""

    joint: bool
    bend: float  # its second derivative by a margin, about
    targets: Tensor

    def value(self, margins: Tensor) -> Tensor: ...
    def slope(self, margins: Tensor) -> Tensor: ...
    def curvature(self, margins: Tensor, direction: Tensor) -> Tensor: ...


class SquaredHinge:
    """max(0, 1 - t m)² for targets t of 1 and -1; 0 is not known and costs nothing. targets: float64 [N, K]."""

    joint, bend = False, 1.0

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets

    def _short(self, margins: Tensor) -> Tensor:
        return (self.targets.abs() - self.targets * margins).clamp_(min=0)  # of t = 0: 0

    def value(self, margins: Tensor) -> Tensor:
        return self._short(margins).square_()

    def slope(self, margins: Tensor) -> Tensor:
        return self._short(margins).mul_(self.targets).mul_(-2)

    def curvature(self, margins: Tensor, direction: Tensor) -> Tensor:
        return 2 * direction.square() * (self._short(margins) > 0)


class Logistic:
    """log(1 + exp(-t m)), targets as of `SquaredHinge`."""

    joint, bend = False, 0.1

    def __init__(self, targets: Tensor) -> None:
        self.targets, self.known = targets, targets.abs()

    def value(self, margins: Tensor) -> Tensor:
        return functional.softplus(-self.targets * margins).mul_(self.known)

    def slope(self, margins: Tensor) -> Tensor:
        return torch.sigmoid(-self.targets * margins).mul_(self.targets).neg_()

    def curvature(self, margins: Tensor, direction: Tensor) -> Tensor:
        p = torch.sigmoid(margins)
        return p * (1 - p) * self.known * direction.square()


class Softmax:
    """-log softmax(m) of the true class. targets: float64 [N, K] of 1 and 0."""

    joint, bend = True, 0.1

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets

    def value(self, margins: Tensor) -> Tensor:
        return -(torch.log_softmax(margins, 1) * self.targets)

    def slope(self, margins: Tensor) -> Tensor:
        return torch.softmax(margins, 1) - self.targets

    def curvature(self, margins: Tensor, direction: Tensor) -> Tensor:
        p = torch.softmax(margins, 1)
        return p * direction * (direction - (p * direction).sum(1, keepdim=True))


@dataclass
class Start:
    """Where a problem begins from, and then where it ended: for one that is nearly the same, of a few more rows."""

    weights: Tensor | None = None  # float64 [K, D + 1], of standardised features where they are
    factor: Tensor | None = None  # of `_factor`


class Solution(NamedTuple):
    """weight float32 [K, D] and bias float32 [K], of the vectors as they came; margins float64 [N, K] of the rows.

    gap: the objective is at most this part of itself above its minimum (of the worst class; see `minimise`).
    """

    weight: Tensor
    bias: Tensor
    margins: Tensor
    iterations: int
    gap: float


def blocks(x: Tensor, lift: AdditiveMap | None = None) -> Iterator[tuple[slice, Tensor]]:
    """The rows of x, float [N, D], in float32 blocks of bounded size, each lifted where that is asked for."""
    rows = max(1, BLOCK // max(1, x.shape[1] * (lift.widening if lift else 1)))
    for start in range(0, len(x), rows):
        block = x[start : start + rows].float()
        yield slice(start, start + len(block)), block if lift is None else lift(block)


def moments(read: Callable[[], Iterator[tuple[slice, Tensor]]], count: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature, float64 [D]; the deviation of a feature that never varies is
    infinite, so that it says nothing. In two passes: one alone loses what is small beside its mean."""
    mean = sum((block.sum(0, dtype=torch.float64) for _, block in read()), torch.zeros(())) / count
    centre = mean.float()
    square = sum(((block - centre).square_().sum(0, dtype=torch.float64) for _, block in read()), torch.zeros(()))
    spread = (square / count).sqrt()
    still = ~(spread > 1e-6 * spread.max().clamp(min=1e-12))
    return mean, spread.masked_fill(still, torch.inf)


def minimise(
    x: Tensor,
    loss: Loss,
    *,
    strength: float,
    standardise: bool = True,
    lift: AdditiveMap | None = None,
    tolerance: float = 0.01,
    iterations: int = 300,
    progress: Callable[[int], None] | None = None,
    start: Start | None = None,
) -> Solution:
    """The weights with the least ½‖w‖² + C Σ loss(w · z + b), z the rows of x, standardised or not, b not penalised.

    x: float [N, D], finite, not changed. strength: C > 0. progress: is called with the iterations done. start: of the
    same classes, features and loss; it is changed.

    Ends where the gap is at most `tolerance` for every class, or after `iterations`. ½‖∇‖² is the duality gap, since
    ½‖w‖² is strongly convex (but for the intercept): the objective cannot lose more of its value. What it does lose is
    mostly ten to a hundred times less.
    """
    n, classes = loss.targets.shape

    def read() -> Iterator[tuple[slice, Tensor]]:
        return blocks(x, lift)

    width = x.shape[1] * (lift.widening if lift else 1)
    wide = {"dtype": torch.float64, "device": x.device}
    mean, spread = moments(read, n) if standardise else (torch.zeros(width, **wide), torch.ones(width, **wide))

    def folded(w: Tensor) -> tuple[Tensor, Tensor]:
        """Of weights [K, D + 1] of standardised features, intercept last: those of the features as they are."""
        weight = (w[:, :-1] / spread).float()
        return weight, w[:, -1] - weight.double() @ mean

    def forward(w: Tensor) -> Tensor:
        weight, bias = folded(w)
        return torch.cat([block @ weight.T for _, block in read()]).double().add_(bias)

    def backward(slope: Tensor) -> Tensor:
        narrow = slope.float()
        inner = torch.zeros(classes, width, **wide)
        for part, block in read():
            inner += narrow[part].T @ block
        whole = slope.sum(0)[:, None]
        return torch.cat([(inner - whole * mean) / spread, whole], 1)

    groups = 1 if loss.joint else classes

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).reshape(groups, -1).sum(1)

    def scaled(by: Tensor, a: Tensor) -> Tensor:  # [G] times [K, D + 1] or, transposed, [K, N]
        return (a.reshape(groups, -1) * by[:, None]).view_as(a)

    penalised = torch.ones(width + 1, **wide)
    penalised[-1] = 0
    start = start or Start()
    factor = start.factor
    if factor is None and width <= PAIRED and n >= width:
        factor = _factor(read, mean, spread, strength * loss.bend, n)
    if start.weights is None:
        w, margins = torch.zeros(classes, width + 1, **wide), torch.zeros(n, classes, **wide)
    else:
        w, margins = start.weights, forward(start.weights)
    gradient = w * penalised + strength * backward(loss.slope(margins))
    if not bool(torch.isfinite(gradient).all()):
        raise UsageError("vectors: expected finite numbers, received NaN, infinity or some too large to add up")
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    done, gap = 0, torch.inf
    while True:
        objective = 0.5 * dot(w * penalised, w) + strength * total(loss, loss.value(margins))
        gap = float((0.5 * dot(gradient, gradient) / objective.clamp(min=1e-30)).max())
        if gap <= tolerance or done == iterations:
            break
        direction = _two_loops(gradient, pairs, factor, dot, scaled)
        along = forward(direction)
        step = line(
            loss, margins, along, strength, dot(w * penalised, direction), dot(direction * penalised, direction)
        )
        change = scaled(step, direction)
        w = w + change
        margins += along * step
        new = w * penalised + strength * backward(loss.slope(margins))
        pairs = [*pairs[-HISTORY + 1 :], (change, new - gradient, dot(change, new - gradient))]
        gradient = new
        done += 1
        if progress is not None:
            progress(done)
    start.weights, start.factor = w, factor
    weight, bias = folded(w)
    return Solution(weight, bias.float(), margins, done, gap)


def _factor(
    read: Callable[[], Iterator[tuple[slice, Tensor]]], mean: Tensor, spread: Tensor, weight: float, n: int
) -> Tensor | None:
    """Cholesky's lower factor of the second derivative of ½‖w‖² + weight · Σ ½ (w · z + b)² by (w, b), float32
    [D + 1, D + 1]; None where rounding leaves none."""
    width = len(mean)
    products = torch.zeros(width, width, device=mean.device)
    sums = torch.zeros_like(mean)
    centre = mean.float()
    for _, block in read():
        moved = block - centre
        products.addmm_(moved.T, moved)
        sums += moved.sum(0)
    second = torch.zeros(width + 1, width + 1, dtype=torch.float64, device=mean.device)
    inner = second[:-1, :-1]
    inner.copy_(products)
    del products
    inner.mul_(weight / spread).div_(spread[:, None])
    inner.diagonal().add_(1)
    second[-1, :-1] = second[:-1, -1] = weight * sums / spread
    second[-1, -1] = weight * n
    # What rounding and an intercept without penalty leave must still be positive.
    second.diagonal().add_(1e-6 * float(second.diagonal().mean()))
    # In place, which LAPACK does where the columns are contiguous: the matrix is most of what is in memory.
    columns, failed = second.mT, torch.empty((), dtype=torch.int32, device=mean.device)
    torch.linalg.cholesky_ex(columns, out=(columns, failed))
    return None if bool(failed) else columns.float()


def _two_loops(
    gradient: Tensor,
    pairs: list[tuple[Tensor, Tensor, Tensor]],
    factor: Tensor | None,
    dot: Callable[[Tensor, Tensor], Tensor],
    scaled: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The direction of L-BFGS (Nocedal and Wright 2006, algorithm 7.4), each problem by itself. pairs: change of the
    weights, of the gradient, and their product [G]; a problem that is solved has pairs of zeros, which say nothing.
    factor: of a matrix like the second derivative, to begin from instead of a multiple of one."""
    direction = -gradient
    parts = []
    for change, turn, product in reversed(pairs):
        part = torch.where(product > 0, dot(change, direction) / product, 0)
        direction -= scaled(part, turn)
        parts.append(part)
    if factor is not None:
        direction = torch.cholesky_solve(direction.T.float(), factor).T.double()
    elif pairs:
        _, turn, product = pairs[-1]
        direction = scaled(torch.where(product > 0, product / dot(turn, turn), 1), direction)
    for (change, turn, product), part in zip(pairs, reversed(parts), strict=True):
        direction += scaled(part - torch.where(product > 0, dot(turn, direction) / product, 0), change)
    return direction


def total(loss: Loss, values: Tensor) -> Tensor:
    """[N, K] summed over each problem of its own: [K], or [1] where the classes share one."""
    return values.sum().reshape(1) if loss.joint else values.sum(0)


def line(loss: Loss, margins: Tensor, along: Tensor, strength: float, start: Tensor, bend: Tensor) -> Tensor:
    """The t ≥ 0, [G], with the least strength · Σ loss(margins + t · along) + start · t + bend · t² / 2.

    Its derivative only grows: Newton's method between the nearest points known to be on either side of its zero.
    """
    t, low, high = torch.ones_like(bend), torch.zeros_like(bend), torch.full_like(bend, torch.inf)
    first = start + strength * total(loss, loss.slope(margins) * along)
    for _ in range(LINE):
        at = margins + along * t
        value = start + bend * t + strength * total(loss, loss.slope(at) * along)
        if bool((value.abs() <= 1e-3 * first.abs()).all()):
            break
        low, high = torch.where(value < 0, t, low), torch.where(value > 0, t, high)
        newton = t - value / (bend + strength * total(loss, loss.curvature(at, along))).clamp(min=1e-300)
        between = torch.where(high < torch.inf, (low + high) / 2, 2 * t)
        t = torch.where((low < newton) & (newton < high), newton, between)
    return torch.where(first < 0, t, 0)
