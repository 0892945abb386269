"""Classifiers fused: the weights against a slow search, the mean against members asked one by one, runs, damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import opsin
from opsin import classifier as classifiers
from opsin import fusing, metrics, storage
from opsin import run as runs
from opsin.classifier import ClassicalClassifier, FusedClassifier, NetClassifier
from opsin.data.index import Index
from opsin.errors import DataError, Interrupted, OpsinError, StorageError, UsageError
from opsin.evaluate import measure
from opsin.preprocess import Preprocess
from opsin.recipe import SGD, BinaryCrossEntropy, Data, Fusion, ModelSpec, Recipe, from_toml, to_toml
from opsin.runfolder import Signals
from tests.check_classifier import check_classifier, picture
from tests.classical import test_pipeline as classical
from tests.conftest import Said, write_pictures
from tests.test_classifier import GREY, PREPROCESS, SQUASH, net, of_labels
from tests.test_run import Cut

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = Data(name="made", validation=0.25, batch_size=16)
NET = Recipe(
    data=DATA,
    model=ModelSpec(name="smallnet", options={"widths": [8, 8, 8]}),
    preprocess=Preprocess(size=(12, 12), mean=(0.2, 0.2, 0.2), std=(0.2, 0.2, 0.2)),
    optimizer=SGD(lr=0.02, momentum=0.9),
    epochs=2,
)


def parts(**options: Any) -> dict[str, Index]:
    """Stripes that lie or stand; some of them are called wrongly, so that nobody is right about all."""

    def part(name: str, n: int, seed: int) -> Index:
        index = classical.made(n, seed, **options)
        labels = index.labels.copy()
        wrong = np.random.default_rng(seed).random(n) < 0.15
        labels[wrong] = 1 - labels[wrong]
        return replace(index, labels=labels, keys=[f"{name}/{i}" for i in range(n)])

    return {"train": part("train", 80, 0), "test": part("test", 40, 1)}


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A network's run and a classical one, of the same parts, prepared differently."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("members")
    runs.fit(NET, root / "net", splits=parts())
    runs.fit(replace(classical.SMALL, data=DATA), root / "words", splits=parts())
    return str(root / "net"), str(root / "words")


def fused(out: Path, members: tuple[str, ...], splits: dict[str, Index] | None = None, **changes: Any) -> runs.Run:
    recipe, words = fusing.derive("made", members)
    return runs.fit(replace(recipe, **changes), out, splits=splits or parts(), words=words)


def one_by_one(members: tuple[str, ...], index: Index) -> Tensor:
    """What each member says of each picture, float64 [N, M, K], asked alone and by itself."""
    said = []
    for place in members:
        one = opsin.load(place)
        prepared = torch.stack([one.prepare(index.image(i)) for i in range(len(index))])
        columns = [one.classes.index(name) for name in index.classes]
        said.append(one.probabilities(prepared)[:, columns].double())
    return torch.stack(said, 1)


# ---------------------------------------------------------------------------------------------------------------------
# The weights
# ---------------------------------------------------------------------------------------------------------------------


def simplex(members: int, steps: int) -> Tensor:
    """All weights whose parts are whole numbers of 1 / steps."""
    rows = torch.cartesian_prod(*[torch.arange(steps + 1)] * (members - 1)).reshape(-1, members - 1)
    rows = rows[rows.sum(1) <= steps]
    return torch.cat([rows, steps - rows.sum(1, keepdim=True)], 1).double() / steps


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("members", "steps"), [(2, 4000), (3, 120)])
def test_no_weights_of_a_slow_search_are_likelier(members: int, steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    given = torch.from_numpy(rng.beta(0.7, rng.uniform(0.2, 0.7, members), (37, members)))
    given[:5] = given[:5].round()  # some are quite sure, and wrong
    found = torch.tensor(fusing.mixture(given), dtype=torch.float64)
    assert float(found.sum()) == pytest.approx(1, abs=1e-12) and bool((found >= 0).all())
    floor = metrics.NLL_FLOOR
    slow = (given.clamp_min(floor) @ simplex(members, steps).T).log().mean(0).max()
    assert float((given.clamp_min(floor) @ found).log().mean()) >= float(slow) - 2e-7


def test_members_that_say_the_same_have_equal_weights_and_one_that_is_always_wrong_has_none() -> None:
    same = torch.rand(20, 1).expand(20, 3)
    assert fusing.mixture(same) == pytest.approx((1 / 3,) * 3)
    right = torch.tensor([[0.9, 0.0]]).expand(50, 2)
    assert fusing.mixture(right) == pytest.approx((1, 0), abs=1e-6)
    assert fusing.mixture(torch.zeros(4, 2)) == pytest.approx((0.5, 0.5))
    for wrong in (torch.zeros(0, 2), torch.full((3, 2), float("nan")), torch.zeros(3)):
        with pytest.raises(UsageError, match="likelihoods: expected finite numbers"):
            fusing.mixture(wrong)


def test_likelihoods_are_of_what_is_so_and_known() -> None:
    said = torch.rand(7, 3, 2)
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    found = fusing.likelihoods(said, labels)
    assert found.tolist() == [[float(said[n, m, labels[n]]) for m in range(3)] for n in range(7)]
    many = torch.tensor([[1.0, 0], [-1, 1], [-1, -1], [0, 0], [1, 1], [0, -1], [1, 0]])
    rows = []
    for n in range(7):
        for k in range(2):
            if many[n, k] >= 0:
                given = said[n, :, k].double()
                rows.append((given if many[n, k] == 1 else 1 - given).tolist())
    assert fusing.likelihoods(said, many).tolist() == rows


# ---------------------------------------------------------------------------------------------------------------------
# The classifier
# ---------------------------------------------------------------------------------------------------------------------


def turned(one: NetClassifier) -> NetClassifier:
    """The same, with its classes in another order."""
    return NetClassifier(one.model, one.preprocess, one.classes[::-1], one.spec, one.thresholds)


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    made = [net("resnet20", 4), turned(net("lenet", 4, GREY))]
    check_classifier(FusedClassifier(made, (0.6, 0.4)), tmp_path)


def test_of_many_labels_it_keeps_the_contract(tmp_path: Path) -> None:
    made = [of_labels((0.5,) * 4), turned(of_labels((0.1, 0.2, 0.3, 0.4)))]
    plain = FusedClassifier(made, (0.7, 0.3))
    assert plain.thresholds == (0.5,) * 4
    row = plain.probabilities(plain.prepare(picture(33, 21, seed=5))[None])[0].sort().values
    check_classifier(FusedClassifier(made, (0.7, 0.3), thresholds=(float(row[1:3].mean()),) * 4), tmp_path)


def test_it_is_the_weighted_mean_of_members_that_prepare_for_themselves() -> None:
    made = [net("resnet20", 4), turned(net("lenet", 4, GREY)), net("resnet20", 4, SQUASH, seed=1)]
    names = ("class 2", "class 0", "class 3", "class 1")
    weights = (0.5, 0.125, 0.375)
    one = FusedClassifier(made, weights, names)
    images = [picture(h, w, c, seed=h) for h, w, c in ((30, 20, 3), (16, 16, 1), (9, 70, 3))]
    found = one.probabilities(torch.stack([one.prepare(image) for image in images]))
    for image, row in zip(images, found, strict=True):
        for name, value in zip(names, row.tolist(), strict=True):
            said = [float(m.probabilities(m.prepare(image)[None])[0, m.classes.index(name)]) for m in made]
            assert value == pytest.approx(sum(w * p for w, p in zip(weights, said, strict=True)), abs=1e-5)


def test_members_that_prepare_alike_share_what_is_prepared() -> None:
    other = replace(PREPROCESS, mean=(0.0, 0.0, 0.0))  # arithmetic, which is each member's own
    one = FusedClassifier([net(), net(preprocess=other, seed=1), net("lenet", preprocess=GREY)])
    assert one.prepare(picture(40, 40)).shape == (3 * 16 * 16 + 28 * 28,)
    assert one.decode_size == (56, 56) and one.weights == pytest.approx((1 / 3,) * 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FusedClassifier([net()]), "expected 2 to 16 classifiers to fuse, received 1"),
        (lambda: FusedClassifier([net()] * 17), "received 17"),
        (lambda: FusedClassifier([net(), net(classes=5)]), "only some know: class 4"),
        (lambda: FusedClassifier([net(), net()], classes=("a", "b")), "only some know: a, b, class 0"),
        (lambda: FusedClassifier([net(), of_labels((0.5,) * 4)]), "one label a picture are not fused with"),
        (lambda: FusedClassifier([net(), net()], thresholds=(0.5,) * 4), "are not fused with classifiers for many"),
        (lambda: FusedClassifier([net(), FusedClassifier([net(), net()])]), "is not fused again"),  # type: ignore
        (lambda: FusedClassifier([net(), "run"]), "a str cannot be fused"),  # type: ignore
        *[
            (
                lambda weights=weights: FusedClassifier([net(), net()], weights),
                "weights: expected 2 numbers from 0 to 1",
            )
            for weights in ((1.0,), (0.5, 0.6), (1.5, -0.5), (float("nan"), 1.0), ("1", 0), (True, 0.0))
        ],
    ],
)
def test_what_does_not_go_together_is_said(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_what_was_not_prepared_by_it_is_refused_and_it_has_no_stages() -> None:
    one = FusedClassifier([net(), net(seed=1)])
    for wrong in (torch.zeros(1, 767, dtype=torch.uint8), torch.zeros(1, 768), torch.zeros(768, dtype=torch.uint8)):
        with pytest.raises(UsageError, match=r"expected prepared pictures as uint8 \[B, 768\]"):
            one.probabilities(wrong)
    with pytest.raises(UsageError, match="a FusedClassifier has no stages"):
        classifiers.features(one, [picture(4, 4)], "stage1")


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(members: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    return fused(tmp_path_factory.mktemp("fused") / "run", members)


def test_a_run_learns_the_weights_and_measures_the_mean(run: runs.Run, members: tuple[str, str]) -> None:
    loaded = run.load()
    assert isinstance(loaded, FusedClassifier)
    assert [type(one) for one in loaded.members] == [NetClassifier, ClassicalClassifier]
    listed = json.loads((run.folder / "splits.json").read_text())
    train = parts()["train"]
    n = listed["val"]["n"]
    assert n == len(listed["val"]["keys"]) and set(listed["val"]["keys"]) < set(train.keys)
    for place in members:
        assert json.loads(Path(place, "splits.json").read_text())["val"] == listed["val"]

    val = train.subset([train.keys.index(key) for key in listed["val"]["keys"]])
    said = one_by_one(members, val)[torch.arange(n), :, torch.from_numpy(val.labels)]
    search = simplex(2, 10_000)
    best = float((said @ search.T).log().mean(0).max())
    weights = torch.tensor(loaded.weights, dtype=torch.float64)
    assert float((said @ weights).log().mean()) >= best - 2e-7

    test, report = parts()["test"], run.report
    mean = (one_by_one(members, test) * weights[:, None]).sum(1)
    assert report is not None and report.probabilities is not None
    torch.testing.assert_close(report.probabilities.double(), mean, atol=1e-5, rtol=0)
    facts = json.loads((run.folder / "report.json").read_text())["run"]
    for name, weight, place in zip(("net", "words"), loaded.weights, members, strict=True):
        alone = opsin.evaluate(opsin.load(place), test).top1
        assert facts["members"][name] == {"weight": pytest.approx(weight), "top1": alone}
    assert facts["weights"] == f"learnt on {n} validation pictures"
    assert any(f"weights under which the {n} labels" in words for words in run.words)
    assert any(words.startswith("top-1 alone: ") for words in run.words)


def test_it_leaves_what_every_run_leaves_and_stands_by_itself(
    run: runs.Run, tmp_path: Path, opsin_: Callable[..., Said], pictures: Path
) -> None:
    names = {path.name for path in run.folder.iterdir()}
    assert names >= {"recipe.toml", "environment.json", "splits.json", "log.jsonl", "report.json", "report.html"}
    recipe = from_toml((run.folder / "recipe.toml").read_text())
    assert recipe == run.recipe == from_toml(to_toml(recipe)) and recipe.data.validation == 0.25
    events = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [row.get("stage", row["event"]) for row in events] == ["validation", "weights", "test", "alone"]
    shutil.copytree(run.folder / "classifier", tmp_path / "alone")
    assert measure(opsin.load(tmp_path / "alone"), parts()["test"]).to_dict() == run.report.to_dict()  # type: ignore
    assert opsin_("predict", tmp_path / "alone", pictures / "dark", "--json").code == 0
    grouped = json.loads(opsin_("group", tmp_path / "alone", pictures, "--json").out)
    assert len(grouped["pictures"]) == 30
    refused = opsin_("search", tmp_path / "alone", pictures, pictures / "dark" / "000.png")
    assert refused.code == 2 and "has no stages" in refused.err
    with pytest.raises(UsageError, match="float16 is for networks"):
        classifiers.save(run.load(), tmp_path / "half", half=True)
    assert runs.resume(run.folder).report == run.report


def of_one_opinion(folder: Path, like: str, probability: float, scale: float = 0.0) -> str:
    """A run whose classifier gives every picture's first class the same probability. like: whose pictures it had."""
    shutil.copytree(like, folder)
    one = net("resnet20", 2)
    head = [layer for layer in one.model.modules() if isinstance(layer, torch.nn.Linear)][-1]  # type: ignore
    with torch.no_grad():
        head.weight.fill_(scale)
        head.bias.copy_(torch.tensor([probability, 1 - probability]).log())
    classifiers.save(NetClassifier(one.model, one.preprocess, ("lying", "standing"), one.spec), folder / "classifier")
    return str(folder)


def test_of_members_that_always_say_the_same_the_weights_make_what_is_so(
    members: tuple[str, str], tmp_path: Path
) -> None:
    given = of_one_opinion(tmp_path / "a", members[0], 0.8), of_one_opinion(tmp_path / "b", members[0], 0.1)
    made = fused(tmp_path / "run", given)
    keys = json.loads((made.folder / "splits.json").read_text())["val"]["keys"]
    train = parts()["train"]
    part = float(np.mean([train.labels[train.keys.index(key)] == 0 for key in keys]))
    weight = (part - 0.1) / (0.8 - 0.1)  # 0.8 w + 0.1 (1 - w) is the part that lie
    assert 0.1 < weight < 0.9
    assert made.load().weights == pytest.approx((weight, 1 - weight), abs=1e-3)  # type: ignore[attr-defined]
    assert made.report is not None and made.report.probabilities is not None
    torch.testing.assert_close(made.report.probabilities[:, 0], torch.full((40,), part), atol=1e-3, rtol=0)


def test_a_member_that_has_diverged_is_named(members: tuple[str, str], tmp_path: Path) -> None:
    bad = of_one_opinion(tmp_path / "bad", members[0], 0.5, scale=3e38)
    with pytest.raises(OpsinError, match="bad answered with NaN or infinity"):
        fused(tmp_path / "run", (members[0], bad))


def equal(run: runs.Run, why: str) -> None:
    assert run.load().weights == pytest.approx((0.5, 0.5))  # type: ignore[attr-defined]
    assert any(words.startswith("equal weights: ") and why in words for words in run.words), run.words
    facts = json.loads((run.folder / "report.json").read_text())["run"]
    assert facts["weights"].startswith("equal: ") and why in facts["weights"]


def test_without_pictures_that_are_new_to_all_members_weights_are_equal(
    members: tuple[str, str], tmp_path: Path
) -> None:
    equal(fused(tmp_path / "none", members, data=replace(DATA, validation=0.0)), "no validation part")
    other = fused(tmp_path / "other", members, seed=1)
    equal(other, "validation pictures are training pictures of net")
    shutil.copytree(Path(members[1], "classifier"), tmp_path / "copy")
    unknown = fused(tmp_path / "unknown", (members[0], str(tmp_path / "copy")))
    equal(unknown, "whether copy was fitted to validation pictures is not known")
    assert any("copy is not in the folder of a run: whether it has seen" in words for words in unknown.words)


def test_of_a_member_that_began_with_anothers_weights_the_others_pictures_count_too(
    members: tuple[str, str], tmp_path: Path
) -> None:
    runs.fit(replace(NET, data=replace(DATA, validation=0.0), epochs=1), tmp_path / "all", splits=parts())
    start = replace(NET.model, weights=str(tmp_path / "all"))
    runs.fit(replace(NET, model=start, epochs=1), tmp_path / "tuned", splits=parts())
    equal(
        fused(tmp_path / "one", (str(tmp_path / "tuned"), members[1])),
        "validation pictures are training pictures of tuned",
    )
    Path(tmp_path, "all", "recipe.toml").unlink()
    learnt = fused(tmp_path / "two", (str(tmp_path / "tuned"), members[1]))
    assert any(words.startswith("tuned began with ") and "not known" in words for words in learnt.words)
    assert any(words.startswith("weights under which") for words in learnt.words)


def test_what_a_run_was_fitted_to_is_what_it_lists_or_what_is_published(tmp_path: Path) -> None:
    splits = opsin.load_data("digits")
    listed = {"train": {"n": 2, "keys": ["a", "b"]}, "val": {"n": 1, "keys": ["c"]}, "test": {"n": 1}}
    for name, lists, expected in (
        ("digits", {"train": {"n": 1437}, "test": {"n": 360}}, (set(splits["train"].keys), set())),
        ("digits", listed, ({"a", "b"}, {"c"})),
        (str(tmp_path), listed, ({"a", "b"}, {"c"})),
    ):
        (tmp_path / "recipe.toml").write_text(to_toml(replace(NET, data=Data(name=name))))
        (tmp_path / "splits.json").write_text(json.dumps(lists))
        past = fusing._past(str(tmp_path), name, splits)
        assert isinstance(past, fusing.Past) and (past.train, past.val) == expected
    assert fusing._past(str(tmp_path), "digits", splits) == f"was trained on {tmp_path}"
    (tmp_path / "splits.json").write_text("{}")
    assert fusing._past(str(tmp_path), str(tmp_path), splits) == "does not say which pictures it was trained on"


def test_test_pictures_that_a_member_has_seen_are_refused(members: tuple[str, str], tmp_path: Path) -> None:
    train = parts()["train"]
    splits = {"train": train, "test": train.subset(range(0, 80, 8))}
    with pytest.raises(
        DataError, match=r"10 of the 10 test pictures .* of net; .* --seed 0 --set data.validation=0.25"
    ):
        fused(tmp_path / "run", members, splits)
    assert not (tmp_path / "run" / "recipe.toml").exists()


def test_many_labels_have_weights_and_thresholds(tmp_path: Path) -> None:
    def many() -> dict[str, Index]:
        made = parts(many=True)
        made["train"].labels[::9, 0] = -1
        return made

    runs.fit(replace(NET, loss=BinaryCrossEntropy()), tmp_path / "net", splits=many())
    runs.fit(replace(classical.SMALL, data=DATA), tmp_path / "words", splits=many())
    places = (str(tmp_path / "net"), str(tmp_path / "words"))
    made = fused(tmp_path / "run", places, many())
    loaded = made.load()
    assert isinstance(loaded, FusedClassifier) and loaded.thresholds not in (None, (0.5, 0.5))
    val = json.loads((made.folder / "splits.json").read_text())["val"]["keys"]
    train = many()["train"]
    val = train.subset([train.keys.index(key) for key in val])
    said, labels = one_by_one(places, val), torch.from_numpy(val.labels)
    right = [(said[n, :, k] if labels[n, k] == 1 else 1 - said[n, :, k]) for n, k in (labels >= 0).nonzero().tolist()]
    given = torch.stack(right)
    assert len(given) < labels.numel()
    best = float((given @ simplex(2, 10_000).T).log().mean(0).max())
    weights = torch.tensor(loaded.weights, dtype=torch.float64)
    assert float((given @ weights).log().mean()) >= best - 2e-7
    assert loaded.thresholds == tuple(metrics.best_thresholds((said * weights[:, None]).sum(1).float(), labels))
    facts = json.loads((made.folder / "report.json").read_text())["run"]
    alone = measure(opsin.load(places[0]), many()["test"])
    assert facts["members"]["net"]["map"] == alone.to_dict()["map"]
    blind = fused(tmp_path / "blind", places, many(), seed=1)
    assert blind.load().thresholds == (0.5, 0.5)  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="the pictures have one label each, but the classifiers are for many labels"):
        fused(tmp_path / "other", places)


def test_other_classes_are_refused_and_another_order_is_not(members: tuple[str, str], tmp_path: Path) -> None:
    def renamed(*names: str) -> dict[str, Index]:
        return {part: replace(index, classes=names) for part, index in parts().items()}

    with pytest.raises(UsageError, match="only some know: lying, sitting"):
        fused(tmp_path / "run", members, renamed("sitting", "standing"))
    turned = fused(tmp_path / "turned", members, renamed("standing", "lying"), seed=1)
    assert turned.load().classes == ("standing", "lying")
    said = one_by_one(members, renamed("standing", "lying")["test"]).mean(1)
    assert turned.report is not None and turned.report.probabilities is not None
    torch.testing.assert_close(turned.report.probabilities.double(), said, atol=1e-5, rtol=0)


@pytest.mark.parametrize("after", [0, 1])
def test_a_run_that_is_interrupted_starts_anew(
    run: runs.Run, members: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(fusing, "Signals", Cut)
    monkeypatch.setattr(Cut, "at", after)
    with pytest.raises(Interrupted, match="opsin resume"):
        fused(tmp_path / "run", members)
    monkeypatch.setattr(fusing, "Signals", Signals)
    monkeypatch.setattr(runs, "_load", lambda *_: parts())
    done = runs.resume(tmp_path / "run")
    assert storage.read_folder(done.folder / "classifier") == storage.read_folder(run.folder / "classifier")
    assert done.words == run.words


# ---------------------------------------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------------------------------------


def config(name: str, **changes: Any) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        values = json.loads(files[name]) | changes
        files[name] = json.dumps({key: value for key, value in values.items() if value is not ...}).encode()

    return change


def nested(files: dict[str, bytes]) -> None:
    files["0-classifier.json"] = files["classifier.json"]


def spoilt(files: dict[str, bytes]) -> None:
    tensors = storage.from_safetensors(files["0-weights.safetensors"], "weights")
    key = next(key for key, value in sorted(tensors.items()) if value.is_floating_point())
    tensors[key] = torch.full_like(tensors[key], float("inf"))
    files["0-weights.safetensors"] = storage.to_safetensors(tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (config("classifier.json", weights=[0.5, 0.6]), "weights: expected 2 numbers from 0 to 1 whose sum is 1"),
        (config("classifier.json", weights=[-0.5, 1.5]), "weights: expected 2 numbers"),
        (config("classifier.json", weights=["1", 0]), "weights: expected 2 numbers"),
        (config("classifier.json", weights=[1.0]), "of 2 to 16 weights"),
        (config("classifier.json", weights=[0.01] * 100), "of 2 to 16 weights"),
        (config("classifier.json", weights=...), "of 2 to 16 weights"),
        (config("classifier.json", weights=[0.5, 0.25, 0.25]), "expected 3 members; missing or too many: 2-classifier"),
        (config("classifier.json", classes="lying"), "expected lists of classes"),
        (config("classifier.json", classes=["lying", "flying"]), "only some know: flying, standing"),
        (config("classifier.json", classes=["lying", "lying"]), "these occur again: lying"),
        (config("classifier.json", thresholds=[0.5, 0.5]), "where its members are for many labels, and only there"),
        (config("0-classifier.json", kind="labels", thresholds=[0.5, 0.5]), "and only there"),
        (config("0-classifier.json", format=2), r"0-classifier\.json: expected an object of format 1"),
        (
            config("0-classifier.json", kind="magic"),
            r"0-classifier\.json: kind: expected one of net, labels, classical, ",
        ),
        (config("1-classifier.json", machine=3), r"1-classifier\.json: machine: expected a dict"),
        (nested, r"0-classifier\.json: kind: expected one of net, labels, classical, received 'fused'"),
        (spoilt, r"0-weights\.safetensors: these weights do not fit the network: .*not finite"),
        (lambda files: files.pop("1-weights.safetensors"), r"missing or too many: 1-weights\.safetensors"),
        (lambda files: files.update({"2-classifier.json": b"{}"}), r"missing or too many: 2-classifier\.json"),
        (lambda files: files.update({"1-weights.safetensors": b"no"}), r"1-weights\.safetensors: not a safetensors"),
    ],
)
def test_a_changed_file_is_refused(
    run: runs.Run, tmp_path: Path, change: Callable[[dict[str, bytes]], None], message: str
) -> None:
    files = storage.read_folder(run.folder / "classifier")
    change(files)
    storage.write_folder(tmp_path / "classifier", files)
    with pytest.raises(StorageError, match=message):
        opsin.load(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 3}, "a fusion is not a network: leave out epochs"),
        ({"model": "lenet", "lr": 0.1}, "leave out lr, model"),
        ({"model": "bow"}, "leave out model"),
        ({"recipe": NET}, "leave out recipe"),
        ({"weights": "nowhere", "probe": True}, "leave out weights, probe"),
        ({"probe": True}, "leave out probe"),
        ({"freeze": ["stem"], "unfreeze": 0.5}, "leave out freeze, unfreeze"),
        ({"batch_size": 3, "max_minutes": 3.0}, "leave out batch_size, max_minutes"),
        ({"settings": ["data.validation=0.1", "optimizer.lr=3"]}, r"leave out optimizer\.lr"),
    ],
)
def test_what_trains_a_network_is_not_taken(
    members: tuple[str, str], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=f"{message}$"):
        opsin.train("digits", fuse=members, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_members_that_are_none_are_said_before_pictures_are_read(
    run: runs.Run, members: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_load", None)
    for given, error, message in (
        (members[:1], UsageError, r"fusion\.members: expected 2 to 16 classifiers, received 1"),
        (members + members, UsageError, "expected each once"),
        ((members[0], tmp_path / "nothing"), StorageError, "nothing: no classifier here"),
        ((members[0], "cifar10-small"), UsageError, "expected classifiers of the same classes"),
        ((run.folder, members[0]), UsageError, "a fused classifier is not fused again"),
    ):
        with pytest.raises(error, match=message):
            opsin.train("digits", fuse=given, out=tmp_path / "run")
    with pytest.raises(UsageError, match="expected 2 to 16 classifiers"):
        Fusion(members=tuple(map(str, range(17))))


def test_the_command_fuses_runs_of_a_folder(tmp_path: Path, opsin_: Callable[..., Said]) -> None:
    folder = write_pictures(tmp_path / "pictures", 40)
    own = ["--set", "data.validation=0.2", "--seed", 3, "--quiet"]
    assert opsin_("train", folder, "--model", "lenet", "--epochs", 2, *own, "--out", tmp_path / "a").code == 0
    few = ["--set", "classical.words=8", "--set", "classical.samples=500", "--set", "classical.passes=2"]
    assert opsin_("train", folder, "--model", "patches", *few, *own, "--out", tmp_path / "b").code == 0
    dry = opsin_("train", folder, "--fuse", tmp_path / "a", tmp_path / "b", "--dry-run", "--out", tmp_path / "run")
    assert dry.code == 0, dry.err
    recipe = from_toml(dry.out)
    assert recipe.fusion == Fusion(members=(str(tmp_path / "a"), str(tmp_path / "b"))) and recipe.seed == 3
    done = opsin_("train", folder, "--fuse", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    assert "in parts by seed 3, validation 0.2" in done.err and "no member was fitted" in done.err
    made = json.loads(done.out)
    assert made["report"]["n"] == json.loads((tmp_path / "a" / "splits.json").read_text())["test"]["n"]
    again = opsin_("evaluate", tmp_path / "run", "--json")
    assert json.loads(again.out)["confusion"] == made["report"]["confusion"]
    repeated = opsin_("train", folder, "--recipe", tmp_path / "run" / "recipe.toml", "--out", tmp_path / "c", "--quiet")
    assert repeated.code == 0, repeated.err
    one, other = (storage.read_folder(tmp_path / name / "classifier") for name in ("run", "c"))
    assert one == other
    wrong = opsin_("train", folder, "--recipe", tmp_path / "run" / "recipe.toml", "--epochs", 3)
    assert wrong.code == 2 and "fused is not a network: leave out epochs" in wrong.err
    page = (tmp_path / "run" / "report.html").read_text()
    assert "members a weight" in page and "members b top1" in page
    seed = opsin_("train", folder, "--fuse", tmp_path / "a", tmp_path / "b", "--seed", 4, "--out", tmp_path / "d")
    assert seed.code == 3 and "test pictures are training or validation pictures of a" in seed.err
