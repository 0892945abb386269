"""A network cut out of everything declared: the layers that its outputs need."""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

from opsin import storage
from opsin.errors import StorageError
from opsin.v2 import evaluator, proto
from opsin.v2.activation import BY_NAME
from opsin.v2.data_type import InputType
from opsin.v2.graph import Layer, ParameterConf, conf_order, topological

FORMAT = "opsin.v2 topology 1"


def binary(stream: Any) -> Any:
    """The stream of bytes under a file that a program of 2017 opened as text: `open(path, "w")`, `open(path)`."""
    return getattr(stream, "buffer", stream)


def as_layers(layers: Any) -> list[Layer]:
    """One layer or a sequence of layers, as a list; anything else is a ValueError."""
    layers = [layers] if isinstance(layers, Layer) else layers
    if not isinstance(layers, Sequence) or not layers or not all(isinstance(layer, Layer) for layer in layers):
        raise ValueError(f"layer should have type paddle.v2.config_base.Layer; got {layers!r}")
    return list(layers)


class Topology:
    """The outputs, extra layers that train beside them, and all that these need, in the order of creation.

    layers: the outputs. order: every layer. confs: every parameter. evaluators: every metric of these layers.
    """

    def __init__(self, layers: Layer | Sequence[Layer], extra_layers: Layer | Sequence[Layer] | None = None) -> None:
        self.layers = as_layers(layers)
        self.extra_layers = [] if extra_layers is None else as_layers(extra_layers)
        self.order = topological([*self.layers, *self.extra_layers])
        self.confs: list[ParameterConf] = conf_order(self.order)
        self.evaluators = evaluator.of_layers(self.order)

    def data_layers(self) -> OrderedDict[str, Layer]:
        """Name → data layer, in the order of creation, which is the default order of a reader's columns."""
        return OrderedDict((layer.name, layer) for layer in self.order if layer.kind == "data")

    def data_type(self) -> list[tuple[str, InputType]]:
        return [(name, layer.attrs["type"]) for name, layer in self.data_layers().items()]

    def get_layer(self, name: str) -> Layer | None:
        """The layer of that name in this network, or None."""
        return next((layer for layer in self.order if layer.name == name), None)

    def get_layer_proto(self, name: str) -> proto.LayerConfig | None:
        return next((layer for layer in self.proto().layers if layer.name == name), None)

    def use_sparse_updater(self) -> bool:
        return False

    def update_from_default(self) -> None:
        """Nothing to do: a trainer applies its optimiser's defaults itself."""

    def proto(self) -> proto.ModelConfig:
        """The network as the configuration message of 2017, for reading."""
        return proto.ModelConfig(
            layers=tuple(map(_layer_proto, self.order)),
            parameters=tuple(map(proto.ParameterConfig.of, self.confs)),
            input_layer_names=tuple(self.data_layers()),
            output_layer_names=tuple(layer.name for layer in self.layers),
            evaluators=tuple(
                proto.EvaluatorConfig(e.name, e.kind, tuple(layer.name for layer in e.inputs)) for e in self.evaluators
            ),
        )

    def serialize_for_inference(self, stream: Any) -> None:
        """Write the network as JSON; `Inference(fileobj=…)` reads it. In 2017 this was a pickle, which is not read."""
        binary(stream).write(self.to_json())

    def to_json(self) -> bytes:
        """What the outputs need, without extra layers, initialisers and metrics. Deterministic."""
        document = {
            "format": FORMAT,
            "outputs": [layer.name for layer in self.layers],
            "layers": [_to_table(layer) for layer in topological(self.layers)],
        }
        return json.dumps(document, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes, name: str = "the topology") -> Topology:
        """What `to_json` wrote. `StorageError` says what is wrong with anything else; `name` is for messages."""
        if data[:1] == b"\x80":
            raise StorageError(
                f"{name} is a pickle, as PaddlePaddle wrote it; a pickle can run any code and is not read: "
                "declare the network in Python and pass output_layer"
            )
        document = storage.read_json(data, name)
        try:
            if document["format"] != FORMAT:
                raise StorageError(f"{name}: expected the format {FORMAT!r}, found {document['format']!r}")
            layers: dict[str, Layer] = {}
            for table in document["layers"]:
                layer = _from_table(table, layers)
                if layers.setdefault(layer.name, layer) is not layer:
                    raise StorageError(f"{name}: layer {layer.name!r} comes twice")
            return cls([layers[output] for output in document["outputs"]])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StorageError(f"{name} is not a topology: {type(error).__name__}: {error}") from error


def parse_network(
    output_layers: Layer | Sequence[Layer], extra_layers: Layer | Sequence[Layer] | None = None
) -> proto.ModelConfig:
    """The configuration message of the network that the outputs need."""
    return Topology(output_layers, extra_layers).proto()


def _layer_proto(layer: Layer) -> proto.LayerConfig:
    return proto.LayerConfig(
        name=layer.name,
        type=layer.kind,
        size=layer.size,
        active_type=layer.act,
        inputs=tuple(
            proto.LayerInputConfig(source.name, conf.name if conf else "")
            for source, conf in zip(layer.inputs, layer.params, strict=True)
        ),
        bias_parameter_name=layer.bias.name if layer.bias else "",
        drop_rate=layer.drop_rate,
        height=layer.height,
        width=layer.width,
        num_filters=layer.num_filters or 0,
        coeff=layer.attrs.get("coeff", 1.0),
    )


def _conf_table(conf: ParameterConf | None) -> dict[str, Any] | None:
    return None if conf is None else dataclasses.asdict(dataclasses.replace(conf, initializer=None))


def _conf_from(table: dict[str, Any] | None) -> ParameterConf | None:
    return None if table is None else ParameterConf(**{**table, "dims": tuple(table["dims"]), "initializer": None})


def _to_table(layer: Layer) -> dict[str, Any]:
    attrs = dict(layer.attrs)
    if "type" in attrs:
        attrs["type"] = dataclasses.astuple(cast(InputType, attrs["type"]))
    return {
        "name": layer.name,
        "kind": layer.kind,
        "inputs": [source.name for source in layer.inputs],
        "size": layer.size,
        "height": layer.height,
        "width": layer.width,
        "act": layer.act,
        "drop_rate": layer.drop_rate,
        "num_filters": layer.num_filters,
        "params": [_conf_table(conf) for conf in layer.params],
        "bias": _conf_table(layer.bias),
        "attrs": attrs,
    }


def _from_table(table: dict[str, Any], layers: dict[str, Layer]) -> Layer:
    """A layer of a file. Whether it can be computed is found out by trying, in `inference.py`."""
    for key, kinds, what in (("name", str, "text"), ("kind", str, "text"), ("size", int, "a number")):
        if not isinstance(table[key], kinds):
            raise TypeError(f"{key}: expected {what}, found {table[key]!r}")
    if len(table["params"]) != len(table["inputs"]):
        raise ValueError(
            f"layer {table['name']!r}: {len(table['params'])} parameters for {len(table['inputs'])} inputs"
        )
    attrs = dict(table["attrs"])
    if "type" in attrs:
        attrs["type"] = InputType(*attrs["type"])
    return Layer(
        name=table["name"],
        kind=table["kind"],
        inputs=tuple(layers[name] for name in table["inputs"]),
        size=table["size"],
        height=table["height"],
        width=table["width"],
        activation=BY_NAME[table["act"]](),
        drop_rate=table["drop_rate"],
        num_filters=table["num_filters"],
        params=tuple(_conf_from(conf) for conf in table["params"]),
        bias=_conf_from(table["bias"]),
        attrs=attrs,
    )
