"""Classical pipelines as a person meets them: trained, stopped, gone on with, asked, saved, and damaged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import opsin
from opsin import classifier as classifiers
from opsin import cli, storage
from opsin import run as runs
from opsin.classical import fitting, pipeline
from opsin.data.index import ArraySource, Index
from opsin.errors import DataError, Interrupted, StorageError, UsageError
from opsin.evaluate import measure
from opsin.preprocess import Preprocess
from opsin.recipe import Classical, Data, Descriptor, ModelSpec, Recipe, from_toml, override, to_toml
from opsin.recipes import classical, derive, find
from opsin.runfolder import Signals
from tests.test_run import Cut

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = Recipe(
    data=Data(name="made"),
    model=ModelSpec(name="patches"),
    preprocess=Preprocess(size=(16, 16), channels=3),
    classical=Classical(
        descriptors=(Descriptor(kind="patches", space="rgb", step=2, sizes=(4,), project=-1),),
        words=8,
        encoders=("triangle",),
        pyramid="2x2",
        pooling="sum",
        standardise=True,
        strength=0.1,
        samples=500,
        passes=3,
    ),
)
ALL = replace(
    SMALL.classical,
    descriptors=(
        Descriptor(kind="sift", step=4, sizes=(3, 4), project=8),
        Descriptor(kind="lbp", step=4, sizes=(8,)),
        Descriptor(kind="hog", space="opponent", step=4, sizes=(4,), project=8),
    ),
    encoders=("hard", "llc", "fisher", "omp"),
    gaussians=2,
    neighbours=3,
    sparsity=2,
    norm="whole",
    power=0.5,
)


def made(n: int, seed: int = 0, channels: int = 3, many: bool = False) -> Index:
    """Stripes that lie or stand, told apart by any descriptor; of many labels both may be there."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = rng.integers(0, 40, (n, channels, 16, 16)).astype(np.uint8)
    both = rng.random(n) < 0.3
    for i, label in enumerate(labels):
        start = int(rng.integers(4))
        if label == 0 or (both[i] and many):
            images[i, :, start::4] += 60
        if label == 1 or (both[i] and many):
            images[i, :, :, start::4] += 60
    given: Any = labels.astype(np.int64)
    if many:
        given = np.stack([(labels == 0) | both, (labels == 1) | both], 1).astype(np.float32)
    return Index(tuple(f"{i:04d}" for i in range(n)), given, ("lying", "standing"), ArraySource(images))


def parts(**options: Any) -> dict[str, Index]:
    return {"train": made(60, **options), "test": made(30, seed=1, **options)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    return runs.fit(SMALL, tmp_path_factory.mktemp("run") / "run", splits=parts())


def test_recipes_by_name_go_through_toml_and_take_settings() -> None:
    for name in classical.SUMMARIES:
        recipe = find(name)
        assert recipe.classical is not None and from_toml(to_toml(recipe)) == recipe
        assert classical.headline(recipe).startswith(f"{name}: ")
    assert override(find("bow"), "classical.words", "2048").classical.words == 2048
    assert "classical" not in to_toml(derive.small())
    with pytest.raises(UsageError, match="did you mean words"):
        override(find("bow"), "classical.wrds", "1")
    with pytest.raises(UsageError, match="this recipe has no classical"):
        override(derive.small(), "classical.words", "1")
    with pytest.raises(UsageError, match="kernel chi2 is of histograms"):
        override(find("llc"), "classical.additive", "chi2")


def test_a_run_learns_and_leaves_what_every_run_leaves(run) -> None:
    assert run.report.top1 >= 0.9
    names = {path.name for path in run.folder.iterdir()}
    assert {"recipe.toml", "environment.json", "splits.json", "log.jsonl", "report.json", "report.html"} <= names
    assert "stages" not in names
    assert any("calibrated on 6 training pictures" in words for words in run.words)
    stages = [json.loads(line)["stage"] for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert stages == ["vocabulary", "vectors", "machine"]


def test_it_is_loaded_asked_and_measured_as_any_other(run) -> None:
    loaded = opsin.load(run.folder)
    report = opsin.evaluate(loaded, parts()["test"])
    assert report.top1 == run.report.top1
    index = parts()["test"]
    named = classifiers.predict(loaded, [index.image(i) for i in range(4)])
    assert [answer[0].name for answer in named].count("lying") == 2
    vectors = classifiers.features(loaded, index, "vector")
    assert vectors.shape == (30, 4 * 8) and bool(torch.isfinite(vectors).all())
    with pytest.raises(UsageError, match="no stage 'stage3'; stages: vector"):
        classifiers.features(loaded, index, "stage3")


@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_grey_and_large_pictures_have_an_answer(run, level) -> None:
    loaded = run.load()
    pictures = [np.full(shape, level, np.uint8) for shape in ((16, 16, 3), (16, 16), (40, 90), (3, 5, 3))]
    for answer in classifiers.predict(loaded, pictures, top=2):
        assert sum(one.probability for one in answer) == pytest.approx(1, abs=1e-5)


def test_many_kinds_encoders_and_labels_at_once(tmp_path) -> None:
    recipe = replace(SMALL, classical=ALL, preprocess=Preprocess(size=(16, 16), channels=1, mean=(0.0,), std=(1.0,)))
    made_ = runs.fit(recipe, tmp_path / "run", splits=parts(channels=1, many=True))
    assert made_.report.map >= 0.8
    loaded = made_.load()
    assert classifiers.thresholds(loaded) == (0.5, 0.5)
    again = measure(loaded, parts(channels=1, many=True)["test"])
    assert again.map == made_.report.map


def test_a_picture_and_its_mirror_image_are_one_where_the_recipe_says_so(run) -> None:
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    plain = run.load().pipeline
    both = pipeline.Pipeline(replace(plain.classical, mirror=True), plain.preprocess, plain.tensors)
    expected = (plain.vectors(images) + plain.vectors(images.flip(3))) / 2
    torch.testing.assert_close(both.vectors(images), expected)
    torch.testing.assert_close(both.vectors(images.flip(3)), expected)
    assert (plain.vectors(images) - expected).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize("after", [0, 3, 5, 7, 9])
def test_a_run_that_is_stopped_goes_on_to_the_same_classifier(tmp_path, monkeypatch, after) -> None:
    monkeypatch.setattr(runs, "_load", lambda *_: parts())
    monkeypatch.setattr(fitting, "KEPT", 32 * 20)  # three parts
    whole = runs.fit(SMALL, tmp_path / "whole", splits=parts())
    monkeypatch.setattr(fitting, "Signals", Cut)
    monkeypatch.setattr(Cut, "at", after)
    with pytest.raises(Interrupted, match="opsin resume"):
        runs.fit(SMALL, tmp_path / "run", splits=parts())
    monkeypatch.setattr(fitting, "Signals", Signals)
    done = runs.resume(tmp_path / "run")
    one, other = (storage.read_folder(folder / "classifier") for folder in (whole.folder, done.folder))
    assert one["weights.safetensors"] == other["weights.safetensors"]


def test_other_pictures_are_not_gone_on_with(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fitting, "Signals", Cut)
    monkeypatch.setattr(Cut, "at", 6)
    with pytest.raises(Interrupted):
        runs.fit(SMALL, tmp_path / "run", splits=parts())
    monkeypatch.setattr(fitting, "Signals", Signals)
    monkeypatch.setattr(runs, "_load", lambda *_: {"train": made(50), "test": made(30, seed=1)})
    with pytest.raises(DataError, match="are not those that this run began with"):
        runs.resume(tmp_path / "run")


def test_too_small_pictures_and_network_options_are_said_before_anything_is_learnt(tmp_path) -> None:
    recipe = replace(SMALL, preprocess=replace(SMALL.preprocess, size=(3, 9)))
    with pytest.raises(UsageError, match="patches of size 4 covers 4 × 4 pixels, but pictures are prepared to 3 × 9"):
        runs.fit(recipe, tmp_path / "run", splits=parts())
    with pytest.raises(UsageError, match="bow is not a network: leave out epochs"):
        opsin.train("digits", model="bow", epochs=3, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def changed(folder: Path, change: Any) -> None:
    """The classifier with its configuration and tensors changed, and a manifest that says that all is well."""
    files = storage.read_folder(folder)
    config = json.loads(files["classifier.json"])
    tensors = storage.from_safetensors(files["weights.safetensors"], "weights")
    change(config, tensors)
    files["classifier.json"] = json.dumps(config).encode()
    files["weights.safetensors"] = storage.to_safetensors(tensors)
    storage.write_folder(folder, files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: c["pipeline"].update(words=9), "0.centres: expected"),
        (lambda c, t: c["pipeline"].update(pyramid="99x99"), "at most 1000 boxes"),
        (lambda c, t: c["pipeline"].update(pyramid="3x3"), "expected a machine of 72 numbers"),
        (lambda c, t: c["pipeline"].update(pyramid="99x99+" * 300), "classical.pyramid: expected at most 100 letters"),
        (lambda c, t: c["pipeline"].update(words=10**6), "classical.words"),
        (lambda c, t: c["preprocess"].update(size=[10**6, 10**6]), "at most 1024 pixels"),
        (lambda c, t: c.pop("machine"), "machine: expected a dict"),
        (lambda c, t: c["machine"].update(kind="forest"), "expected the arrays"),
        (lambda c, t: c.update(classes=["one", "two", "three"]), "and 3 classes"),
        (lambda c, t: c.update(thresholds=[0.5, 0.5]), "softmax"),
        (lambda c, t: t["pipeline.0.centres"].fill_(float("nan")), "not finite"),
        (lambda c, t: t.pop("pipeline.0.mean"), "expected the tensors"),
        (lambda c, t: t.update({"other": torch.zeros(1)}), "other: unexpected"),
    ],
)
def test_a_changed_file_is_refused(run, tmp_path, change, message) -> None:
    shutil.copytree(run.folder / "classifier", tmp_path / "classifier")
    changed(tmp_path / "classifier", change)
    with pytest.raises(StorageError, match=message):
        classifiers.load(tmp_path / "classifier")


@pytest.mark.parametrize("name", ["bow", "patches"])
def test_the_command_trains_evaluates_and_predicts(tmp_path, capsys, name) -> None:
    few = ["--set", "classical.words=24", "--set", "classical.samples=3000", "--set", "classical.passes=4"]
    assert (
        cli.call(["train", "digits", "--model", name, *few, "--out", str(tmp_path / "run"), "--min-top1", "0.8"]) == 0
    )
    capsys.readouterr()
    assert cli.call(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] >= 0.8
