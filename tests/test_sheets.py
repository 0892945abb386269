"""The sheet of samples: training pictures of each class, as they are and as a training would augment them."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opsin import cli, report, run, samples
from opsin.data import datasets
from opsin.preprocess import CIFAR10_MEAN, CIFAR10_STD, Preprocess
from opsin.recipe import Augment, Recipe
from opsin.recipes import derive
from tests import make
from tests.conftest import write_pictures
from tests.unit.test_report import HOSTILE, check_self_contained

pytestmark = pytest.mark.usefixtures("one_thread")


def pixels(shown: report.Shown) -> np.ndarray:
    """What a picture of a sheet holds, uint8 [h, w] or [h, w, 3]."""
    with Image.open(io.BytesIO(base64.b64decode(shown.picture.uri.partition(",")[2]))) as picture:
        return np.asarray(picture)


def sheet_of(data: Path, tmp_path: Path, *arguments: str) -> tuple[str, int]:
    """The page that the command writes, and its exit code."""
    code = cli.call(["data", "show", str(data), "--sheet", str(tmp_path / "out" / "sheet.html"), *arguments])
    return (tmp_path / "out" / "sheet.html").read_text(encoding="utf-8"), code


def test_rows_of_training_pictures_and_of_what_becomes_of_them(pictures: Path) -> None:
    splits = datasets.load(str(pictures))
    train = splits["train"]
    groups, lead = samples.page(str(pictures), splits)
    recipe, words = derive.derive(run.facts(str(pictures), splits))
    assert [group.title for group in groups] == ["dark", "light"] and all(word in lead for word in words)
    assert [group.note for group in groups] == ["11 training pictures"] * 2  # the others validate and test
    for label, group in enumerate(groups):
        assert group.across == samples.PER_CLASS and len(group.shown) == (1 + samples.PASSES) * samples.PER_CLASS
        before, after = group.shown[: group.across], group.shown[group.across :]
        places = [list(train.keys).index(one.name) for one in before]
        assert len(set(places)) == len(places) and {int(train.labels[i]) for i in places} == {label}
        for place, one in zip(places, before, strict=True):
            assert np.array_equal(pixels(one), train.image(place).permute(1, 2, 0).numpy())
        assert {pixels(one).shape for one in after} == {(*recipe.preprocess.size, 3)}
        assert len({pixels(one).tobytes() for one in after}) == len(after)  # no two augmented alike


def test_without_augmentation_they_are_what_is_prepared(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean, deviation and size come from the recipe, and are undone to the level."""
    real = derive.derive

    def plain(facts: derive.Facts) -> tuple[Recipe, list[str]]:
        recipe, words = real(facts)
        return replace(recipe, augment=Augment()), words

    monkeypatch.setattr(derive, "derive", plain)
    splits = datasets.load(str(pictures))
    groups, _ = samples.page(str(pictures), splits)
    preprocess = real(run.facts(str(pictures), splits))[0].preprocess
    train = splits["train"]
    for group in groups:
        for before, *after in zip(*np.array_split(np.arange(len(group.shown)), 1 + samples.PASSES), strict=True):
            image = train.image(list(train.keys).index(group.shown[before].name))
            for i in after:
                assert np.array_equal(pixels(group.shown[i]), preprocess.prepare(image).permute(1, 2, 0).numpy())


def test_the_seed_alone_decides(pictures: Path) -> None:
    splits = datasets.load(str(pictures))
    one, again, other = (samples.page(str(pictures), splits, seed)[0] for seed in (1, 1, 2))
    assert one == again
    assert [shown.name for shown in one[0].shown] != [shown.name for shown in other[0].shown]
    assert all(a.picture != b.picture for a, b in zip(one[0].shown[6:], other[0].shown[6:], strict=True))


def test_many_classes_and_few_pictures_are_bounded_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_CLASSES", 5)
    names = tuple(f"c{i:02d}" for i in range(12))
    folder = write_pictures(tmp_path / "data", 5, names)
    splits = datasets.load(str(folder))
    groups, lead = samples.page(str(folder), splits)
    shown = [group.title for group in groups]
    assert len(set(shown)) == 5 and shown == sorted(shown) and set(shown) <= set(names) and "5 classes of 12" in lead
    assert [group.across for group in groups] == [3] * 5  # of five, two are for validation and test
    assert shown != [group.title for group in samples.page(str(folder), splits, 1)[0]]


def test_many_labels(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    lines = ["path,labels"]
    for i, image in enumerate(make.noise(12, 16, 16, 3)):
        Image.fromarray(image).save(tmp_path / "p" / f"{i}.png")
        lines.append(f"p/{i}.png,{('cat|' + HOSTILE[0], 'cat', '')[i % 3]}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    page, code = sheet_of(tmp_path / "list.csv", tmp_path)
    text = check_self_contained(page).text
    assert code == 0 and "many labels" in text and f"and {HOSTILE[0]}" in text and "and cat" in text


@pytest.mark.parametrize("form", ["folder", "list", "tar"])
def test_the_command_takes_data_of_any_form(form: str, pictures: Path, tmp_path: Path, capsys) -> None:
    data = pictures
    if form == "list":
        data = tmp_path / "list.txt"
        data.write_text("".join(f"{path} {path.parent.name}\n" for path in sorted(pictures.rglob("*.png"))))
    elif form == "tar":
        data = tmp_path / "p.tar"
        with tarfile.open(data, "w") as archive:
            archive.add(pictures, "p")
    page, code = sheet_of(data, tmp_path, "--json")
    said = capsys.readouterr()
    assert code == 0 and "sheet.html" in said.err and json.loads(said.out)["splits"] == {"all": 30}
    found = check_self_contained(page)
    assert len(found.pictures()) == 2 * 3 * samples.PER_CLASS and "drawn by seed 0" in " ".join(found.text.split())


def test_a_named_set_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    folder = make.named(monkeypatch, tmp_path / "data")
    page, code = sheet_of(Path("cifar10"), tmp_path, "--data-dir", str(folder), "--quiet")
    said = capsys.readouterr()
    assert code == 0 and said.out.startswith("cifar10: ") and said.err == ""
    found = check_self_contained(page)
    assert "airplane" in found.text and "mirrored" in found.text
    assert len(found.pictures()) == 10 * 3 * samples.PER_CLASS


def test_what_cannot_be_read_is_listed(pictures: Path, tmp_path: Path, capsys) -> None:
    (pictures / "dark" / "004.png").write_bytes(b"damaged")
    page, code = sheet_of(pictures, tmp_path)
    assert code == 0 and "004.png" in check_self_contained(page).text.partition("Could not be read")[2]
    capsys.readouterr()
    for path in (pictures / "light").iterdir():
        path.write_bytes(b"damaged")
    assert cli.call(["data", "show", str(pictures), "--sheet", str(tmp_path / "none.html")]) == 3
    assert "light" in capsys.readouterr().err and not (tmp_path / "none.html").exists()


def test_pixels_undo_normalize() -> None:
    preprocess = Preprocess(size=(16, 16), mean=CIFAR10_MEAN, std=CIFAR10_STD)
    images = torch.from_numpy(make.noise(5, 3, 16, 16))
    assert torch.equal(preprocess.pixels(preprocess.normalize(images)), images)
    assert preprocess.pixels(torch.full((1, 3, 2, 2), 99.0)).unique().tolist() == [255]
    assert preprocess.pixels(torch.full((1, 3, 2, 2), -99.0)).unique().tolist() == [0]
