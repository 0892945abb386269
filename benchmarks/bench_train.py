"""Our training, data pipeline included, against a plain PyTorch loop on ready tensors; and what the pipeline costs.

    python benchmarks/bench_train.py [--pairs 9] [MODEL ...]

Both sides have the same network, optimiser, batch size, memory layout, allocator settings and thread count, and run
in turn in this process. The plain loop is handed normalised float tensors; ours draws uint8 pictures, augments,
normalises, counts, checks the loss and reports, as `opsin train` does. Pictures are random: no value changes what a
step costs.
The ratio is plain seconds / our seconds: 1 is as fast as the plain loop.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import common
import numpy as np
import torch
from torch.nn import functional

from opsin import device, models, optim, recipes
from opsin.augment import Augmenter
from opsin.data.loader import MemoryLoader
from opsin.loss import Classify
from opsin.models import smallnet
from opsin.recipe import Recipe
from opsin.train import StepEnd, TrainState, train

# Recipe, and steps in a round: a round lasts a few seconds.
CASES = {"chapter_vgg16": 1, "resnet56": 4, "small": 1}
PICTURES = 10_000


def setting(recipe: Recipe) -> tuple[MemoryLoader, TrainState, Augmenter]:
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(0, 256, (PICTURES, 3, 32, 32), np.uint8))
    loader = MemoryLoader(images, torch.arange(PICTURES) % 10, batch_size=recipe.data.batch_size)
    torch.manual_seed(0)
    model = models.build(recipe.model.name, 10)
    if recipe.model.name == "smallnet":
        smallnet.whiten(model, recipe.preprocess.normalize(images[:1000]))
    last = device.channels_last(recipe, torch.device("cpu"), model)
    model.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    augmenter = Augmenter(recipe.augment, recipe.preprocess, 10, total_steps=10**9, channels_last=last)
    return loader, TrainState(model, optim.build(model, recipe.optimizer)), augmenter


def ours(recipe: Recipe, steps: int) -> Callable[[], None]:
    loader, state, augmenter = setting(recipe)

    def events() -> Iterator[StepEnd]:
        for event in train(
            state,
            loader.epoch,
            Classify(augmenter, recipe.loss),
            total_steps=10**9,
            until=lambda progress: False,
            schedule=recipe.schedule,
        ):
            if isinstance(event, StepEnd):
                event.loss.item()
                (event.output.logits.argmax(1) != event.batch.labels).sum().item()
                yield event

    endless = events()

    def run() -> None:
        for _ in itertools.islice(endless, steps):
            pass

    return run


def plain(recipe: Recipe, steps: int) -> Callable[[], None]:
    loader, state, augmenter = setting(recipe)
    model, optimizer = state.model, state.optimizer
    batch = next(iter(loader.epoch(0)))
    images, _ = augmenter(batch, state.progress)
    labels, smoothing = batch.labels, recipe.loss.label_smoothing

    def run() -> None:
        model.train()
        for _ in range(steps):
            loss = functional.cross_entropy(model(images).logits, labels, label_smoothing=smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return run


def pipeline_seconds(recipe: Recipe, batches: int = 10) -> float:
    """Seconds that drawing and augmenting one batch takes, median."""
    loader, state, augmenter = setting(recipe)
    seconds = []
    drawn = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count())
    for _ in range(batches):
        start = time.perf_counter()
        augmenter(next(drawn), state.progress)
        seconds.append(time.perf_counter() - start)
    return common.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--pairs", type=int, default=9)
    options = parser.parse_args()
    device.tune()
    rows = []
    for name in options.recipes:
        full = recipes.find(name)
        # The default recipe at each of its sizes: where the step is cheapest the pipeline weighs most.
        sides = sorted({side for _, side in full.augment.sizes}) or [32]
        for side in sides:
            sizes = ((0.0, side),) if full.augment.sizes else ()
            recipe = replace(full, augment=replace(full.augment, sizes=sizes))
            seconds = common.alternate(
                {"plain": plain(recipe, CASES[name]), "opsin": ours(recipe, CASES[name])}, options.pairs
            )
            cost = pipeline_seconds(recipe) * CASES[name]
            for pair, row in enumerate(seconds, 1):
                rows.append(
                    {
                        "recipe": name,
                        "side": side,
                        "batch": recipe.data.batch_size,
                        "steps": CASES[name],
                        "pair": pair,
                        "plain_seconds": round(row["plain"], 4),
                        "opsin_seconds": round(row["opsin"], 4),
                        "ratio": round(row["plain"] / row["opsin"], 4),
                        "pipeline_share": round(cost / row["opsin"], 5),
                    }
                )
            mine = rows[-options.pairs :]
            print(
                f"{name:>14} {side} px: median ratio {common.median([row['ratio'] for row in mine]):.3f} "
                f"({min(row['ratio'] for row in mine):.3f} to {max(row['ratio'] for row in mine):.3f}), "
                f"pipeline {common.median([row['pipeline_share'] for row in mine]):.2%} of a step",
                flush=True,
            )
    common.write("train", rows)


if __name__ == "__main__":
    main()
