"""Figures and pages: whole, self-contained, escaped, the same each time; and drawn by a browser where there is one."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from opsin import figures, metrics, report
from opsin.classifier import Prediction
from opsin.errors import UsageError
from opsin.evaluate import Report, summarise, summarise_labels

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(2)</script>',
    "$\\frac{",
    "猫 & été",
    "a\x00b\u202e",
    "\udcff",
)
VOID = {"meta", "img", "br", "link", "input", "hr"}


def some_report(num_classes: int = 6, n: int = 300, classes: tuple[str, ...] = (), sharp: float = 2.0) -> Report:
    generator = torch.Generator().manual_seed(num_classes)
    labels = torch.arange(n) % num_classes
    logits = torch.randn(n, num_classes, generator=generator) + sharp * torch.eye(num_classes)[labels]
    names = classes or tuple(f"class {i}" for i in range(num_classes))
    return summarise(torch.softmax(logits, 1), labels, names, [f"folder/{i}.png" for i in range(n)])


def picture(i: int, height: int = 8, width: int = 8, channels: int = 3) -> Tensor:
    return torch.full((channels, height, width), (37 * i) % 256, dtype=torch.uint8)


HISTORY = [{"epoch": i + 1, "train_error": 0.5 * 0.8**i, "test_error": 0.5 * 0.85**i + 0.05} for i in range(6)]


class Page(HTMLParser):
    """Checks while it reads: every element closed in order, unique ids; collects what the tests ask for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text, self.ids = "", list[str]()
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        assert len(values) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, values))
        if "id" in values:
            self.ids.append(values["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def pictures(self) -> list[Image.Image]:
        uris = [values["src"] for tag, values in self.elements if tag == "img"]
        return [Image.open(io.BytesIO(base64.b64decode(uri.partition(";base64,")[2], validate=True))) for uri in uris]


def check_self_contained(html: str) -> Page:
    """No script, no address of elsewhere, in any attribute or style; pictures decode."""
    page = Page(html)
    for tag, values in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for key, value in values.items():
            assert not key.startswith("on"), f"{tag} has {key}"
            if key in ("src", "href", "xlink:href", "data", "action", "srcset"):
                assert value.startswith(("data:image/", "#")), f"{tag} {key}={value[:60]}"
            if key != "xmlns" and not key.startswith("xmlns:") and key not in ("title", "alt"):
                assert "http:" not in value and "https:" not in value
    assert not re.search(r"url\((?!#)|@import", html)
    for image in page.pictures():
        image.load()
    policy = [v["content"] for tag, v in page.elements if v.get("http-equiv") == "Content-Security-Policy"]
    assert policy and policy[0].startswith("default-src 'none'")
    assert len(set(page.ids)) == len(page.ids), "an id twice"
    anchors = [v["href"][1:] for tag, v in page.elements if tag == "a"]
    assert set(anchors) <= set(page.ids)
    return page


def write(folder: Path, found: Report, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "recipe_toml": 'epochs = 3\nname = "<b>"\n',
        "environment": {"torch": "2.13.0", "cpu": {"count": 2, "name": "<i>"}, "gpu": None, "ok": True, "list": [1, 2]},
        "pictures": picture,
        "samples": {name: [picture(i) for i in range(12)] for name in found.classes},
        "title": "A <title>",
        "facts": {"minutes": 1.25, "parameters": 1234567},
    } | changes
    path = report.write(folder, found, HISTORY, **arguments)
    return path.read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------------------------------


def test_the_page_shows_what_it_should(tmp_path: Path) -> None:
    found = some_report()
    page = check_self_contained(write(tmp_path, found))
    for text in (
        report.percent(found.top1),
        report.percent(found.error),
        report.percent(found.top1_interval[0]),
        f"{found.num_wrong} wrong",
        f"{found.nll:.4f}",
        report.percent(found.calibration_error),
        "1,234,567",
        'name = "<b>"',
        "cpu count",
        "<i>",
        "A <title>",
    ):
        assert text in page.text, text
    assert {"run", "curve", "calibration", "confusion", "pairs", "classes", "mistakes", "samples", "recipe"} <= set(
        page.ids
    )
    assert len(page.pictures()) == len(found.wrong) + 10 * 6
    first = found.wrong[0]
    assert page.text.index(first.key) < page.text.index(found.wrong[1].key)
    cells = [
        v
        for tag, v in page.elements
        if tag == "td" and v.get("class", "").split()[:1] in (["right"], ["wrong"], ["zero"])
    ]
    assert len(cells) == 36
    assert page.pictures()[0].convert("RGB").getpixel((0, 0)) == ((37 * first.place) % 256,) * 3


def test_the_json_is_the_report_and_the_run(tmp_path: Path) -> None:
    found = some_report()
    write(tmp_path, found)
    values = json.loads((tmp_path / "report.json").read_text())
    assert values.pop("run") == {"minutes": 1.25, "parameters": 1234567}
    assert Report.from_dict(values) == found and values == json.loads(json.dumps(found.to_dict()))
    with pytest.raises(UsageError, match="finite JSON values"):
        write(tmp_path, found, facts={"minutes": float("nan")})


def test_the_same_page_for_the_same_values(tmp_path: Path) -> None:
    assert write(tmp_path / "a", some_report()) == write(tmp_path / "b", some_report())


def test_hostile_names_are_text(tmp_path: Path) -> None:
    found = some_report(len(HOSTILE), classes=HOSTILE)
    page = check_self_contained(write(tmp_path, found, title=HOSTILE[1]))
    for name in HOSTILE[:4]:
        assert name in page.text
    assert not [tag for tag, values in page.elements if "onerror" in values or values.get("src") == "x"]
    assert "\\udcff" in page.text
    assert json.loads((tmp_path / "report.json").read_text())["classes"] == list(HOSTILE)


@pytest.mark.parametrize("num_classes", [2, 20, 100, 120])
def test_few_and_many_classes(num_classes: int) -> None:
    found = some_report(num_classes, n=4 * num_classes)
    samples = {name: [picture(1)] * 12 for name in found.classes}
    page = check_self_contained(report.page(found, HISTORY, samples=samples, pictures=picture))
    table = [tag for tag, v in page.elements if v.get("class") == "confusion"]
    assert bool(table) == (num_classes <= 20)
    assert ("top-5 error" in page.text) == (num_classes > 5)
    assert ("#confusion" in [v.get("href") for _, v in page.elements]) == (num_classes <= 100)
    assert ("20 more are not shown" in page.text) == (num_classes == 120)
    strips = [v for tag, v in page.elements if v.get("class") == "strip"]
    assert len(strips) == min(num_classes, 100)


def test_a_bare_report_needs_nothing_else(tmp_path: Path) -> None:
    found = some_report(3, n=9, sharp=50.0)
    assert found.num_wrong == 0
    path = report.write(tmp_path, found)
    page = check_self_contained(path.read_text(encoding="utf-8"))
    assert not {"run", "curve", "mistakes", "pairs", "samples", "recipe", "environment", "skipped"} & set(page.ids)


def test_pictures_that_were_left_out_are_listed() -> None:
    found = summarise(torch.eye(2), torch.tensor([0, 1]), ("a", "b"), skipped=tuple(f"{i}.jpg: bad" for i in range(25)))
    page = check_self_contained(report.page(found))
    assert "19.jpg: bad" in page.text and "20.jpg: bad" not in page.text and "and 5 more" in page.text


def test_thumbnails() -> None:
    def back(thumbnail: report.Thumbnail) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(thumbnail.uri.partition(",")[2])))

    generator = torch.Generator().manual_seed(0)
    for channels in (1, 3):
        image = torch.randint(256, (channels, 32, 20), generator=generator, dtype=torch.uint8)
        small = report.thumbnail(image)
        assert small.small and small.uri.startswith("data:image/png;")
        pixels = np.asarray(back(small))
        assert np.array_equal(pixels if channels == 3 else pixels[..., None], image.permute(1, 2, 0).numpy())
        large = report.thumbnail(torch.zeros(channels, 300, 600, dtype=torch.uint8), side=100)
        assert not large.small and large.uri.startswith("data:image/jpeg;") and back(large).size == (100, 50)


def test_sample_indices() -> None:
    labels = [2, 0, 2, 2, 0, 5, 2]
    assert report.sample_indices(labels, 6, per_class=3) == [[1, 4], [], [0, 2, 3], [], [], [5]]


# ---------------------------------------------------------------------------------------------------------------------
# The sheet
# ---------------------------------------------------------------------------------------------------------------------


def test_the_sheet_shows_pictures_with_their_names(tmp_path: Path) -> None:
    names = [HOSTILE[0], "b.jpg", "c\udcff.png"]
    answers = [[Prediction(HOSTILE[1], 1, 0.75), Prediction("dog", 0, 0.25)]] * 3
    path = tmp_path / "out" / "sheet.html"
    group = report.predictions(names, answers, lambda i: picture(i, 90, 120))
    report.write_sheet(path, [group], title="P", lead="3 pictures", unreadable=["<x>.png: damaged"])
    page = check_self_contained(path.read_text(encoding="utf-8"))
    assert len(page.pictures()) == 3 and "3 pictures" in page.text
    assert HOSTILE[0] in page.text and HOSTILE[1] in page.text and "<x>.png: damaged" in page.text
    assert report.percent(0.75, 1) in page.text
    assert "width:75.0%" in [v.get("style") for _, v in page.elements]
    check_self_contained(report.sheet([report.predictions([], [], picture)], title="P"))
    with pytest.raises(UsageError, match="received 2 and 3"):
        report.predictions(["a", "b"], answers, picture)


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------


def texts(svg: bytes) -> list[str]:
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def size_of(png: bytes) -> tuple[int, int]:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image.size


def test_learning_curve() -> None:
    svg = figures.learning_curve(HISTORY)
    assert {"training error", "test error", "error in per cent"} <= set(texts(svg))
    assert "validation error" not in texts(svg)
    validated = [{**row, "val_error": 0.3} for row in HISTORY]
    assert "validation error" in texts(figures.learning_curve(validated))
    assert size_of(figures.learning_curve(HISTORY, "png")) == (921, 576)
    assert svg == figures.learning_curve(HISTORY) and b"<dc:date>" not in svg
    assert figures.learning_curve(HISTORY, "png") == figures.learning_curve(HISTORY, "png")


def test_curve_points_are_those_that_can_be_drawn() -> None:
    history = [
        {"epoch": 1, "test_error": 0.5},
        {"epoch": 2, "test_error": float("nan")},
        {"epoch": 3},
        {"epoch": 4, "test_error": None},
        {"test_error": 0.1},
        {"epoch": 5, "test_error": 0.25},
    ]
    assert figures.curve_points(history, "test_error") == [(1.0, 0.5), (5.0, 0.25)]
    assert figures.learning_curve(history)


@pytest.mark.parametrize("history", [[], [{"epoch": 1}], [{"epoch": 1, "train_error": float("inf")}]])
def test_an_empty_curve_says_so(history: list[dict[str, float]]) -> None:
    assert "no pass finished" in texts(figures.learning_curve(history))


@pytest.mark.parametrize("history", [HISTORY[:1], [{"epoch": i, "test_error": 0.0} for i in (1, 2)], HISTORY * 40])
def test_short_long_and_perfect_curves_can_be_drawn(history: list[dict[str, float]]) -> None:
    assert "test error" in texts(figures.learning_curve(history))


@pytest.mark.parametrize("k", [1, 20, 100, 150])
def test_confusion_matrix(k: int) -> None:
    table = [[7 if i == j else int((i + j) % 3 == 0) for j in range(k)] for i in range(k)]
    shown = texts(figures.confusion_matrix(table, [f"name {i}" for i in range(k)]))
    assert shown.count("7") == (k if k <= 20 else 0)
    assert shown.count("name 0") == (2 if k <= 100 else 0)


def test_names_in_figures_are_text() -> None:
    table = np.eye(len(HOSTILE), dtype=int).tolist()
    shown = texts(figures.confusion_matrix(table, HOSTILE))
    assert HOSTILE[2] in shown and "猫 & été" in shown and any("<img" in text for text in shown)
    assert size_of(figures.confusion_matrix(table, HOSTILE, "png"))
    with pytest.raises(UsageError, match=r"expected \[3, 3\]"):
        figures.confusion_matrix(table, ["a", "b", "c"])


def test_reliability_diagram() -> None:
    found = some_report()
    svg = figures.reliability_diagram(found.reliability)
    assert {"calibrated", "accuracy", "part of the pictures"} <= set(texts(svg))
    assert svg == figures.reliability_diagram(found.reliability)
    one = metrics.reliability(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert figures.reliability_diagram(one, "png")


def test_inline_takes_the_page_s_colours_and_stays_whole() -> None:
    for svg in (
        figures.learning_curve(HISTORY),
        figures.reliability_diagram(some_report().reliability),
        figures.confusion_matrix(some_report(30, n=90).confusion, [f"c{i}" for i in range(30)]),
    ):
        text = figures.inline(svg)
        root = ET.fromstring(text)
        assert "width" not in root.attrib and "height" not in root.attrib and "viewBox" in root.attrib
        assert "var(--ink)" in text and not re.search(r"(?:fill|stroke): #(?!ffffff)", text)
        assert "font-family" not in text


def test_picture_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (10, 3, 32, 32), generator=generator, dtype=torch.uint8)
    png = figures.picture_grid(images, columns=4)
    sheet = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert sheet.shape == (3 * 104 + 8, 4 * 104 + 8, 3)
    for i in range(10):
        top, left = 8 + i // 4 * 104, 8 + i % 4 * 104
        tile = sheet[top : top + 96 : 3, left : left + 96 : 3]
        assert np.array_equal(tile, images[i].permute(1, 2, 0).numpy()), i
    assert (sheet[-50:, -50:] == 255).all()
    titled = figures.picture_grid(images, [*HOSTILE, "a", "b", "a very long title, longer than its picture", "d"])
    assert size_of(titled) == (8 * 104 + 8, 2 * 122 + 8)
    assert size_of(figures.picture_grid(images[:1, :1].repeat(1, 1, 8, 8), columns=3)) == (272, 272)
    for wrong in (images.float(), images[0], images[:, :2], images[:0]):
        with pytest.raises(UsageError, match=r"uint8 \[N, 1 or 3, H, W\]"):
            figures.picture_grid(wrong)
    with pytest.raises(UsageError, match="10 titles, received 8 and 1"):
        figures.picture_grid(images, ["x"])


def test_figures_leave_matplotlib_as_it_was() -> None:
    before = dict(matplotlib.rcParams)
    figures.learning_curve(HISTORY)
    figures.picture_grid(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), ["x"])
    assert dict(matplotlib.rcParams) == before


# ---------------------------------------------------------------------------------------------------------------------
# A real browser
# ---------------------------------------------------------------------------------------------------------------------

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_draws_the_page(tmp_path: Path) -> None:
    assert BROWSER is not None
    write(tmp_path, some_report(len(HOSTILE), classes=HOSTILE))
    shot = tmp_path / "page.png"
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [
        BROWSER,
        *quiet.split(),
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={shot}",
        "--window-size=1000,1600",
        (tmp_path / "report.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert shot.is_file(), done.stderr
    assert "Refused" not in done.stderr and "CONSOLE" not in done.stderr
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape == (1600, 1000, 3)
    blue = (pixels[..., 2] > pixels[..., 0] + 80).mean()
    orange = (pixels[..., 0] > pixels[..., 2] + 80).mean()
    assert blue > 0.001 and orange > 0.0005, "the curves and the confusion matrix are drawn in their colours"


def test_a_page_of_many_labels_has_its_own_numbers_and_no_others(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(40, 3, generator=generator) < 0.4).float()
    labels[:, 2] = 0
    probabilities = torch.rand(40, 3, generator=generator)
    keys = [f"{i}.png" for i in range(40)]
    found = summarise_labels(probabilities, labels, ("cat", "<b>dog", "none"), (0.5, 0.5, 0.5), keys, resamples=200)
    history = [{"epoch": i + 1, "val_map": 0.5 + 0.1 * i} for i in range(3)]
    report.write(tmp_path, found, history, pictures=picture, samples={"cat": [picture(1)]})
    page = Page((tmp_path / "report.html").read_text())
    for text in ("mean average precision", "95 % interval", "all labels together", "1 − mean average precision"):
        assert text in page.text
    for name in ("Confusion", "Calibration"):
        assert name not in page.text
    assert f"{100 * found.map:.2f}" in page.text and "<b>dog" in page.text
    assert len([1 for tag, _ in page.elements if tag == "figure"]) == len(found.wrong)
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["map"] == found.map and values["per_class"][2]["ap"] is None
