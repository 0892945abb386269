from __future__ import annotations

import dataclasses
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin import recipes
from opsin.errors import UsageError
from opsin.preprocess import Preprocess
from opsin.recipe import (
    SGD,
    AdamW,
    Augment,
    BinaryCrossEntropy,
    CrossEntropy,
    Data,
    Focal,
    Group,
    ModelSpec,
    Muon,
    Recipe,
    from_dict,
    from_toml,
    override,
    to_dict,
    to_toml,
)
from opsin.schedule import Linear, MultiStep

RECIPE = Recipe(
    data=Data(name='a "folder" with\nodd\tnames\\ and é'),
    model=ModelSpec(name="resnet20", options={"shortcut": "B"}),
    preprocess=Preprocess(size=(32, 48)),
    augment=Augment(sizes=((0.0, 24), (0.5, 32))),
    optimizer=Muon(groups=(Group(match="*.bias", lr_scale=64.0), Group(match="head.*", weight_decay=0.0))),
    schedule=MultiStep(milestones=(0.3, 0.6, 0.9)),
)


def test_toml_gives_back_every_recipe_of_the_table():
    for name in recipes.RECIPES:
        made = recipes.find(name)
        assert from_toml(to_toml(made)) == made
    assert from_toml(to_toml(RECIPE)) == RECIPE
    assert from_dict(to_dict(RECIPE)) == RECIPE


def test_toml_writes_the_defaults_out():
    values = tomllib.loads(to_toml(RECIPE))
    assert values["data"]["batch_size"] == 128
    others = {"classical", "fusion"}  # it has neither
    assert set(values) == {field.name for field in dataclasses.fields(Recipe)} - others


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("epochs", "7", lambda r: r.epochs == 7),
        ("optimizer.lr", "1e-3", lambda r: r.optimizer == dataclasses.replace(RECIPE.optimizer, lr=1e-3)),
        ("augment.flip", "random", lambda r: r.augment == dataclasses.replace(RECIPE.augment, flip="random")),
        ("model.options.depth", "26", lambda r: r.model.options == {"shortcut": "B", "depth": 26}),
        ("preprocess.size", "(64, 64)", lambda r: r.preprocess.size == (64, 64)),
        ("compile", "true", lambda r: r.compile is True),
        ("schedule", "linear", lambda r: r.schedule == Linear()),
    ],
)
def test_override_replaces_one_field_and_no_other(key, text, expected):
    changed = override(RECIPE, key, text)
    assert expected(changed)
    top = key.partition(".")[0]
    assert dataclasses.replace(changed, **{top: getattr(RECIPE, top)}) == RECIPE


def test_another_optimizer_keeps_the_groups():
    changed = override(RECIPE, "optimizer", "AdamW")
    assert changed.optimizer == AdamW(groups=RECIPE.optimizer.groups)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("optimizer.lrr", "1", "optimizer.lrr: no field 'lrr'; did you mean lr?"),
        ("epochs", "many", "epochs: expected int, received 'many'"),
        ("epochs", "0", "epochs: expected at least 1, received 0"),
        ("augment.flip", "up", "augment.flip: expected one of '', 'random', 'alternating', received 'up'"),
        ("preprocess.size", "[3]", r"preprocess.size: expected tuple\[int, int\]"),
        ("epochs.x", "1", "epochs.x: epochs has no fields of its own"),
        ("optimizer", "Sgdd", "optimizer: expected one of SGD, Adam, AdamW, Muon, received 'Sgdd'"),
        ("compile", "1", "compile: expected bool, received 1"),
    ],
)
def test_override_says_what_was_expected(key, text, message):
    with pytest.raises(UsageError, match=message):
        override(RECIPE, key, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = ", "not TOML"),
        ("epoch = 3", "recipe.epoch: no such field; did you mean epochs?"),
        ('[data]\nname = "x"\n', "missing 2 required"),
        ('[optimizer]\nkind = "Lion"\n', "optimizer.kind: expected one of SGD, Adam, AdamW, Muon, received 'Lion'"),
    ],
)
def test_a_bad_file_is_named_with_its_reason(text, message):
    with pytest.raises(UsageError, match=message):
        from_toml(text, "mine.toml")


@settings(max_examples=200)
@given(st.text())
def test_any_text_is_a_recipe_or_a_usage_error(text):
    with pytest.raises(UsageError):
        from_toml(text)


@given(st.text(), st.text())
def test_any_setting_is_applied_or_a_usage_error(key, text):
    try:
        override(RECIPE, key, text)
    except UsageError as error:
        assert str(error)


def test_recipes_are_found_by_name_by_file_and_by_function(tmp_path):
    assert recipes.find("chapter_vgg16").optimizer == SGD(lr=0.1, momentum=0.9, weight_decay=2e-4)
    (tmp_path / "mine.toml").write_text(to_toml(RECIPE))
    assert recipes.find(str(tmp_path / "mine.toml")) == RECIPE
    (tmp_path / "mine.py").write_text("from opsin.recipes.chapter import chapter_vgg16\n\nmine = chapter_vgg16\n")
    assert recipes.find(f"{tmp_path / 'mine.py'}:mine") == recipes.find("chapter_vgg16")
    with pytest.raises(UsageError, match="no recipe 'chapter_vgg17'; did you mean chapter_vgg16"):
        recipes.find("chapter_vgg17")
    with pytest.raises(UsageError, match="no function 'other'"):
        recipes.find(f"{tmp_path / 'mine.py'}:other")


def test_a_loss_of_before_it_had_forms_is_cross_entropy_and_every_form_survives_toml():
    text = to_toml(RECIPE)
    old = "\n".join(line for line in text.splitlines() if "CrossEntropy" not in line)
    assert old != text and from_toml(old) == RECIPE
    for loss in (
        BinaryCrossEntropy(label_smoothing=0.1),
        Focal(gamma=1.5, class_weights="effective"),
        CrossEntropy(tau=1),
    ):
        recipe = dataclasses.replace(RECIPE, loss=loss)
        assert from_toml(to_toml(recipe)) == recipe
    heads = dataclasses.replace(RECIPE, loss=CrossEntropy(aux_weights=(0.3, 0.3)))
    assert override(heads, "loss", "binarycrossentropy").loss == BinaryCrossEntropy(aux_weights=(0.3, 0.3))
    for key, text, message in (
        ("loss", "Hinge", "expected one of CrossEntropy, BinaryCrossEntropy, Focal"),
        ("loss.class_weights", "even", "expected one of '', 'balanced', 'effective'"),
        ("data.balance", "all", "expected one of '', 'classes', 'root'"),
    ):
        with pytest.raises(UsageError, match=message):
            override(RECIPE, key, text)
    with pytest.raises(UsageError, match="gamma: expected at least 0"):
        override(override(RECIPE, "loss", "Focal"), "loss.gamma", "-1")
