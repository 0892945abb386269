"""Recipes of the pipeline before 2012, derived from what the data are: `opsin train DATA --model bow|llc|fisher|…`.

Each function is the recipe for CIFAR-10; `derive` gives the one of that name for any data.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from opsin.preprocess import CIFAR10_MEAN, CIFAR10_STD, Preprocess
from opsin.recipe import Classical, Data, Descriptor, ModelSpec, Recipe
from opsin.recipes.derive import Facts

SUMMARIES = {
    "bow": "a bag of visual words: SIFT, counted by the nearest of {words} words, in a χ² machine",
    "llc": "SIFT in locality-constrained linear codes over {words} words, their maxima in a linear machine",
    "fisher": "improved Fisher vectors of SIFT over {gaussians} Gaussians, in a linear machine",
    "patches": "whitened patches, by how near they are to each of {words} centres, in a linear machine",
    "nec2010": "SIFT and LBP, each as local codes over {words} words and as Fisher vectors, in a linear machine",
}
LEAST, LARGEST = 32, 160  # pixels of the shorter and of the longer side that descriptors are taken of
PATCHES_LEAST, PATCHES_LARGEST = 16, 64


def derive(facts: Facts, name: str) -> tuple[Recipe, list[str]]:
    """The recipe called `name` (`SUMMARIES`) for these facts, and a sentence for each choice that needs one."""
    size, words = _size(facts, *((PATCHES_LEAST, PATCHES_LARGEST) if name == "patches" else (LEAST, LARGEST)))
    # A vocabulary of more words than the pictures can tell apart only costs time.
    few = facts.num_train < 10_000
    grey = Descriptor(kind="sift", step=max(2, min(size) // 16), sizes=(4, 6) if max(size) <= 64 else (4, 6, 8))
    space = "grey" if facts.channels == 1 else "rgb"
    made = {
        "bow": Classical(
            descriptors=(replace(grey, root=True),), words=256 if few else 1024, encoders=("hard",), additive="chi2"
        ),
        "llc": Classical(
            descriptors=(grey,),
            words=256 if few else 1024,
            encoders=("llc",),
            pooling="max",
            norm="whole",
            pyramid="1x1+2x2+4x4",
            strength=5.0,
        ),
        "fisher": Classical(
            descriptors=(replace(grey, project=64, root=True),),
            gaussians=16 if few else 64,
            encoders=("fisher",),
            power=0.5,
            norm="whole",
            strength=5.0,
        ),
        "patches": Classical(  # of Coates, Lee and Ng 2011; what is not theirs: LOG, "Patches"
            descriptors=(Descriptor(kind="patches", space=space, step=1, sizes=(6,), project=-1, unit=True),),
            words=400 if few else 1600,
            encoders=("triangle",),
            pyramid="3x3/2",
            pooling="sum",
            power=0.5,
            mirror=facts.mirror,
            standardise=True,
            strength=round(200 / max(1, facts.num_train), 6),
            samples=400_000,
        ),
        "nec2010": Classical(
            descriptors=(
                replace(grey, project=64),
                Descriptor(kind="lbp", step=grey.step, sizes=(12, 16), project=32),
            ),
            words=256 if few else 1024,
            gaussians=16 if few else 32,
            encoders=("llc", "fisher"),
            pooling="max",
            power=0.5,
            norm="whole",
            strength=5.0,
        ),
    }[name]
    recipe = Recipe(
        data=Data(name=facts.name),
        model=ModelSpec(name=name),
        preprocess=Preprocess(
            size=size, channels=facts.channels, mean=facts.mean, std=facts.std, crop="squash" if words else "crop"
        ),
        classical=made,
        epochs=1,
    )
    words.append("nothing is a network here: a vocabulary is learnt without labels, and one machine with them")
    if facts.many_labels:
        words.append("a picture may have many labels: each is a machine of its own")
    return recipe, words


def headline(recipe: Recipe) -> str:
    """What the recipe is, in a few words."""
    classical = recipe.classical
    assert classical is not None
    summary = SUMMARIES.get(recipe.model.name, "a classical pipeline")
    return f"{recipe.model.name}: {summary.format(words=classical.words, gaussians=classical.gaussians)}"


def _size(facts: Facts, least: int, largest: int) -> tuple[tuple[int, int], list[str]]:
    """What descriptors are taken of, (H, W), and why. Nothing is cut off: descriptors are where they are."""
    height, width = facts.height, facts.width
    scale = max(least / min(height, width), 1.0)
    if max(height, width) * scale > largest:
        scale = min(1.0, largest / max(height, width))
    size = (max(least, round(height * scale)), max(least, round(width * scale)))
    if size == (height, width):
        return size, []
    return size, [f"pictures (median {height}×{width}) are scaled to {size[0]}×{size[1]}, nothing cut off"]


def _of_cifar10(name: str) -> Recipe:
    return derive(Facts("cifar10", 50_000, 10, 32, 32, 3, CIFAR10_MEAN, CIFAR10_STD, True), name)[0]


bow, llc, fisher, patches, nec2010 = (partial(_of_cifar10, name) for name in SUMMARIES)
