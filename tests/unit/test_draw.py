"""Drawings: what stands in them is what the networks are, and no text is cut, covered or outside."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont
from torch import nn

from opsin import draw
from opsin.models import FIGURES, MODELS, PUBLISHED, build, entry, outline
from opsin.models.convnet import ConvNet
from opsin.models.layers import Branches, PreResidual, Residual
from opsin.models.outline import Outline, Panel, Part, Stage
from tests.test_imports import modules_after

# One of each form, and the long ones
FEW = [
    "lenet",
    "vgg16_cifar",
    "nin_cifar",
    "googlenet_cifar",
    "inception_v3_cifar",
    "resnet20",
    "preresnet20",
    "resnet50",
]
ALL = [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in MODELS]
SVG = "{http://www.w3.org/2000/svg}"


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def drawn(name: str) -> tuple[Outline, str]:
    found = outline.of(name)
    return found, draw.network(found)


# ---------------------------------------------------------------------------------------------------------------------
# Looking at an SVG
# ---------------------------------------------------------------------------------------------------------------------


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float
    text: str = ""

    def holds(self, other: Box, slack: float = 0.1) -> bool:
        return (
            self.left <= other.left + slack
            and self.top <= other.top + slack
            and self.right >= other.right - slack
            and self.bottom >= other.bottom - slack
        )

    def meets(self, other: Box) -> bool:
        across = min(self.right, other.right) - max(self.left, other.left)
        return across > 0 and min(self.bottom, other.bottom) - max(self.top, other.top) > 0


@cache
def font(bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, 100)


def text_box(element: ElementTree.Element) -> Box:
    """Where the text stands in DejaVu Sans, the widest of the fonts that are asked for."""
    x, y, size = (float(element.attrib[key]) for key in ("x", "y", "font-size"))
    text = element.text or ""
    width = font("font-weight" in element.attrib).getlength(text) * size / 100
    left = x - {"start": 0, "middle": width / 2, "end": width}[element.attrib["text-anchor"]]
    return Box(left, y - 0.76 * size, left + width, y + 0.24 * size, text)


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def looked_over(svg: str) -> list[str]:
    """Its texts in order, once none of them is cut, covered by another or outside."""
    root = parsed(svg)
    x, y, w, h = map(float, root.attrib["viewBox"].split())
    page = Box(x, y, x + w, y + h)
    texts = [text_box(element) for element in root.iter(f"{SVG}text")]
    rects = []
    for element in root.iter(f"{SVG}rect"):
        left, top, width, height = (float(element.attrib[key]) for key in ("x", "y", "width", "height"))
        rects.append(Box(left, top, left + width, top + height))
    for i, text in enumerate(texts):
        assert page.holds(text), text
        assert not [other for other in texts[:i] if text.meets(other)], text
        middle = Box(*[(text.left + text.right) / 2, (text.top + text.bottom) / 2] * 2)
        around = min(
            (rect for rect in rects if rect.holds(middle)), key=lambda r: (r.right - r.left) * (r.bottom - r.top)
        )
        assert around.holds(text), (text, around)
    for rect in rects:
        assert page.holds(rect)
    assert [child.tag for child in root[:2]] == [f"{SVG}title", f"{SVG}desc"] and root[0].text and root[1].text
    return [text.text for text in texts]


def titles(svg: str) -> list[str]:
    """What the groups say where a pointer rests on them."""
    return [group[0].text or "" for group in parsed(svg).iter(f"{SVG}g")]


# ---------------------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_drawing_shows_the_stages_and_shapes_that_are(name: str) -> None:
    table = entry(name)
    found, svg = drawn(name)
    texts = looked_over(svg)
    with torch.device("meta"):
        net = build(name, table.classes, table.channels).eval()
        images = torch.empty(1, table.channels, table.native_size, table.native_size)
    assert isinstance(net, ConvNet)
    said = iter(titles(svg))
    words = {word for text in texts for word in text.split(" · ")}
    shapes = {}
    with torch.no_grad():
        x = images
        for stage, module in net.stages.items():
            x = module(x)
            shapes[stage] = draw.shape_text(tuple(x.shape[1:]))
    assert list(shapes) == [stage.name for stage in found.stages]
    group = next(said)
    for stage, shape in shapes.items():
        assert stage in words and shape in texts
        if not re.search(rf"(^|, ){stage}(,|:)", group):
            group = next(said)
            while group.startswith("auxiliary"):
                group = next(said)
        assert re.search(rf"(^|, ){stage}(, \w+)*: {shape}, ", group)
    assert f"{table.classes}" in " ".join(texts)
    heads = [title for title in titles(svg) if title.startswith("auxiliary")]
    assert [title.split(":")[0] for title in heads] == [f"auxiliary head on {stage}" for stage in net.aux]


@pytest.mark.parametrize("name", ALL)
def test_an_outline_counts_all_that_there_is(name: str) -> None:
    found, table = drawn(name)[0], entry(name)
    parts = [*(stage.part for stage in found.stages), found.head]
    heads = [stage.aux for stage in found.stages if stage.aux is not None]
    assert sum(part.params for part in [*parts, *heads]) == table.params
    assert round(sum(part.macs for part in parts) / 1e6, 1) == table.million_macs


@pytest.mark.parametrize("name", ["lenet", "googlenet_cifar"])
def test_the_same_bytes_again(name: str) -> None:
    assert draw.network(outline.of(name)) == drawn(name)[1]


@pytest.mark.slow
def test_the_same_bytes_in_another_process() -> None:
    code = "from opsin import draw; from opsin.models import outline; print(draw.network(outline.of('inception_v3')))"

    def output(seed: int) -> str:
        environment = {"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    assert output(1) == output(2)


def test_repeated_blocks_are_counted() -> None:
    texts = looked_over(drawn("resnet50")[1])
    assert [text for text in texts if text.startswith("× ")][:4] == ["× 2", "× 3", "× 5", "× 2"]
    assert texts.count("identity") == 4  # one for each of the four that are repeated
    table = texts[texts.index("resnet50", 1) :][:15]
    assert table[10:] == ["resnet152", "× 3", "× 8", "× 36", "× 3"]


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("resnet34", ["resnet18", "resnet34"]),
        ("resnet26", ["resnet20", "resnet26", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202"]),
        ("vgg13_bn", ["vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"]),
        ("wrn40_2", ["wrn16_2", "wrn40_2"]),
        ("wrn28_10", []),
        ("googlenet", []),
    ],
)
def test_those_that_differ_in_depth_alone(name: str, others: list[str]) -> None:
    family = outline.family(name)
    assert list(family) == others
    for other, counts in list(family.items())[:3]:
        with torch.device("meta"):
            net = build(other, 10)
        assert isinstance(net, ConvNet)
        stages = [list(module.children()) for stage, module in net.stages.items() if "stage" in stage]
        unit = nn.Conv2d if "vgg" in other else Residual | PreResidual
        assert tuple(sum(isinstance(part, unit) for part in stage) for stage in stages) == counts


def test_an_outline_leaves_the_network_as_it_was() -> None:
    net = build("resnet20", 10, width=4).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert isinstance(net, ConvNet)
    outline.outline(net, (3, 32, 32))
    assert net.training and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_names_that_would_be_markup() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    Odd.__name__ = '<script>alert("&")</script>\x1b[2J'
    stage = nn.Sequential(Branches(nn.Conv2d(3, 4, 3, padding=1), Odd()), Residual(Odd(), nn.Identity()))
    net = ConvNet({"a<b>&'\x00": stage}, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 2)))
    found = outline.outline(net, (3, 8, 8))
    svg = draw.network(replace(found, name="<svg>\ud800"))
    texts = looked_over(svg)
    assert "a<b>&'\\x00" in texts and '<script>alert("&")</script>\\x1b[2J' in texts and texts[0] == "<svg>\\ud800"
    assert {element.tag for element in parsed(svg).iter()} <= {
        SVG + tag for tag in ("svg", "title", "desc", "rect", "path", "polygon", "text", "g")
    }
    svg.encode()


WORDS = st.text(st.sampled_from("aim WMQ×·/&<é漢0123"), min_size=1, max_size=24)
LAYERS = st.builds(
    Part,
    st.sampled_from(["conv", "dense", "pool", "change"]),
    st.just((64, 8, 8)),
    WORDS,
    st.one_of(st.just(""), WORDS),
)


def nested(inner: st.SearchStrategy[Part]) -> st.SearchStrategy[Part]:
    def several(kind: Any, least: int) -> st.SearchStrategy[Part]:
        some = st.lists(inner, min_size=least, max_size=3).map(tuple)
        return some.map(lambda parts: Part(kind, (64, 8, 8), parts=parts))

    def total(body: Part, shortcut: Part, note: str) -> Part:
        return Part("sum", (64, 8, 8), note=note, parts=(body, shortcut))

    identity = st.just(Part("chain", (64, 8, 8)))
    sums = st.builds(total, inner, st.one_of(identity, inner), st.sampled_from(["", "ReLU"]))
    twice = inner.map(lambda part: Part("chain", (64, 8, 8), parts=(part,) * 2))
    return st.one_of(several("chain", 1), several("branches", 2), sums, twice)


@given(part=st.recursive(LAYERS, nested, max_leaves=12), aux=st.one_of(st.none(), LAYERS))
@settings(max_examples=40, deadline=None)
def test_whatever_is_nested_finds_its_place(part: Part, aux: Part | None) -> None:
    stages = (Stage("first", part), Stage("second", part, aux), Stage("third", part))
    looked_over(draw.network(Outline("any", "of any parts", (3, 32, 32), stages, part)))
    looked_over(draw.panels("Two", "of any parts", [Panel("one", (3, 32, 32), part), Panel("other", (3, 8, 8), part)]))


# ---------------------------------------------------------------------------------------------------------------------
# Modules, history, published errors
# ---------------------------------------------------------------------------------------------------------------------


def test_the_inception_modules_are_those_of_the_paper() -> None:
    svg = draw.panels(*FIGURES["inception-module"], outline.figure("inception-module"))
    texts = looked_over(svg)
    assert texts.count("192 × 28 × 28") == 2 and "416 × 28 × 28" in texts and "256 × 28 × 28" in texts
    # table 1, module 3a: 159K parameters (in units of 1024) and 128M operations
    assert any(text == "163,696 parameters, 128 M multiply–adds" for text in texts)
    naive = 192 * 64 + 64 + 192 * 128 * 9 + 128 + 192 * 32 * 25 + 32
    assert f"{naive:,} parameters, 303 M multiply–adds" in texts


def test_the_residual_blocks_are_those_of_the_paper() -> None:
    svg = draw.panels(*FIGURES["residual-block"], outline.figure("residual-block"))
    texts = looked_over(svg)
    layers = [text for text in texts if re.fullmatch(r"\d×\d conv, \d+", text)]
    assert layers == ["3×3 conv, 64"] * 2 + ["1×1 conv, 64", "3×3 conv, 64", "1×1 conv, 256"]
    assert texts.count("identity") == 2 and texts.count("ReLU") == 2


def test_the_history_is_that_of_the_file() -> None:
    rows = draw.results()
    svg = draw.history(rows)
    texts = looked_over(svg)
    winners = [row for row in rows if row.kind != "human"]
    assert [row.error for row in winners] == sorted((row.error for row in winners), reverse=True)
    assert [row.year for row in winners] == [2010, 2011, 2012, 2013, 2014, 2014, 2015, 2016, 2017]
    (human,) = (row for row in rows if row.kind == "human")
    assert human.error == 5.1 and f"human {human.error}" in texts
    for row in rows:
        assert len(row.source) > 20 and f"{row.error:g}" in " ".join(texts) and row.entry in " ".join(texts)
    heights = [float(rect.attrib["height"]) for rect in parsed(svg).iter(f"{SVG}rect") if rect.attrib["width"] == "66"]
    assert heights == pytest.approx([10 * row.error for row in winners], abs=0.06)


def test_the_history_needs_no_torch(tmp_path: Path) -> None:
    code = f"from opsin.cli import call; assert call(['models', '--history', {str(tmp_path / 'x.svg')!r}]) == 0"
    assert not modules_after(code) & {"torch", "numpy", "PIL", "matplotlib"}
    assert (tmp_path / "x.svg").read_text(encoding="utf-8") == draw.history(draw.results())


def test_published_errors_are_of_data_that_the_network_is_for() -> None:
    for name, error in PUBLISHED.items():
        table = MODELS[name]
        assert table.error == error and 0 < error.per_cent < 50 and error.how and error.source
        data = {1000: "ImageNet", 10: "CIFAR-10" if table.channels == 3 else "MNIST"}[table.classes]
        assert error.of.split()[0] == data
    for family in (("vgg11", "vgg13", "vgg16", "vgg19"), ("resnet34", "resnet50", "resnet101", "resnet152")):
        errors = [PUBLISHED[name].per_cent for name in family]
        assert errors == sorted(errors, reverse=True)
    assert entry("resnet26").error is None
