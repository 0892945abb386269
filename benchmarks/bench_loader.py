"""Training from picture files against the same training on tensors in memory; memory; scanning; the first check.

    python benchmarks/bench_loader.py [PART ...] [--rounds 5] [--folder FOLDER]

    resnet18   ResNet-18 at 224 px: `DiskLoader` on 10,000 JPEGs of 500×375, against `MemoryLoader`
    small      the default recipe for these pictures, the small network at 64 px: the same
    packed     the same network, and the JPEGs packed by `opsin data pack --size 64 --uint8`
    memory     most memory beyond the index: an epoch of 1,000 small files, and one of 100,000
    scan       entries a second in listing 100,000 files
    check      seconds of the first check of the 10,000 JPEGs, and of the second, which remembers

Each part replaces its own rows of results/loader.csv, so that one can be run at a time. The JPEGs are made: 300 of
them, each under some 33 names (links); their spectrum falls as a photograph's does, and their sizes are printed.

Both sides of a ratio train the same network in turn in this process, by the one training loop. A round on disk lasts
until as many pictures are ready ahead as at its beginning: it pays for just as many as it trains on, and decodes
nothing while the other side runs. ratio = memory seconds / disk seconds.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from PIL import Image

from opsin import device, models, optim
from opsin.augment import Augmenter
from opsin.data import index as indices
from opsin.data.index import Index
from opsin.data.loader import LOOK_AHEAD, DiskLoader, MemoryLoader, decode_size, load_memory
from opsin.loss import Classify
from opsin.models import smallnet
from opsin.recipe import Recipe
from opsin.recipes.derive import Facts, derive
from opsin.train import StepEnd, TrainState, train

PICTURES, DISTINCT, CLASSES = 10_000, 300, 10
HEIGHT, WIDTH = 375, 500
IN_MEMORY = 2_000  # pictures that the side in memory draws from: no value changes what a step costs
STEPS = {"resnet18": (16, 3), "small": (125, 1), "packed": (125, 1)}  # pictures in a step, steps in a round


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


def photograph(seed: int) -> bytes:
    """A JPEG whose spectrum falls with the frequency, as a photograph's does (Field 1987), its channels correlated."""
    draw = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = np.inf
    slope = draw.uniform(1.0, 1.35)  # what makes some files larger than others
    shape = (4, *frequency.shape)
    shared, *own = (draw.normal(size=shape) + 1j * draw.normal(size=shape)) / frequency**slope
    planes = [np.fft.irfft2(shared + 0.35 * part, (HEIGHT, WIDTH)) for part in own]
    pixels = np.stack([128 + 50 * plane / plane.std() for plane in planes], -1)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=80)
    return file.getvalue()


def many(folder: Path, count: int, contents: list[bytes]) -> Path:
    """`count` files in class folders, links to one file for each of the contents; made once."""
    if not folder.exists():
        making = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(making, ignore_errors=True)
        for number in range(CLASSES):
            (making / "all" / f"class{number}").mkdir(parents=True)
        originals = [making / f"{number}.jpg" for number in range(len(contents))]
        for original, data in zip(originals, contents, strict=True):
            original.write_bytes(data)
        for number in range(count):
            place = making / "all" / f"class{number % CLASSES}" / f"{number:06d}.jpg"
            os.link(originals[number % len(originals)], place)
        making.rename(folder)
    return folder / "all"


def photographs(folder: Path) -> Path:
    place = folder / "photographs"
    made = many(place, PICTURES, [] if place.exists() else [photograph(seed) for seed in range(DISTINCT)])
    sizes = [path.stat().st_size / 1000 for path in place.glob("*.jpg")]
    print(f"JPEGs: {min(sizes):.0f} to {max(sizes):.0f} kB, mean {np.mean(sizes):.0f} kB", flush=True)
    return made


def small_files(folder: Path, count: int) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), np.uint8)
    contents = []
    for one in pixels:
        file = io.BytesIO()
        Image.fromarray(one).save(file, "JPEG")
        contents.append(file.getvalue())
    return many(folder / f"small{count}", count, contents)


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def steps(recipe: Recipe, loader: MemoryLoader | DiskLoader, count: int) -> Callable[[], None]:
    """What trains for `count` steps, as `opsin train` does."""
    torch.manual_seed(0)
    model = models.build(recipe.model.name, CLASSES, **recipe.model.options)
    if recipe.model.name == "smallnet":
        smallnet.whiten(model, recipe.preprocess.normalize(next(iter(loader.epoch(0))).images))
    last = device.channels_last(recipe, torch.device("cpu"), model)
    model.to(memory_format=torch.channels_last if last else torch.contiguous_format)  # type: ignore[call-overload]
    augmenter = Augmenter(recipe.augment, recipe.preprocess, CLASSES, total_steps=10**9, channels_last=last)
    events = train(
        TrainState(model, optim.build(model, recipe.optimizer)),
        loader.epoch,
        Classify(augmenter, recipe.loss),
        total_steps=10**9,
        until=lambda progress: False,
        schedule=recipe.schedule,
    )
    ends = (event for event in events if isinstance(event, StepEnd))

    def run() -> None:
        for event in itertools.islice(ends, count):
            event.loss.item()

    return run


class Ready:
    """Counts the pictures that a `DiskLoader` has prepared, so that it can be waited for."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.count = recipe, 0

    def __call__(self, image: torch.Tensor, place: int, epoch: int) -> torch.Tensor:
        prepared = self.recipe.preprocess.prepare(image)
        self.count += 1  # a thread may lose another's count only between two instructions; `wait` allows for a few
        return prepared


def from_disk(recipe: Recipe, index: Index, count: int) -> tuple[Callable[[], None], float]:
    """What trains for `count` steps from disk; and the CPU milliseconds of making one picture ready."""
    batch, ready = recipe.data.batch_size, Ready(recipe)
    loader = DiskLoader(
        index,
        ready,
        size=recipe.preprocess.size,
        batch_size=batch,
        min_size=decode_size(recipe.preprocess),
        workers=recipe.data.workers,
    )
    start, drawn = time.process_time(), 0
    for made in itertools.islice(loader.epoch(0), max(2, 1000 // batch)):
        drawn += len(made.images)
    cost = 1000 * (time.process_time() - start) / max(drawn, ready.count)

    class Endless:
        """One epoch after the other without a break between them, so that a round never meets an end."""

        def epoch(self, epoch: int, start: int = 0) -> Any:
            return itertools.chain.from_iterable(loader.epoch(number) for number in itertools.count(epoch))

    run = steps(recipe, Endless(), count)  # type: ignore[arg-type]
    done = 0

    def round_() -> None:
        nonlocal done
        if not done:
            ready.count = 0
        run()
        done += count
        # At the end of an epoch nothing is ahead; rounds are fewer than that.
        expected = min(done + LOOK_AHEAD, len(loader)) * batch - 8
        while ready.count < expected:
            time.sleep(0.001)

    return round_, cost


def ratio(part: str, folder: Path, rounds: int) -> list[dict[str, Any]]:
    batch, count = STEPS[part]
    index = indices.scan(photographs(folder))
    model = "resnet18" if part == "resnet18" else "smallnet"
    facts = Facts("made", PICTURES, CLASSES, HEIGHT, WIDTH, 3, (0.5,) * 3, (0.2,) * 3, True)
    recipe = derive(facts, model)[0]
    recipe = replace(recipe, data=replace(recipe.data, batch_size=batch))
    loaded = load_memory(index.subset(range(IN_MEMORY)), recipe.preprocess)
    if part == "packed":
        index = packed(folder)
    disk, cost = from_disk(recipe, index, count)
    memory = steps(recipe, MemoryLoader(loaded.images, loaded.labels, batch_size=batch), count)
    rows = []
    for number, seconds in enumerate(common.alternate({"memory": memory, "disk": disk}, rounds), 1):
        rows.append(row(part, "memory_ms_per_picture", number, 1000 * seconds["memory"] / (count * batch)))
        rows.append(row(part, "disk_ms_per_picture", number, 1000 * seconds["disk"] / (count * batch)))
        rows.append(row(part, "ratio", number, seconds["memory"] / seconds["disk"]))
    rows.append(row(part, "loader_cpu_ms_per_picture", 1, cost))
    ratios = [one["value"] for one in rows if one["measure"] == "ratio"]
    print(
        f"{part:>9}: median ratio {common.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); a picture is "
        f"{common.median([r['value'] for r in rows if r['measure'] == 'memory_ms_per_picture']):.2f} ms of training "
        f"and {cost:.2f} ms of one core to load",
        flush=True,
    )
    return rows


def row(part: str, measure: str, number: int, value: float) -> dict[str, Any]:
    return {"part": part, "measure": measure, "round": number, "value": round(value, 4)}


# ---------------------------------------------------------------------------------------------------------------------
# Memory, scanning, checking
# ---------------------------------------------------------------------------------------------------------------------


def megabytes() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))


def megabytes_now() -> float:
    """The memory that this process has; the most so far where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)
    except OSError:
        return megabytes()


def memory_of(folder: str) -> None:
    """In a process of its own: prints the megabytes that an epoch needs beyond the index."""
    torch.set_num_threads(1)
    index = indices.scan(folder)
    with_index = megabytes_now()
    loader = DiskLoader(index, lambda image, place, epoch: image, size=(32, 32), batch_size=256)
    for batch in loader.epoch(0):
        assert len(batch.images)
    print(megabytes() - with_index)


def memory(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for count in (1_000, 100_000):
        command = [sys.executable, __file__, "--memory-of", str(small_files(folder, count))]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append(row("memory", f"megabytes_beyond_the_index_{count}", 1, float(said)))
        print(f"   memory: {count:,} files: {float(said):.1f} MB beyond the index", flush=True)
    return rows


def scan(folder: Path, rounds: int) -> list[dict[str, Any]]:
    place, rows = small_files(folder, 100_000), []
    for number in range(1, rounds + 1):
        start = time.perf_counter()
        found = len(indices.scan(place))
        rows.append(row("scan", "entries_per_second", number, found / (time.perf_counter() - start)))
    print(f"     scan: {common.median([one['value'] for one in rows]):,.0f} entries a second", flush=True)
    return rows


def check(folder: Path) -> list[dict[str, Any]]:
    index, rows = indices.scan(photographs(folder)), []
    with tempfile.TemporaryDirectory() as home:
        os.environ["OPSIN_HOME"] = home
        for number in (1, 2):
            start = time.perf_counter()
            indices.checked(index)
            rows.append(row("check", "seconds", number, time.perf_counter() - start))
            print(f"    check: number {number} of {PICTURES:,} pictures takes {rows[-1]['value']:.2f} s", flush=True)
    return rows


def packed(folder: Path) -> Index:
    from opsin.data import datasets, pack

    place = folder / "packed"
    if not place.exists():
        start = time.perf_counter()
        pack.pack(photographs(folder), place, size=64, uint8=True)
        print(f"   packed: in {time.perf_counter() - start:.0f} s, with the check", flush=True)
    return datasets.scan_parts(place)["all"]


def main() -> None:
    parts = (*STEPS, "memory", "scan", "check")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=parts, metavar="PART")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "opsin-bench-loader")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        memory_of(options.memory_of)
        return
    if unknown := set(options.parts) - set(parts):
        parser.error(f"no part {', '.join(unknown)}; expected {', '.join(parts)}")
    device.tune()
    options.folder.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        start = time.perf_counter()
        if part in STEPS:
            rows = ratio(part, options.folder, options.rounds)
        else:
            rows = {"memory": memory, "scan": lambda f: scan(f, options.rounds), "check": check}[part](options.folder)
        common.write("loader", rows, part=part)
        print(f"{part:>9}: {time.perf_counter() - start:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
