"""The device that networks run on, and what their layers gave."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from opsin.errors import UsageError, near
from opsin.v2.data_type import DataType
from opsin.v2.graph import Layer, settings
from opsin.v2.lower import Graph

log = logging.getLogger("paddle")


def device() -> torch.device:
    """The GPU where `init` asked for it and torch sees one, else the CPU, with a sentence in the log."""
    if not settings.use_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        _say_no_gpu()
        return torch.device("cpu")
    return torch.device("cuda")


@functools.cache
def _say_no_gpu() -> None:
    log.warning("init(use_gpu=True): torch sees no CUDA device here, so everything runs on the CPU")


def fields(layer: Layer) -> dict[str, str]:
    """What a layer has, under the names of 2017 ("value", "id", "prob"), → its name among a graph's values."""
    if layer.kind == "maxid":
        return {"id": f"{layer.name}.id", "prob": f"{layer.name}.prob"}
    index = layer.kind == "data" and layer.attrs["type"].type == DataType.Index
    return {"id" if index else "value": layer.name}


def outputs(layer: Layer, values: Mapping[str, Tensor]) -> dict[str, np.ndarray | None]:
    """A layer's fields: value float32 [B, size], id int64 [B], prob float32 [B, 1]; None for what it lacks."""
    found: dict[str, np.ndarray | None] = dict.fromkeys(("value", "id", "prob"))
    for field, name in fields(layer).items():
        array = values[name].detach().cpu().numpy()
        found[field] = array if field == "id" else array.reshape(len(array), -1).copy()
    return found


class Machine:
    """`event.gm`: what the layers gave in the forward pass of the batch that the event is about."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.values: dict[str, Tensor] = {}

    def getLayerOutputs(self, layerNames: str | Iterable[str]) -> dict[str, dict[str, np.ndarray | None]]:
        """Name → {"value": …, "id": …, "prob": …} of one layer or several, as they were before the update."""
        found = {}
        for name in [layerNames] if isinstance(layerNames, str) else layerNames:
            layer = self.graph.layers.get(name)
            if layer is None:
                raise UsageError(f"no layer {name!r} in this network; {near(name, self.graph.layers)}")
            if not all(key in self.values for key in fields(layer).values()):
                raise UsageError(f"layer {name!r}: nothing has been computed in this pass")
            found[name] = outputs(layer, self.values)
        return found
