"""Runs from the first step to the report, on small real ones: files, resuming, signals, choices, refusals."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import opsin
from opsin import cli, storage
from opsin import run as runs
from opsin.console import Reporter
from opsin.data.index import ArraySource, Index
from opsin.errors import DataError, Interrupted, NonFiniteLoss, StorageError, UsageError
from opsin.evaluate import LabelReport
from opsin.preprocess import Preprocess
from opsin.recipe import (
    SGD,
    AdamW,
    Augment,
    BinaryCrossEntropy,
    CrossEntropy,
    Data,
    Focal,
    ModelSpec,
    Muon,
    Recipe,
    Stop,
    from_toml,
    to_toml,
)
from opsin.runfolder import Signals
from opsin.schedule import Linear
from tests.conftest import write_pictures

TINY = Recipe(
    data=Data(name="made", batch_size=16),
    model=ModelSpec(name="smallnet", options={"widths": [8, 8, 8]}),
    preprocess=Preprocess(size=(10, 10), channels=1, mean=(0.5,), std=(0.3,)),
    augment=Augment(shift=1, flip="random", mixup=0.3, cutout=3, sizes=((0.0, 9), (0.5, 10))),
    optimizer=Muon(lr=0.1, sgd_lr=1.0),
    schedule=Linear(),
    loss=CrossEntropy(label_smoothing=0.1),
    epochs=3,
    ema=0.9,
    save_every=1,
)


pytestmark = pytest.mark.usefixtures("one_thread")


def made(n=50, seed=0, classes=("dark", "middle", "light")):
    """Grey pictures whose brightness tells the class."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % len(classes)
    levels = 40 + 80 * labels[:, None, None, None]
    images = np.clip(levels + generator.normal(0, 20, (n, 1, 10, 10)), 0, 255).astype(np.uint8)
    return Index([f"{seed}/{i}" for i in range(n)], labels.astype(np.int64), classes, ArraySource(images))


def splits(**parts):
    return {"train": made(), "test": made(31, seed=1), **parts}


def final(folder):
    """Everything that two equal runs share: weights, checkpoint, log without times, report without times."""
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    log = []
    for line in (folder / "log.jsonl").read_text().splitlines():
        row = json.loads(line)
        log.append({key: value for key, value in row.items() if key not in ("seconds", "images_per_second")})
    report = json.loads((folder / "report.json").read_text())
    del report["run"]["minutes"]
    return (
        (folder / "classifier" / "weights.safetensors").read_bytes(),
        (last / "tensors.safetensors").read_bytes(),
        log,
        report,
    )


def test_a_run_leaves_everything_that_it_promises_and_learns(tmp_path):
    run = runs.fit(TINY, tmp_path / "run", splits=splits())
    names = {path.name for path in run.folder.iterdir()}
    assert names == {
        "recipe.toml",
        "environment.json",
        "splits.json",
        "log.jsonl",
        "log.csv",
        "learning_curve.svg",
        "learning_curve.png",
        "inputs.png",
        "report.json",
        "report.html",
        "checkpoints",
        "classifier",
        "run.lock",
    }
    assert from_toml((run.folder / "recipe.toml").read_text()) == TINY
    assert run.report.top1 > 0.9
    report = json.loads((run.folder / "report.json").read_text())
    assert report["top1"] == run.report.top1 and report["n"] == 31 and report["run"]["epochs"] == 3
    again = opsin.evaluate(opsin.load(run.folder), splits()["test"])
    assert again.to_dict()["confusion"] == report["confusion"]
    history = (run.folder / "log.csv").read_text().splitlines()
    assert len(history) == 4 and history[0].startswith("epoch,step,train_loss,train_error,test_loss,test_error")
    steps = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if row["event"] == "step"] == list(range(1, 13))


def test_the_log_has_the_loss_of_each_head(tmp_path):
    recipe = replace(
        TINY,
        model=ModelSpec(name="googlenet_cifar", options={"width": 2}),
        optimizer=SGD(lr=0.02, momentum=0.9),
        loss=CrossEntropy(label_smoothing=0.1, aux_weights=(0.3, 0.2)),
        epochs=2,
        ema=0.0,
    )
    runs.fit(recipe, tmp_path / "run", splits=splits())
    with (tmp_path / "run" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for row in rows:
        total, *heads = (float(row[f"train_loss{name}"]) for name in ("", "_head0", "_head1", "_head2"))
        assert total == pytest.approx(heads[0] + 0.3 * heads[1] + 0.2 * heads[2], rel=1e-5)
        assert len(set(heads)) == 3


def test_the_same_recipe_gives_the_same_bits_and_another_seed_does_not(tmp_path):
    for name in ("a", "b"):
        runs.fit(TINY, tmp_path / name, splits=splits())
    runs.fit(replace(TINY, seed=1), tmp_path / "c", splits=splits())
    assert final(tmp_path / "a") == final(tmp_path / "b")
    assert final(tmp_path / "a")[0] != final(tmp_path / "c")[0]


class Told(Reporter):
    """Keeps what it is told."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)

    warn = say


class Cut(Signals):
    """A SIGTERM that arrives in step `at`."""

    at = 0

    def __init__(self):
        super().__init__()
        self.count = 0

    @property
    def received(self):
        self.count += 1
        return signal.SIGTERM if self.count > self.at else None

    @received.setter
    def received(self, value):
        pass


@pytest.mark.parametrize("at", [0, 2, 4, 5, 9])
def test_interrupted_anywhere_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, at):
    """Within an epoch, at its end, and while its evaluation runs; the loader then starts in the middle."""
    runs.fit(TINY, tmp_path / "whole", splits=splits())
    monkeypatch.setattr(runs, "Signals", type("CutHere", (Cut,), {"at": at}))
    with pytest.raises(Interrupted, match=r"SIGTERM: saved; go on with: opsin resume") as caught:
        runs.fit(TINY, tmp_path / "cut", splits=splits())
    assert caught.value.exit_code == 143
    monkeypatch.setattr(runs, "Signals", Signals)
    monkeypatch.setattr(runs, "_load", lambda *_: splits())
    torch.manual_seed(99)
    runs.resume(tmp_path / "cut")
    assert final(tmp_path / "cut") == final(tmp_path / "whole")


def test_a_finished_run_is_returned_and_never_trained_again(tmp_path):
    first = runs.fit(TINY, tmp_path / "run", splits=splits())
    again = runs.resume(tmp_path / "run")
    assert again.report == first.report
    with pytest.raises(UsageError, match="already holds a run"):
        runs.fit(TINY, tmp_path / "run", splits=splits())


def test_other_pictures_are_refused_on_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "Signals", type("CutHere", (Cut,), {"at": 3}))
    with pytest.raises(Interrupted):
        runs.fit(TINY, tmp_path / "run", splits=splits())
    monkeypatch.setattr(runs, "Signals", Signals)
    monkeypatch.setattr(runs, "_load", lambda *_: splits(train=made(49)))
    with pytest.raises(DataError, match="are not those that this run began with"):
        runs.resume(tmp_path / "run")


def test_a_loss_that_explodes_keeps_the_last_good_checkpoint(tmp_path):
    recipe = replace(TINY, optimizer=SGD(lr=1e30, momentum=0.0), augment=Augment(), ema=0.0, epochs=20)
    with pytest.raises(NonFiniteLoss, match="last good state is kept") as caught:
        runs.fit(recipe, tmp_path / "run", splits=splits())
    assert caught.value.exit_code == 5
    saved = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    for path in saved:
        storage.read_folder(path)
    assert not (tmp_path / "run" / "report.json").exists()


def test_early_stopping_keeps_the_best_pass_by_validation(tmp_path):
    recipe = replace(TINY, stop=Stop(patience=2), epochs=40, ema=0.0)
    run = runs.fit(recipe, tmp_path / "run", splits=splits(val=made(20, seed=2)))
    report = json.loads((run.folder / "report.json").read_text())
    chosen, errors = report["run"]["chosen_epoch"], [row["val_error"] for row in run.history]
    assert len(errors) == chosen + 2 < 40
    assert errors[chosen - 1] == min(errors) and min(errors) < min(errors[: chosen - 1], default=1)
    assert "test_error" not in run.history[0]  # the test part is read once, at the end
    with pytest.raises(UsageError, match=r"stop\.patience needs pictures to choose by"):
        runs.fit(recipe, tmp_path / "other", splits=splits())


def test_validation_is_held_out_of_the_training_pictures(tmp_path):
    run = runs.fit(replace(TINY, data=replace(TINY.data, validation=0.2)), tmp_path / "run", splits=splits())
    listed = json.loads((run.folder / "splits.json").read_text())
    train, val = set(listed["train"]["keys"]), set(listed["val"]["keys"])
    assert not train & val and len(train | val) == 50 and len(val) == 9  # a fifth of 17, 17 and 16
    assert "val_error" in run.history[0]


def test_pictures_read_from_disk_while_training_give_the_same_as_from_memory(tmp_path):
    folder = write_pictures(tmp_path / "pictures", 20, side=12)
    results = []
    for loader, workers in (("memory", 2), ("disk", 1), ("disk", 4)):
        out = tmp_path / f"{loader}{workers}"
        runs.train(
            str(folder),
            out=out,
            epochs=2,
            settings=[f"data.loader={loader}", f"data.workers={workers}", "model.options.widths=[8, 8, 8]"],
        )
        results.append((out / "classifier" / "weights.safetensors").read_bytes())
    assert results[0] == results[1] == results[2]


def test_random_crops_from_disk_do_not_depend_on_the_number_of_workers(tmp_path):
    folder = write_pictures(tmp_path / "pictures", 20, side=40)
    results = []
    for workers in (0, 1, 4):
        out = tmp_path / f"{workers}"
        settings = ["data.loader=disk", f"data.workers={workers}", "augment.crop=0.5", "model.options.widths=[8, 8, 8]"]
        runs.train(str(folder), out=out, epochs=2, settings=settings)
        results.append((out / "classifier" / "weights.safetensors").read_bytes())
    assert results[0] == results[1] == results[2]


def test_a_bad_picture_stops_the_run_by_name_or_is_left_out_and_reported(tmp_path):
    folder = write_pictures(tmp_path / "pictures", 15)
    (folder / "dark" / "007.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"007\.png"):
        runs.train(str(folder), out=tmp_path / "a", epochs=1)
    run = runs.train(str(folder), out=tmp_path / "b", epochs=1, on_bad_image="skip")
    report = json.loads((run.folder / "report.json").read_text())
    assert len(report["skipped"]) == 1 and "007.png" in report["skipped"][0]
    listed = json.loads((run.folder / "splits.json").read_text())
    assert sum(part["n"] for part in listed.values()) == 29


def test_a_dry_run_derives_and_checks_and_writes_nothing(tmp_path, pictures):
    run = runs.train(str(pictures), out=tmp_path / "run", dry_run=True)
    assert run.report is None and not (tmp_path / "run").exists()
    assert run.recipe.preprocess.size == (16, 16) and any("enlarged" in line for line in run.words)
    with pytest.raises(UsageError, match="no network 'smalnet'; did you mean smallnet"):
        runs.train(str(pictures), model="smalnet", dry_run=True)
    with pytest.raises(UsageError, match="expected key=value"):
        runs.train(str(pictures), settings=["epochs"], dry_run=True)


@pytest.mark.parametrize("model", ["resnet20", "lenet", "lenet5", "vgg16_cifar"])
def test_any_network_trains_on_any_folder(tmp_path, pictures, model):
    options = {
        "vgg16_cifar": ["model.options.width=4", "model.options.hidden=8"],
        "resnet20": ["model.options.width=2"],
    }
    run = runs.train(
        str(pictures), model=model, epochs=1, batch_size=8, out=tmp_path / "run", settings=options.get(model, [])
    )
    assert opsin.load(run.folder).classes == ("dark", "light")
    assert run.report.n == 4


def test_two_writers_in_one_folder_one_wins(tmp_path):
    with runs.Lock(tmp_path), pytest.raises(UsageError, match=f"is in use by process {os.getpid()} on "):
        runs.Lock(tmp_path)
    runs.Lock(tmp_path).__exit__()


def test_resume_of_what_is_no_run_says_so(tmp_path):
    with pytest.raises(StorageError, match="no run here"):
        runs.resume(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_the_command_and_resume_finishes_it(tmp_path, number):
    folder = write_pictures(tmp_path / "pictures", 60, side=16)
    out = tmp_path / "run"
    words = [sys.executable, "-m", "opsin", "train", str(folder), "--out", str(out), "--epochs", "400"]
    words += ["--set", "model.options.widths=[8, 8, 8]"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (out / "log.csv").exists():
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number, said
    assert "saved; go on with: opsin resume" in said and "Traceback" not in said
    saved = sorted(Path(out, "checkpoints").glob("step-*"))
    assert saved and storage.read_folder(saved[-1])
    state = json.loads((saved[-1] / "state.json").read_text())
    text = (out / "recipe.toml").read_text().replace("epochs = 400", f"epochs = {state['progress']['epoch'] + 1}")
    (out / "recipe.toml").write_text(text)
    run = runs.resume(out)
    assert run.report is not None and (out / "report.html").is_file()


@pytest.mark.parametrize("how", ["set", "toml"])
def test_a_seed_from_anywhere_splits_the_folder_as_resume_and_evaluate_do(tmp_path, pictures, monkeypatch, capsys, how):
    """The recipe's seed decides the split, wherever it was said; nobody's test part holds a training picture."""
    small = ["model.options.widths=[8, 8, 8]", "save_every=1"]
    if how == "set":
        options = {"settings": [*small, "seed=7"], "epochs": 2}
    else:
        made = runs.train(str(pictures), epochs=2, seed=7, settings=small, dry_run=True).recipe
        (tmp_path / "mine.toml").write_text(to_toml(made))
        options = {"recipe": str(tmp_path / "mine.toml")}
    monkeypatch.setattr(runs, "Signals", type("CutHere", (Cut,), {"at": 1}))
    with pytest.raises(Interrupted):
        runs.train(str(pictures), out=tmp_path / "run", **options)
    monkeypatch.setattr(runs, "Signals", Signals)
    run = runs.resume(tmp_path / "run")
    listed = json.loads((run.folder / "splits.json").read_text())
    write_pictures(pictures, 18)  # three more a class: another split, if it were made again
    assert cli.call(["evaluate", str(run.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["confusion"] == [list(row) for row in run.report.confusion]
    (pictures / listed["test"]["keys"][0]).unlink()
    assert cli.call(["evaluate", str(run.folder)]) == 3
    assert "are no longer in" in capsys.readouterr().err


def test_a_run_is_resumed_from_another_folder(tmp_path, pictures, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    monkeypatch.setattr(runs, "Signals", type("CutHere", (Cut,), {"at": 1}))
    with pytest.raises(Interrupted):
        runs.train(pictures.name, out=tmp_path / "run", epochs=2, settings=["model.options.widths=[8, 8, 8]"])
    monkeypatch.setattr(runs, "Signals", Signals)
    monkeypatch.chdir(tmp_path / "run")
    assert runs.resume(".").report is not None


def test_a_signal_in_the_last_evaluation_loses_nothing(tmp_path, monkeypatch):
    recipe = replace(TINY, stop=Stop(minutes=1e-9), save_every=0)  # ends within the first pass
    runs.fit(recipe, tmp_path / "whole", splits=splits())
    monkeypatch.setattr(runs, "Signals", type("CutHere", (Cut,), {"at": 0}))
    with pytest.raises(Interrupted):
        runs.fit(recipe, tmp_path / "cut", splits=splits())
    assert storage.read_folder(next((tmp_path / "cut" / "checkpoints").glob("step-*")))


def test_a_recipe_of_cifar_is_not_taken_for_other_pictures(pictures):
    made = runs.train(str(pictures), model="resnet20", dry_run=True).recipe
    assert made.epochs < 100 and not made.augment.flip and made.data.batch_size < 128


def test_every_part_of_a_recipe_trains_together(tmp_path):
    """Accumulation, clipping, all augmentations, CutMix and Mixup, AdamW; cut and resumed to the same bits."""
    augment = Augment(
        crop=0.6, shift=1, flip="alternating", rotate=5, zoom=0.1, colour=0.2, trivial=True, erase=0.2, cutout=2
    )
    recipe = replace(
        TINY,
        augment=replace(augment, mixup=0.2, cutmix=0.5),
        optimizer=AdamW(lr=0.01),
        accumulate=3,
        clip=1.0,
        save_every=1,
    )
    runs.fit(recipe, tmp_path / "whole", splits=splits())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "Signals", type("CutHere", (Cut,), {"at": 2}))
        with pytest.raises(Interrupted):
            runs.fit(recipe, tmp_path / "cut", splits=splits())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_load", lambda *_: splits())
        runs.resume(tmp_path / "cut")
    assert final(tmp_path / "cut") == final(tmp_path / "whole")


def test_what_is_said_of_the_recipe_is_what_was_given(tmp_path: Path) -> None:
    made = opsin.train(epochs=4, batch_size=32, settings=["augment.shift=0"], out=tmp_path / "run", dry_run=True)
    assert made.words[0] == "the small wide network, 4 passes in batches of 32, Muon"
    assert made.words[-1] == "as given: augment.shift=0"


# ---------------------------------------------------------------------------------------------------------------------
# Many labels, and classes that are uneven
# ---------------------------------------------------------------------------------------------------------------------

MANY = replace(TINY, loss=BinaryCrossEntropy(), optimizer=Muon(lr=0.1, sgd_lr=5.0))


def made_many(n=60, seed=0):
    """Grey pictures: bright above, below, in the middle; a few of which the second is not known."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((n, 3)) < [0.5, 0.4, 0.2]).astype(np.float32)
    images = generator.normal(60, 15, (n, 1, 10, 10))
    for k, box in enumerate((np.s_[:, :4], np.s_[:, 6:], np.s_[:, :, 3:7])):
        for i in np.flatnonzero(labels[:, k]):
            images[i][box] += 120
    labels[::7, 1] = -1
    return Index(
        [f"{seed}/{i}" for i in range(n)],
        labels,
        ("top", "bottom", "middle"),
        ArraySource(np.clip(images, 0, 255).astype(np.uint8)),
    )


def splits_many(**parts):
    return {"train": made_many(120), "test": made_many(41, seed=1), **parts}


def test_many_labels_are_learnt_measured_and_named(tmp_path):
    reporter = Told()
    recipe = replace(MANY, epochs=8, data=replace(MANY.data, validation=0.25))
    run = runs.fit(recipe, tmp_path / "run", splits=splits_many(), reporter=reporter)
    assert isinstance(run.report, LabelReport) and run.report.map > 0.9 and run.report.map_interval is not None
    said = "\n".join(reporter.said)
    assert "near ln 2 = 0.69" in said and "by the best F1 on the 30 pictures of the validation part" in said
    rows = list(csv.DictReader((run.folder / "log.csv").read_text().splitlines()))
    assert {"train_loss", "val_loss", "val_map"} <= set(rows[0]) and not any("error" in key for key in rows[0])
    classifier = run.load()
    assert classifier.thresholds == tuple(score.threshold for score in run.report.per_class) != (0.5,) * 3
    index = splits_many()["test"]
    again = opsin.evaluate_labels(classifier, index)  # the layout in memory may be another: the last bits too
    assert again.nll == pytest.approx(run.report.nll) and again.map == pytest.approx(run.report.map)
    images = [index.image(i) for i in range(len(index))]
    for row, named in zip(
        classifier.probabilities(torch.stack(images)), opsin.predict(classifier, images), strict=True
    ):
        wanted = [k for k in range(3) if row[k] >= classifier.thresholds[k]]
        assert sorted(p.label for p in named) == wanted
        assert [p.probability for p in named] == sorted((p.probability for p in named), reverse=True)
    assert runs.resume(run.folder).report == run.report


def test_thresholds_are_not_chosen_on_the_test_part(tmp_path):
    run = runs.fit(replace(MANY, epochs=1), tmp_path / "run", splits=splits_many())
    assert run.load().thresholds == (0.5,) * 3
    assert any("there is no validation part" in line for line in run.words)
    assert "test_map" in (run.folder / "log.csv").read_text()


@pytest.mark.parametrize("at", [2, 8, 17])
def test_many_labels_drawn_evenly_resume_to_the_same_bits(tmp_path, monkeypatch, at):
    recipe = replace(MANY, data=replace(MANY.data, balance="root"), loss=Focal(class_weights="balanced"), epochs=2)
    val = {"val": made_many(30, seed=3)}
    runs.fit(recipe, tmp_path / "whole", splits=splits_many(**val))
    monkeypatch.setattr(runs, "Signals", type("CutHere", (Cut,), {"at": at}))
    with pytest.raises(Interrupted):
        runs.fit(recipe, tmp_path / "cut", splits=splits_many(**val))
    monkeypatch.setattr(runs, "Signals", Signals)
    monkeypatch.setattr(runs, "_load", lambda *_: splits_many(**val))
    torch.manual_seed(99)
    runs.resume(tmp_path / "cut")
    assert final(tmp_path / "cut") == final(tmp_path / "whole")


def test_a_loss_of_the_other_kind_is_refused_before_training(tmp_path):
    with pytest.raises(UsageError, match="--set loss=BinaryCrossEntropy"):
        runs.fit(TINY, tmp_path / "a", splits=splits_many())
    with pytest.raises(UsageError, match="--set loss=CrossEntropy"):
        runs.fit(MANY, tmp_path / "b", splits=splits())
    assert not (tmp_path / "a" / "recipe.toml").exists()


def test_uneven_classes_are_said_with_what_to_set_and_even_ones_are_not():
    index = made(70)
    few = index.subset([i for i in range(70) if index.labels[i] or i < 9])
    (words,) = runs.uneven(TINY, few)
    assert "from dark (3) to middle (23) training pictures" in words and "data.balance=root" in words
    assert runs.uneven(TINY, index) == []
    for recipe in (
        replace(TINY, data=replace(TINY.data, balance="classes")),
        replace(TINY, loss=CrossEntropy(class_weights="balanced")),
        replace(TINY, loss=CrossEntropy(tau=1.0)),
    ):
        assert runs.uneven(recipe, few) == []
