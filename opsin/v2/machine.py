"""What `init` was told, the device that networks run on, and what a network's layers gave."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opsin.errors import UsageError, near
from opsin.v2.data_type import DataType
from opsin.v2.graph import Layer, settings
from opsin.v2.lower import Graph

log = logging.getLogger("paddle")

# Flags of 2017 that are about clusters, logs and other machinery: taken, and without effect.
OTHER_FLAGS = (
    *("gpu_id", "use_mkldnn", "use_mkl_packed", "trainer_id", "port", "ports_num", "ports_num_for_sparse", "pservers"),
    *("num_gradient_servers", "log_period", "test_period", "dot_period", "saving_period", "log_clipping", "comment"),
    *("log_error_clipping", "show_parameter_stats_period", "show_layer_stat", "beam_size"),
)


def init(**flags: Any) -> None:
    """Choose the device and the random numbers; nothing else must be called first, and nothing breaks without it.

    use_gpu: compute on the GPU where torch sees one, else on the CPU with a sentence in the log. seed: of initial
    values and dropout, 0 for another one each time. trainer_count: taken; every mini-batch is computed whole, by all of
    torch's threads or by one GPU, so gradients, costs and batch statistics are the same for any number.
    Environment variables PADDLE_INIT_USE_GPU and so on count where the argument is not given.
    """
    given = {key: os.environ[name] for key in vars(settings) if (name := f"PADDLE_INIT_{key.upper()}") in os.environ}
    flags = {key: _parse(value) if isinstance(value, str) else value for key, value in (given | flags).items()}
    for key in flags:
        if key not in vars(settings) and key not in OTHER_FLAGS:
            raise UsageError(f"init: no flag {key!r}; {near(key, [*vars(settings), *OTHER_FLAGS])}")
    settings.use_gpu = bool(flags.get("use_gpu", False))
    for key, default in (("trainer_count", 1), ("seed", 1)):
        value = flags.get(key, default)
        if not isinstance(value, int) or value < 0:
            raise UsageError(f"init: {key}: expected a number of at least 0, received {value!r}")
        setattr(settings, key, value)
    torch.manual_seed(settings.seed or random.SystemRandom().getrandbits(63))
    log.info("commandline:  %s", " ".join(f"--{key}={value}" for key, value in flags.items()))
    if settings.use_gpu and not torch.cuda.is_available():
        log.warning("init(use_gpu=True): torch sees no CUDA device here, so everything runs on the CPU")


def _parse(text: str) -> bool | int | str:
    """`"True"`, `"0"`, `"17"` as the value that a program would write."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.lstrip("-").isdecimal() else text


def device() -> torch.device:
    """The GPU where `init` asked for it and torch sees one, else the CPU."""
    return torch.device("cuda" if settings.use_gpu and torch.cuda.is_available() else "cpu")


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
