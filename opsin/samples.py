"""What a training will see of a data set: samples of each class, as they are and augmented by the derived recipe."""

from __future__ import annotations

import numpy as np
import torch

from opsin import report, run
from opsin.augment import Augmenter
from opsin.data import loader
from opsin.data.index import Index, Splits
from opsin.data.rng import order
from opsin.recipe import Recipe
from opsin.recipes import derive
from opsin.types import Batch, Progress

MAX_CLASSES, PER_CLASS = 50, 6
PASSES = 2  # that are shown: mirroring is in turn, so both sides are


def page(name: str, splits: Splits, seed: int = 0) -> tuple[list[report.Group], str]:
    """Groups of a sheet, one a class, and what they show, in words.

    Each has up to `PER_CLASS` training pictures, drawn by `seed`: a row of them as they are, and one for each of the
    first passes as the network sees them with the recipe that `opsin train` derives for this data. Of more than
    `MAX_CLASSES` classes some are drawn. `BadInput` where a picture cannot be read.
    """
    train = splits["train"]
    recipe, words = derive.derive(run.facts(name, splits))
    drawn = order(seed, 0, len(train))
    found = report.sample_indices(train.labels[drawn], len(train.classes), PER_CLASS)
    shown = sorted(order(seed, 1, len(train.classes))[:MAX_CLASSES].tolist())
    # In the order in which they were drawn, so that those that meet in a batch, and may be mixed, are of all classes.
    places = drawn[sorted({i for k in shown for i in found[k]})]
    augmented = [_augmented(train, places, recipe, seed, epoch) for epoch in range(PASSES)]

    groups, counts = [], train.counts()
    for k in shown:
        some = [int(drawn[i]) for i in found[k]]
        pictures = []
        for i in some:
            others = ", ".join(one for one in train.named(i) if one != train.classes[k])
            text = f"and {others}" if others else ""
            pictures.append(report.Shown(train.keys[i], report.thumbnail(train.image(i, (112, 112))), text))
        pictures += [one[i] for one in augmented for i in some]
        number = report.in_number(int(counts[k]), "training picture")
        groups.append(report.Group(train.classes[k], pictures, number, across=len(some)))
    height, width = recipe.preprocess.size
    classes = f"{report.in_number(len(shown), 'class', 'classes')}{_of_more(len(shown), len(train.classes))}"
    lead = (
        f"{classes}, up to {PER_CLASS} training pictures of each, drawn by seed {seed}. First as they are; below, as "
        f"{recipe.model.name} sees them in its first {PASSES} passes, at {height}×{width}, by the recipe that is "
        f"derived for this data: {'; '.join(words)}."
    )
    return groups, lead


def _of_more(shown: int, all_: int) -> str:
    return f" of {all_:,}, drawn too" if shown < all_ else ""


def _augmented(train: Index, places: np.ndarray, recipe: Recipe, seed: int, epoch: int) -> dict[int, report.Shown]:
    """Place → the picture as the network sees it in pass `epoch` at full size, and what is mixed in."""
    augment, preprocess = Augmenter(recipe.augment, recipe.preprocess, len(train.classes), seed=seed), recipe.preprocess
    least, shown = loader.decode_size(preprocess), dict[int, report.Shown]()
    for number, (start, stop) in enumerate(loader.batch_bounds(len(places), recipe.data.batch_size)):
        some = places[start:stop]
        images = torch.stack([preprocess.prepare(train.image(int(i), least)) for i in some])
        batch = Batch(images, torch.from_numpy(train.labels[some]), torch.from_numpy(some), epoch)
        seen, targets = augment(batch, Progress(epoch=epoch, batch=number, step=augment.total_steps))
        for i, pixels, row in zip(some.tolist(), preprocess.pixels(seen), targets.tolist(), strict=True):
            shown[i] = report.Shown("", report.thumbnail(pixels), _mixed_in(train.classes, train.named(i), row))
    return shown


def _mixed_in(classes: tuple[str, ...], own: tuple[str, ...], targets: list[float]) -> str:
    """
    >>> _mixed_in(("cat", "dog", "cow"), ("cat",), [0.75, 0.25, 0.0]), _mixed_in(("cat", "dog"), ("cat",), [1.0, 0.0])
    ('and 25\\xa0% dog', '')
    """
    parts = [(part, name) for part, name in zip(targets, classes, strict=True) if part >= 0.005 and name not in own]
    return f"and {', '.join(f'{report.percent(part, 0)} {name}' for part, name in parts)}" if parts else ""
