"""How a pooling layer joins its window. The Cudnn names are the same arithmetic as Max and Avg."""

from __future__ import annotations


class Base:
    """A way of pooling; `name` is what a topology says of it."""

    name = ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Max(Base):
    name = "max"

    def __init__(self, output_max_index: bool | None = None) -> None:
        self.output_max_index = output_max_index


class MaxWithMask(Base):
    name = "max-pool-with-mask"


class CudnnMax(Base):
    name = "cudnn-max-pool"


class Avg(Base):
    name = "average"

    def __init__(self, strategy: str = "average") -> None:
        self.strategy = strategy


class CudnnAvg(Base):
    name = "cudnn-avg-pool"


class CudnnAvgInclPad(Base):
    name = "cudnn-avg-incl-pad-pool"


class Sum(Base):
    name = "sum"


class SquareRootN(Base):
    name = "squarerootn"
