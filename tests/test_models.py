"""Every network of the table: sizes, names, gradients, features, saving, learning, export; what `build` refuses.

`python tests/test_models.py` writes the lists in tests/data/state_dicts anew, after a change of names that is meant.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin import classifier, optim
from opsin.augment import Augmenter
from opsin.classifier import NetClassifier
from opsin.errors import UsageError
from opsin.loss import Classify
from opsin.models import MODELS, build, builder, entry, options
from opsin.models.convnet import ConvNet
from opsin.models.layers import ACTIVATIONS, ZeroPadShortcut
from opsin.models.weights import translate
from opsin.preprocess import Preprocess
from opsin.recipe import AdamW, Augment, CrossEntropy, ModelSpec
from opsin.schedule import Constant
from opsin.train import StepEnd, TrainState, train
from opsin.types import Batch, Output

DATA = Path(__file__).parent / "data"

# Values in parameters at native classes and channels, from the papers, torchvision's documentation, the chapter's log
PARAMS = {
    "smallnet": 1_971_640 + 2 * (64 + 256 + 256),  # the count published for it, which leaves the frozen scales out
    "lenet5": 61_706,
    "lenet": 431_080,
    "alexnet": 60_965_224,  # Caffe's reference, and the sum of the paper's table; its text says 60 million
    "alexnet_owt": 61_100_840,  # torchvision's documentation
    "alexnet_cifar": 5_871_434,  # our own network: the sum of its layers by hand
    "nin_cifar": 966_986,  # the authors' Caffe definition; osmr/imgclsmob lists the same
    "nin": 7_595_176,  # the sum of the authors' Caffe definition; their file of 29 MB is 4 × as many bytes
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "vgg16_cifar": 15_254_602,
    "googlenet": 13_378_280,  # the BVLC's Caffe definition with both heads; 6,998,552 without
    "googlenet_bn": 13_004_888,  # torchvision with both heads; its documentation has 6,624,904 without
    "googlenet_cifar": 2_595_886,  # our own network: the sum of its layers by hand
    "inception_v2": 11_295_240 - 10_016,  # osmr/imgclsmob and Cadene; without the biases before normalisations
    "inception_v2_cifar": 2_573_706,  # this and the other small ones are our own: by hand in test_networks.py
    "inception_v3": 27_161_264,  # torchvision with its head; 23,834,568 without
    "inception_v3_cifar": 6_098_580,
    "inception_v4": 42_679_816,  # timm, Cadene
    "inception_v4_cifar": 10_218_138,
    # osmr/imgclsmob has FaceNet's: less its 512 units before the classifier and its sixth module C
    "inception_resnet_v1": 23_995_624 - (917_504 + 1_024 + 513_000) + 1_793_000 - 1_600_768,
    "inception_resnet_v1_cifar": 5_149_402,
    "inception_resnet_v2": 55_843_464,  # timm, Cadene
    "inception_resnet_v2_cifar": 13_600_490,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet1202": 19_421_274,
    "resnet_chapter": 466_906,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "preresnet20": 269_722,  # as the networks of 2015: the same layers in another order
    "preresnet56": 853_018,
    "preresnet110": 1_727_962,  # the paper: 1.7 million
    "preresnet164": 1_703_258,  # osmr/imgclsmob; the paper: 1.7 million
    "preresnet1001": 10_327_706,  # the same; the paper's 10.2 million leave out 149,216 of the normalisations
    "wrn16_2": 691_674,
    "wrn16_8": 10_961_370,  # table 4 of the paper: 11.0 million
    "wrn28_10": 36_479_194,  # osmr/imgclsmob; table 4: 36.5 million
    "wrn40_1": 563_930,  # table 4: 0.6, 2.2, 8.9 million
    "wrn40_2": 2_243_546,
    "wrn40_4": 8_949_210,
}
PAPER_MILLIONS = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}  # table 6
# Of the same parts as others, only longer or wider: these are counted, and no more
COUNTED = {"resnet1202", "preresnet56", "preresnet110", "preresnet1001", "wrn16_8", "wrn40_1", "wrn40_2", "wrn40_4"}
LISTED = [name for name in MODELS if name not in COUNTED]
# One or two of each file of networks, in a form that is quick to compute with
FAMILIES = ["smallnet", "lenet", "alexnet_cifar", "nin_cifar", "vgg11", "vgg16_cifar", "googlenet_cifar"]
FAMILIES += ["inception_v2_cifar", "resnet20", "resnet50"]
TRACED = set(FAMILIES) - {
    "vgg11",
    "resnet50",
    "googlenet_cifar",
}  # exported and compiled also outside of `make test-all`
# All that are for small pictures, and of those for large ones a VGG and a ResNet
LEARNERS = ["smallnet", "lenet5", "lenet", "alexnet_cifar", "nin_cifar", "vgg11_bn", "vgg16_cifar", "googlenet_cifar"]
LEARNERS += ["inception_v2_cifar", "inception_v3_cifar", "inception_v4_cifar", "inception_resnet_v1_cifar"]
LEARNERS += ["inception_resnet_v2_cifar", "resnet20", "resnet_chapter", "resnet18", "preresnet20", "wrn16_2"]
SLOW_LEARNERS = {f"inception_{form}_cifar" for form in ("v3", "v4", "resnet_v1", "resnet_v2")}


def quick_or_slow(names: list[str], slow: Collection[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def native(name: str) -> ConvNet:
    """The network at its full size, without memory or arithmetic."""
    with torch.device("meta"):
        net = build(name, entry(name).classes, entry(name).channels)
    assert isinstance(net, ConvNet)
    return net.eval()


def small(name: str, num_classes: int = 3, in_channels: int = 3, **more: Any) -> ConvNet:
    """The same structure, narrow enough to compute with; pictures of the least size where it has to be told."""
    net = build(name, num_classes, in_channels, **narrow(name) | more)
    assert isinstance(net, ConvNet)
    return net


def narrow(name: str, width: int = 4, side: int = 0) -> dict[str, Any]:
    """Those of the options of its builder that make a network small. side: 0 for the least size."""
    side = side or entry(name).least_size
    values = {"width": width, "hidden": 4 * width, "image_size": (side, side)}
    values["widths"] = (2 * width, 3 * width, 4 * width)
    return {key: value for key, value in values.items() if key in options(name)}


def pictures(name: str, batch: int = 4, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, entry(name).least_size, entry(name).least_size)


def lines(net: nn.Module) -> list[str]:
    return [f"{key} {shape(value)}" for key, value in net.state_dict().items()]


def shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


# ---------------------------------------------------------------------------------------------------------------------
# Over the table
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LISTED)
def test_logits_and_features_at_the_native_size(name: str) -> None:
    net, table = native(name), entry(name)
    images = torch.empty(2, table.channels, table.native_size, table.native_size, device="meta")
    output = net(images)
    assert isinstance(output, Output)
    assert output.logits.shape == (2, table.classes)
    assert output.aux == ()
    last = maps = images
    assert len(net.stage_names) >= 3
    for stage in net.stage_names:  # `features` at all of them would run the first stage as often as there are stages
        maps = net.stages[stage](maps)
        assert maps.ndim in (2, 4) and maps.shape[0] == 2
        if maps.ndim == 4:
            assert maps.shape[2] <= last.shape[2] and maps.shape[3] == maps.shape[2]
            last = maps
    assert last.shape[2] < table.native_size
    assert net.features(images, net.stage_names[-1]).shape == maps.shape


@pytest.mark.parametrize("name", quick_or_slow(list(MODELS), slow={"preresnet1001", "resnet1202"}))
def test_parameters_and_multiply_adds_are_those_of_the_paper(name: str) -> None:
    net, table = native(name), entry(name)
    assert sum(p.numel() for p in net.parameters()) == table.params == PARAMS[name]
    macs = 0

    def count(module: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal macs
        weight = module.weight
        assert isinstance(weight, Tensor)
        macs += out[0].numel() * weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    net(torch.empty(1, table.channels, table.native_size, table.native_size, device="meta"))
    for hook in hooks:
        hook.remove()
    assert round(macs / 1e6, 1) == table.million_macs


def test_every_network_is_pinned() -> None:
    assert set(PARAMS) == set(MODELS)
    assert all(len(entry(name).aux_weights) == len(native(name).aux) for name in LISTED)
    for name, millions in PAPER_MILLIONS.items():
        assert round(PARAMS[name] / 1e6, 2 if millions < 1 else 1) == millions
    assert round(PARAMS["resnet1202"] / 1e6, 1) == 19.4


@pytest.mark.parametrize("name", LISTED)
def test_names_and_shapes_of_the_state(name: str) -> None:
    assert lines(native(name)) == (DATA / "state_dicts" / f"{name}.txt").read_text().splitlines()


@pytest.mark.parametrize("name", LISTED)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    net = small(name).train()
    output = net(pictures(name))
    losses = [F.cross_entropy(logits, torch.tensor([0, 1, 2, 0])) for logits in (output.logits, *output.aux)]
    torch.stack(losses).sum().backward()
    trained = {key: p for key, p in net.named_parameters() if p.requires_grad}
    without = [key for key, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    assert all(p.grad is None for p in net.parameters() if not p.requires_grad)
    alive = sum(bool(p.grad.any()) for p in trained.values() if p.grad is not None)
    assert alive >= 0.8 * len(trained)  # a narrow layer of ReLUs may be dead for four pictures


@pytest.mark.parametrize("name", quick_or_slow(LISTED, slow=set(LISTED) - set(FAMILIES)))
def test_least_size_works_and_one_pixel_less_is_refused(name: str) -> None:
    """At the same time any number of channels and classes."""
    least = entry(name).least_size
    assert small(name, 17, 2).train()(pictures(name, 2, 2)).logits.shape == (2, 17)
    net = small(name, 2, 1).eval()
    logits = net(pictures(name, 1, 1)).logits
    assert logits.shape == (1, 2) and logits.isfinite().all()
    for side in ((least - 1, least), (least, least - 1)):
        with pytest.raises(UsageError, match=f"expected pictures of .*received {side[0]}×{side[1]}"):
            net(torch.zeros(1, 1, *side))


@pytest.mark.parametrize("name", FAMILIES)
def test_any_other_size(name: str) -> None:
    size = (37, 50)
    net = small(name, **({"image_size": size} if "image_size" in options(name) else {})).eval()
    assert net(torch.randn(2, 3, *size)).logits.shape == (2, 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_the_flow(name: str) -> None:
    """The last stage's output through the head is the logits; each stage's output is the next one's input."""
    net, images = small(name).eval(), pictures(name)
    x = images
    for stage in net.stage_names:
        x = net.stages[stage](x)
        assert torch.equal(net.features(images, stage), x)
    assert torch.equal(net.head(x), net(images).logits)
    with pytest.raises(UsageError, match=rf"no stage 'stage9'; stages: {', '.join(net.stage_names)}"):
        net.features(images, "stage9")


@pytest.mark.parametrize("name", FAMILIES)
def test_channels_last_gives_the_same(name: str) -> None:
    net, images = small(name).eval(), pictures(name)
    expected = net(images).logits
    net.to(memory_format=torch.channels_last)
    received = net(images.to(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(received, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", quick_or_slow(LISTED, slow=set(LISTED) - set(FAMILIES)))
def test_saved_and_loaded_it_answers_the_same(name: str, tmp_path: Path) -> None:
    net, side = small(name), entry(name).least_size
    spec = ModelSpec(name=name, options=narrow(name))
    made = NetClassifier(net, Preprocess(size=(side, side)), ("a", "b", "c"), spec)
    classifier.save(made, tmp_path / "classifier")
    loaded = classifier.load(tmp_path / "classifier")
    assert isinstance(loaded, NetClassifier) and lines(loaded.model) == lines(net)
    images = pictures(name, 2)
    assert torch.equal(loaded.model.eval()(images).logits, net.eval()(images).logits)


@pytest.mark.parametrize("name", quick_or_slow(LEARNERS, slow=SLOW_LEARNERS))
def test_eight_pictures_are_learnt_to_zero_error(name: str) -> None:
    """In training and in evaluation mode, by the one loop and the ordinary objective. Dropout is off: it is there to
    keep networks from what is asked of them here."""
    torch.manual_seed(0)
    side = max(16, entry(name).least_size)
    net = small(name, 8, **narrow(name, width=8, side=side))
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    coarse = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch(F.interpolate(coarse, (side, side)), torch.arange(8), torch.arange(8), epoch=0)
    preprocess = Preprocess(size=(side, side), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    loss = CrossEntropy(aux_weights=entry(name).aux_weights)
    training = train(
        TrainState(net, optim.build(net, AdamW(lr=0.003, weight_decay=0.0))),
        lambda epoch, start: [batch],
        Classify(Augmenter(Augment(), preprocess, num_classes=8), loss),
        total_steps=100,
        until=lambda progress: progress.step >= 100,
        schedule=Constant(),
    )
    errors = []
    for event in training:
        if isinstance(event, StepEnd) and event.progress.step % 5 == 0:
            in_use = net.eval()(preprocess.normalize(batch.images))
            errors.append([int((out.logits.argmax(1) != batch.labels).sum()) for out in (event.output, in_use)])
            if errors[-1] == [0, 0]:
                break
    assert errors[-1] == [0, 0], errors


@pytest.mark.parametrize(
    "name", quick_or_slow(LISTED, slow={*LISTED, "googlenet_cifar"} - (TRACED - {"googlenet_cifar"}))
)
def test_exports(name: str) -> None:
    net, images = small(name).eval(), pictures(name)
    exported = torch.export.export(net, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    others = pictures(name, batch=7)
    torch.testing.assert_close(exported.module()(others), net(others))


@pytest.mark.parametrize(
    "name", quick_or_slow(LISTED, slow={*LISTED, "googlenet_cifar"} - (TRACED - {"googlenet_cifar"}))
)
def test_no_graph_break_in_training(name: str) -> None:
    """`fullgraph` makes of a break an error. With auxiliary heads, which `test_exports` does not see."""
    net, images = small(name).train(), pictures(name)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    outputs = []
    for module in (net, compiled):
        torch.manual_seed(0)  # dropout
        outputs.append(module(images))
    assert len(outputs[1].aux) == len(entry(name).aux_weights)
    torch.testing.assert_close(outputs[1], outputs[0])


# ---------------------------------------------------------------------------------------------------------------------
# What the papers and the chapter say
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["alexnet_owt", "googlenet_bn", "inception_v3", "vgg16", "vgg16_bn", "resnet18", "resnet50"]
)
def test_torchvision_names_map_onto_all_of_ours(name: str) -> None:
    foreign = (DATA / "foreign" / f"torchvision_{name}.txt").read_text().splitlines()
    sizes = (line.split() for line in foreign)
    tensors = {
        key: torch.empty(() if size == "scalar" else tuple(map(int, size.split("x"))), device="meta")
        for key, size in sizes
    }
    ours = translate(tensors, name)
    assert sorted(f"{key} {shape(value)}" for key, value in ours.items()) == sorted(lines(native(name)))


def test_vgg16_cifar_is_the_chapters_network() -> None:
    net = native("vgg16_cifar")
    drops = {
        stage: [m.p for m in net.stages[stage].modules() if isinstance(m, nn.Dropout)] for stage in net.stage_names
    }
    assert drops == {
        "stage1": [0.3],
        "stage2": [0.4],
        "stage3": [0.4, 0.4],
        "stage4": [0.4, 0.4],
        "stage5": [0.4, 0.4],
        "fc1": [0.5, 0.5],
        "fc2": [],
    }
    kinds = [type(m).__name__ for m in net.stages["stage1"].children()]
    block = ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds == [*block, "Dropout", *block, "MaxPool2d"]
    fc = ["Dropout", "Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear", "Linear"]
    leaves = [*net.stages["fc1"].children(), *net.stages["fc2"].children(), net.head]
    assert [type(m).__name__ for m in leaves][2:] == fc
    assert all(m.bias is not None for m in net.modules() if isinstance(m, nn.Conv2d))
    assert all(m.eps == 1e-5 and m.momentum == 0.1 for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_vgg16_cifar_starts_as_the_original_did() -> None:
    """Standard deviations observed in the original's configuration: √(2 / fan-in), and √(1 / fan-in) where linear."""
    net = build("vgg16_cifar", 10)
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    stds = [0.272166] + [0.058926] * 2 + [0.041667] * 2 + [0.029463] * 3 + [0.020833] * 5 + [0.044194] * 3
    for layer, std in zip(layers, stds, strict=True):
        n = layer.weight.numel()
        assert layer.weight.std().item() == pytest.approx(std, rel=4 / (2 * n) ** 0.5)
        assert abs(layer.weight.mean().item()) < 4 * std / n**0.5
        assert layer.bias is not None and not layer.bias.any()


def test_projection_and_bottleneck_variants() -> None:
    def params(name: str, **options_: Any) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in build(name, 10, **options_).parameters())

    assert params("resnet20", shortcut="B") == 272_474
    assert params("resnet56", shortcut="B") == 855_770
    assert params("resnet_chapter", depth=20) == 272_474
    assert params("resnet26") == entry("resnet26").params == 366_938
    # 9n+2 with n = 18, widths 64, 128, 256: the 1.7 M of He et al. 2016, "Identity mappings", table 2
    assert params("resnet164", block="bottleneck", shortcut="B") == 1_704_154
    bottleneck = small("resnet20", block="bottleneck", shortcut="A").eval()
    assert bottleneck(torch.randn(2, 3, 8, 8)).logits.shape == (2, 3)
    assert bottleneck.features(torch.randn(2, 3, 8, 8), "stage3").shape == (2, 64, 2, 2)


def test_zero_padded_shortcut_against_numpy() -> None:
    x = torch.randn(2, 3, 5, 6)
    expected = np.zeros((2, 8, 3, 3), np.float32)
    for channel in range(3):
        for i in range(3):
            for j in range(3):
                expected[:, 2 + channel, i, j] = x[:, channel, 2 * i, 2 * j].numpy()
    np.testing.assert_array_equal(ZeroPadShortcut(3, 8, 2)(x).numpy(), expected)


def test_stride_of_a_bottleneck_is_on_its_3x3() -> None:
    strided = [m for m in native("resnet50").modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert [m.kernel_size[0] for m in strided] == [7, 3, 1, 3, 1, 3, 1]  # stem, then 3×3 and projection of stages 2–4


@pytest.mark.parametrize("name", ["lenet5", "lenet", "vgg11", "vgg16_cifar"])
def test_activation_is_an_option(name: str) -> None:
    kinds = {
        "relu": nn.ReLU,
        "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
        "prelu": nn.PReLU,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
    }
    assert set(kinds) == set(ACTIVATIONS)
    for activation, kind in kinds.items():
        net = small(name, activation=activation)
        found = [m for m in net.modules() if isinstance(m, tuple(kinds.values()))]
        assert len(found) >= 3 and all(type(m) is kind for m in found)
        assert net.eval()(pictures(name, 1)).logits.isfinite().all()


def test_auxiliary_heads_answer_in_training_only() -> None:
    stages = {"a": nn.Conv2d(1, 2, 1), "b": nn.Conv2d(2, 3, 1)}

    def head(channels: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))

    net = ConvNet(stages, head(3), aux={"b": head(3), "a": head(2)})
    output = net.train()(torch.randn(4, 1, 3, 3))
    assert [aux.shape for aux in output.aux] == [(4, 5), (4, 5)]
    images = torch.randn(4, 1, 3, 3)
    assert torch.equal(net(images).aux[0], net.aux["a"](net.features(images, "a")))  # the deepest last
    assert net.eval()(images).aux == ()
    with pytest.raises(UsageError, match="auxiliary head: no stage 'c'; stages: a, b"):
        ConvNet(stages, head(3), aux={"c": head(3)})


# ---------------------------------------------------------------------------------------------------------------------
# build
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("resnet21", {}, r"6n\+2; received 21, nearest 20 and 26 .*resnet18"),
        ("resnet2", {}, "nearest 8"),
        ("resnet0", {}, "nearest 8"),
        ("resnet32", {"block": "bottleneck"}, r"resnet32: .*9n\+2; received 32, nearest 29 and 38"),
        ("vgg17", {}, "no network 'vgg17'; did you mean .*vgg1"),
        ("resnet_20", {}, "no network 'resnet_20'; did you mean .*resnet20"),
        ("", {}, "no network ''; known: alexnet, "),
        ("vgg16", {"hiden": 8}, "vgg16: no option 'hiden'; did you mean hidden"),
        ("vgg16", {"depth": 11}, "vgg16: no option 'depth'"),
        ("vgg16", {"activation": "reul"}, "vgg16.activation: expected one of 'relu', .*received 'reul'"),
        ("vgg16", {"dropout": 1.5, "hidden": 8}, "vgg16: dropout probability"),
        ("vgg16", {"dropout": "half"}, "vgg16.dropout: expected float, received 'half'"),
        ("vgg16_cifar", {"width": 0}, "vgg16_cifar: width: expected at least 1, received 0"),
        ("vgg16_cifar", {"width": True}, "vgg16_cifar.width: expected int"),
        ("resnet20", {"shortcut": "C"}, "resnet20.shortcut: expected one of 'A', 'B', received 'C'"),
        ("resnet18", {"width": -4}, "resnet18: width: expected at least 1"),
        ("resnet_chapter", {"depth": 8}, "from 20 to 110, received 8"),
        ("resnet_chapter", {"depth": 111}, "from 20 to 110, received 111"),
        ("resnet_chapter", {"depth": 33}, "nearest 32 and 38"),
        ("preresnet21", {}, "nearest 20 and 26"),
        ("wrn18_2", {}, r"6n\+4; received 18, nearest 16 and 22"),
        ("wrn4_2", {}, "nearest 10"),
        ("wrn16_0", {}, "no network 'wrn16_0'"),
        ("wrn16_2", {"dropout": -1.0}, "wrn16_2: dropout probability"),
        ("lenet", {"image_size": (15, 28)}, "lenet: image_size: expected at least 16×16 pixels, received 15×28"),
        ("lenet", {"image_size": 28}, "lenet.image_size: expected tuple"),
        ("lenet", {"num_classes": 0}, "lenet.num_classes: expected at least 1, received 0"),
        ("lenet", {"num_classes": 2.5}, "lenet.num_classes: expected int"),
        ("lenet", {"in_channels": 0}, "lenet.in_channels: expected at least 1, received 0"),
    ],
)
def test_build_refuses_and_says_what_would_work(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(name, **{"num_classes": 10, **given})


def test_builders_called_directly_refuse_another_depth() -> None:
    with pytest.raises(UsageError, match="expected one of 18, 34, 50, 101, 152, received 20"):
        builder("resnet18")(depth=20)
    with pytest.raises(UsageError, match="expected one of 11, 13, 16, 19, received 12"):
        builder("vgg16")(depth=12)


def test_build_takes_lists_for_tuples_and_says_which_options_there_are() -> None:
    assert build("lenet", 10, 1, image_size=[20, 24])(torch.zeros(2, 1, 20, 24)).logits.shape == (2, 10)
    assert options("resnet20") == {"shortcut": "A", "block": "basic", "width": 16}
    assert options("resnet18") == {"width": 64}
    with pytest.raises(UsageError, match=r"of 20×24 pixels, received 28×28; .*image_size=\(28, 28\)"):
        build("lenet", 10, 1, image_size=(20, 24))(torch.zeros(2, 1, 28, 28))


def test_the_same_seed_gives_the_same_weights() -> None:
    def weights(seed: int) -> Iterator[Tensor]:
        torch.manual_seed(seed)
        return iter(small("resnet20").state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(weights(3), weights(3), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(3), weights(4), strict=True))


def test_the_table_needs_no_torch() -> None:
    code = (
        "import sys; from opsin.models import MODELS, entry; assert entry('vgg16').params and len(MODELS) > 20; "
        "heavy = {'torch', 'numpy', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


if __name__ == "__main__":
    for listed in LISTED:
        (DATA / "state_dicts" / f"{listed}.txt").write_text("\n".join(lines(native(listed))) + "\n")
