"""What a network is made of, read off its modules and one forward pass: layers, branches, sums, with shapes and counts.

For the tables and drawings of `opsin models`. Nothing here computes with pixels: `of` works on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from opsin import models
from opsin.models.convnet import ConvNet
from opsin.models.googlenet import MODULES, inception, inception_naive
from opsin.models.inception import ReducingPool, ScaledResidual
from opsin.models.layers import AuxiliaryPool, Branches, PreResidual, Residual, ZeroPadShortcut
from opsin.models.smallnet import GlobalMax, Scale

Shape = tuple[int, ...]  # without the batch: (C, H, W) of maps, (D,) of vectors
Kind = Literal["conv", "dense", "pool", "change", "chain", "branches", "sum"]


@dataclass(frozen=True)
class Part:
    """One layer, or several.

    "conv", "dense", "pool": a layer, `note` what is done to its output at once ("BN · ReLU"); "change": what else
    changes values, such as a normalisation of its own. "chain": `parts` one after the other, none for the identity.
    "branches": `parts` side by side, joined along the channels. "sum": `parts` are a body and a shortcut, `note` what
    follows their sum. shape: of what comes out. params, macs (multiply–adds): of all that is in it.
    """

    kind: Kind
    shape: Shape
    text: str = ""
    note: str = ""
    params: int = 0
    macs: int = 0
    parts: tuple[Part, ...] = ()
    window: int = 0  # side of a convolution or pooling


@dataclass(frozen=True)
class Stage:
    """A named part. aux: the auxiliary head that hangs on it, if any."""

    name: str
    part: Part
    aux: Part | None = None


@dataclass(frozen=True)
class Outline:
    """A whole network: its stages in the order of the flow, its head, and the pictures it was looked at with."""

    name: str
    about: str
    shape: Shape
    stages: tuple[Stage, ...]
    head: Part
    family: dict[str, tuple[int, ...]] = field(default_factory=dict)  # those that differ in depth: units of each stage


@dataclass(frozen=True)
class Panel:
    """One of the figures that stand side by side, such as a module: its caption, its input and what is in it."""

    caption: str
    shape: Shape
    part: Part


def of(name: str) -> Outline:
    """The network of that name at its native size, without memory or arithmetic."""
    entry = models.entry(name)
    with torch.device("meta"):
        net = models.build(name, entry.classes, entry.channels)
    assert isinstance(net, ConvNet)
    about = f"{entry.summary} ({entry.paper})"
    found = outline(net, (entry.channels, entry.native_size, entry.native_size))
    return replace(found, name=name, about=about, family=family(name))


def outline(net: ConvNet, shape: Shape) -> Outline:
    """Any network of ours, looked at with one picture of `shape`, on the device where it is."""
    device = next(net.parameters()).device
    x, stages = torch.zeros(1, *shape, device=device), []
    with torch.no_grad(), _Watch(net) as watch:
        for name, stage in net.stages.items():
            x = stage(x)
            aux = None
            if name in net.aux:
                net.aux[name](x)
                aux = watch.part(net.aux[name])
            stages.append(Stage(name, watch.part(stage), aux))
        net.head(x)
        return Outline("", "", shape, tuple(stages), watch.part(net.head))


def module(net: nn.Module, shape: Shape) -> Part:
    """Any module, on the meta device."""
    with torch.no_grad(), _Watch(net.to("meta")) as watch:
        net(torch.zeros(1, *shape, device="meta"))
        return watch.part(net)


def family(name: str) -> dict[str, tuple[int, ...]]:
    """The networks of the table that differ from this one in depth alone: how many equal units each stage has.

    Empty where there is nothing to compare. He et al. 2015, table 1; Simonyan and Zisserman 2014, table 1.
    """

    def alike(other: models.Entry) -> bool:
        same = {**other.options, "depth": 0} == {**own.options, "depth": 0}
        return other.builder == own.builder and same

    own = models.entry(name)
    if "depth" not in own.options:
        return {}
    candidates = {name: own} | {key: entry for key, entry in models.MODELS.items() if alike(entry)}
    counts = {key: _units(entry) for key, entry in candidates.items()}
    if len({block for block, _ in counts.values()}) > 1:  # ResNet-18 and 34 have other blocks than 50, 101, 152
        counts = {key: (block, numbers) for key, (block, numbers) in counts.items() if block == counts[name][0]}
    ordered = sorted(counts, key=lambda key: int(candidates[key].options["depth"]))
    return {key: counts[key][1] for key in ordered} if len(ordered) > 1 else {}


def _units(entry: models.Entry) -> tuple[str, tuple[int, ...]]:
    """What the units of a network of several depths are, and how many each stage has: the tables it is built of."""
    from opsin.models import resnet, vgg

    depth, block = entry.options["depth"], entry.options.get("block", "basic")
    match entry.builder.split(":")[1]:
        case "resnet":
            return resnet.IMAGENET[depth]
        case "vgg":
            return "convolution", vgg.CONVOLUTIONS[depth]
        case "wide_resnet":
            return block, (resnet.wide_blocks_per_stage(depth),) * 3
    return block, (resnet.blocks_per_stage(depth, block),) * 3


# ---------------------------------------------------------------------------------------------------------------------
# Modules that are drawn alone
# ---------------------------------------------------------------------------------------------------------------------


def _inception_module() -> tuple[Panel, ...]:
    a, b, c = MODULES["3a"][0], MODULES["3a"][2], MODULES["3a"][4]
    shape = (192, 28, 28)
    naive, reduced = module(inception_naive(192, (a, b, c)), shape), module(inception(192, MODULES["3a"]), shape)
    return (
        Panel("(a) naïve", shape, naive),
        Panel("(b) with 1×1 convolutions that reduce the channels", shape, reduced),
    )


def _residual_block() -> tuple[Panel, ...]:
    def second(name: str) -> Part:
        with torch.device("meta"):
            net = models.build(name, 10)
        return module(net.get_submodule("stages.stage1.1"), shapes[name])

    shapes = {"resnet34": (64, 56, 56), "resnet50": (256, 56, 56)}
    return (
        Panel("basic (ResNet-18, 34)", shapes["resnet34"], second("resnet34")),
        Panel("bottleneck (ResNet-50, 101, 152)", shapes["resnet50"], second("resnet50")),
    )


def figure(name: str) -> tuple[Panel, ...]:
    """What stands side by side in a figure of `models.FIGURES`."""
    return {"inception-module": _inception_module, "residual-block": _residual_block}[name]()


# ---------------------------------------------------------------------------------------------------------------------
# From modules to parts
# ---------------------------------------------------------------------------------------------------------------------


class _Watch:
    """Sees the shape of what every module gives, while it is entered. In evaluation mode, and back."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._training = net.training
        self._shapes: dict[nn.Module, Shape] = {}
        self._before: dict[nn.Module, Shape] = {}  # what came in
        self._hooks: list[Any] = []

    def __enter__(self) -> _Watch:
        self._net.eval()
        self._hooks = [module.register_forward_hook(self._saw) for module in self._net.modules()]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._net.train(self._training)

    def _saw(self, module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        self._before[module], self._shapes[module] = tuple(given[0].shape[1:]), tuple(out.shape[1:])

    def part(self, module: nn.Module) -> Part:
        """What a module that was run is made of."""
        shape = self._shapes[module]
        match module:
            case nn.Sequential():
                return self._chain(list(module), shape)
            case Branches():
                return _joined("branches", shape, [self.part(branch) for branch in module])
            case Residual():
                return self._sum(module, module.body, module.shortcut, "ReLU")
            case ScaledResidual():
                note = "ReLU" if module.relu else ""
                total = self._sum(module, module.body, nn.Identity(), note)
                if module.scale == 1:
                    return total
                scale = Part("change", shape, f"× {module.scale:g}")
                return replace(total, parts=(_joined("chain", shape, [total.parts[0], scale]), total.parts[1]))
            case PreResidual():
                if module.shortcut is None:
                    return self._sum(module, nn.Sequential(module.before, module.body), nn.Identity(), "")
                inner = self._sum(module, module.body, module.shortcut, "")
                return _joined("chain", shape, [part for part in (self._inside(module.before), inner) if part])
        return self._layer(module)

    def _inside(self, module: nn.Module) -> Part | None:
        """The part of a module, or None where it does nothing."""
        if isinstance(module, nn.Sequential) and module not in self._shapes:  # put together for the drawing only
            return self._chain(list(module), self._shapes[module[-1]])
        return None if self._idle(module) else self.part(module)

    def _sum(self, module: nn.Module, body: nn.Module, shortcut: nn.Module, note: str) -> Part:
        shape = self._shapes[module]
        paths = [self._inside(path) or Part("chain", shape) for path in (body, shortcut)]
        return _joined("sum", shape, paths, note)

    def _chain(self, modules: list[nn.Module], shape: Shape) -> Part:
        parts: list[Part] = []
        for module in _flat(modules):
            if self._idle(module):
                continue
            part = self.part(module)
            if part.kind == "change" and parts and not parts[-1].parts:  # said of the layer before it
                last = parts[-1]
                note = " · ".join(filter(None, (last.note, part.text)))
                if last.kind == "change":
                    last, note = replace(last, text=f"{last.text} · {part.text}"), ""
                parts[-1] = replace(last, note=note, params=last.params + part.params)
            else:
                parts.append(part)
        return parts[0] if len(parts) == 1 else _joined("chain", shape, parts)

    def _idle(self, module: nn.Module) -> bool:
        """Whether what comes out is what came in, but for its shape."""
        match module:
            case nn.Identity() | nn.Flatten():
                return True
            case nn.Dropout(p=0.0):
                return True
            case nn.AdaptiveAvgPool2d():  # to the size that there is
                return self._before[module] == self._shapes[module]
            case nn.Sequential():
                return all(map(self._idle, module))
        return False

    def _layer(self, module: nn.Module) -> Part:
        kind, text, window = _described(module)
        shape = self._shapes[module]
        params = sum(p.numel() for p in module.parameters())
        macs = 0
        if isinstance(module, nn.Conv2d | nn.Linear):
            places = shape[1] * shape[2] if len(shape) == 3 else 1
            macs = places * module.weight.numel()
        return Part(kind, shape, text, params=params, macs=macs, window=window)


def _flat(modules: list[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield from _flat(list(module))
        else:
            yield module


def _joined(kind: Kind, shape: Shape, parts: list[Part], note: str = "") -> Part:
    params, macs = sum(part.params for part in parts), sum(part.macs for part in parts)
    return Part(kind, shape, note=note, params=params, macs=macs, parts=tuple(parts))


_WORDS: dict[type[nn.Module], str] = {
    nn.ReLU: "ReLU",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.PReLU: "PReLU",
    nn.GELU: "GELU",
    nn.SiLU: "SiLU",
    nn.BatchNorm1d: "BN",
    nn.BatchNorm2d: "BN",
    nn.LocalResponseNorm: "LRN",
}


def _described(module: nn.Module) -> tuple[Kind, str, int]:
    """Kind, words and window of one layer. A module that nobody here knows is called by its class."""
    match module:
        case nn.Conv2d():
            groups = f", {module.groups} groups" if module.groups > 1 else ""
            text = f"{_window(module)} conv, {module.out_channels}{_stride(module)}{groups}"
            return "conv", text, int(module.kernel_size[0])
        case nn.Linear():
            return "dense", f"fully connected, {module.out_features}", 0
        case nn.MaxPool2d():
            return "pool", f"{_window(module)} max pool{_stride(module)}", _pair(module.kernel_size)[0]
        case nn.AvgPool2d():
            return "pool", f"{_window(module)} mean pool{_stride(module)}", _pair(module.kernel_size)[0]
        case nn.AdaptiveAvgPool2d():
            side = _pair(module.output_size)
            return "pool", "global mean pool" if side == (1, 1) else f"mean pool to {side[0]}×{side[1]}", 0
        case AuxiliaryPool():
            return "pool", f"mean pool to {module.side}×{module.side}", 0
        case ReducingPool():
            return "pool", "3×3 max pool /2", 3
        case GlobalMax():
            return "pool", "global max pool", 0
        case nn.Dropout():
            return "change", f"dropout {module.p:g}", 0
        case Scale():
            return "change", f"× {module.factor:.2g}", 0
        case ZeroPadShortcut():
            return "change", f"zero channels{_stride(module)}", 0
    return "change", _WORDS.get(type(module), type(module).__name__), 0


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, tuple) else (value, value)
    return int(first), int(second)


def _window(module: Any) -> str:
    return "×".join(map(str, _pair(module.kernel_size)))


def _stride(module: Any) -> str:
    stride = _pair(module.stride)[0]
    return f" /{stride}" if stride > 1 else ""
