"""A run that fuses trained classifiers: their weighted mean, by weights that are learnt on validation pictures.

No member may have been fitted to these; where one was, or it is not known, the weights are equal. What a member was
chosen by (its best pass, calibration, thresholds) counts as no fitting: it is a few numbers of it. Nothing is kept on
the way: a run that is interrupted starts anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from opsin import classifier as classifiers
from opsin import metrics, runfolder, shipped
from opsin.classifier import FusedClassifier, Member
from opsin.console import Reporter, percent
from opsin.course import EVALUATION_BATCH, Course, Run
from opsin.data.datasets import DATASETS
from opsin.data.index import Splits
from opsin.errors import DataError, OpsinError, UsageError
from opsin.evaluate import LabelReport
from opsin.recipe import Data, Fusion, ModelSpec, Recipe
from opsin.runfolder import Log, Signals

# Fields of a recipe that mean something here
KEYS = ("data.data_dir", "data.validation", "data.workers", "data.on_bad_image", "seed", "device")
ENOUGH = 1e-7  # nats a label that the weights may be below the best there are
PASSES = 2000  # of EM
BEFORE = 8  # runs that began with one another's weights


def derive(data: str, members: Sequence[str]) -> tuple[Recipe, list[str]]:
    """The recipe that fuses these, and a sentence for what needs one. Parts of the data are as the members' runs had
    them, where these agree. Members that do not go together are said here, before any picture is read."""
    fusion = Fusion(members=tuple(members))
    fused = _load(fusion)
    made = Recipe(
        data=Data(name=data), model=ModelSpec(name="fused"), preprocess=fused.members[0].preprocess, fusion=fusion
    )
    theirs = [recipe for place in members if (recipe := _recipe(place)) and runfolder.same_data(recipe.data.name, data)]
    parts = {(one.seed, one.data.validation) for one in theirs}
    if len(parts) != 1:
        return made, []
    first = theirs[0]
    kept = replace(first.data, batch_size=made.data.batch_size, balance="", loader="auto")
    words = [
        f"the members' runs had these pictures in parts by seed {first.seed}, validation {first.data.validation:g}"
    ]
    return replace(made, data=replace(kept, name=data), seed=first.seed), words


def headline(recipe: Recipe) -> str:
    """What the recipe is, in a few words."""
    assert recipe.fusion is not None
    names = _names(recipe.fusion.members)
    return f"fused: the weighted mean of what {len(names)} classifiers say: {', '.join(names)}"


def mixture(likelihoods: Tensor, progress: Callable[[int, int], None] | None = None) -> tuple[float, ...]:
    """The weights, of sum 1, under whose mixture the labels are likeliest, by EM (Dempster, Laird and Rubin 1977).

    likelihoods: float [N, M], what each of M members gave each of N labels. The mean log-likelihood is concave in the
    weights, and no others are better than these by more than their largest derivative less one: that is `ENOUGH`, or as
    little as `PASSES` passes make it. From equal weights, so members that say the same stay equal. progress: is called
    with (passes done, at most).
    """
    if likelihoods.ndim != 2 or not len(likelihoods) or not bool(torch.isfinite(likelihoods).all()):
        raise UsageError(f"likelihoods: expected finite numbers [N, M], received {tuple(likelihoods.shape)}")
    given = likelihoods.double().clamp_min(metrics.NLL_FLOOR)  # as little as a picture can be likely there
    weights = torch.full((given.shape[1],), 1 / given.shape[1], dtype=torch.float64)
    for done in range(PASSES):
        if progress is not None:
            progress(done, PASSES)
        derivative = (given / (given @ weights)[:, None]).mean(0)
        if float(derivative.max()) - 1 <= ENOUGH:
            break
        weights = weights * derivative
    return tuple((weights / weights.sum()).tolist())


def likelihoods(said: Tensor, labels: Tensor) -> Tensor:
    """What each member gave what is so, float64 [L, M]. said: float [N, M, K]. labels: int64 [N], a row each; of many
    labels float [N, K] of 1, 0 and -1, a row for each label that is known."""
    said = said.double()
    if labels.ndim == 1:
        return said.gather(2, labels[:, None, None].expand(-1, said.shape[1], 1))[:, :, 0]
    there = torch.where((labels == 1)[:, None], said, 1 - said)
    return there.transpose(1, 2)[labels >= 0]


# ---------------------------------------------------------------------------------------------------------------------
# What members say of themselves
# ---------------------------------------------------------------------------------------------------------------------


class Past(NamedTuple):
    """The pictures of the same data by which a member came to be, by name. before: of weights that it began with and
    whose pictures are not known."""

    train: frozenset[str]
    val: frozenset[str]
    recipe: Recipe
    before: str = ""


def _load(fusion: Fusion, device: str = "cpu", classes: Sequence[str] | None = None) -> FusedClassifier:
    members = [classifiers.load(place, device) for place in fusion.members]
    return FusedClassifier(cast(list[Member], members), classes=classes)


def _recipe(place: str) -> Recipe | None:
    return runfolder.recipe_of(shipped.find(place))


def _names(places: Sequence[str]) -> list[str]:
    """Short names of folders, where they are told apart by them."""
    paths = [Path(place) for place in places]
    short = [(path.parent if path.name == "classifier" else path).name for path in paths]
    return short if len(set(short)) == len(short) else [*places]


def _past(place: str, data: str, splits: Splits, depth: int = 0) -> Past | str:
    """What is known of a member's pictures, or why it is not. splits: as they are before any of training is set apart
    for validation."""
    recipe = _recipe(place)
    if recipe is None:
        return "is not in the folder of a run"
    if not runfolder.same_data(recipe.data.name, data):
        return f"was trained on {recipe.data.name}"
    listed = {part: runfolder.listed(shipped.find(place), part) for part in ("train", "val")}
    if listed["train"] is None and recipe.data.name in DATASETS and not recipe.data.validation:
        listed = {part: splits[part].keys if part in splits else [] for part in listed}  # as published
    if listed["train"] is None:
        return "does not say which pictures it was trained on"
    train, before = frozenset(listed["train"]), ""
    if start := recipe.model.weights:
        earlier = _past(start, data, splits, depth + 1) if depth < BEFORE else "began too long ago"
        before = start if isinstance(earlier, str) else earlier.before
        train |= frozenset() if isinstance(earlier, str) else earlier.train
    return Past(train, frozenset(listed["val"] or ()), recipe, before)


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------


class _Answered:
    """A fused classifier of what its members have said already: that is what is prepared, float [B, M, K]."""

    def __init__(self, fused: FusedClassifier) -> None:
        self.fused, self.classes, self.thresholds = fused, fused.classes, fused.thresholds

    def prepare(self, image: Tensor) -> Tensor:
        return self.fused.each(self.fused.prepare(image)[None])[0]

    def probabilities(self, prepared: Tensor) -> Tensor:
        return self.fused.mean(prepared)


class Fusing(Course):
    """One run: what members say of the validation part to weights, of the test part to a report."""

    def __init__(self, recipe: Recipe, folder: Path, splits: Splits, words: list[str], reporter: Reporter) -> None:
        super().__init__(recipe, folder, splits, words, reporter)
        assert recipe.fusion is not None
        self.names = _names(recipe.fusion.members)
        self.fused = _load(recipe.fusion, str(self.device), self.classes)
        if (self.fused.thresholds is not None) != self.many_labels:
            own, theirs = ("many labels", "one label")[:: 1 if self.many_labels else -1]
            raise DataError(f"the pictures have {own} each, but the classifiers are for {theirs} a picture")
        pasts = [_past(place, recipe.data.name, splits) for place in recipe.fusion.members]
        self.pasts = dict(zip(self.names, pasts, strict=True))
        self._check_test()
        self.equal = self._why_equal()

    def _check_test(self) -> None:
        """No member may have seen the test pictures: what is measured on them would be worth nothing."""
        keys = self.splits["test"].keys
        for name, past in self.pasts.items():
            seen = 0 if isinstance(past, str) else sum(key in past.train or key in past.val for key in keys)
            if seen and isinstance(past, Past):
                own = f"--seed {past.recipe.seed} --set data.validation={past.recipe.data.validation:g}"
                raise DataError(
                    f"{seen:,} of the {len(keys):,} test pictures are training or validation pictures of {name}; "
                    f"to take the parts that it had, if the data are as they were then: {own}"
                )

    def _why_equal(self) -> str:
        """Why no weights can be learnt, in words; "" where they can."""
        if "val" not in self.splits:
            return "there is no validation part to learn them on: --set data.validation=0.1, of the members too"
        keys = self.splits["val"].keys
        for name, past in self.pasts.items():
            if isinstance(past, str):
                return f"whether {name} was fitted to validation pictures is not known"
            if seen := sum(key in past.train for key in keys):
                return f"{seen:,} of the {len(keys):,} validation pictures are training pictures of {name}"
        return "" if (self.splits["val"].labels >= 0).any() else "no label of the validation part is known"

    def run(self) -> Run:
        if (self.folder / "recipe.toml").exists():
            self.reporter.say("nothing was saved yet: the run starts anew")
        self.log = Log(self.folder)
        self.write_facts()
        with Signals() as self.signals:
            try:
                for name, past in self.pasts.items():
                    if isinstance(past, str):
                        self._say(f"{name} {past}: whether it has seen these pictures is not known")
                    elif past.before:
                        self._say(f"{name} began with {past.before}, whose pictures are not known")
                if not self.equal:
                    with self._stage("validation"):
                        self._answer("val")
                self._weigh()
                with self._stage("test"):
                    self._answer("test")
                return self._finish()
            finally:
                self.reporter.finish()
                self.log.close()

    def _answer(self, part: str) -> None:
        """What each member says of the pictures of a part, and their labels, in place of prepared pictures."""
        index, told, said = self.splits[part], self._told(f"asking of the {part} pictures"), []
        workers = max(1, self.recipe.data.workers)
        asked = classifiers.prepared_batches(self.fused, index, batch_size=EVALUATION_BATCH, workers=workers)
        for places, prepared in asked:
            said.append(self.fused.each(prepared))
            told(places[-1] + 1, len(index))
        answers = torch.cat(said)
        for name, finite in zip(self.names, torch.isfinite(answers).all(2).all(0).tolist(), strict=True):
            if not finite:
                raise OpsinError(f"{name} answered with NaN or infinity; its weights have diverged")
        self.memory[part] = answers, torch.from_numpy(index.labels.copy())

    def _weighted(self, weights: Sequence[float]) -> FusedClassifier:
        return FusedClassifier(self.fused.members, weights, self.classes, self.thresholds if self.many_labels else None)

    def _weigh(self) -> None:
        if self.equal:
            self._say(f"equal weights: {self.equal}")
            return
        given = likelihoods(*self.memory["val"])
        weights = mixture(given, self.progress(None))
        self.fused = self._weighted(weights)
        shares = ", ".join(f"{weight:.3f} of {name}" for name, weight in zip(self.names, weights, strict=True))
        self._say(
            f"weights under which the {len(given):,} labels of the validation part are likeliest, to whose pictures no "
            f"member was fitted: {shares}"
        )
        self.log.write(
            {"event": "weights", "labels": len(given), "weights": dict(zip(self.names, weights, strict=True))}
        )

    def _finish(self) -> Run:
        show = self.reporter.counter("evaluating")
        if self.many_labels:
            self.choose_thresholds(_Answered(self.fused), "" if self.equal else "val")
            self.fused = self._weighted(self.fused.weights)
        result = self.measure(_Answered(self.fused), "test", show)
        what, quick = ("map", {"resamples": 0}) if isinstance(result, LabelReport) else ("top1", {})
        members, alone = dict[str, Any](), dict[str, float]()
        for i, (name, weight) in enumerate(zip(self.names, self.fused.weights, strict=True)):
            only = self._weighted([float(i == j) for j in range(len(self.names))])
            alone[name] = self.measure(_Answered(only), "test", None, **quick).to_dict()[what]
            members[name] = {"weight": weight, what: alone[name]}
        self.log.write({"event": "alone", what: alone})
        each = ", ".join(f"{percent(value)} {name}" for name, value in alone.items())
        self._say(f"{'mAP' if what == 'map' else 'top-1'} alone: {each}; together {percent(result.to_dict()[what])}")
        about = f"equal: {self.equal}" if self.equal else f"learnt on {len(self.splits['val']):,} validation pictures"
        self.write_report(self.fused, result, {"members": members, "weights": about})
        return Run(self.folder, self.recipe, self.words, self.result, self.history)
