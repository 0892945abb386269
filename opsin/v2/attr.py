"""What can be said about a parameter or a layer besides its shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from opsin.errors import DeclarationError
from opsin.v2.graph import ParameterConf


class ParameterAttribute:
    """How a parameter starts and learns. Numbers left out keep their defaults or the optimiser's.

    Neither mean, standard deviation nor bounds: normal(0, 1/√dims[0]), except convolutions, which have their own rule
    and write it back, so that one object given to several convolutions carries the first one's deviation to all.
    A mean or a deviation alone: the other is 0 or 0.01. Bounds: uniform; both are needed.
    l2_rate, learning_rate …: 0 is taken as not set, also l2_rate=0.
    initializer: name → array of the parameter's shape.
    """

    def __init__(
        self,
        name: str | None = None,
        is_static: bool = False,
        initial_std: float | None = None,
        initial_mean: float | None = None,
        initial_max: float | None = None,
        initial_min: float | None = None,
        l1_rate: float | None = None,
        l2_rate: float | None = None,
        learning_rate: float | None = None,
        momentum: float | None = None,
        gradient_clipping_threshold: float | None = None,
        sparse_update: bool = False,
        update_hooks: Any = None,
        initializer: Callable[[str], Any] | None = None,
    ) -> None:
        if l1_rate:
            raise DeclarationError("l1_rate: L1 decay is not supported (in 2017 it ended the process); use l2_rate")
        if sparse_update:
            raise DeclarationError("sparse_update is not supported; leave it out")
        if update_hooks is not None:
            raise DeclarationError("update_hooks (pruning) is not supported; leave it out")
        self.name = name
        self.is_static = bool(is_static)
        self.smart = False
        self.strategy = 0
        self.mean, self.std = 0.0, 0.01
        if initial_std is not None or initial_mean is not None:
            self.mean = 0.0 if initial_mean is None else float(initial_mean)
            self.std = 0.01 if initial_std is None else float(initial_std)
        elif initial_max is not None and initial_min is not None:
            if not initial_min < initial_max:
                raise DeclarationError(f"initial_min: expected less than initial_max={initial_max}, got {initial_min}")
            self.strategy = 1
            self.mean = (initial_max + initial_min) / 2
            self.std = self.mean - initial_min
        elif initial_max is not None or initial_min is not None:
            raise RuntimeError("Unexpected branch. Of initial_max and initial_min only one was given; give both")
        else:
            self.smart = True
        learns = not self.is_static
        self.l2_rate = l2_rate if learns else None
        self.learning_rate = float(learning_rate) if learns and learning_rate else 1.0
        self.momentum = momentum if learns else None
        self.clip = gradient_clipping_threshold
        self.initializer = initializer
        if initializer is not None and not callable(initializer):
            raise DeclarationError("initializer: expected a function of the parameter's name")

    def conf(self, default_name: str, size: int, dims: tuple[int, ...] = (), is_shared: bool = False) -> ParameterConf:
        """The parameter of this description in a layer."""
        std = 1 / math.sqrt(dims[0] if dims else size) if self.smart else self.std
        return ParameterConf(
            name=self.name or default_name,
            size=size,
            dims=dims,
            initial_mean=self.mean,
            initial_std=std,
            strategy=self.strategy,
            smart=self.smart,
            learning_rate=self.learning_rate,
            momentum=self.momentum or None,
            decay_rate=self.l2_rate or None,
            clip=self.clip or None,
            is_static=self.is_static,
            is_shared=is_shared,
            initializer=self.initializer,
        )


class ExtraLayerAttribute:
    """error_clipping_threshold: bound of each element of the gradient that reaches the layer's output.

    drop_rate: share of the outputs that training sets to 0. device: accepted, and without effect.
    """

    def __init__(
        self,
        error_clipping_threshold: float | None = None,
        drop_rate: float | None = None,
        device: int | None = None,
    ) -> None:
        if drop_rate is not None and drop_rate < 0:
            raise ValueError(f"Dropout rate must > 0; got {drop_rate}")
        if drop_rate is not None and drop_rate >= 1:
            raise ValueError(f"Dropout rate: expected less than 1, got {drop_rate}")
        if error_clipping_threshold is not None and error_clipping_threshold < 0:
            raise ValueError(f"Error clipping must > 0; got {error_clipping_threshold}")
        self.error_clipping_threshold = error_clipping_threshold
        self.drop_rate = drop_rate
        self.device = device


class HookAttribute:
    """The pruning hook. It can be described; a parameter that asks for one is refused."""

    def __init__(self, type: str, sparsity_ratio: float | None = None) -> None:
        if sparsity_ratio is not None and not 0 <= sparsity_ratio <= 1:
            raise DeclarationError(f"sparsity_ratio: expected 0 to 1, got {sparsity_ratio}")
        self.type = type
        self.sparsity_ratio = sparsity_ratio


Param = ParamAttr = ParameterAttribute
Extra = ExtraAttr = ExtraLayerAttribute
Hook = HookAttr = HookAttribute
