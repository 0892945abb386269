"""What a person asks for, a recipe and a folder, to a trained, measured, saved classifier: all pieces meet here."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from opsin import checkpoint, device, figures, fusing, hub, models, optim, recipes, shipped, storage
from opsin import classifier as classifiers
from opsin import probe as probes
from opsin import recipe as recipe_values
from opsin.augment import DRAWS, Augmenter, random_crop
from opsin.classical.fitting import Fitting
from opsin.classifier import NetClassifier
from opsin.console import Reporter
from opsin.course import EVALUATION_BATCH, Course, Run, fingerprint
from opsin.data import datasets, loader
from opsin.data.index import Index, Splits
from opsin.data.rng import uniform
from opsin.errors import BadInput, DataError, Interrupted, NonFiniteLoss, StorageError, UsageError, near
from opsin.evaluate import AnyReport, LabelReport, report_from_dict
from opsin.fusing import Fusing
from opsin.loss import Classify, Labels, of_ignorance
from opsin.models import smallnet, weights
from opsin.models.convnet import ConvNet
from opsin.preprocess import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocess,
    resize,
    to_channels,
)
from opsin.recipe import CrossEntropy, ModelSpec, Recipe
from opsin.recipes import classical, derive
from opsin.runfolder import Lock, Log, Signals
from opsin.train import EpochEnd, Precision, StepEnd, TrainState
from opsin.train import train as training_loop
from opsin.types import Batch, Model, Progress

# Networks whose first layer is set from the training pictures before training starts.
DATA_INITIALIZED: dict[str, Callable[[Any, Tensor], None]] = {"smallnet": smallnet.whiten}
# Data sets whose pictures keep their class in a mirror. Characters do not.
MIRRORED = ("cifar10", "cifar100")
# Whose mean and deviation published weights want, by name; none: pixels / 255.
PREPROCESSINGS = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "cifar10": (CIFAR10_MEAN, CIFAR10_STD),
    "none": None,
}
UNEVEN = 5  # times as many pictures as the smallest class: worth a word
SECONDS_BETWEEN_SAVES = 20.0
SMALL = 64  # pixels of the longer side up to which pictures keep their own size
KNOWN_BY = 500  # training pictures by which it is found out how much weights know of them
FEATURES = "features.safetensors"  # of the training pictures, for a probe


# ---------------------------------------------------------------------------------------------------------------------
# What a person asks for
# ---------------------------------------------------------------------------------------------------------------------


def train(
    data: str = "digits",
    *,
    recipe: str | Recipe | None = None,
    model: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    data_dir: str | None = None,
    device: str | None = None,
    weights: str | None = None,
    freeze: Sequence[str] = (),
    unfreeze: float = 0.0,
    probe: bool = False,
    fuse: Sequence[str | Path] = (),
    out: str | Path | None = None,
    max_minutes: float | None = None,
    on_bad_image: str | None = None,
    settings: Sequence[str] = (),
    dry_run: bool = False,
    asked: Literal["", "top1", "map"] = "",
    reporter: Reporter | None = None,
) -> Run:
    """Train a classifier on a named data set, a folder of class folders, a list of paths and labels, or a tar;
    everything that is not given is derived.

    weights: to start from: a file, a folder with timm's config.json, a classifier of ours, or hf:owner/name. What such
    a folder says of network and normalisation is taken where no `recipe` is given, and the recipe is one of
    fine-tuning. freeze: stages that stay as the weights have them. unfreeze: the part of the training over which the
    others begin to learn, the last first. probe: none learns; a new last layer is fitted (`opsin.probe`).
    fuse: nothing is trained; the weighted mean of these classifiers, which are trained already, is the new one
    (`opsin.fusing`): folders of runs or classifiers, or shipped names.
    recipe: a `Recipe`, a name of `opsin.recipes.RECIPES`, FILE.toml or FILE.py:FUNCTION. settings: "key=value" for any
    other field of the recipe. out: the run folder; by default runs/MODEL-DATA-TIME. dry_run: derive and check only.
    asked: what the caller will ask of the report; `UsageError`, before training, where these pictures have no such.
    """
    reporter = reporter or Reporter()
    # Folders are written down in full: a run is resumed and evaluated from anywhere.
    data = data if data in datasets.DATASETS else os.path.abspath(data)
    given: dict[str, Any] = {
        "data.name": data,
        "data.data_dir": os.path.abspath(data_dir) if data_dir else None,
        "data.on_bad_image": on_bad_image,
        "seed": seed,
        "model.name": model,
        "model.weights": _place(weights) if weights else None,
        "tune.freeze": list(freeze) or None,
        "tune.probe": probe or None,
        "epochs": epochs,
        "data.batch_size": batch_size,
        "optimizer.lr": lr,
        "device": device,
        "stop.minutes": max_minutes,
    }
    changes = [(key, str(value)) for key, value in given.items() if value is not None]
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise UsageError(f"--set: expected key=value, received {setting!r}")
        changes.append((key.strip(), text.strip()))

    words: list[str] = []
    made: Recipe | None = None
    if isinstance(recipe, Recipe):
        made = recipe
    elif recipe is not None:
        made = recipes.find(recipe)
    elif model in recipes.RECIPES and recipes.find(model).data.name == data:
        made = recipes.find(model)
    elif model is not None and model not in classical.SUMMARIES:
        models.entry(model)  # a misspelt name is said before anything is read
    if fuse or (made and not made.network) or model in classical.SUMMARIES:
        foreign: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "max_minutes": max_minutes}
        foreign |= {"weights": weights, "model": model if recipe is not None or fuse else None}
        if fuse:
            foreign |= {"recipe": recipe, "freeze": freeze or None}
            foreign |= {"unfreeze": unfreeze or None, "probe": probe or None}
        wrong = [key for key, value in foreign.items() if value is not None]
        if fuse or (made and made.fusion):
            keys = (setting.partition("=")[0].strip() for setting in settings)
            wrong += [key for key in keys if key not in fusing.KEYS]
        if wrong:
            name = "a fusion" if fuse else made.model.name if made else model
            raise UsageError(f"{name} is not a network: leave out {', '.join(wrong)}")
    if not 0 <= unfreeze < 1:
        raise UsageError(f"unfreeze: expected a part of the training, 0 <= x < 1, received {unfreeze}")
    if not weights and (freeze or unfreeze or probe):
        raise UsageError("freeze, unfreeze and probe are for a network that starts from weights; name them: --weights")
    if unfreeze and recipe is not None:
        raise UsageError("unfreeze: a recipe has its own groups; give them `since` there")
    source = hub.find(weights) if weights and recipe is None else None
    start = source.spec() if source is not None and model is None else None
    if fuse:
        made, words = fusing.derive(data, [_place(str(place)) for place in fuse])
    # What decides which pictures are read, and how they are split, is known before the recipe that they lead to.
    reading = [(key, text) for key, text in changes if key.startswith("data.") or key == "seed"]
    first = _changed(made or derive.small(), reading)
    splits = _load(first, reporter)
    if asked and asked != ("map" if splits["train"].many_labels else "top1"):
        raise UsageError(
            "--min-top1: a picture may have many labels here, so none is simply right; ask for --min-map"
            if asked == "top1"
            else "--min-map: each picture has one label here; ask for --min-top1"
        )
    if made is None:
        name, options = (start.name, start.options) if start else (model or derive.DEFAULT, None)
        of = facts(data, splits)
        if name in classical.SUMMARIES:
            made, words = classical.derive(of, name)
        else:
            made, words = derive.derive(of, name, options)
        if source is not None:
            made, taken = _as_published(made, source)
            if probe:
                made, words = derive.probe(made, of)
            else:
                known = _known(_changed(made, changes), source, splits["train"], reporter)
                made, tuned = derive.fine_tuned(made, _learning(made), unfreeze, known)
                words += tuned
            words += taken
    made, enlarged = fitting(_changed(made, changes))
    # After the changes, so that it is true; what else was changed may contradict a word above.
    said = (fusing if made.fusion else classical if made.classical else derive).headline(made)
    words = [said, *words, *enlarged, *uneven(made, splits["train"])]
    if settings:
        words.append(f"as given: {', '.join(settings)}")
    for line in words:
        reporter.say(line)
    folder = (
        Path(out) if out else Path("runs") / f"{made.model.name}-{Path(data).name}-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    if dry_run:
        if (folder / "recipe.toml").exists():
            raise UsageError(f"{folder} already holds a run; choose another --out")
        _course(made, folder, splits, words, reporter)
        return Run(folder, made, words)
    return fit(made, folder, splits=splits, words=words, reporter=reporter)


def _as_published(recipe: Recipe, source: hub.Source) -> tuple[Recipe, list[str]]:
    """The recipe with the channels and the normalisation that the weights were trained with."""
    words = [f"{source.place} has weights of {recipe.model.name}"]
    try:
        theirs = source.preprocess()
    except (BadInput, UsageError):
        return recipe, [*words, "how their pictures were normalised is not known: by the mean and deviation of these"]
    own = recipe.preprocess
    made = replace(own, channels=theirs.channels, mean=theirs.mean, std=theirs.std)
    if min(max(own.size), max(theirs.size)) > SMALL:  # photographs both: as large, and cut out, as there
        made = theirs
    what = {(1, 3): "made colour and ", (3, 1): "made grey and "}.get((own.channels, theirs.channels), "")
    return replace(recipe, preprocess=made), [*words, f"pictures are {what}normalised as for those weights"]


def _learning(recipe: Recipe) -> list[str]:
    """The stages of the network that have parameters which learn, in the order of the flow."""
    with torch.device("meta"):
        net, _ = _build(fitting(recipe)[0], 2)
    assert isinstance(net, ConvNet)
    return [name for name, stage in net.stages.items() if any(p.requires_grad for p in stage.parameters())]


def _known(recipe: Recipe, source: hub.Source, train: Index, reporter: Reporter) -> float | None:
    """The part of the pictures that a probe on the weights' features tells, 0–1, from up to `KNOWN_BY` of them; None
    where none can be fitted."""
    if train.many_labels:
        return None
    recipe, _ = fitting(recipe)
    net, _ = _build(recipe, len(train.classes))
    weights.load_into(net, source.tensors(), recipe.model.name, adapt=True)
    places = np.unique(np.linspace(0, len(train) - 1, KNOWN_BY).astype(int))
    some = train.subset(places)
    asked = NetClassifier(net, recipe.preprocess, train.classes, recipe.model)
    batches = classifiers.prepared_batches(asked, some, batch_size=EVALUATION_BATCH, workers=recipe.data.workers or 1)
    try:
        show = reporter.counter("trying what the weights know")
        progress = None if show is None else lambda done: show(done, len(some))
        vectors = probes.embeddings(net, (recipe.preprocess.normalize(images) for _, images in batches), progress)
    except UsageError:  # a head that a probe cannot replace
        return None
    return probes.told(vectors, torch.from_numpy(some.labels.copy()), recipe.seed)


def _place(weights_: str) -> str:
    """Weights as they are written down: a path in full, the name of a shipped classifier or of one on the hub."""
    named = weights_.startswith(hub.PREFIX) or shipped.find(weights_) != Path(weights_)
    return weights_ if named else os.path.abspath(weights_)


def _changed(recipe: Recipe, changes: Sequence[tuple[str, str]]) -> Recipe:
    for key, text in changes:
        recipe = recipe_values.override(recipe, key, text)
    return recipe


def fit(
    recipe: Recipe,
    folder: Path | str,
    *,
    splits: Splits | None = None,
    words: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> Run:
    """Train by `recipe` in the new folder `folder`. `UsageError` when there is already a run in it."""
    folder, reporter = Path(folder), reporter or Reporter()
    with Lock(folder):
        if (folder / "recipe.toml").exists():
            raise UsageError(
                f"{folder} already holds a run; go on with: opsin resume {folder}, or choose another --out"
            )
        splits = splits or _load(recipe, reporter)
        return _course(recipe, folder, splits, list(words), reporter).run()


def resume(folder: Path | str, *, reporter: Reporter | None = None) -> Run:
    """Go on with an interrupted run, exactly from its newest whole checkpoint; a finished one is returned as it is."""
    folder, reporter = Path(folder), reporter or Reporter()
    path = folder / "recipe.toml"
    try:
        recipe = recipe_values.from_toml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{folder}: no run here: cannot read recipe.toml: {error}") from error
    with Lock(folder):
        if (folder / "report.json").exists():
            reporter.say(f"{folder} is finished")
            values = storage.read_json((folder / "report.json").read_bytes(), folder / "report.json")
            return Run(folder, recipe, report=report_from_dict(values, str(folder / "report.json")))
        splits = _load(recipe, reporter)
        return _course(recipe, folder, splits, _words(folder), reporter).run()


def _course(recipe: Recipe, folder: Path, splits: Splits, words: list[str], reporter: Reporter) -> Course:
    kind = Fusing if recipe.fusion else Fitting if recipe.classical else _Training
    return kind(recipe, folder, splits, words, reporter)


def _words(folder: Path) -> list[str]:
    """What was said when the run began, for its report; a checkpoint, where there is one, has it too."""
    path = folder / "environment.json"
    try:
        facts = storage.read_json(path.read_bytes(), path)
    except OSError:  # a run of an older opsin, or one without it: the words are for people only
        return []
    return list(facts.get("words", [])) if isinstance(facts, dict) else []


def import_weights(
    weights_: Path | str,
    out: Path | str,
    *,
    model: str | None = None,
    preprocess: Preprocess | str | None = None,
    classes: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[NetClassifier, list[str]]:
    """Weights that another program trained as a classifier folder `out`; also returns what was done to them, in words.

    weights_: a file, a folder with timm's config.json, or hf:owner/name. model, preprocess, classes: None for what the
    folder says. preprocess: or a name of `PREPROCESSINGS`. classes: where nobody says them, CIFAR-10's if they fit,
    else numbers; that is in the words. options: of the network; auxiliary heads are left out where the weights have
    none. Nothing is adapted: the classes and channels are those of the weights.
    """
    source, notes = hub.find(weights_), list[str]()
    spec = ModelSpec(name=model) if model else source.spec()
    entry, options = models.entry(spec.name), {**spec.options, **(options or {})}
    tensors = source.tensors(notes)
    heads = any(key.startswith("aux.") for key in weights.translate(tensors, spec.name))
    if not heads and "aux" in models.options(spec.name) and "aux" not in options:
        options["aux"] = False
        notes.append(f"the weights have no auxiliary heads, which only training uses: {spec.name} is built without")
    count, channels = weights.classes_and_channels(tensors, spec.name)
    if preprocess is None:
        preprocess = source.preprocess()
    elif isinstance(preprocess, str):
        preprocess = _published_preprocess(preprocess, entry, channels)
    if preprocess.channels != channels:
        raise UsageError(f"the weights take {channels} channels, the pictures are prepared to {preprocess.channels}")
    names = source.classes(count) if classes is None else tuple(classes)
    if names is None:
        likely = "cifar10" if (count, entry.native_size, entry.channels) == (10, 32, 3) else None
        notes.append(f"classes: taken to be {likely or 'numbers'}; --classes says otherwise")
        names = datasets.DATASETS[likely].classes if likely else tuple(map(str, range(count)))
    if len(names) != count:
        raise UsageError(f"the weights have {count} classes, but {len(names)} names are given")
    net = models.build(spec.name, count, channels, **options)
    notes += weights.load_into(net, tensors, spec.name)
    thresholds = source.own.thresholds if source.own else None  # one for many labels stays so
    made = NetClassifier(net, preprocess, names, ModelSpec(name=spec.name, options=options), thresholds)
    classifiers.save(made, out)
    return made, notes


def _published_preprocess(kind: str, entry: models.Entry, channels: int) -> Preprocess:
    """What weights without a word about it are usually published for; `UsageError` where that has other channels."""
    if kind not in PREPROCESSINGS:
        raise UsageError(f"preprocess: no {kind!r}; {near(kind, PREPROCESSINGS)}")
    mean, std = PREPROCESSINGS[kind] or ((0.0,) * channels, (1.0,) * channels)
    if len(mean) != channels:
        raise UsageError(f"--preprocess {kind}: for colour, but these weights take {channels} channel; use none")
    # Networks of ImageNet's size are published for the centre 224 of a shorter side of 256.
    fraction = 0.875 if kind == "imagenet" and entry.native_size == 224 else 1.0
    size = (entry.native_size, entry.native_size)
    return Preprocess(size=size, channels=channels, mean=mean, std=std, crop_fraction=fraction)


# ---------------------------------------------------------------------------------------------------------------------
# Data and facts
# ---------------------------------------------------------------------------------------------------------------------


def _load(recipe: Recipe, reporter: Reporter) -> Splits:
    data = recipe.data
    return datasets.load(
        data.name,
        data_dir=data.data_dir,
        seed=recipe.seed,
        on_bad_image=data.on_bad_image,
        progress=reporter.counter(f"loading {data.name}"),
    )


def facts(name: str, splits: Splits, sample: int = 200) -> derive.Facts:
    """What a recipe is derived from: sizes, channels and colours of up to `sample` training pictures, evenly spaced."""
    index = splits["train"]
    shapes, tiles = [], []
    for i in np.unique(np.linspace(0, len(index) - 1, sample).astype(int)):
        picture = index.image(int(i))
        shapes.append(picture.shape)
        tiles.append(resize(picture, 32, 32))  # one picture in memory at a time, whatever its size
    channels, height, width = max(s[0] for s in shapes), *(int(np.median([s[k] for s in shapes])) for k in (1, 2))
    info = datasets.DATASETS.get(name)
    if info is not None and info.mean:
        mean, std, mirror = info.mean, info.std, name in MIRRORED
    else:
        values = torch.stack([to_channels(tile, channels) for tile in tiles]).double() / 255
        mean = tuple(round(v, 4) for v in values.mean((0, 2, 3)).tolist())
        std = tuple(round(max(v, 0.01), 4) for v in values.std((0, 2, 3)).tolist())
        # Small pictures are often characters, whose mirror image is another character or none.
        mirror = max(height, width) > 64
    return derive.Facts(
        name, len(index), len(index.classes), height, width, channels, mean, std, mirror, index.many_labels
    )


def fitting(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe with pictures enlarged where the network needs it, and said so."""
    if not recipe.network:
        return recipe, []  # what is too small for descriptors is an error there
    least = models.entry(recipe.model.name).least_size
    height, width = recipe.preprocess.size
    if min(height, width) >= least:
        return recipe, []
    scale = least / min(height, width)
    size = (math.ceil(height * scale), math.ceil(width * scale))
    words = [
        f"pictures of {height}×{width} are enlarged to {size[0]}×{size[1]}, the least that {recipe.model.name} takes"
    ]
    return replace(recipe, preprocess=replace(recipe.preprocess, size=size)), words


def uneven(recipe: Recipe, train: Index) -> list[str]:
    """Where some classes have far fewer pictures than others, and the recipe does nothing about it: that, in words."""
    counts = train.counts()
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] <= UNEVEN * counts[least] or recipe.data.balance or recipe.loss.class_weights or not recipe.network:
        return []
    if isinstance(recipe.loss, CrossEntropy) and recipe.loss.tau:
        return []
    few, many = (f"{train.classes[k]} ({counts[k]:,})" for k in (least, most))
    return [
        f"classes are uneven, from {few} to {many} training pictures, and each picture counts alike; where each class "
        "should: --set data.balance=root, or --set loss.class_weights=balanced"
    ]


def _build(recipe: Recipe, num_classes: int) -> tuple[Model, ModelSpec]:
    """The network, and the specification that makes it again."""
    options = dict(recipe.model.options)
    if "image_size" in models.options(recipe.model.name):
        options.setdefault("image_size", list(recipe.preprocess.size))
    net = models.build(recipe.model.name, num_classes, recipe.preprocess.channels, **options)
    return net, replace(recipe.model, options=options, weights="")


# ---------------------------------------------------------------------------------------------------------------------
# The training itself
# ---------------------------------------------------------------------------------------------------------------------


class _Training(Course):
    """One training of a network from its first step, or from its newest checkpoint, to its report."""

    def __init__(self, recipe: Recipe, folder: Path, splits: Splits, words: list[str], reporter: Reporter) -> None:
        super().__init__(recipe, folder, splits, words, reporter)
        torch.manual_seed(recipe.seed)
        self.model, self.spec = _build(recipe, len(self.classes))
        if recipe.model.weights and not checkpoint.steps(folder / "checkpoints"):
            notes: list[str] = []
            tensors = hub.find(recipe.model.weights).tensors(notes)
            notes += weights.load_into(self.model, tensors, recipe.model.name, adapt=True)
            for note in notes:
                reporter.say(note)
            self.words += [note for note in notes if note not in self.words]
        if recipe.tune.freeze or recipe.tune.probe:
            assert isinstance(self.model, ConvNet)  # as every network of the table is
            self.model.freeze(self.model.stage_names if recipe.tune.probe else recipe.tune.freeze)
        if recipe.tune.probe:
            probes.last_linear(self.model)  # where there is none, it is said before anything is read
            if self.many_labels:
                raise UsageError("a probe gives each picture one label, and here it may have many; leave out --probe")
        self.batches = self._loader()
        self.labels = Labels.of(self.batches.labels.to(self.device), len(self.classes))
        self.total_steps = recipe.epochs * math.ceil(len(self.batches) / recipe.accumulate)
        last = device.channels_last(recipe, self.device, self.model)
        layout = torch.channels_last if last else torch.contiguous_format
        self.model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        if recipe.model.name in DATA_INITIALIZED and not recipe.model.weights:
            first = next(self._epoch(0, 0)).images
            DATA_INITIALIZED[recipe.model.name](self.model, recipe.preprocess.normalize(first))
        if recipe.compile:
            self.model.compile()
        self.state = TrainState(self.model, optim.build(self.model, recipe.optimizer))
        self.precision = Precision(recipe.precision, self.device.type)
        self.ema = optim.EMA(self.model, recipe.ema) if recipe.ema else None
        self.augment = Augmenter(
            recipe.augment,
            recipe.preprocess,
            len(self.classes),
            seed=recipe.seed,
            total_steps=self.total_steps,
            channels_last=layout is torch.channels_last,
            cropped=isinstance(self.batches, loader.DiskLoader),
        )

        self.objective = Classify(self.augment, recipe.loss, self.labels)

        self.fingerprint = fingerprint(self.splits)
        self.sums = {"loss": 0.0, "wrong": 0, "seen": 0}
        self.seconds = 0.0
        self.best: dict[str, Any] = {"error": None, "epoch": 0}
        self.best_tensors: dict[str, Tensor] = {}
        self.epoch_open = False  # an epoch has ended whose evaluation is not yet in the history
        self.latest: AnyReport | None = None
        self.saved = (-1, time.monotonic())  # step and time of the last checkpoint
        self.verified: set[str] = set()  # the checkpoints that this process has read whole

    def _loader(self) -> loader.MemoryLoader | loader.DiskLoader:
        recipe = self.recipe
        if not self.in_memory():
            # A random crop takes a part of the picture: decode as much larger as its side may be smaller.
            wider = 1 / math.sqrt(recipe.augment.crop) if recipe.augment.crop else 1.0
            least = loader.decode_size(recipe.preprocess)
            return loader.DiskLoader(
                self.splits["train"],
                self._prepare_for_training,
                size=recipe.preprocess.size,
                channels=recipe.preprocess.channels,
                workers=recipe.data.workers,
                min_size=(math.ceil(least[0] * wider), math.ceil(least[1] * wider)),
                batch_size=recipe.data.batch_size,
                seed=recipe.seed,
                balance=recipe.data.balance,
            )
        images, labels = self.memory["train"]
        return loader.MemoryLoader(
            images, labels, batch_size=recipe.data.batch_size, seed=recipe.seed, balance=recipe.data.balance
        )

    def _epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch, on the network's device whichever loader they come from."""
        for batch in self.batches.epoch(epoch, start):
            yield batch._replace(
                images=batch.images.to(self.device, non_blocking=True),
                labels=batch.labels.to(self.device, non_blocking=True),
            )

    def _prepare_for_training(self, image: Tensor, index: int, epoch: int) -> Tensor:
        if not self.recipe.augment.crop:
            return self.recipe.preprocess.prepare(image)
        draws = uniform(self.recipe.seed, epoch, np.array([index]), DRAWS)[0]
        return random_crop(image, draws, self.recipe.augment.crop, self.recipe.preprocess)

    # -- the course of a run ------------------------------------------------------------------------------------------

    def run(self) -> Run:
        restored = checkpoint.restore(
            self.state,
            self.folder / "checkpoints",
            precision=self.precision,
            warn=self.reporter.warn,
            verified=self.verified,
        )
        if restored is None:
            self._begin()
        else:
            self._go_on(restored)
        self.clock = time.monotonic() - self.seconds
        with Signals() as self.signals:
            try:
                self.reporter.start(self.total_steps, self.recipe.epochs)
                if self.epoch_open:
                    self._end_epoch()
                if self.recipe.tune.probe:
                    self._fit_last_layer()
                else:
                    self._train()
                result = self._finish()
            except NonFiniteLoss as error:
                kept = checkpoint.steps(self.folder / "checkpoints")
                where = f"its last good state is kept in {kept[-1]}" if kept else "nothing was saved before"
                raise NonFiniteLoss(f"{error}; {where}") from error
            finally:
                self.reporter.finish()
                self.log.close()
        return result

    def _begin(self) -> None:
        self.log = Log(self.folder)
        if (self.folder / "recipe.toml").exists():
            self.reporter.say("nothing was saved yet: training starts from its first step")
        self.write_facts()
        self._show_inputs()

    def _go_on(self, restored: checkpoint.Restored) -> None:
        notes = restored.notes
        if notes["fingerprint"] != self.fingerprint:
            raise DataError(
                f"the pictures of {self.recipe.data.name} are not those that this run began with "
                "(names, labels or their order differ); put them back, or start a new run"
            )
        self.history, self.sums, self.best = notes["history"], notes["sums"], notes["best"]
        self.seconds, self.words, self.epoch_open = notes["seconds"], notes["words"], notes["epoch_open"]
        self.best_tensors = restored.tensors.get("best", {})
        if self.ema is not None:
            self.ema.load(restored.tensors["ema"])
        # The freezing of groups whose time is over is a function of the progress: put it back for what comes next.
        optim.set_rates(self.state.optimizer, 0.0, self.state.progress.step / self.total_steps)
        self.log = Log(self.folder, notes["log_length"])
        if self.log.length < notes["log_length"]:
            missing = notes["log_length"] - self.log.length
            self.reporter.warn(f"{self.folder / 'log.jsonl'}: {missing} bytes of lines before this step are missing")
        self.saved = (self.state.progress.step, time.monotonic())
        at = self.state.progress
        self.reporter.say(f"going on after step {at.step} of {self.total_steps} (epoch {at.epoch + 1})")

    def _train(self) -> None:
        log_every = max(1, len(self.batches) // 50)
        pace = (time.monotonic(), self.state.progress.samples)
        for event in training_loop(
            self.state,
            self._epoch,
            self.objective,
            total_steps=self.total_steps,
            until=self._over,
            schedule=self.recipe.schedule,
            precision=self.precision,
            accumulate=self.recipe.accumulate,
            clip=self.recipe.clip,
        ):
            if isinstance(event, EpochEnd):
                self.epoch_open = True
                self._end_epoch()
                pace = (time.monotonic(), event.progress.samples)
                continue
            loss = event.loss.item()
            if self.ema is not None:
                self.ema.update(self.model, event.progress)
            self._count(event, loss)
            if event.progress.step == 1 and not self.recipe.model.weights:
                self._check_first_loss(event.output.losses[0].item())
            now, (then, samples) = time.monotonic(), pace
            rate = (event.progress.samples - samples) / max(1e-9, now - then)
            self.reporter.step(event.progress, loss, rate)
            if event.progress.step % log_every == 0:
                self.log.write(
                    {
                        "event": "step",
                        "step": event.progress.step,
                        "epoch": event.progress.epoch + 1,
                        "loss": loss,
                        "lr_factor": event.lr_factor,
                        "images_per_second": round(rate, 1),
                    }
                )
                pace = (now, event.progress.samples)
            if self.signals.received is not None:
                self._save()
                raise self.signals.interrupted(self.folder)
            if self.recipe.save_every and event.progress.step % self.recipe.save_every == 0:
                self._save()

    def _fit_last_layer(self) -> None:
        """In place of training, for a probe. The features are kept in the run's folder: a run that is cut has them."""
        self.ema = None
        path, print_ = self.folder / FEATURES, torch.tensor([*bytes.fromhex(self.fingerprint["train"])])
        labels = torch.from_numpy(self.splits["train"].labels.copy())
        kept = storage.from_safetensors(path.read_bytes(), path) if path.exists() else {}
        vectors = kept.get("vectors")
        if vectors is None or not torch.equal(kept.get("pictures", print_ * 0), print_):
            show = self.reporter.counter("features of the training pictures")

            def progress(done: int) -> None:
                if self.signals.received is not None:
                    raise self.signals.interrupted(self.folder)
                if show is not None:
                    show(done, len(labels))

            vectors = probes.embeddings(self.model, self._prepared("train"), progress)
            storage.write_file(path, storage.to_safetensors({"vectors": vectors, "pictures": print_}))
        bias = probes.last_linear(self.model)[0].bias is not None
        fitted = probes.fit(vectors, labels, len(self.classes), self.recipe.seed, intercept=bias)
        probes.fold(self.model, fitted)
        said = (
            f"a layer of {vectors.shape[1]} × {len(self.classes)} was fitted to {len(vectors):,} pictures, "
            f"C = {fitted.strength:g} by cross-validation"
        )
        self.words = [*self.words, said]
        self.reporter.say(said)

    def _prepared(self, part: str) -> Iterator[Tensor]:
        """The pictures of a part in order, normalised, float [B, C, H, W] on the network's device."""
        batches: Iterable[Tensor]
        if self.memory:
            batches = self.memory[part][0].split(EVALUATION_BATCH)
        else:
            workers = max(1, self.recipe.data.workers)
            asked = self._classifier(), self.splits[part]
            batches = (
                images
                for _, images in classifiers.prepared_batches(*asked, batch_size=EVALUATION_BATCH, workers=workers)
            )
        return (self.recipe.preprocess.normalize(images.to(self.device)) for images in batches)

    def _over(self, progress: Progress) -> bool:
        stop = self.recipe.stop
        # A pass whose last batch is done is measured before the time is up.
        whole = progress.batch == len(self.batches)
        if stop.minutes and time.monotonic() - self.clock >= 60 * stop.minutes and not whole:
            return True
        if stop.patience and progress.epoch - self.best["epoch"] >= stop.patience and not progress.batch:
            return True
        return progress.epoch >= self.recipe.epochs

    def _count(self, event: StepEnd, loss: float) -> None:
        """Training loss and error of the running epoch, from batches that were learnt from (with `accumulate`, the last
        of each step), as augmented; of mixed pictures the larger part is meant."""
        labels, n = event.batch.labels, len(event.batch.labels)
        self.sums["loss"] += loss * n
        if not self.many_labels:
            self.sums["wrong"] += int((event.output.logits.argmax(1) != labels).sum())
        self.sums["seen"] += n
        if len(losses := event.output.losses) > 1:
            for i, each in enumerate(losses):
                self.sums[f"head{i}"] = self.sums.get(f"head{i}", 0.0) + each.item() * n

    def _end_epoch(self) -> None:
        """Measure after a pass, write it down, save."""
        try:
            quick: dict[str, Any] = {"resamples": 0} if self.many_labels else {}
            report = self.latest = self._evaluate(self.watched, self.reporter.counter("evaluating"), None, **quick)
        except Interrupted:
            self._save()  # the pass is done, its measurement is not: it is the first thing on resume
            raise
        epoch, seen = self.state.progress.epoch, max(1, self.sums["seen"])
        row = {
            "epoch": epoch,
            "step": self.state.progress.step,
            "train_loss": self.sums["loss"] / seen,
            **({} if self.many_labels else {"train_error": self.sums["wrong"] / seen}),
            f"{self.watched}_loss": report.nll,
            **(
                {f"{self.watched}_map": report.map}
                if isinstance(report, LabelReport)
                else {f"{self.watched}_error": report.error}
            ),
            "lr_factor": self.recipe.schedule(self.state.progress, self.total_steps),
            "seconds": round(time.monotonic() - self.clock, 2),
            # With auxiliary heads, of each its own unweighted loss; head0 is the network's.
            **{f"train_loss_{key}": value / seen for key, value in self.sums.items() if key.startswith("head")},
        }
        self.history.append(row)
        self.log.write({"event": "epoch", **row})
        self.log.write_csv(self.history)
        self.reporter.epoch(row)
        self.sums = {"loss": 0.0, "wrong": 0, "seen": 0}
        self.epoch_open = False
        if self.watched == "val" and (self.best["error"] is None or report.error < self.best["error"]):
            self.best = {"error": report.error, "epoch": epoch}
            if self.recipe.stop.patience:
                self.best_tensors = {k: v.detach().clone() for k, v in self._weights().items()}
        last = self._over(self.state.progress)
        if last or time.monotonic() - self.saved[1] >= SECONDS_BETWEEN_SAVES:
            self._curves()
            self._save()

    def _weights(self) -> Mapping[str, Tensor]:
        """What is evaluated and kept: the moving average where there is one, else the network's own."""
        return self.ema.tensors if self.ema is not None else self.model.state_dict()

    def _classifier(self, tensors: Mapping[str, Tensor] | None = None) -> NetClassifier:
        """With these weights, or those of the network itself; of many labels at the thresholds that are chosen."""
        model = self.model
        if tensors is not None:
            model = copy.deepcopy(self.model)
            model.load_state_dict(tensors)
        thresholds = self.thresholds if self.many_labels else None
        return NetClassifier(model, self.recipe.preprocess, self.classes, self.spec, thresholds)

    def _evaluate(
        self,
        part: str,
        show: Callable[[int, int], None] | None,
        tensors: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> AnyReport:
        if tensors is None and self.ema is not None:
            tensors = self.ema.tensors
        return self.measure(self._classifier(tensors), part, show, **options)

    def _save(self) -> None:
        self.log.sync()
        tensors: dict[str, Mapping[str, Tensor]] = {}
        if self.ema is not None:
            tensors["ema"] = self.ema.tensors
        if self.best_tensors:
            tensors["best"] = self.best_tensors
        checkpoint.save(
            self.state,
            self.folder / "checkpoints",
            precision=self.precision,
            notes={
                "history": self.history,
                "sums": self.sums,
                "best": self.best,
                "seconds": time.monotonic() - self.clock,
                "words": self.words,
                "epoch_open": self.epoch_open,
                "log_length": self.log.length,
                "fingerprint": self.fingerprint,
            },
            tensors=tensors,
            keep=self.recipe.keep,
            verified=self.verified,
        )
        self.saved = (self.state.progress.step, time.monotonic())

    def _finish(self) -> Run:
        """The result: of the last pass, or with `patience` of the best one by validation."""
        if self.saved[0] != self.state.progress.step:
            self._save()
        tensors = self.best_tensors or None
        if self.many_labels:
            self.choose_thresholds(self._classifier(tensors or self._weights()))
        quick = self.watched == "test" and not tensors and not self.many_labels  # else there is more to be measured
        result = self.latest if quick else None
        if result is None or self.state.progress.batch:  # stopped within a pass: what is kept is what is measured
            result = self._evaluate("test", self.reporter.counter("evaluating"), tensors)
        self._curves()
        self.write_report(
            self._classifier(tensors or (self.ema.tensors if self.ema is not None else None)),
            result,
            {
                "epochs": self.state.progress.epoch,
                "steps": self.state.progress.step,
                "parameters": sum(p.numel() for p in self.model.parameters()),
                "chosen_epoch": self.best["epoch"] if tensors else self.state.progress.epoch,
            },
        )
        return Run(self.folder, self.recipe, self.words, self.result, self.history)

    # -- said and shown -----------------------------------------------------------------------------------------------

    def _show_inputs(self) -> None:
        """`inputs.png`: pictures of the first batch as the network sees them, augmentation included."""
        batch = next(self._epoch(0, 0))
        batch = batch._replace(
            images=batch.images[:32], labels=batch.labels[:32], indices=batch.indices[:32], keys=batch.keys[:32]
        )
        images, targets = self.augment(batch, Progress(step=self.total_steps))
        titles = [self.classes[int(label)] for label in targets.argmax(1)]
        if self.many_labels:
            titles = [", ".join(self.classes[k] for k in np.flatnonzero(row >= 0.5)) for row in targets.cpu().numpy()]
        storage.write_file(
            self.folder / "inputs.png", figures.picture_grid(self.recipe.preprocess.pixels(images), titles)
        )

    def _check_first_loss(self, loss: float) -> None:
        expected, k = of_ignorance(self.recipe.loss, self.labels), 2 if self.many_labels else len(self.classes)
        about = f"ln {k} = {expected:.2f}" if abs(expected - math.log(k)) < 1e-4 else f"{expected:.2f}"
        if abs(loss - expected) < 0.5 + 0.25 * expected:
            self.reporter.say(f"first loss {loss:.2f}, near {about} as it should be")
        else:
            self.reporter.warn(
                f"first loss {loss:.2f}, where an untrained network has about {about}; "
                f"look at {self.folder / 'inputs.png'} and at the learning rate"
            )

    def _curves(self) -> None:
        if self.history:
            storage.write_file(self.folder / "learning_curve.svg", figures.learning_curve(self.history, "svg"))
            storage.write_file(self.folder / "learning_curve.png", figures.learning_curve(self.history, "png"))
