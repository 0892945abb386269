"""A network that starts from weights: frozen stages, stages that begin late, slower rates, and the probe."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

import opsin
from opsin import cli, models
from opsin import probe as probes
from opsin import run as runs
from opsin.errors import Interrupted, UsageError
from opsin.recipe import SGD, Data, Group, ModelSpec, Tune, from_toml, to_toml
from opsin.recipes import derive
from opsin.runfolder import Signals
from tests.conftest import write_pictures
from tests.test_run import TINY, Cut, final, made, splits

pytestmark = pytest.mark.usefixtures("one_thread")

TWO = ("dark", "light")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A classifier of two classes, to start from."""
    folder = tmp_path_factory.mktemp("start") / "run"
    torch.set_num_threads(1)
    parts = {"train": made(40, classes=TWO), "test": made(20, seed=1, classes=TWO)}
    runs.fit(replace(TINY, epochs=1), folder, splits=parts)
    return folder


def tuned(start, **tune):
    model = replace(TINY.model, weights=str(start / "classifier" / "weights.safetensors"))
    return replace(TINY, model=model, tune=Tune(**tune))


def test_frozen_stages_stay_to_the_bit_with_their_statistics(start, tmp_path):
    run = runs.fit(tuned(start, freeze=("whiten", "stage1")), tmp_path / "run", splits=splits())
    old = load_file(start / "classifier" / "weights.safetensors")
    new = load_file(run.folder / "classifier" / "weights.safetensors")
    for key, value in old.items():
        if key.startswith(("stages.whiten.", "stages.stage1.")):
            assert torch.equal(value, new[key]), key
        elif key.startswith("stages.stage2.") and value.is_floating_point() and not key.endswith("norm.weight"):
            same = torch.equal(value, new[key])
            assert not same or bool((value == 1).all()), key  # the norms' scales are fixed
    assert new["head.1.weight"].shape[0] == 3


@pytest.mark.parametrize("at", [3, 7])
def test_a_run_with_frozen_and_late_stages_resumes_exactly(start, tmp_path, monkeypatch, at):
    recipe = tuned(start, freeze=("whiten",))
    groups = (Group(match="stages.stage1.*", lr_scale=0.1, since=0.6), Group(match="stages.stage2.*", since=0.3))
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, groups=groups))
    assert from_toml(to_toml(recipe)) == recipe
    runs.fit(recipe, tmp_path / "whole", splits=splits())
    monkeypatch.setattr(runs, "Signals", type("CutHere", (Cut,), {"at": at}))
    with pytest.raises(Interrupted):
        runs.fit(recipe, tmp_path / "cut", splits=splits())
    monkeypatch.setattr(runs, "Signals", Signals)
    monkeypatch.setattr(runs, "_load", lambda *_: splits())
    runs.resume(tmp_path / "cut")
    assert final(tmp_path / "cut") == final(tmp_path / "whole")


def test_a_late_stage_has_its_old_filters_until_its_time(start, tmp_path):
    recipe = tuned(start)
    groups = (Group(match="stages.stage1.*", since=0.999),)  # only the last step of twelve would be later
    recipe = replace(recipe, ema=0.0, optimizer=replace(recipe.optimizer, groups=groups))
    run = runs.fit(recipe, tmp_path / "run", splits=splits())
    old = load_file(start / "classifier" / "weights.safetensors")
    new = load_file(run.folder / "classifier" / "weights.safetensors")
    assert torch.equal(old["stages.stage1.0.weight"], new["stages.stage1.0.weight"])
    assert not torch.equal(old["stages.stage2.0.weight"], new["stages.stage2.0.weight"])


@pytest.mark.parametrize("classes", [TWO, ("dark", "middle", "light")])
def test_a_probe_is_scikit_learns_regression_on_the_networks_features(start, tmp_path, classes):
    parts = {"train": made(50, classes=classes), "test": made(31, seed=1, classes=classes)}
    recipe = replace(tuned(start, probe=True), ema=0.0, augment=replace(TINY.augment, sizes=()))
    run = runs.fit(recipe, tmp_path / "run", splits=parts)
    old = load_file(start / "classifier" / "weights.safetensors")
    new = load_file(run.folder / "classifier" / "weights.safetensors")
    assert all(torch.equal(old[key], new[key]) for key in old if not key.startswith("head."))
    kept = load_file(run.folder / "features.safetensors")["vectors"]
    classifier = opsin.load(run.folder)
    maps = opsin.features(classifier, parts["train"], "stage3", maps=True)
    assert torch.allclose(kept, maps.flatten(2).amax(2), atol=1e-5)

    fitted = probes.fit(kept, torch.from_numpy(parts["train"].labels), len(classes), intercept=False)
    scale = kept.double().std(0, correction=0).numpy()
    scale[scale < 1e-6 * scale.max()] = np.inf
    oracle = LogisticRegression(C=fitted.strength, fit_intercept=False, max_iter=1000, tol=1e-10)
    oracle.fit(kept.double().numpy() / scale, parts["train"].labels)
    test = opsin.features(classifier, parts["test"], "stage3", maps=True).flatten(2).amax(2)
    expected = oracle.predict_proba(test.double().numpy() / scale)
    images = torch.stack([classifier.prepare(parts["test"].image(i)) for i in range(31)])
    assert np.abs(classifier.probabilities(images).numpy() - expected).max() < 2e-3
    assert run.report is not None and run.report.top1 > 0.85
    assert any("was fitted to 50 pictures" in line for line in run.words)


def test_a_probe_that_was_cut_has_its_features_and_ends_in_the_same_bits(start, tmp_path, monkeypatch):
    recipe = replace(tuned(start, probe=True), ema=0.0)
    whole = runs.fit(recipe, tmp_path / "whole", splits=splits())

    def cut(*_, **__):
        raise Interrupted("cut here")

    with monkeypatch.context() as patch:
        patch.setattr(probes, "fit", cut)
        with pytest.raises(Interrupted):
            runs.fit(recipe, tmp_path / "cut", splits=splits())
    assert (tmp_path / "cut" / "features.safetensors").exists()
    monkeypatch.setattr(runs, "_load", lambda *_: splits())
    monkeypatch.setattr(probes, "embeddings", cut)  # they are there
    again = runs.resume(tmp_path / "cut")
    one, other = (run.folder / "classifier" / "weights.safetensors" for run in (whole, again))
    assert one.read_bytes() == other.read_bytes()


def test_the_strength_is_that_of_the_least_held_out_loss():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    vectors = torch.randn(60, 20, generator=generator)
    vectors[:, 0] += 3 * labels
    noisy = probes.fit(vectors, labels, 3).strength
    clear = probes.fit(vectors[:, :1], labels, 3).strength
    assert noisy < clear  # nineteen features of noise want more L2
    assert probes.fit(vectors[:3], labels[:3], 3).strength == 0.01  # one of each: nothing to be held out


def test_what_a_probe_tells_is_counted_on_pictures_that_it_has_not_seen():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    noise = torch.randn(200, 150, generator=generator)  # enough to tell the fitted pictures apart by chance
    told = probes.told(noise, labels)
    assert told is not None and told < 0.4
    clear = torch.nn.functional.one_hot(labels, 4) + 0.1 * noise[:, :4]
    assert probes.told(clear, labels) == 1
    assert probes.told(clear, torch.where(labels == 3, 9, labels)) == 1  # a class without pictures
    assert probes.told(clear[:5], labels[:5]) is None  # four of five classes have one picture


def test_features_that_never_vary_and_scales_of_any_size_do_no_harm():
    labels = torch.arange(30) % 2
    vectors = torch.stack([torch.full((30,), 7.0), 1e6 * labels + torch.arange(30)], 1)
    fitted = probes.fit(vectors, labels, 2)
    assert bool(torch.isfinite(fitted.weight).all()) and fitted.weight[:, 0].eq(0).all()
    assert (vectors @ fitted.weight.T + fitted.bias).argmax(1).eq(labels).all()


@pytest.mark.slow
def test_every_network_either_has_a_last_layer_to_replace_or_says_what_works():
    ends = {}
    for name in models.MODELS:
        with torch.device("meta"):
            net = models.build(name, 10, models.entry(name).channels)
        try:
            ends[name] = probes.last_linear(net)[0].out_features
        except UsageError as error:
            assert "fine-tune it instead" in str(error)
            ends[name] = None
    assert {name for name, count in ends.items() if count is None} == {"nin", "nin_cifar"}
    assert {count for count in ends.values() if count is not None} == {10}


def test_fine_tuning_is_derived_from_weights_and_said(start, tmp_path, capsys):
    folder = write_pictures(tmp_path / "pictures", 12, side=12)
    out = tmp_path / "run"
    assert cli.call(["train", str(folder), "--weights", str(start), "--epochs", "1", "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "a probe on what the weights know tells" in said and "the stages learn at" in said
    groups = {group.match: group for group in from_toml((out / "recipe.toml").read_text()).optimizer.groups}
    assert groups["stages.stage3.*"].lr_scale == (0.3 if "learnt on slowly" in said else 1)
    assert groups["stages.stage3.*"].since == 0
    assert groups["stages.stage1.*"].lr_scale < groups["stages.stage2.*"].lr_scale
    dry = [
        "train",
        str(folder),
        "--weights",
        str(start),
        "--unfreeze",
        "0.5",
        "--dry-run",
        "--out",
        str(tmp_path / "x"),
    ]
    assert cli.call(dry) == 0
    groups = {group.match: group for group in from_toml(capsys.readouterr().out).optimizer.groups}
    assert groups["stages.stage3.*"].since < groups["stages.stage1.*"].since <= 0.5


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--freeze", "stage1"], "name them: --weights"),
        (["--probe"], "name them: --weights"),
        (["--weights", "START", "--freeze", "stage9"], "no stage 'stage9'; stages: whiten, stage1"),
        (["--weights", "START", "--unfreeze", "1.5"], "0 <= x < 1"),
        (["--weights", "FILE"], "name it: --model NAME"),
        (["--weights", "START", "--freeze", "whiten,stage1,stage2,stage3", "--set", "optimizer=SGD"], None),
    ],
)
def test_what_does_not_fit_together_is_said(start, tmp_path, capsys, flags, expected):
    folder = write_pictures(tmp_path / "pictures", 12, side=12)
    file = start / "classifier" / "weights.safetensors"
    (tmp_path / "alone.safetensors").write_bytes(file.read_bytes())
    where = {"START": str(start), "FILE": str(tmp_path / "alone.safetensors")}
    arguments = ["train", str(folder), "--epochs", "1", "--out", str(tmp_path / "run")]
    code = cli.call([*arguments, *(where.get(flag, flag) for flag in flags)])
    assert code == (0 if expected is None else 2)
    if expected is not None:
        assert expected in capsys.readouterr().err


def test_weights_of_photographs_bring_their_size_and_small_pictures_keep_theirs(tmp_path):
    facts = derive.Facts("x", 100, 2, 300, 400, 3, (0.5,) * 3, (0.2,) * 3, True)
    recipe = derive.derive(facts, "resnet18")[0]
    stages = ["stem", "stage1", "stage2", "stage3", "stage4"]
    tuned_, words = derive.fine_tuned(recipe, stages, known=0.8)
    scales = [group.lr_scale for group in tuned_.optimizer.groups]
    assert scales == sorted(scales) and math.isclose(scales[0], 0.03) and scales[-1] == 0.3
    assert "tells 80%" in words[0] and "0.03 to 0.3 of the head's rate" in words[0]
    assert derive.fine_tuned(recipe, stages)[0] == tuned_  # what is not known is kept
    assert isinstance(tuned_.optimizer, SGD) and isinstance(recipe.optimizer, SGD)
    assert tuned_.optimizer.lr == recipe.optimizer.lr
    other, words = derive.fine_tuned(recipe, stages, known=0.2)
    assert isinstance(other.optimizer, SGD) and other.optimizer.lr > recipe.optimizer.lr
    assert min(group.lr_scale for group in other.optimizer.groups) == 0.5 and "much is to be learnt anew" in words[0]
    assert tuned_.data == Data(name="x", batch_size=recipe.data.batch_size)
    assert tuned_.model == ModelSpec(name="resnet18")
