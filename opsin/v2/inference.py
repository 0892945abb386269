"""Outputs of a trained network for given samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from opsin import storage
from opsin.errors import OpsinError, StorageError
from opsin.v2 import machine
from opsin.v2.data_feeder import DataFeeder, Feeding
from opsin.v2.data_type import DataType
from opsin.v2.graph import Layer
from opsin.v2.lower import Graph
from opsin.v2.parameters import Parameters
from opsin.v2.topology import Topology, binary

__all__ = ["Inference", "infer"]

LARGEST = 1 << 28  # values a sample of a layer that a file declares
Fields = str | Sequence[str]


class Inference:
    """A network and a copy of its parameters: what is trained later does not change it. Safe to call from any thread.

    output_layer: the layer or layers to compute, inner ones too. fileobj: instead, a file that
    `Topology.serialize_for_inference` wrote. `ValueError` when there is neither, or a parameter is missing.
    """

    def __init__(
        self, parameters: Parameters, output_layer: Layer | Sequence[Layer] | None = None, fileobj: Any = None
    ) -> None:
        if output_layer is not None:
            self.topology = Topology(output_layer)
        elif fileobj is not None:
            name = str(getattr(fileobj, "name", "the topology"))
            self.topology = checked(binary(fileobj).read(storage.MAX_JSON + 1), name)
        else:
            raise ValueError("Either output_layer or fileobj must be set")
        for conf in self.topology.confs:
            if conf.name not in parameters:
                raise ValueError(f"No such parameter {conf.name}: the network has it, the parameters given do not")
            if parameters.confs[conf.name].size != conf.size:
                known = parameters.confs[conf.name].size
                raise ValueError(f"parameter {conf.name}: the network has {conf.size} values, the parameters {known}")
        self.graph = Graph(self.topology.layers)
        for conf in self.topology.confs:
            self.graph.write(conf.name, parameters.get(conf.name))
        self.graph.to(machine.device()).eval()

    def iter_infer(self, input: Sequence[Any], feeding: Feeding = None) -> Iterator[list[dict[str, np.ndarray | None]]]:
        """For each mini-batch (there is one, all of `input`) the fields of each output."""
        if not hasattr(input, "__len__"):
            raise TypeError(f"input: expected a list of samples, received {type(input).__name__}; write list(…)")
        if not len(input):
            return
        feed = DataFeeder(self.topology.data_type(), feeding, machine.device()).convert(input)
        layers = self.topology.layers
        with torch.no_grad():
            values = self.graph(feed, {name for layer in layers for name in machine.fields(layer).values()})
        yield [machine.outputs(layer, values) for layer in layers]

    def iter_infer_field(self, field: Fields, input: Sequence[Any], feeding: Feeding = None) -> Iterator[list[Any]]:
        """For each mini-batch a list: the first field of each output, then the second field of each …"""
        for batch in self.iter_infer(input, feeding):
            yield [output[_known(name)] for name in _names(field) for output in batch]

    def infer(
        self, input: Sequence[Any], field: Fields = "value", flatten_result: bool = True, feeding: Feeding = None
    ) -> Any:
        """float32 [N, size] of one output, or int64 [N] for "id" and float32 [N, 1] for "prob".

        Of several outputs or fields, a list: field 1 of each output, field 2 of each … Without `flatten_result`, the
        list of the outputs' arrays for one field, and a list of such lists for several. No samples give [].
        A field that a layer does not have is None.
        """
        for found in self.iter_infer_field(field, input, feeding):
            if flatten_result:
                return found[0] if len(found) == 1 else found
            n = len(self.topology.layers)
            lists = [found[start : start + n] for start in range(0, len(found), n)]
            return lists[0] if isinstance(field, str) else lists
        return []


def infer(
    output_layer: Layer | Sequence[Layer],
    parameters: Parameters,
    input: Sequence[Any],
    feeding: Feeding = None,
    field: Fields = "value",
) -> Any:
    """`Inference(parameters, output_layer).infer(input, field, feeding=feeding)`; copies the parameters each time."""
    return Inference(parameters, output_layer).infer(input, field, feeding=feeding)


def _names(field: Fields) -> list[str]:
    return [field] if isinstance(field, str) else list(field)


def _known(field: str) -> str:
    if field not in ("value", "id", "prob"):
        raise ValueError(f"field: expected value, id or prob, received {field!r}")
    return field


def checked(data: bytes, name: str) -> Topology:
    """The topology of a file that anyone may have written, known to compute: `StorageError` says what is wrong.

    It is tried on torch's device without memory, so a wrong size or a missing attribute is found before anything of
    that size is made.
    """
    topology = Topology.from_json(data, name)
    try:
        with torch.device("meta"):
            graph = Graph(topology.layers).eval()
            feed = {
                key: torch.zeros(2, dtype=torch.int64) if kind.type == DataType.Index else torch.zeros(2, kind.dim)
                for key, kind in topology.data_type()
            }
            keys = [key for layer in topology.order for key in machine.fields(layer).values()]
            values = graph.run(feed, keys)
        tensors = graph.tensors()
        for conf in topology.confs:
            if tensors[conf.name].numel() != conf.size:
                raise ValueError(f"parameter {conf.name}: {tensors[conf.name].numel()} values, and not {conf.size}")
        for layer in topology.order:
            value = values[next(iter(machine.fields(layer).values()))]
            if layer.size > LARGEST or (value.is_floating_point() and value.numel() != 2 * layer.size):
                raise ValueError(f"layer {layer.name!r}: {value.numel() // 2} values a sample, and not {layer.size}")
    except OpsinError as error:
        raise StorageError(f"{name} is not a topology that can be computed: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise StorageError(f"{name} is not a topology that can be computed: {reason}") from error
    return topology
