"""Finding and grouping: against slow oracles, with hostile names, and through the command."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from opsin import album, chosen, classifier, models, report, storage
from opsin.classifier import NetClassifier
from opsin.console import Reporter
from opsin.data.datasets import load
from opsin.data.index import ArraySource, Index
from opsin.errors import BadInput, OpsinError, StorageError, UsageError
from opsin.preprocess import Preprocess
from opsin.recipe import ModelSpec
from tests import make
from tests.conftest import Said
from tests.unit.test_report import HOSTILE, check_self_contained

CLASSES = ("dark", "light", "middle")
pytestmark = pytest.mark.usefixtures("one_thread")


def net(thresholds: tuple[float, ...] | None = None) -> NetClassifier:
    """A narrow network whose weights are random, always the same ones."""
    torch.manual_seed(3)
    options = {"widths": [8, 8, 8], "scale": 0.5}
    model = models.build("smallnet", len(CLASSES), 3, **options)
    preprocess = Preprocess(size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return NetClassifier(model, preprocess, CLASSES, ModelSpec(name="smallnet", options=options), thresholds)


def some_pictures(folder: Path, count: int = 9, side: int = 20) -> Path:
    """Class folders `dark` and `light` of `count` pictures each, all different."""
    for label, name in enumerate(CLASSES[:2]):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = make.noise(side, side, 3, seed=100 * label + i) // 3 + np.uint8(90 * label)
            pixels[: 2 * i + 1, :, i % 3] = 255
            Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pictures/` of two classes of 9 and `classifier/`, a saved `net()`. Tests only read it."""
    folder = tmp_path_factory.mktemp("shared")
    some_pictures(folder / "pictures")
    classifier.save(net(), folder / "classifier")
    return folder


def any_pictures(folder: Path) -> Index:
    return chosen.any_pictures(str(folder), None, "", Reporter())


# ---------------------------------------------------------------------------------------------------------------------
# Search
# ---------------------------------------------------------------------------------------------------------------------


def cosines(asked: NetClassifier, queries: list[Tensor], data: Index, at: str = "stage3") -> np.ndarray:
    """The slow way, float64 [queries, N]: one picture after the other, pair by pair."""

    def vector(picture: Tensor) -> np.ndarray:
        maps = asked.features(asked.prepare(picture)[None], at)
        return maps.flatten(2).mean(2)[0].double().numpy()

    theirs = [vector(data.image(i)) for i in range(len(data))]
    return np.array([[a @ b / np.sqrt((a @ a) * (b @ b)) for b in theirs] for a in map(vector, queries)])


@pytest.mark.parametrize("at", ["", "stage1"])
def test_search_is_exact(shared: Path, at: str) -> None:
    asked, data = net(), any_pictures(shared / "pictures")
    queries = [torch.from_numpy(make.noise(3, 24, 30, seed=seed)) for seed in range(3)]
    found = album.search(asked, data, [*queries], at=at, top=7, batch_size=4)
    expected = cosines(asked, queries, data, at or "stage3")
    assert list(found) == [0, 1, 2]
    for place, neighbours in found.items():
        row = expected[place]
        assert [one.similarity for one in neighbours] == pytest.approx(sorted(row, reverse=True)[:7], abs=2e-5)
        assert [row[one.place] for one in neighbours] == pytest.approx([n.similarity for n in neighbours], abs=2e-5)
        assert [one.key for one in neighbours] == [data.keys[one.place] for one in neighbours]
        assert [one.classes for one in neighbours] == [(data.keys[one.place].split("/")[0],) for one in neighbours]
        assert not any(one.same for one in neighbours)
    assert np.ptp(expected) > 0.01, "pictures that are all alike would find anything"


def test_search_does_not_depend_on_the_batches(shared: Path) -> None:
    asked, data = net(), any_pictures(shared / "pictures")
    queries = [shared / "pictures" / "dark" / "001.png", torch.from_numpy(make.noise(3, 24, 30))]
    found = [album.search(asked, data, queries, top=5, batch_size=size, workers=size % 3 + 1) for size in (1, 5, 64)]
    assert found[0] == found[1] == found[2]


def test_equals_come_by_their_names_and_the_same_picture_is_marked(tmp_path: Path) -> None:
    pictures = some_pictures(tmp_path / "pictures", 4)
    (pictures / "dark" / "002.png").rename(pictures / "dark" / "zz.png")
    for name in ("light/a.png", "dark/b.png"):
        shutil.copy(pictures / "dark" / "zz.png", pictures / name)
    # The same for the network, which sees 16×16 pixels of one colour; not the same picture.
    for side in (20, 40):
        Image.new("RGB", (side, side), (200, 10, 60)).save(pictures / "light" / f"red{side}.png")
    data = any_pictures(pictures)
    for batch_size in (1, 3, 64):
        found = album.search(net(), data, [pictures / "dark" / "zz.png"], top=4, batch_size=batch_size)[0]
        assert [one.key for one in found[:3]] == ["dark/b.png", "dark/zz.png", "light/a.png"]
        assert [one.similarity for one in found[:3]] == [1, 1, 1] and all(one.same for one in found[:3])
        assert found[3].similarity < 1 and not found[3].same
    red = album.search(net(), data, [pictures / "light" / "red40.png"], top=2)[0]
    assert [(one.key, one.similarity, one.same) for one in red] == [
        ("light/red20.png", 1, False),
        ("light/red40.png", 1, True),
    ]


def test_search_gives_all_there_are(shared: Path) -> None:
    data = any_pictures(shared / "pictures")
    found = album.search(net(), data, [data.image(0)], top=1000)[0]
    assert sorted(one.place for one in found) == list(range(18))
    similarities = [one.similarity for one in found]
    assert similarities == sorted(similarities, reverse=True)
    assert album.search(net(), data, []) == {}


def test_search_says_what_it_cannot(shared: Path) -> None:
    data = any_pictures(shared / "pictures")
    with pytest.raises(UsageError, match="received 0"):
        album.search(net(), data, [data.image(0)], top=0)
    with pytest.raises(UsageError, match="stage2"):
        album.search(net(), data, [data.image(0)], at="stage9")
    with pytest.raises(UsageError, match="Levels has no stages"):
        album.search(Levels(("a", "b")), data, [data.image(0)])
    broken = net()
    broken.model.get_parameter("stages.stage1.0.weight").data[0] = float("nan")
    with pytest.raises(OpsinError, match="diverged"):
        album.search(broken, data, [data.image(0)])
    with pytest.raises(BadInput, match=r"none\.png"):
        album.search(net(), data, [Path("none.png")])


def test_search_passes_over_what_cannot_be_read(tmp_path: Path) -> None:
    pictures = some_pictures(tmp_path / "pictures", 3)
    data = any_pictures(pictures)
    (pictures / "dark" / "001.png").write_bytes(b"damaged since")
    told: list[tuple[str, int]] = []
    found = album.search(
        net(),
        data,
        [b"no picture", pictures / "light" / "000.png"],
        bad_query=lambda place, error: told.append(("query", place)),
        bad_picture=lambda place, error: told.append(("picture", place)),
    )
    assert told == [("query", 0), ("picture", 1)] and list(found) == [1]
    assert found[1][0].place == 3 and sorted(one.place for one in found[1]) == [0, 2, 3, 4, 5]


def test_the_sheet_of_a_search_is_bounded(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(album, "MAX_SHOWN", 10)
    data = any_pictures(shared / "pictures")
    found = album.search(net(), data, [data.image(i) for i in range(4)], top=6)
    groups, hidden = album.neighbours_page(data, ["a", "b", "c", "d"], data.image, found)
    assert [len(group.shown) for group in groups] == [7, 3] and groups[1].note == "2 of 6 are shown"
    assert "2 more pictures" in hidden and groups[0].note == ""
    assert groups[0].shown[0].mark == "asked" and groups[0].shown[1].mark == "the same picture"


# ---------------------------------------------------------------------------------------------------------------------
# Group
# ---------------------------------------------------------------------------------------------------------------------


class Levels:
    """Pictures of one colour, which is the answer: red is the class, green its probability in per cent, blue that of
    the next class where there are thresholds."""

    def __init__(self, classes: tuple[str, ...], thresholds: tuple[float, ...] | None = None) -> None:
        self.classes, self.thresholds = classes, thresholds

    def prepare(self, image: Tensor) -> Tensor:
        return image.double().mean((1, 2))

    def probabilities(self, prepared: Tensor) -> Tensor:
        count = len(self.classes)
        answers = []
        for label, part, other in prepared.tolist():
            row = [0.0 if self.thresholds else (1 - part / 100) / (count - 1)] * count
            row[int(label)] = part / 100
            if self.thresholds:
                row[(int(label) + 1) % count] = other / 100
            answers.append(row)
        return torch.tensor(answers)


def coloured(path: Path, *colour: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), colour).save(path, "PNG")
    return path


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_each_picture_is_in_one_folder(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    levels = [(0, 90), (1, 95), (1, 61), (1, 59), (2, 60), (0, 40)]
    for i, (label, part) in enumerate(levels):
        coloured(pictures / f"{i}.png", label, part, 0)
    data = any_pictures(pictures)
    assert data.classes == () and data.labels.shape == (6, 0)
    for batch_size in (1, 4, 64):
        made = album.group(Levels(CLASSES), data, batch_size=batch_size)
        assert [(name, [one.place for one in some]) for name, some in made.groups()] == [
            ("dark", [0]),
            ("light", [1, 2]),
            ("middle", [4]),
            ("unsure", [3, 5]),
        ]
    assert [round(one.probability, 6) for one in made.placed] == [0.9, 0.95, 0.61, 0.59, 0.6, 0.4]
    folders = album.write(made, tmp_path / "album")
    assert folders == {"dark": "dark", "light": "light", "middle": "middle"}
    names = ["album.json", "dark/0.png", "light/1.png", "light/2.png", "middle/4.png", "unsure/3.png", "unsure/5.png"]
    assert files(tmp_path / "album") == names
    for name in names[1:]:
        assert (tmp_path / "album" / name).read_bytes() == (pictures / name.split("/")[1]).read_bytes()
    written = json.loads((tmp_path / "album" / "album.json").read_text())
    assert [one["file"] for one in written["pictures"]] == names[1:] and written["unreadable"] == []
    assert written["pictures"][4] == {
        "picture": "3.png",
        "class": "light",
        "probability": 0.59,
        "sure": False,
        "file": "unsure/3.png",
    }
    everything = album.group(Levels(CLASSES), data, sure=0)
    assert [name for name, _ in everything.groups()] == list(CLASSES) and all(one.sure for one in everything.placed)
    assert not any(one.sure for one in album.group(Levels(CLASSES), data, sure=1).placed)
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(UsageError, match="between 0 and 1"):
            album.group(Levels(CLASSES), data, sure=wrong)


def test_many_labels_are_named_by_their_thresholds(tmp_path: Path) -> None:
    asked = Levels(CLASSES, (0.5, 0.25, 0.75))
    pictures = tmp_path / "pictures"
    for name, *colour in (("a", 0, 50, 25), ("b", 0, 49, 24), ("c", 2, 75, 50), ("d", 2, 74, 50), ("e", 1, 30, 76)):
        coloured(pictures / f"{name}.png", *colour)
    made = album.group(asked, any_pictures(pictures))
    assert {name: [one.place for one in some] for name, some in made.groups()} == {
        "dark": [0, 2, 3],
        "light": [0, 4],
        "middle": [2, 4],
        "unsure": [1],
    }
    album.write(made, tmp_path / "album")
    assert [name for name in files(tmp_path / "album") if "/a.png" in name] == ["dark/a.png", "light/a.png"]
    with pytest.raises(UsageError, match="a threshold for each class"):
        album.group(asked, any_pictures(pictures), sure=0.5)


NAMES = (
    "../../x",
    "CON",
    "a",
    "A",
    "l" * 300,
    "new\nline",
    "..",
    "unsure",
    "album.json",
    "é",
    "e\u0301",
    "b\u202e/c. ",
)


def test_names_of_strangers_stay_in_the_album(tmp_path: Path) -> None:
    keys = ["../../x.png", "a/1.png", "b/1.png", "c/1.PNG", "AUX.png", "n\nl.png", ".hidden", "-rf", f"{'ü' * 200}.png"]
    rows = [(label, 90, 0) for label in range(len(NAMES))] + [(2, 90, 0)] * len(keys)
    images = np.array(rows, np.uint8)[:, :, None, None].repeat(2, 2).repeat(2, 3)
    names = [f"{i}" for i in range(len(NAMES))] + keys
    data = Index(names, np.zeros((len(names), 0), np.float32), (), ArraySource(images))
    outer = tmp_path / "outer"
    folders = album.write(album.group(Levels(NAMES), data), outer / "album")
    assert os.listdir(tmp_path) == ["outer"] and os.listdir(outer) == ["album"]
    found = [path.relative_to(outer / "album") for path in (outer / "album").rglob("*")]
    assert sorted(folders) == sorted(NAMES)
    assert len({name.casefold() for name in folders.values()} | {"unsure", "album.json"}) == len(NAMES) + 2
    assert len(files(outer / "album")) == 1 + len(names) and max(len(path.parts) for path in found) == 2
    inner = [path for path in found if path.parts[0] == folders["a"] and len(path.parts) == 2]
    assert len({path.name.casefold() for path in inner}) == len(inner) == 1 + len(keys)
    for part in {part for path in found for part in path.parts}:
        assert part.isprintable() and not part.startswith((".", "~")) and not part.endswith((".", " "))
        assert len(part.encode()) <= 160 and not set(part) & set('<>:"/\\|?*')
        assert part.split(".")[0].lower() not in ("con", "aux")
    with Image.open(outer / "album" / folders["a"] / "1.png") as picture:  # an array has no files
        assert picture.size == (2, 2) and picture.getpixel((0, 0)) == (2, 90, 0)


def test_files_keep_their_bytes_whatever_they_are(tmp_path: Path) -> None:
    pictures = make.pictures_of_all_modes(tmp_path / "pictures", ("one",))
    (pictures / "one" / "colour.png").rename(pictures / "one" / "c\udcff.png")
    data = any_pictures(pictures)
    album.write(album.group(net(), data, sure=0), tmp_path / "album")
    before = sorted(path.read_bytes() for path in pictures.rglob("*.*"))
    assert len(before) == 15
    assert sorted(path.read_bytes() for path in (tmp_path / "album").rglob("*.*") if path.suffix != ".json") == before


def test_links_lead_to_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coloured(tmp_path / "pictures" / "a.png", 0, 90, 0)
    coloured(tmp_path / "pictures" / "deep" / "a.png", 0, 90, 0)
    monkeypatch.chdir(tmp_path)
    album.write(album.group(Levels(CLASSES), any_pictures(Path("pictures"))), "made", link=True)
    (tmp_path / "made").rename(tmp_path / "moved")
    links = [tmp_path / "moved" / "dark" / name for name in ("a.png", "a-2.png")]
    assert all(link.is_symlink() for link in links)
    assert [os.path.realpath(link) for link in links] == [
        os.path.realpath(tmp_path / "pictures" / name) for name in ("a.png", "deep/a.png")
    ]


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    coloured(tmp_path / "pictures" / "a.png", 0, 90, 0)
    made = album.group(Levels(CLASSES), any_pictures(tmp_path / "pictures"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("full", "file", "link"):
        with pytest.raises(StorageError, match="is there already"):
            album.write(made, tmp_path / name)
    assert files(tmp_path / "full") == ["mine.txt"] and (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    album.write(made, tmp_path / "empty")
    assert files(tmp_path / "empty") == ["album.json", "dark/a.png"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "no space left")])
def test_nothing_is_left_when_it_is_cut(tmp_path: Path, error: Any) -> None:
    for i in range(3):
        coloured(tmp_path / "pictures" / f"{i}.png", 0, 90, 0)
    made = album.group(Levels(CLASSES), any_pictures(tmp_path / "pictures"))

    def cut(done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            raise error

    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else StorageError):
        album.write(made, tmp_path / "album", progress=cut)
    assert sorted(os.listdir(tmp_path)) == ["pictures"]


def test_a_picture_that_breaks_meanwhile_is_listed(tmp_path: Path) -> None:
    for i in range(3):
        coloured(tmp_path / "pictures" / f"{i}.png", 0, 90, 0)
    data = any_pictures(tmp_path / "pictures")
    (tmp_path / "pictures" / "0.png").write_bytes(b"damaged since")
    made = album.group(Levels(CLASSES), data)
    (tmp_path / "pictures" / "1.png").unlink()
    album.write(made, tmp_path / "album")
    written = json.loads((tmp_path / "album" / "album.json").read_text())
    assert files(tmp_path / "album") == ["album.json", "dark/2.png"]
    assert [Path(one["key"]).name for one in written["unreadable"]] == ["0.png", "1.png"]
    assert [one["file"] for one in written["pictures"]] == ["", "dark/2.png"]


def test_the_sheet_of_an_album_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(album, "MAX_GROUPS", 3)
    monkeypatch.setattr(album, "MAX_SHOWN", 12)
    classes = tuple(f"{name}{i}" for i, name in enumerate(HOSTILE[:4]))
    for label in range(4):
        for i in range(6):
            coloured(tmp_path / "pictures" / f"{label}{i}.png", label, 70 + i, 0)
    coloured(tmp_path / "pictures" / "x.png", 1, 50, 0)
    made = album.group(Levels(classes), any_pictures(tmp_path / "pictures"))
    groups, hidden = album.album_page(made)
    assert hidden.strip() == "Not shown: 2 more classes." and len(groups) == 3
    assert [one.name for one in groups[0].shown] == ["05.png", "04.png", "03.png", "02.png"]  # the surest first
    assert groups[0].note == "6 pictures; 4 are shown" and groups[2].title.startswith("unsure")
    page = check_self_contained(report.sheet(groups, title="T", lead=hidden))
    assert len(page.pictures()) == 9 and HOSTILE[0] in page.text


# ---------------------------------------------------------------------------------------------------------------------
# The commands
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A flat folder: two good pictures, one damaged, one of no picture's ending."""
    folder = tmp_path / "mixed"
    some_pictures(tmp_path / "more", 2)
    folder.mkdir()
    for i in range(2):
        shutil.copy(tmp_path / "more" / "light" / f"00{i}.png", folder / f"{i}.png")
    (folder / "bad.png").write_bytes(make.encode(make.gradient())[:100])
    (folder / "notes.txt").write_text("notes")
    return folder


def test_search_command(shared: Path, tmp_path: Path, opsin_: Callable[..., Said]) -> None:
    run, data = shared / "classifier", shared / "pictures"
    picture = data / "light" / "003.png"
    said = opsin_("search", run, data, picture, "--top", 3, "--quiet")
    lines = said.out.splitlines()
    assert (said.code, said.err) == (0, "") and len(lines) == 4 and lines[0] == str(picture)
    assert lines[1] == "  1.000  light/003.png  light  (the same picture)"
    answer = json.loads(opsin_("search", run, data, picture, picture, "--top", 3, "--json").out)
    assert [row["key"] for row in answer["queries"]] == [str(picture)] * 2 and answer["unreadable"] == []
    found = answer["queries"][0]["neighbours"]
    assert found == answer["queries"][1]["neighbours"]
    assert found[0] == {"key": "light/003.png", "place": 12, "similarity": 1.0, "classes": ["light"], "same": True}
    sheet = tmp_path / "out" / "sheet.html"
    said = opsin_("search", run, data, picture, "--top", 3, "--csv", "--sheet", sheet)
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert said.code == 0 and str(sheet) in said.err
    assert [row["picture"] for row in rows] == [one["key"] for one in found]
    assert [float(row["similarity"]) for row in rows] == [one["similarity"] for one in found]
    assert (rows[0]["query"], rows[0]["rank"], rows[0]["same"]) == (str(picture), "1", "1")
    page = check_self_contained(sheet.read_text(encoding="utf-8"))
    assert len(page.pictures()) == 4 and "the same picture" in page.text and "18 pictures" in page.text


def test_search_in_a_folder_without_classes(mixed: Path, shared: Path, opsin_: Callable[..., Said]) -> None:
    run = shared / "classifier"
    said = opsin_("search", run, mixed, mixed / "1.png", "--json")
    answer = json.loads(said.out)
    assert said.code == 3 and said.err.count("bad.png") == 1
    assert [one["key"] for one in answer["queries"][0]["neighbours"]] == ["1.png", "0.png"]
    assert answer["queries"][0]["neighbours"][0]["classes"] == []
    assert [Path(one["key"]).name for one in answer["unreadable"]] == ["bad.png"]
    assert opsin_("search", run, mixed, mixed / "1.png", "--on-bad-image", "skip").code == 0
    said = opsin_("search", run, shared / "pictures", mixed / "bad.png", mixed / "0.png", mixed / "none.png", "--csv")
    assert said.code == 3 and len(said.out.splitlines()) == 11
    assert "bad.png" in said.err and "no such file" in said.err
    said = opsin_("search", run, shared / "pictures", mixed / "bad.png", "--on-bad-image", "skip", "--json")
    assert said.code == 3 and json.loads(said.out)["queries"] == []  # nothing was answered


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("search", "RUN", "DATA"), "no pictures given"),
        (("search", "RUN", "DATA", "x.png", "--top", "0"), "--top"),
        (("search", "RUN", "DATA", "x.png", "--json", "--csv"), "choose one"),
        (("search", "RUN", "DATA", "DATA", "--at", "stage7"), "stage3"),
        (("search", "RUN", "DATA", "DATA", "--split", "val"), "no part 'val'"),
        (("search", "RUN", "nowhere", "DATA"), "nowhere"),
        (("group", "RUN", "DATA", "--copy"), "-o DIR --copy"),
        (("group", "RUN", "DATA", "-o", "x"), "-o DIR --link"),
        (("group", "RUN", "DATA", "-o", "x", "--copy", "--link"), "choose one"),
        (("group", "RUN", "DATA", "--sure", "60"), "0.6"),
        (("group", "RUN", "digits", "-o", "x", "--link"), "--copy it"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], words: str, shared: Path, opsin_: Callable[..., Said]) -> None:
    places = {"RUN": shared / "classifier", "DATA": shared / "pictures"}
    said = opsin_(*(places.get(argument, argument) for argument in arguments))
    assert said.code == 2 and words in said.err and said.out == "" and said.err.count("\n") == 1
    assert not os.path.lexists("x")


def test_group_command(mixed: Path, shared: Path, tmp_path: Path, opsin_: Callable[..., Said]) -> None:
    run, data, made = shared / "classifier", shared / "pictures", tmp_path / "album"
    answer = json.loads(opsin_("group", run, data, "--sure", "0.4", "--json").out)
    paths = [data / row["picture"] for row in answer["pictures"]]
    expected = [p[0] for p in classifier.predict(classifier.load(run), paths, top=1, batch_size=1)]
    assert [row["class"] for row in answer["pictures"]] == [one.name for one in expected] and len(paths) == 18
    assert [row["probability"] for row in answer["pictures"]] == pytest.approx(
        [p.probability for p in expected], abs=1e-5
    )
    assert [row["sure"] for row in answer["pictures"]] == [one.probability >= 0.4 for one in expected]
    assert "folder" not in answer

    said = opsin_("group", run, data, "--sure", "0.4", "-o", made, "--copy", "--csv", "--sheet", tmp_path / "s.html")
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert said.code == 0 and [row["picture"] for row in rows] == [row["picture"] for row in answer["pictures"]]
    assert len([*made.rglob("*.png")]) == 18
    page = check_self_contained((tmp_path / "s.html").read_text(encoding="utf-8"))
    assert len(page.pictures()) == 18 and "18 pictures" in page.text

    said = opsin_("group", run, data, "-o", made, "--copy")
    assert said.code == 1 and "is there already" in said.err and said.out == ""
    said = opsin_("group", run, mixed, "-o", tmp_path / "linked", "--link", "--sure", "0")
    assert said.code == 3 and said.err.count("bad.png") == 1 and "unreadable  1\n" in said.out
    linked = [path for path in (tmp_path / "linked").rglob("*.png")]
    assert {os.path.realpath(path) for path in linked} == {os.path.realpath(mixed / f"{i}.png") for i in range(2)}
    said = opsin_("group", run, mixed, "--on-bad-image", "skip", "--json")
    assert said.code == 0 and len(json.loads(said.out)["pictures"]) == 2


def test_many_that_are_not_there_are_named_in_the_json_alone(
    shared: Path, tmp_path: Path, opsin_: Callable[..., Said]
) -> None:
    picture, run = shared / "pictures" / "dark" / "000.png", shared / "classifier"
    names = [f"none{i}.png" for i in range(150)]
    (tmp_path / "list.txt").write_text("".join(f"{name} dark\n" for name in [*names, picture]))
    for command in (("group", run, tmp_path / "list.txt"), ("search", run, tmp_path / "list.txt", picture)):
        said = opsin_(*command, "--json", "--sheet", tmp_path / "s.html")
        assert said.code == 3 and len(json.loads(said.out)["unreadable"]) == 150
        assert said.err.count("none") == 10 and "and 140 more" in said.err
        page = check_self_contained((tmp_path / "s.html").read_text(encoding="utf-8"))
        assert page.text.count("none") == 100 and "and 50 others" in page.text


def test_group_of_pictures_in_an_array(shared: Path, tmp_path: Path, opsin_: Callable[..., Said]) -> None:
    said = opsin_(
        "group", shared / "classifier", "digits", "--split", "test", "-o", tmp_path / "a", "--copy", "--sure", 0
    )
    assert said.code == 0
    written = json.loads((tmp_path / "a" / "album.json").read_text())["pictures"]
    assert len(written) == 360 and written[17]["picture"] == "test/00017" and written[17]["file"].endswith("/00017.png")
    digits = load("digits")["test"]
    for i in (0, 17, 359):
        with Image.open(tmp_path / "a" / written[i]["file"]) as picture:
            assert np.array_equal(np.asarray(picture), digits.image(i)[0].numpy())


def test_cut_by_a_signal(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opsin_: Callable[..., Said]
) -> None:
    write = album.write

    def interrupted(*arguments: Any, **options: Any) -> dict[str, str]:
        def progress(done: int, total: int) -> None:
            if done == 3:
                os.kill(os.getpid(), signal.SIGINT)

        return write(*arguments, **{**options, "progress": progress})

    monkeypatch.setattr(album, "write", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        said = opsin_("group", shared / "classifier", shared / "pictures", "-o", tmp_path / "album", "--copy")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (said.code, said.out) == (130, "") and "interrupted" in said.err
    assert os.listdir(tmp_path) == []


def test_new_folders_and_what_is_there(tmp_path: Path) -> None:
    with storage.new_folder(tmp_path / "a") as folder:
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "x").write_bytes(b"1")
        (folder / "gone").symlink_to(tmp_path / "nowhere")
    assert files(tmp_path / "a") == ["deep/er/x", "gone"]
