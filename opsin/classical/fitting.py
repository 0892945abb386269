"""A run of the classical pipeline: vocabulary, vectors, machine, each kept in the run's folder until it is finished.

RUN/stages/vocabulary/ and RUN/stages/vectors-000000/ …: what is whole there is not made again by `opsin resume`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opsin import classifier as classifiers
from opsin import storage
from opsin.classical import machines
from opsin.classical.machines import Machine
from opsin.classical.pipeline import Pipeline, checked
from opsin.classical.solver import Start
from opsin.classical.vocabulary import Sampler
from opsin.classifier import ClassicalClassifier
from opsin.console import Reporter
from opsin.course import EVALUATION_BATCH, Course, Run, fingerprint
from opsin.data.index import Splits
from opsin.data.rng import order
from opsin.errors import DataError, StorageError, UsageError
from opsin.recipe import Recipe
from opsin.runfolder import Log, Signals

EACH = 50  # descriptors of a picture that the vocabulary is learnt from, about, where there are pictures enough
KEPT = 1 << 24  # numbers of the vectors that are kept as one, 64 MiB
CONFIG, TENSORS = "stage.json", "stage.safetensors"


class Fitting(Course):
    """One run, from its beginning or from the stages that are kept, to its report."""

    def __init__(self, recipe: Recipe, folder: Path, splits: Splits, words: list[str], reporter: Reporter) -> None:
        super().__init__(recipe, folder, splits, words, reporter)
        assert recipe.classical is not None
        self.classical = recipe.classical
        self.pipeline = Pipeline(recipe.classical, recipe.preprocess)  # says what does not fit before all is read
        if recipe.classical.machine == "kernel" and len(self.splits["train"]) > machines.MAX_GRAM:
            raise UsageError(
                f"a kernel machine takes {machines.MAX_GRAM:,} pictures at most, received "
                f"{len(self.splits['train']):,}; a linear one of an additive map takes any: "
                "--set classical.machine=svm --set classical.additive=chi2"
            )
        self.in_memory()
        self.fingerprint = fingerprint(self.splits)

    def run(self) -> Run:
        path = self.folder / "log.jsonl"
        self.log = Log(self.folder, path.stat().st_size if path.exists() else 0)
        self.write_facts()
        with Signals() as self.signals:
            try:
                with self._stage("vocabulary"):
                    self.pipeline = self._vocabulary().to(self.device)
                with self._stage("vectors"):
                    x, y, fitted = self._vectors()
                with self._stage("machine"):
                    machine = self._machine(x, y, fitted)
                del x
                return self._finish(machine)
            finally:
                self.reporter.finish()
                self.log.close()

    # -- kept ---------------------------------------------------------------------------------------------------------

    def _kept(self, name: str, facts: dict[str, Any]) -> dict[str, Tensor] | None:
        """The tensors of a stage that is whole and of these pictures and this recipe; None where there is none."""
        folder = self.folder / "stages" / name
        if not storage.holds(folder):
            return None
        try:
            files = storage.read_folder(folder)
            found = storage.read_json(files[CONFIG], folder / CONFIG)
            tensors = storage.from_safetensors(files[TENSORS], folder / TENSORS)
        except (StorageError, KeyError) as error:
            self.reporter.warn(f"{folder} is made again: {error}")
            return None
        if not isinstance(found, dict) or found.get("fingerprint") != self.fingerprint:
            raise DataError(
                f"the pictures of {self.recipe.data.name} are not those that this run began with "
                "(names, labels or their order differ); put them back, or start a new run"
            )
        return tensors if found.get("facts") == facts else None

    def _keep(self, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        config = json.dumps({"fingerprint": self.fingerprint, "facts": facts}).encode()
        files = {CONFIG: config, TENSORS: storage.to_safetensors(tensors)}
        storage.write_folder(self.folder / "stages" / name, files)

    # -- the stages ---------------------------------------------------------------------------------------------------

    def _prepared(self, part: str, places: np.ndarray | None = None) -> Iterator[Tensor]:
        """The pictures of a part, all or of these places, uint8 [B, C, H, W] on the device."""
        index = self.splits[part]
        places = np.arange(len(index)) if places is None else places
        if self.memory:
            chosen = torch.from_numpy(places).to(self.device)
            yield from (self.memory[part][0][some] for some in chosen.split(EVALUATION_BATCH))
            return
        workers = max(1, self.recipe.data.workers)
        asked = ClassicalClassifier(self.pipeline, None, self.classes), index.subset(places)
        for _, images in classifiers.prepared_batches(*asked, batch_size=EVALUATION_BATCH, workers=workers):
            yield images.to(self.device)

    def _vocabulary(self) -> Pipeline:
        name = "vocabulary"
        tensors = self._kept(name, {})
        if tensors is not None:
            self.reporter.say("the vocabulary is kept from before")
            return checked(self.pipeline, tensors, str(self.folder / "stages" / name))
        count, learnt = self.classical.samples, dict[str, Tensor]()
        drawn = order(self.recipe.seed, 0, len(self.splits["train"]))
        for kind, one in enumerate(self.classical.descriptors):
            each = min(EACH, self.pipeline.frames(one))
            some = np.sort(drawn[: -(-count // each)])
            sampler, done, told = Sampler(count, self.recipe.seed + kind), 0, self._told(f"sampling {one.kind}")
            for images in self._prepared("train", some):
                sampler.add(self.pipeline.grid(images, kind).vectors.flatten(0, 1))
                done += len(images)
                told(done, len(some))
            learnt |= self.pipeline.learn(kind, sampler.values(), self.recipe.seed, self._told)
        learnt = {key: tensor.float().contiguous() for key, tensor in learnt.items()}
        made = checked(self.pipeline, learnt, "what was learnt")
        self._keep(name, learnt, {})
        return made

    def _vectors(self) -> tuple[Tensor, Tensor, int]:
        """Vectors and labels of the training pictures, those last that calibration is to be on, and how many are not.

        In this order both are views of one tensor, which may be most of the memory there is.
        """
        train = self.splits["train"]
        held = self._held(train.labels)
        places = np.concatenate([np.flatnonzero(~held), np.flatnonzero(held)])
        width, told = self.pipeline.width, self._told("vectors of the training pictures")
        x = torch.empty(len(places), width, device=self.device)
        step = max(1, KEPT // width)
        for start in range(0, len(places), step):
            some = places[start : start + step]
            name, facts = f"vectors-{start:06d}", {"places": [int(some[0]), int(some[-1]), len(some)]}
            kept = (self._kept(name, facts) or {}).get("vectors")
            if kept is not None and tuple(kept.shape) == (len(some), width):
                x[start : start + len(some)] = kept.to(self.device)
                told(start + len(some), len(places))
                continue
            at = start
            for images in self._prepared("train", some):
                x[at : at + len(images)] = self.pipeline.vectors(images)
                at += len(images)
                told(at, len(places))
            self._keep(name, {"vectors": x[start:at]}, facts)
        return x, torch.from_numpy(train.labels[places].copy()).to(self.device), int((~held).sum())

    def _held(self, labels: np.ndarray) -> np.ndarray:
        """Which training pictures calibration is on, bool [N]: the same part of each class, and never all of one."""
        n, part = len(labels), self.classical.held
        held = np.zeros(n, bool)
        if "val" in self.splits:
            return held
        drawn = order(self.recipe.seed, 1, n)
        if labels.ndim == 2:
            held[drawn[: int(part * n)]] = True
            return held
        for k in range(len(self.classes)):
            mine = drawn[labels[drawn] == k]
            held[mine[: int(part * len(mine))]] = True
        return held

    def _machine(self, x: Tensor, y: Tensor, fitted: int) -> Machine:
        """Fitted to all training pictures; calibrated on the validation part, or on pictures held back from a machine
        that is otherwise the same."""
        if "val" in self.splits:
            machine = self._fit(x, y, "fitting the machine")
            return machines.calibrated(machine, *self._validation())
        if fitted == len(x):
            self._say("the probabilities are not calibrated: no picture could be held back for that")
            return self._fit(x, y, "fitting the machine")
        start = Start()
        first = self._fit(x[:fitted], y[:fitted], "fitting the machine to calibrate", start)
        first = machines.calibrated(first, x[fitted:], y[fitted:])
        machine = self._fit(x, y, "fitting the machine", start)
        about = machine.settings.about | {"calibrated_on": len(x) - fitted}
        settings = replace(machine.settings, link=first.settings.link, about=about)
        self._say(f"probabilities are calibrated on {len(x) - fitted:,} training pictures that were held back for that")
        return Machine(settings, {**machine.tensors, **{key: first.tensors[key] for key in ("slope", "offset")}})

    def _fit(self, x: Tensor, y: Tensor, what: str, start: Start | None = None) -> Machine:
        told = self._told(what)
        return self.pipeline.machine(x, y, len(self.classes), self.recipe.seed, lambda done: told(done, 0), start)

    def _validation(self) -> tuple[Tensor, Tensor]:
        index, told, rows, done = self.splits["val"], self._told("vectors of the validation pictures"), [], 0
        for images in self._prepared("val"):
            rows.append(self.pipeline.vectors(images))
            done += len(images)
            told(done, len(index))
        return torch.cat(rows), torch.from_numpy(index.labels.copy()).to(self.device)

    def _finish(self, machine: Machine) -> Run:
        def made() -> ClassicalClassifier:
            return ClassicalClassifier(
                self.pipeline, machine, self.classes, self.thresholds if self.many_labels else None
            )

        if self.many_labels:
            self.choose_thresholds(made())
        result = self.measure(made(), "test", self.reporter.counter("evaluating"))
        parameters = sum(t.numel() for t in (*self.pipeline.tensors.values(), *machine.tensors.values()))
        self.write_report(
            made(), result, {"vector": self.pipeline.width, "parameters": parameters, **machine.settings.about}
        )
        shutil.rmtree(self.folder / "stages", ignore_errors=True)  # only needed to go on
        return Run(self.folder, self.recipe, self.words, self.result, self.history)
