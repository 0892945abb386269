"""The default: a recipe from what the data and the network are, and the same in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from opsin import models
from opsin.preprocess import CIFAR10_MEAN, CIFAR10_STD, Preprocess
from opsin.recipe import SGD, AdamW, Augment, BinaryCrossEntropy, CrossEntropy, Data, Group, ModelSpec, Muon, Recipe
from opsin.schedule import Cosine, Linear

DEFAULT = "smallnet"
# Networks without batch normalisation: plain descent at the usual rates diverges or crawls on them.
WITHOUT_NORM = ("lenet5", "lenet", "alexnet", "alexnet_owt", "alexnet_cifar", "nin_cifar", "nin", "googlenet")
WITHOUT_NORM += ("vgg11", "vgg13", "vgg16", "vgg19")
# Of fine-tuning (LOG, "Ten a class"): the part of pictures that a probe must tell for the features to be worth keeping.
# Then the last stage's part of the head's rate, and the first one's of the last one's; else the rate of plain descent,
# whatever the batch, and the first stage's part of it.
KNOWN = 0.5
NEAR, NEAR_FIRST = 0.3, 0.1
FAR_RATE, FAR_FIRST = 0.5, 0.5
LARGE = 128  # pixels of the longer side for many labels (LOG, "BCCD")


class Facts(NamedTuple):
    """What a recipe is derived from. height, width: medians, in pixels. mirror: a mirrored picture keeps its class.
    many_labels: a picture may have any number of them."""

    name: str
    num_train: int
    num_classes: int
    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: bool
    many_labels: bool = False


def small() -> Recipe:
    """The small wide network on CIFAR-10: the recipe that `opsin train cifar10` derives on its own.

    opsin train cifar10 --recipe small
    """
    return derive(Facts("cifar10", 50_000, 10, 32, 32, 3, CIFAR10_MEAN, CIFAR10_STD, True))[0]


def derive(facts: Facts, model: str = DEFAULT, options: dict[str, Any] | None = None) -> tuple[Recipe, list[str]]:
    """A recipe for these facts and this network, and one sentence for each choice that `headline` does not say.

    options: of the network where they are settled, as by the weights that it starts from.
    """
    size, words = _size(facts, model)
    few = facts.num_train < 10_000
    plain = model == DEFAULT and facts.channels == 1 and not few  # characters and the like (LOG, "MNIST")
    # Pictures of 8 × 8 that were enlarged have no room for more than one pixel (LOG, "Digits").
    shift = max(1, min(2, round(min(size) / 16)))
    turn = 5 if few else 10
    if facts.mirror:
        augment = Augment(shift=shift, flip="alternating")
    else:
        augment = Augment(shift=shift, rotate=turn, zoom=turn / 100)
    words.append(
        f"training pictures are shifted by up to {shift} pixel{'s' * (shift > 1)}"
        + (" and mirrored" if facts.mirror else f", turned by up to {turn}° and scaled by up to {turn} %, not mirrored")
    )
    if model == DEFAULT:
        batch = min(64 if few else 500 if plain else 1000, max(16, facts.num_train // 20))
    else:
        batch = min(128, max(16, facts.num_train // 20))
    epochs = max(4, min(59, round(3 + 38_000 / facts.num_train))) + (not plain)
    if max(size) == LARGE and facts.many_labels:  # a pass costs ten times as much, and less is enough (LOG, "BCCD")
        epochs = math.ceil(epochs / 3)
    recipe = Recipe(
        data=Data(name=facts.name, batch_size=batch),
        model=ModelSpec(name=model, options=options or {}),
        preprocess=Preprocess(size=size, channels=facts.channels, mean=facts.mean, std=facts.std),
        augment=augment,
        loss=CrossEntropy(label_smoothing=0.1, aux_weights=models.entry(model).aux_weights),
        epochs=epochs,
    )
    if facts.many_labels:
        recipe = replace(
            recipe,
            loss=BinaryCrossEntropy(aux_weights=recipe.loss.aux_weights),
            preprocess=replace(recipe.preprocess, crop="squash"),
        )
        words.append("a picture may have many labels: each has its own sigmoid, learnt by binary cross-entropy")
    if model == DEFAULT:
        if few:
            # Batch statistics of a few pictures are noisy, and so are the last steps: the average is what is kept.
            recipe = replace(
                recipe,
                model=ModelSpec(name=model, options={"widths": [64, 128, 256]} if options is None else options),
                augment=replace(augment, cutout=min(size) // 4, mixup=0.2),
                ema=0.995,
            )
            words.append(
                f"fewer than 10,000 pictures: {'a narrower network, ' if options is None else ''}a moving average of "
                "its weights, and pictures that are mixed in pairs and covered in part"
            )
        if plain and options is None:
            recipe = replace(recipe, model=ModelSpec(name=model, options={"widths": [32, 64, 128]}))
            words.append("grey pictures need fewer features than colours: a narrower network, and a pass less")
        recipe = replace(recipe, optimizer=_race(batch), schedule=Linear())
        if size == (32, 32) and facts.num_train >= 20_000:
            recipe = replace(recipe, augment=replace(augment, sizes=((0.0, 24), (0.4, 28), (0.7, 32))))
            words.append("training starts at 24 pixels and goes over 28 to 32: most of the work where it is cheap")
    elif model in WITHOUT_NORM:
        recipe = replace(recipe, optimizer=AdamW(lr=1e-3, weight_decay=0.01), schedule=Cosine())
    else:
        optimizer = SGD(lr=0.1 * batch / 128, momentum=0.9, nesterov=True, weight_decay=5e-4)
        recipe = replace(recipe, optimizer=optimizer, schedule=Cosine())
    return recipe, words


def fine_tuned(
    recipe: Recipe, stages: Sequence[str], unfreeze: float = 0.0, known: float | None = None
) -> tuple[Recipe, list[str]]:
    """The recipe for a network that starts from weights. The nearer a stage is to the picture, the more general is what
    it knows, and the less it changes; the head is new.

    stages: those that have parameters, in the order of the flow. unfreeze: the part of the training over which they
    begin to learn, the last one first (Howard and Ruder 2018, section 3.3); 0: all from the start. known: the part of
    the pictures that a probe on the network's features tells. Where it is large they are worth keeping, and the stages
    learn slowly; where it is not, they learn fast, for trained filters are larger than new ones. None: not known, as of
    many labels: slowly.
    """
    optimizer = recipe.optimizer
    near = known is None or known >= KNOWN
    if not near and isinstance(optimizer, SGD):
        optimizer = replace(optimizer, lr=FAR_RATE)
    last, first = (NEAR, NEAR_FIRST) if near else (1.0, FAR_FIRST)
    settled = [group.match for group in optimizer.groups]
    matches = [match for name in stages if (match := f"stages.{name}.*") not in settled]
    groups, steps = [], max(1, len(matches) - 1)
    for k, match in enumerate(matches):
        scale = last * first ** ((len(matches) - 1 - k) / steps)
        since = unfreeze * (len(matches) - k) / len(matches)
        groups.append(Group(match=match, lr_scale=round(scale, 4), since=round(since, 4)))
    words = f"fine-tuning: the stages learn at {last * first:g} to {last:g} of the head's rate, the first the least"
    if known is not None:
        so = "it is learnt on slowly (--probe keeps it whole, in seconds)" if near else "much is to be learnt anew"
        told = f"a probe on what the weights know tells {known:.0%} of the training pictures (held out in turn)"
        words = f"{told}, so {so}; {words}"
    if unfreeze:
        words += f"; they begin one after the other, the last first, over {unfreeze:.0%} of the training"
    return replace(recipe, optimizer=replace(optimizer, groups=(*optimizer.groups, *groups))), [words]


def probe(recipe: Recipe, facts: Facts) -> tuple[Recipe, list[str]]:
    """The recipe without what a network that does not learn has no use for."""
    return replace(recipe, augment=Augment(), ema=0.0, epochs=1), _size(facts, recipe.model.name)[1]


def headline(recipe: Recipe) -> str:
    """Network, passes, batch and optimiser of a recipe in a few words."""
    named = "the small wide network" if recipe.model.name == DEFAULT else recipe.model.name
    if recipe.tune.probe:
        return (
            f"{named}, frozen as its weights have it; its last layer is fitted to its features by logistic regression"
        )
    passes = "1 pass" if recipe.epochs == 1 else f"{recipe.epochs} passes"
    return f"{named}, {passes} in batches of {recipe.data.batch_size}, {type(recipe.optimizer).__name__}"


def _race(batch: int) -> Muon:
    """The rates of the race's recipe (Jordan 2024). It sums the loss over the batch where we take the mean, so the rate
    of plain descent grows with the batch, and the decay per step, rate · decay = 2·10⁻⁶ · batch, stays as there."""
    return Muon(
        lr=0.24,
        momentum=0.6,
        sgd_lr=0.053 * batch,
        sgd_momentum=0.85,
        weight_decay=2e-6 / 0.053,
        groups=(
            Group(match="stages.whiten.*", until=0.3),
            Group(match="head.*", lr_scale=0.67 / 0.053, weight_decay=2e-6 / 0.67),
        ),
    )


def _size(facts: Facts, model: str) -> tuple[tuple[int, int], list[str]]:
    """What the network is shown, (H, W), and why."""
    entry = models.entry(model)
    if facts.many_labels and model == DEFAULT and max(facts.height, facts.width) > LARGE:
        scale = LARGE / max(facts.height, facts.width)
        size = (round(facts.height * scale), round(facts.width * scale))
        return size, [
            f"pictures (median {facts.height}×{facts.width}) are scaled to {size[0]}×{size[1]}, nothing cut off: what "
            "one of many labels names may be small, and anywhere"
        ]
    if max(facts.height, facts.width) > 64:
        side = 64 if model == DEFAULT else entry.native_size
        return (side, side), [
            f"pictures (median {facts.height}×{facts.width}) are scaled to {side}×{side}"
            + ("" if facts.many_labels else ", the centre cut out")
        ]
    # One factor for both sides keeps the shape. 16: at 9 the small network's last map would be a single value.
    least = max(entry.least_size, 16 if model == DEFAULT else 0)
    scale = max(1.0, least / min(facts.height, facts.width))
    size = (round(facts.height * scale), round(facts.width * scale))
    if scale == 1:
        return size, []
    return size, [
        f"pictures of {facts.height}×{facts.width} are enlarged to {size[0]}×{size[1]}: {model} shrinks its maps"
    ]
