"""The one class of all native networks: named stages, a head, and where the paper has them auxiliary heads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import final

from torch import Tensor, nn

from opsin.errors import UsageError
from opsin.types import Model, Output


@final
class ConvNet(Model):
    """Stages, one after the other, then the head; auxiliary heads hang on stages and answer in training only.

    stages: name → module, in the order of the flow; the names are those that `features(at=…)` takes.
    head: what the last stage gives → logits [B, K].
    aux: name of a stage → module from that stage's output to logits [B, K].
    least_size: the smallest side in pixels; below it some stage would have nothing left to shrink.
    image_size: (H, W) where a fully-connected layer fixes it, else None for any size.

    A picture of a size that does not fit is a `UsageError`.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        head: nn.Module,
        *,
        aux: Mapping[str, nn.Module] | None = None,
        least_size: int = 1,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        for name in aux or ():
            if name not in stages:
                raise UsageError(f"auxiliary head: no stage {name!r}; stages: {', '.join(stages)}")
        self.stages = nn.ModuleDict(dict(stages))
        self.head = head
        self.aux = nn.ModuleDict(dict(aux or {}))
        self.least_size = least_size
        self.image_size = image_size
        self.frozen: frozenset[str] = frozenset()

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The names that `features` takes, in the order of the flow."""
        return tuple(self.stages)

    def freeze(self, names: Collection[str]) -> None:
        """Stages that stay as they are from now on: parameters, running statistics, and no dropout in them.

        `UsageError` lists the stages when there is none of a name.
        """
        for name in names:
            self._stage(name).requires_grad_(False)
        self.frozen = self.frozen | set(names)
        self.train(self.training)

    def train(self, mode: bool = True) -> ConvNet:
        """Training or evaluation mode; frozen stages stay in the latter."""
        super().train(mode)
        for name in self.frozen:
            self.stages[name].eval()
        return self

    def forward(self, images: Tensor) -> Output:
        """Normalised pictures, float [B, C, H, W], to logits [B, K]."""
        self._check(images)
        x, aux = images, []
        for name, stage in self.stages.items():
            x = stage(x)
            if self.training and name in self.aux:
                aux.append(self.aux[name](x))
        return Output(self.head(x), tuple(aux))

    def features(self, images: Tensor, at: str) -> Tensor:
        """The output of the stage named `at`: maps [B, C, H, W], or vectors [B, D] after a fully-connected stage.

        Later stages are not run. `UsageError` (a `ValueError`) lists the stages when there is none of that name.
        """
        self._stage(at)
        self._check(images)
        x = images
        for name, stage in self.stages.items():
            x = stage(x)
            if name == at:
                break
        return x

    def _stage(self, name: str) -> nn.Module:
        if name not in self.stages:
            raise UsageError(f"no stage {name!r}; stages: {', '.join(self.stages)}")
        return self.stages[name]

    def _check(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if self.image_size is not None and (height, width) != self.image_size:
            expected = "×".join(map(str, self.image_size))
            raise UsageError(
                f"expected pictures of {expected} pixels, received {height}×{width}; "
                f"resize them, or build the network with image_size=({height}, {width})"
            )
        if height < self.least_size or width < self.least_size:
            raise UsageError(
                f"expected pictures of at least {self.least_size}×{self.least_size} pixels, "
                f"received {height}×{width}; enlarge them"
            )
