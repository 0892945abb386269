"""From declarations to a torch module: a table from kinds of layers to arithmetic, and the walk over a network."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Self, cast, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin import device
from opsin.errors import UsageError, near
from opsin.types import Model, Output
from opsin.v2 import modules
from opsin.v2.data_type import DataType
from opsin.v2.graph import Layer, ParameterConf
from opsin.v2.topology import Topology

Weights = Sequence[Tensor | None]
Lowering = Callable[[Layer, list[Tensor], Weights, Tensor | None, bool], Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# One function a kind: (layer, inputs, weights one an input, bias, training) → value before its activation
# ---------------------------------------------------------------------------------------------------------------------


def _flip(pair: Sequence[int]) -> tuple[int, int]:
    """(x, y) of a declaration → (height, width) of torch."""
    return pair[1], pair[0]


def _maps(layer: Layer, x: Tensor) -> Tensor:
    """The input as [B, C, H, W]. Maps of another size than declared stay as they are (pictures of varying sizes)."""
    channels, hw = layer.attrs["channels"], layer.attrs["in_hw"]
    return x if x.dim() == 4 and x.shape[1] == channels else x.reshape(len(x), channels, *hw)


def _shaped(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    return weight if weight.shape == shape else weight.reshape(shape)


def _alike(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Inputs of one shape as they are, of several shapes flat."""
    return inputs if len({x.shape[2:] for x in inputs}) == 1 else [x.flatten(1) for x in inputs]


def _add_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias.reshape(x.shape[1:])


def _conv(layer: Layer, inputs: list[Tensor], weights: Weights, bias: Tensor | None, training: bool) -> Tensor:
    a = layer.attrs
    shape = storage_shape(layer, cast(ParameterConf, layer.params[0]))
    stride, padding, dilation = _flip(a["stride"]), _flip(a["padding"]), _flip(a["dilation"])
    own = bias if a["shared_biases"] else None
    x, weight = _maps(layer, inputs[0]), _shaped(cast(Tensor, weights[0]), shape)
    if not weight.is_contiguous():  # `Graph.lay_out` says why; a picture from the reader is laid out here
        x = x.contiguous(memory_format=torch.channels_last)
    if layer.kind in TRANSPOSED:
        y = F.conv_transpose2d(x, weight, own, stride, padding, 0, a["groups"], dilation)
    else:
        y = F.conv2d(x, weight, own, stride, padding, dilation, a["groups"])
    return y if a["shared_biases"] else _add_bias(y, bias)


def _pool(layer: Layer, inputs: list[Tensor], weights: Weights, bias: Tensor | None, training: bool) -> Tensor:
    a = layer.attrs
    sizes = [_flip(a["kernel"]), _flip(a["stride"]), _flip(a["padding"])]
    x = _maps(layer, inputs[0])
    if a["pool"] == "max":
        return modules.max_pool(x, *sizes, ceil=a["ceil_mode"])
    return modules.avg_pool(x, *sizes, ceil=a["ceil_mode"], exclude=a["exclude"])


def _batch_norm(layer: Layer, inputs: list[Tensor], weights: Weights, bias: Tensor | None, training: bool) -> Tensor:
    a, x = layer.attrs, inputs[0]
    scale, mean, variance = cast(Sequence[Tensor], weights)
    return modules.batch_norm(
        x if x.dim() == 2 and x.shape[1] == a["channels"] else _maps(layer, x),
        scale,
        bias,
        mean,
        variance,
        epsilon=a["epsilon"],
        fraction=a["fraction"],
        batch_statistics=training or a["use_global_stats"] is False,
    )


def _fc(layer: Layer, inputs: list[Tensor], weights: Weights, bias: Tensor | None, training: bool) -> Tensor:
    y = bias
    for x, weight in zip(inputs, cast(Sequence[Tensor], weights), strict=True):
        y = x.flatten(1) @ weight if y is None else torch.addmm(y, x.flatten(1), weight)
    return cast(Tensor, y)


def _addto(layer: Layer, inputs: list[Tensor], weights: Weights, bias: Tensor | None, training: bool) -> Tensor:
    first, *others = _alike(inputs)
    return _add_bias(sum(others, first), bias)


def _concat(layer: Layer, inputs: list[Tensor], weights: Weights, bias: Tensor | None, training: bool) -> Tensor:
    return _add_bias(torch.cat(list(_alike(inputs)), 1), bias)


def _mixed(layer: Layer, inputs: list[Tensor], weights: Weights, bias: Tensor | None, training: bool) -> Tensor:
    terms = []
    for x, weight, offset in zip(inputs, weights, layer.attrs["offsets"], strict=True):
        if weight is not None:
            terms.append(x.flatten(1) @ weight)
        else:
            whole = offset == 0 and x[:1].numel() == layer.size
            terms.append(x if whole else x.flatten(1)[:, offset : offset + layer.size])
    return _addto(layer, terms, (), bias, training)


def _norm(layer: Layer, inputs: list[Tensor], weights: Weights, bias: Tensor | None, training: bool) -> Tensor:
    a = layer.attrs
    return modules.cross_map_norm(_maps(layer, inputs[0]), a["window"], a["scale"], a["power"])


def _maxout(layer: Layer, inputs: list[Tensor], weights: Weights, bias: Tensor | None, training: bool) -> Tensor:
    x = _maps(layer, inputs[0])
    return x.reshape(len(x), -1, layer.attrs["groups"], *x.shape[2:]).amax(2)


def _spp(layer: Layer, inputs: list[Tensor], weights: Weights, bias: Tensor | None, training: bool) -> Tensor:
    return modules.pyramid_pool(_maps(layer, inputs[0]), layer.attrs["levels"], layer.attrs["pool"])


def _pad(layer: Layer, inputs: list[Tensor], weights: Weights, bias: Tensor | None, training: bool) -> Tensor:
    sides = [n for pair in reversed(layer.attrs["pads"]) for n in pair]
    return F.pad(_maps(layer, inputs[0]), sides)


def _prelu(layer: Layer, inputs: list[Tensor], weights: Weights, bias: Tensor | None, training: bool) -> Tensor:
    x, slopes = inputs[0], cast(Tensor, weights[0]).repeat_interleave(layer.attrs["partial_sum"])
    return x.clamp(min=0) + slopes.reshape(x.shape[1:]) * x.clamp(max=0)


def _slope(layer: Layer, inputs: list[Tensor], weights: Weights, bias: Tensor | None, training: bool) -> Tensor:
    return layer.attrs["slope"] * inputs[0] + layer.attrs["intercept"]


def _sum_to_one(layer: Layer, inputs: list[Tensor], weights: Weights, bias: Tensor | None, training: bool) -> Tensor:
    x = inputs[0].flatten(1)
    return x / x.sum(1, keepdim=True)


def _max_id(layer: Layer, inputs: list[Tensor], weights: Weights, bias: Tensor | None, training: bool) -> Tensor:
    return inputs[0].flatten(1)  # what `id` and `prob` are taken of


def _cost(
    function: Callable[..., Tensor],
    layer: Layer,
    inputs: list[Tensor],
    weights: Weights,
    bias: Tensor | None,
    training: bool,
) -> Tensor:
    output, label, *weight = inputs
    label = label if label.dim() == 1 else label.flatten(1)
    cost = function(output.flatten(1), label)
    return cost * weight[0].reshape(-1) if weight else cost


def _cross_entropy(layer: Layer, inputs: list[Tensor], weights: Weights, bias: Tensor | None, training: bool) -> Tensor:
    softmax = layer.inputs[0].act == "softmax"  # then the input is logits
    function = modules.cross_entropy if softmax else modules.cross_entropy_of_probabilities
    return _cost(function, layer, inputs, weights, bias, training)


def _huber(layer: Layer, inputs: list[Tensor], weights: Weights, bias: Tensor | None, training: bool) -> Tensor:
    function = partial(modules.huber_regression, delta=layer.attrs["delta"])
    return _cost(function, layer, inputs, weights, bias, training)


def _sum_cost(layer: Layer, inputs: list[Tensor], weights: Weights, bias: Tensor | None, training: bool) -> Tensor:
    return inputs[0].flatten(1).sum(1)


TRANSPOSED = ("exconvt", "cudnn_convt")
CONVOLUTIONS = ("exconv", "cudnn_conv", *TRANSPOSED)
LOWERINGS: dict[str, Lowering] = {
    **dict.fromkeys(CONVOLUTIONS, _conv),
    "pool": _pool,
    "batch_norm": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "norm": _norm,
    "maxout": _maxout,
    "spp": _spp,
    "pad": _pad,
    "prelu": _prelu,
    "fc": _fc,
    "addto": _addto,
    "concat": _concat,
    "mixed": _mixed,
    "slope_intercept": _slope,
    "sum_to_one_norm": _sum_to_one,
    "maxid": _max_id,
    "multi-class-cross-entropy": _cross_entropy,
    "square_error": partial(_cost, modules.square_error),
    "multi_binary_label_cross_entropy": partial(_cost, modules.binary_cross_entropy),
    "huber_regression": _huber,
    "huber_classification": partial(_cost, modules.huber_classification),
    "smooth_l1": partial(_cost, modules.smooth_l1),
    "sum_cost": _sum_cost,
}
FRESH = {*CONVOLUTIONS, "batch_norm", "cudnn_batch_norm", "fc"}  # what they give belongs to nobody else


def storage_shape(layer: Layer, conf: ParameterConf) -> tuple[int, ...]:
    """The shape of a layer's parameter in torch. Read along it, the elements are in Paddle's order."""
    if conf is layer.bias:
        return (conf.size,)
    if layer.kind in CONVOLUTIONS:
        a = layer.attrs
        outer, inner = cast(int, layer.num_filters), a["channels"]
        outer, inner = (inner, outer) if layer.kind in TRANSPOSED else (outer, inner)
        return (outer, inner // a["groups"], *_flip(a["kernel"]))
    return conf.dims if layer.kind in ("fc", "mixed") else (conf.size,)


# ---------------------------------------------------------------------------------------------------------------------
# A network
# ---------------------------------------------------------------------------------------------------------------------


class _Step(NamedTuple):
    layer: Layer
    fields: frozenset[str]  # of what it gives: "" the value, ".logits", ".id", ".prob"
    sources: tuple[str, ...]
    done_with: tuple[str, ...]  # values that nothing after this step needs


FIELDS = (".logits", ".id", ".prob")


class Graph(nn.Module):
    """A declared network: feeds and names to values. Its parameters are zeros until `Parameters.attach`."""

    def __init__(self, outputs: Layer | Sequence[Layer]) -> None:
        super().__init__()
        self.topology = Topology(outputs)
        self.layers = OrderedDict((layer.name, layer) for layer in self.topology.order)
        self.confs = OrderedDict((conf.name, conf) for conf in self.topology.confs)
        self.store = nn.Module()
        self._plans: dict[frozenset[str], list[_Step]] = {}
        for layer in self.layers.values():
            if layer.kind != "data" and layer.kind not in LOWERINGS:
                raise UsageError(f"layer {layer.name!r}: no arithmetic for the kind {layer.kind!r}")
            if layer.act not in modules.ACTIVATIONS and layer.act != "softmax":
                raise UsageError(f"layer {layer.name!r}: the activation {layer.act!r} is not supported")
            for conf in layer.confs():
                key = _key(conf.name)
                if key not in self.store._parameters and key not in self.store._buffers:
                    zeros = torch.zeros(storage_shape(layer, conf))
                    if self.confs[conf.name].is_static:
                        self.store.register_buffer(key, zeros)
                    else:
                        self.store.register_parameter(key, nn.Parameter(zeros))

    def lay_out(self) -> Self:
        """Have filters, and with them all maps, as [B, H, W, C] in memory: max pooling is eight times as fast so, batch
        normalisation twice. Not where torch crashes then. Shapes and values are the same.
        """
        convolutions = [layer for layer in self.layers.values() if layer.kind in CONVOLUTIONS]
        if not any(
            device.crashes_channels_last(_flip(a["kernel"]), _flip(a["stride"]), a["channels"])
            for a in (layer.attrs for layer in convolutions)
        ):
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Paddle's name → the live tensor: an `nn.Parameter`, or a buffer for a static one."""
        return {name: self.tensor(name) for name in self.confs}

    def tensor(self, name: str) -> Tensor:
        return getattr(self.store, _key(name))

    def read(self, name: str) -> np.ndarray:
        """A copy of a parameter, float32 in Paddle's shape."""
        tensor = self.tensor(name).detach()
        return tensor.to("cpu", torch.float32, copy=True).contiguous().numpy().reshape(self.confs[name].shape)

    def write(self, name: str, array: np.ndarray) -> None:
        """Set a parameter from `size` values in Paddle's order."""
        tensor = self.tensor(name)
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(array, np.float32)).reshape(tensor.shape))

    def forward(self, feed: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
        """The wanted values, and what is fed for wanted data layers. Only what they need is computed.

        feed: float32 [B, size] or [B, C, H, W] for dense data layers, int64 [B] for indices.
        wanted: names of layers, for float [B, size], costs float [B]; of softmax layers also name + ".logits";
        of max_id layers name + ".id" int64 [B] and name + ".prob" [B, 1].
        """
        values = self.run(feed, wanted)
        return {name: value.flatten(1) if value.dim() > 2 else value for name, value in values.items()}

    def run(self, feed: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
        """`forward`, with maps left as [B, C, H, W]."""
        steps = self._plan(frozenset(wanted))
        tensors = self.tensors()
        values: dict[str, Tensor] = {}
        for layer, fields, sources, done_with in steps:
            if layer.kind == "data":
                values[layer.name] = _fed(layer, feed)
                continue
            weights = [None if conf is None else tensors[conf.name] for conf in layer.params]
            bias = None if layer.bias is None else tensors[layer.bias.name]
            inputs = [values[name] for name in sources]
            y = LOWERINGS[layer.kind](layer, inputs, weights, bias, self.training)
            for name in done_with:
                del values[name]
            del inputs
            self._emit(values, layer, fields, y)
        return {name: values[name] for name in wanted}

    def _emit(self, values: dict[str, Tensor], layer: Layer, fields: frozenset[str], y: Tensor) -> None:
        if layer.kind == "maxid":
            best = y.max(1)
            values[layer.name + ".id"], values[layer.name + ".prob"] = best.indices, best.values[:, None]
        elif layer.act == "softmax":
            logits = y.flatten(1)
            _clip_gradient(layer, logits)
            if ".logits" in fields:
                values[layer.name + ".logits"] = logits
            if "" in fields:
                values[layer.name] = modules.softmax(logits)
        else:
            if layer.act == "relu" and layer.kind in FRESH:
                y = F.relu(y, inplace=True)
            else:
                y = modules.ACTIVATIONS[layer.act](y)
            if layer.drop_rate:
                y = modules.dropout(y, layer.drop_rate, self.training)
            _clip_gradient(layer, y)
            coeff = layer.attrs.get("coeff", 1.0)
            if coeff != 1.0 and y.requires_grad:
                y.register_hook(lambda gradient: gradient * coeff)
            values[layer.name] = y

    def _plan(self, wanted: frozenset[str]) -> list[_Step]:
        if wanted not in self._plans:
            self._plans[wanted] = self._make_plan(wanted)
        return self._plans[wanted]

    def _make_plan(self, wanted: frozenset[str]) -> list[_Step]:
        needs: dict[str, set[str]] = {}
        for name in wanted:
            owner, field = self._owner(name)
            needs.setdefault(owner, set()).add(field)
        steps: list[_Step] = []
        used: set[str] = set(wanted)
        for layer in reversed(self.layers.values()):
            if layer.name not in needs:
                continue
            sources = [source.name for source in layer.inputs]
            if layer.kind in ("batch_norm", "cudnn_batch_norm"):
                sources = sources[:1]
            if layer.kind == "multi-class-cross-entropy" and layer.inputs[0].act == "softmax":
                sources[0] += ".logits"
            for source, name in zip(layer.inputs, sources, strict=False):
                needs.setdefault(source.name, set()).add(name[len(source.name) :])
            done_with = tuple(dict.fromkeys(name for name in sources if name not in used))
            used.update(sources)
            steps.append(_Step(layer, frozenset(needs[layer.name]), tuple(sources), done_with))
        return steps[::-1]

    def _owner(self, name: str) -> tuple[str, str]:
        if name in self.layers and self.layers[name].kind != "maxid":
            return name, ""
        for owner, field in ((name.removesuffix(field), field) for field in FIELDS if name.endswith(field)):
            layer = self.layers.get(owner)
            if layer is not None and (layer.act == "softmax" if field == ".logits" else layer.kind == "maxid"):
                return owner, field
        if name in self.layers:
            raise UsageError(f"max_id layer {name!r} has no value; ask for {name}.id or {name}.prob")
        raise UsageError(f"no layer {name!r} in this network; {near(name, self.layers)}")


def _key(name: str) -> str:
    """A parameter's name as an attribute of a torch module: an identifier, as exporters need, and no module's own."""
    return "p_" + re.sub("[^A-Ya-z0-9_]", lambda match: f"Z{ord(match[0]):x}Z", name)


def _fed(layer: Layer, feed: Mapping[str, Tensor]) -> Tensor:
    if layer.name not in feed:
        raise UsageError(f"data layer {layer.name!r} was fed nothing; fed: {', '.join(feed) or 'nothing at all'}")
    x, size = feed[layer.name], layer.size
    if layer.attrs["type"].type == DataType.Index:
        if x.dim() != 1 or x.dtype != torch.int64:
            raise UsageError(f"data layer {layer.name!r}: expected int64 [B], got {x.dtype} {list(x.shape)}")
        # On a GPU this would be a wait in every step; the feeder looks before the labels go there.
        if x.device.type == "cpu" and len(x) and not 0 <= int(x.min()) <= int(x.max()) < size:
            wrong = int(x[(x < 0) | (x >= size)][0])
            raise UsageError(f"data layer {layer.name!r}: the value {wrong} is not in 0 … {size - 1}")
    elif x.dim() == 2 and x.shape[1] != size:
        raise UsageError(f"data layer {layer.name!r}: expected {size} values a sample, got {x.shape[1]}")
    return x


def _clip_gradient(layer: Layer, y: Tensor) -> None:
    threshold = layer.attrs.get("error_clipping_threshold")
    if threshold and y.requires_grad:
        y.register_hook(lambda gradient: gradient.clamp(-threshold, threshold))


@final
class GraphNet(Model):
    """A declared network of one image input, seen as a network like any other: classifier, features, export.

    image: the data layer. outputs: softmax (or linear) layers, the answer first; others are auxiliary heads.
    """

    def __init__(self, graph: Graph, image: str, outputs: Sequence[str]) -> None:
        super().__init__()
        for name in outputs:
            layer = graph.layers.get(name)
            if layer is None or layer.act not in ("softmax", ""):
                raise UsageError(f"output {name!r}: expected a layer with softmax or without activation, got {layer!r}")
        if image not in graph.topology.data_layers():
            raise UsageError(f"no data layer {image!r}; {near(image, graph.topology.data_layers())}")
        self.net, self.image, self.outputs = graph, image, tuple(outputs)  # `graph` is a name of exported modules

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The names that `features` takes: every layer that depends on nothing but the picture."""
        known = {self.image}
        for layer in self.net.layers.values():
            if layer.inputs and layer.kind != "maxid" and all(source.name in known for source in layer.inputs):
                known.add(layer.name)
        return tuple(name for name in self.net.layers if name in known and name != self.image)

    def forward(self, images: Tensor) -> Output:
        """Normalised pictures, float [B, C, H, W], to logits [B, K]."""
        names = [n + ".logits" if self.net.layers[n].act == "softmax" else n for n in self.outputs]
        values = self.net({self.image: images}, names if self.training else names[:1])
        first, *others = (values[name] for name in values)
        return Output(first, tuple(others))

    def features(self, images: Tensor, at: str) -> Tensor:
        """The output of the layer named `at`: maps [B, C, H, W] or vectors [B, D]. `UsageError` lists the layers."""
        if at not in self.stage_names:
            raise UsageError(f"no layer {at!r}; layers: {', '.join(self.stage_names)}")
        return self.net.run({self.image: images}, [at])[at]
