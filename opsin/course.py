"""What every run needs, whatever it is that learns: its parts of the data, its folder, its measurements, its report.

RUN/
  recipe.toml  environment.json  splits.json   what was asked for, where it ran, which picture is in which part
  log.jsonl  log.csv                           every few steps, passes and stages; every pass
  learning_curve.svg/.png  inputs.png          of a network: error per pass (the chapter's figure 12); what it sees
  report.json  report.html                     the result
  checkpoints/  stages/  classifier/           to go on; to use
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opsin import classifier as classifiers
from opsin import device, metrics, report, storage
from opsin import recipe as recipe_values
from opsin.classifier import Classifier
from opsin.console import Reporter
from opsin.data import datasets, loader
from opsin.data.index import Index, Splits, split_stratified
from opsin.errors import UsageError
from opsin.evaluate import AnyReport, measure
from opsin.preprocess import resize
from opsin.recipe import Recipe
from opsin.runfolder import Log, Signals, environment

EVALUATION_BATCH = 250
SHOWN = 5  # pictures that were left out, by name
MEMORY = 2 << 30  # bytes of prepared training pictures up to which they stay there


@dataclass
class Run:
    """A run folder and what came of it. `report` is None after a dry run."""

    folder: Path
    recipe: Recipe
    words: list[str] = field(default_factory=list)
    report: AnyReport | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def load(self, device: str = "cpu") -> Classifier:
        """The trained classifier."""
        return classifiers.load(self.folder, device)


class Course:
    """One run. What learns is a subclass's: it sets `fingerprint` once the pictures are read, and has a `run`."""

    signals: Signals  # these two while it runs
    log: Log

    def __init__(self, recipe: Recipe, folder: Path, splits: Splits, words: list[str], reporter: Reporter) -> None:
        self.recipe, self.folder, self.words, self.reporter = recipe, folder, words, reporter
        device.tune()
        self.device = device.choose(recipe.device)
        if recipe.data.validation and "val" not in splits:
            fractions = {"train": 1 - recipe.data.validation, "val": recipe.data.validation}
            splits = {**splits, **split_stratified(splits["train"], fractions, recipe.seed)}
        if recipe.stop.patience and "val" not in splits:
            raise UsageError("stop.patience needs pictures to choose by: --set data.validation=0.1")
        for note in (note for index in splits.values() for note in index.notes):
            reporter.warn(note)
        if bad := [str(bad) for index in splits.values() for bad in index.skipped]:
            others = f"; and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
            reporter.warn(f"left out: {'; '.join(bad[:SHOWN])}{others}")
        self.splits, self.classes = splits, splits["train"].classes
        self.many_labels = splits["train"].many_labels
        # Without a validation part the test error is shown after each pass, as in the chapter; nothing is chosen by it.
        self.watched = "val" if "val" in splits else "test"
        self.memory: dict[str, tuple[Tensor, Tensor]] = {}  # prepared pictures and labels by part, or nothing
        self.thresholds = (0.5,) * len(self.classes)  # of many labels, until the end
        self.environment = environment(str(self.device), torch.get_num_threads())
        self.fingerprint: dict[str, str] = {}
        self.history: list[dict[str, Any]] = []
        self.clock = time.monotonic()
        self.result: AnyReport | None = None

    def run(self) -> Run:
        raise NotImplementedError

    def in_memory(self) -> bool:
        """Whether the prepared pictures are in memory, on the device: read now, where the recipe says so."""
        recipe = self.recipe
        height, width = recipe.preprocess.size
        size = len(self.splits["train"]) * recipe.preprocess.channels * height * width
        if recipe.data.loader == "disk" or (recipe.data.loader == "auto" and size > MEMORY):
            return False
        for part in self.splits:
            loaded = loader.load_memory(
                self.splits[part],
                recipe.preprocess,
                workers=recipe.data.workers,
                on_bad_image=recipe.data.on_bad_image,
                progress=self.reporter.counter(f"preparing {part} pictures"),
            )
            self.memory[part] = loaded.images.to(self.device), loaded.labels.to(self.device)
            self.splits = {**self.splits, part: loaded.kept}
        return True

    def progress(self, show: Callable[[int, int], None] | None) -> Callable[[int, int], None]:
        """To be told (done, total): shows it, and ends the run where a signal asks for that."""

        def told(done: int, total: int) -> None:
            if self.signals.received is not None:
                raise self.signals.interrupted(self.folder)
            if show is not None:
                show(done, total)

        return told

    def measure(
        self, classifier: Classifier, part: str, show: Callable[[int, int], None] | None, **options: Any
    ) -> AnyReport:
        """A classifier's report on a part of the data."""
        return measure(
            classifier,
            self.memory[part] if self.memory else self.splits[part],
            batch_size=EVALUATION_BATCH,
            workers=max(1, self.recipe.data.workers),
            progress=self.progress(show),
            keys=self.splits[part].keys if self.memory else (),
            **options,
        )

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.log.write({"event": "stage", "stage": name, "seconds": round(time.monotonic() - began, 2)})

    def _told(self, what: str) -> Callable[[int, int], None]:
        return self.progress(self.reporter.counter(what))

    def _say(self, words: str) -> None:
        self.words = [*self.words, words]
        self.reporter.say(words)

    def choose_thresholds(self, classifier: Classifier, part: str = "val") -> None:
        """Of many labels: where F1 is best on the validation part, "" where it may not be used; never by the test
        part."""
        words = "each label is named from a probability of 0.5 on: there is no validation part to choose better ones by"
        if part in self.splits:
            found = self.measure(classifier, part, self.reporter.counter("evaluating"), resamples=0)
            assert found.probabilities is not None and found.labels is not None
            self.thresholds = tuple(metrics.best_thresholds(found.probabilities, found.labels))
            words = f"thresholds of the labels by the best F1 on the {found.n} pictures of the validation part"
        self._say(words)

    def write_facts(self) -> None:
        """What was asked for, where it runs, which picture is in which part: with it the folder holds a run."""
        facts = self.environment | {"words": self.words}
        storage.write_file(self.folder / "environment.json", json.dumps(facts, indent=1))
        listed: dict[str, Any] = {part: {"n": len(index)} for part, index in self.splits.items()}
        if self.recipe.data.name not in datasets.DATASETS or self.recipe.data.validation:
            for part, index in self.splits.items():
                listed[part]["keys"] = list(index.keys)
        storage.write_file(self.folder / "splits.json", json.dumps(listed))
        storage.write_file(self.folder / "recipe.toml", recipe_values.to_toml(self.recipe))

    def write_report(self, classifier: Classifier, result: AnyReport, facts: Mapping[str, Any]) -> None:
        """The end of every run: the classifier, then the report, with which it counts as finished."""
        skipped = tuple(str(bad) for index in self.splits.values() for bad in index.skipped)
        self.result = replace(result, skipped=skipped)
        classifiers.save(classifier, self.folder / "classifier")
        index, train = self.splits["test"], self.splits["train"]
        places = report.sample_indices(train.labels, len(self.classes))
        report.write(
            self.folder,
            self.result,
            self.history,
            recipe_toml=recipe_values.to_toml(self.recipe),
            environment=self.environment,
            pictures=index.image,
            samples={
                self.classes[k]: [_thumbnail(train.image(i)) for i in some] for k, some in enumerate(places[:100])
            },
            title=f"{self.recipe.model.name} on {Path(self.recipe.data.name).name}",
            facts={
                "minutes": round((time.monotonic() - self.clock) / 60, 3),
                **facts,
                "train_pictures": len(train),
                "words": self.words,
            },
        )


def fingerprint(splits: Splits) -> dict[str, str]:
    """A hash of the names and labels of each part: a resumed run must see the same pictures."""
    return {part: _fingerprint(index) for part, index in splits.items()}


def _fingerprint(index: Index) -> str:
    digest = hashlib.sha256(repr(index.classes).encode())
    digest.update(np.ascontiguousarray(index.labels).tobytes())
    for key in index.keys:
        digest.update(key.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def _thumbnail(image: Tensor, side: int = 112) -> Tensor:
    """A picture no larger than the page shows it: a thousand photographs at full size would not fit into memory."""
    scale = side / max(image.shape[1:])
    h, w = (max(1, round(s * scale)) for s in image.shape[1:])
    return image if scale >= 1 else resize(image, h, w)
