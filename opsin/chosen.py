"""Which pictures a command means: by the run's own list, by a part of a data set, by names and patterns."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from opsin import runfolder
from opsin.errors import BadInput, DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from opsin.console import Reporter
    from opsin.data.index import Index

STDIN = "<stdin>"  # what a lone dash becomes, which cyclopts would take for an option


def index(
    run: Path, data: str | None, split: str | None, data_dir: str, on_bad_image: str, reporter: Reporter
) -> Index:
    """The pictures that `evaluate` and `features` mean, by the rules in the help of `--split`."""
    from opsin import shipped
    from opsin.data import datasets
    from opsin.data.index import WHOLE, in_splits

    run = shipped.find(run)
    recipe = runfolder.recipe_of(run)
    if recipe is None and data is None:
        raise UsageError(f"{run} does not say what it was trained on; name the data: opsin evaluate RUN DATA")
    own = "" if recipe is None else recipe.data.name
    data = own if data is None else data
    same, seed = runfolder.same_data(data, own), 0
    if recipe is not None and same:
        # The very pictures that the run read, so that no training picture slips into the test part.
        data_dir, seed, on_bad_image = data_dir or recipe.data.data_dir, recipe.seed, recipe.data.on_bad_image
    if same or data in datasets.DATASETS:
        splits = datasets.load(
            data, data_dir=data_dir, seed=seed, on_bad_image=on_bad_image, progress=reporter.counter(f"reading {data}")
        )
    else:
        # Not `load`: what is only to be evaluated needs no training part.
        splits = datasets.read_parts(data, on_bad_image=on_bad_image, progress=reporter.counter(f"reading {data}"))
        if WHOLE in splits and split is None:
            reporter.say(f"{data} has no train/, val/ or test/: all of its pictures are taken")
            return splits[WHOLE]
        if WHOLE in splits and split != "all":
            splits = in_splits(splits, data, seed)
    part = split or "test"
    if part == "all":
        return _join(list(splits.values()))
    keys = runfolder.listed(run, part) if same else None
    if keys is not None:
        whole = _join(list(splits.values()))
        places = {key: i for i, key in enumerate(whole.keys)}
        gone = [key for key in keys if key not in places]
        if gone:
            raise DataError(
                f"{len(gone)} pictures of this run's {part} part are no longer in {data}; the first: {gone[0]}"
            )
        return whole.subset([places[key] for key in keys])
    if part not in splits:
        raise UsageError(f"{data} has no part {part!r}; it has: {', '.join(splits)}")
    return splits[part]


def any_pictures(data: str, split: str | None, data_dir: str, reporter: Reporter) -> Index:
    """All pictures of `data` or of one part of it, with or without classes; what is unreadable is in `skipped`."""
    from opsin.data import datasets

    options = {"data_dir": data_dir, "on_bad_image": "skip", "progress": reporter.counter(f"reading {data}")}
    if data in datasets.DATASETS and not datasets.DATASETS[data].layout:
        parts = datasets.load(data, **options)
    else:
        parts = datasets.read_parts(data, labelled=False, **options)
    if split in (None, "all"):
        return _join(list(parts.values()))
    if split not in parts:
        raise UsageError(f"{data} has no part {split!r}; leave out --split for all of its pictures")
    return parts[split]


def _join(parts: Sequence[Index]) -> Index:
    """The pictures of several parts of one data set, one part after the other."""
    import numpy as np

    from opsin.data.index import Index

    if len(parts) == 1:
        return parts[0]

    class Joined:
        def __init__(self, places: Sequence[tuple[Index, int]]) -> None:
            self.places = places

        def image(self, i: int, min_size: tuple[int, int] | None = None) -> Tensor:
            part, place = self.places[i]
            return part.image(place, min_size)

        def data(self, i: int) -> bytes:
            part, place = self.places[i]
            return part.source.data(place)

        def file(self, i: int) -> tuple[str, str]:
            part, place = self.places[i]
            return part.file(place), ""

        def name(self, i: int) -> str:
            part, place = self.places[i]
            return part.source.name(place)

        def subset(self, indices: np.ndarray) -> Joined:
            return Joined([self.places[i] for i in indices])

    keys = [key for part in parts for key in part.keys]
    source = Joined([(part, i) for part in parts for i in range(len(part))])
    return Index(
        keys,
        np.concatenate([part.labels for part in parts]),
        parts[0].classes,
        source,
        sum((part.skipped for part in parts), ()),
    )


def all_pictures(arguments: Sequence[str], skip: Callable[[str, str], None]) -> tuple[list[str], list[Path | bytes]]:
    """The keys and pictures of the arguments of a command; `skip` is told (name, reason) of those that name nothing."""
    keys: list[str] = []
    images: list[Path | bytes] = []
    for argument in arguments:
        try:
            for key, image in pictures(argument):
                keys.append(key)
                images.append(image)
        except BadInput as error:
            skip(error.path, error.reason)
    return keys, images


def pictures(argument: str) -> Iterator[tuple[str, Path | bytes]]:
    """(key, picture) of one argument of `predict`; `BadInput` when it names nothing."""
    import glob

    from opsin.data.index import EXTENSIONS, MAX_FILE_BYTES

    path = Path(argument)
    if argument == STDIN:
        data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise BadInput(argument, f"more than {MAX_FILE_BYTES} bytes")
        yield argument, data
    elif path.is_dir():
        found = sorted(
            p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file() and not p.name.startswith(".")
        )
        if not found:
            raise BadInput(path, f"no pictures in this folder; looked for {', '.join(sorted(EXTENSIONS))}")
        yield from ((str(p), p) for p in found)
    elif path.exists() or not glob.has_magic(argument):
        if not path.exists():
            raise BadInput(path, "no such file or folder")
        yield str(path), path
    else:
        names = sorted(name for name in glob.glob(argument, recursive=True) if os.path.isfile(name))
        if not names:
            raise BadInput(argument, "the pattern matches no file")
        yield from ((name, Path(name)) for name in names)
