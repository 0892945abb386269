"""ImageNet-2012, the challenge's classification set (Russakovsky et al. 2015): 1,000 synsets of WordNet.

    ILSVRC2012_img_train.tar          a tar of n01440764.tar, …, each of n01440764_10026.JPEG, …
    ILSVRC2012_img_val.tar            ILSVRC2012_val_00000001.JPEG, …
    ILSVRC2012_devkit_t12.tar.gz      or its folder: the labels of val, and the names (meta.mat)
    LOC_synset_mapping.txt            names too, of another publication of the same synsets
or
    train/n01440764/n01440764_10026.JPEG
    val/n01440764/*.JPEG              or val/ILSVRC2012_val_00000001.JPEG, … with the devkit beside
or, as Kaggle has it
    ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_10026.JPEG
    ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG
    LOC_val_solution.csv              "ILSVRC2012_val_00000001,n01751748 X1 Y1 X2 Y2 …": the labels of val
    LOC_synset_mapping.txt

The tars are read in place, the inner ones too: an index is the offset of each picture. A class is called by the first
of its words; where two have the same (crane, maillot), both with their synset behind it. Classes are in the order of
their synsets, which is that of every published network.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from opsin.data import index as indices
from opsin.data import matlab, tar
from opsin.data.index import FileSource, Index, Names, Parts, printable
from opsin.data.published.place import Place
from opsin.errors import BadInput, DataError

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12"
TRUTH = f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"
META = f"{DEVKIT}/data/meta.mat"
MAPPING, SOLUTION = "LOC_synset_mapping.txt", "LOC_val_solution.csv"
KAGGLE = "ILSVRC/Data/CLS-LOC"
SYNSET = re.compile(r"n\d{8}")
PICTURE = re.compile(r"(n\d{8})_\d+\.JPEG")
VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
CLASSES, VAL_OF_CLASS, FEWEST, MOST = 1000, 50, 732, 1300  # of the published set; the last two of train


def found(folder: str) -> bool:
    if any(os.path.isfile(os.path.join(folder, name)) for name in (TRAIN, VAL)):
        return True
    train = os.path.join(_pictures(folder), "train")
    names = [name for name in os.listdir(train) if not name.startswith(".")] if os.path.isdir(train) else []
    return bool(names) and all(SYNSET.fullmatch(name) for name in names)


def _pictures(folder: str) -> str:
    """Where train/ and val/ are."""
    inside = os.path.join(folder, KAGGLE)
    return inside if os.path.isdir(inside) else folder


def read_parts(folder: str, *, on_bad_image: str = "error", whole: bool = False) -> Parts:
    """train and val, as far as they are there. whole: `DataError` names the first synset that has not the published
    number of pictures, unless on_bad_image is "skip". Classes of which no picture is here are left out."""
    place, below = Place(folder, (f"{DEVKIT}.tar.gz",)), _pictures(folder)
    parts: dict[str, tuple[Index, list[str]]] = {}  # part → its index, whose labels are places in the synsets
    if os.path.isfile(path := os.path.join(folder, TRAIN)):
        parts["train"] = _train(path)
    elif os.path.isdir(path := os.path.join(below, "train")):
        parts["train"] = _folders(path, "train", on_bad_image)
    if os.path.isfile(path := os.path.join(folder, VAL)):
        archive = tar.Archive(path)
        files: dict[str, tuple[int, int, int]] = {}
        for name, at, size in tar.plain_files(archive):
            if name in files:
                raise BadInput(f"{archive.name}/{printable(name)}", "is there twice")
            files[name] = 0, at, size
        parts["val"] = _validation(place, VAL, tar.TarSource((archive,), [*files], _places([*files.values()])), files)
    elif os.path.isdir(path := os.path.join(below, "val")):
        names = sorted(name for name in os.listdir(path) if VALIDATION.fullmatch(name))
        paths = FileSource([os.path.join(path, name) for name in names])
        where = os.path.relpath(path, folder)
        parts["val"] = _validation(place, where, paths, names) if names else _folders(path, "val", on_bad_image)
    if not parts:
        raise DataError(f"{place}: no ImageNet here: expected {TRAIN} and {VAL}, or train/ and val/")
    synsets = sorted(set().union(*(synsets for _, synsets in parts.values())))
    for _, mine in parts.values():
        if odd := next((one for one in mine if not SYNSET.fullmatch(one)), None):
            raise DataError(f"{place}: {odd!r:.100} is no synset; expected folders such as n01440764")
    words, note = _words(place, synsets)
    classes = tuple(words[synset] for synset in synsets)
    at = {synset: number for number, synset in enumerate(synsets)}
    made = {
        part: replace(index, labels=np.array([at[synset] for synset in mine])[index.labels], classes=classes)
        for part, (index, mine) in parts.items()
    }
    if whole and on_bad_image != "skip":
        _check_counts(place, made, synsets)
    first = next(iter(made))
    return {**made, first: replace(made[first], notes=(*made[first].notes, *note))}


def _check_counts(place: Place, parts: Parts, synsets: list[str]) -> None:
    if len(synsets) != CLASSES:
        raise DataError(f"{place}: {len(synsets):,} synsets; expected {CLASSES:,}")
    for part, index in parts.items():
        low, high = (FEWEST, MOST) if part == "train" else (VAL_OF_CLASS, VAL_OF_CLASS)
        for synset, count in zip(synsets, index.counts().tolist(), strict=True):
            if not low <= count <= high:
                expected = f"{low:,} to {high:,}" if low < high else f"{low}"
                raise DataError(f"{place}: {count:,} pictures of {synset} in {part}; expected {expected}")


def _places(rows: list[tuple[int, int, int]]) -> np.ndarray:
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _train(path: str) -> tuple[Index, list[str]]:
    archive = tar.Archive(path)
    names, places, labels = list[Names](), list[np.ndarray](), list[np.ndarray]()
    synsets: list[str] = []
    for inner, start, size in tar.plain_files(archive):
        synset = inner.removesuffix(".tar")
        if not SYNSET.fullmatch(synset) or inner == synset:
            raise BadInput(f"{archive.name}/{printable(inner)}", "expected the tar of a synset, as n01440764.tar")
        if synset in synsets:
            raise BadInput(f"{archive.name}/{inner}", "is there twice")
        below = tar.Inner(archive, inner, start, size)
        found: dict[str, tuple[int, int, int]] = {}
        for name, at, length in tar.plain_files(below):
            match = PICTURE.fullmatch(name)
            if match is None or match[1] != synset or name in found:
                reason = "is there twice" if name in found else f"expected pictures such as {synset}_10026.JPEG"
                raise BadInput(f"{below.name}/{printable(name)}", reason)
            found[name] = 0, start + at, length
        names.append(Names(f"{synset}/{name}" for name in found))
        places.append(_places([*found.values()]))
        labels.append(np.full(len(found), len(synsets)))
        synsets.append(synset)
    if not synsets:
        raise BadInput(archive.name, "holds nothing; expected the tar of each synset")
    keys = Names.joined(names)
    source = tar.TarSource((archive,), keys, np.concatenate(places))
    return Index(keys, np.concatenate(labels), (), source), synsets


def _folders(path: str, part: str, on_bad_image: str) -> tuple[Index, list[str]]:
    index = indices.scan(path, on_bad_image=on_bad_image, prefix=f"{part}/")
    return index, list(index.classes)


def _validation(
    place: Place, where: str, source: FileSource | tar.TarSource, names: list[str] | Mapping[str, object]
) -> tuple[Index, list[str]]:
    """The pictures of val by their numbers, labelled by Kaggle's list or the devkit's."""
    if place.has(SOLUTION):
        truth = _solution(place)
    elif place.has(TRUTH) and place.has(META):
        truth = _truth(place)
    else:
        raise DataError(
            f"{place}: {where} has no labels of its own; expected {DEVKIT}.tar.gz in this folder, or its folder, "
            f"or Kaggle's {SOLUTION}: give the folder that holds it"
        )
    labels = []
    for name in names:
        match = VALIDATION.fullmatch(name)
        number = int(match[1]) if match else 0
        if number not in truth:
            raise BadInput(
                place.label(f"{where}/{printable(name)}"),
                f"expected ILSVRC2012_val_00000001.JPEG to number {max(truth, default=0):,}, as many as have labels",
            )
        labels.append(truth[number])
    here = sorted(set(labels))
    keys = [f"val/{name}" for name in names]
    if not keys:
        raise BadInput(place.label(where), "holds nothing; expected the validation pictures")
    return Index(keys, np.searchsorted(here, labels), (), source), here


def _truth(place: Place) -> dict[int, str]:
    """Number of a picture of val → synset, by the devkit's list, whose numbers are those of its meta.mat."""
    synsets = {number: synset for number, (synset, _) in _meta(place).items()}
    truth: dict[int, str] = {}
    for line, (text,) in place.rows(TRUTH, 1):
        if (number := place.number(TRUTH, line, text)) not in synsets:
            raise BadInput(place.label(TRUTH), f"line {line}: no synset has the number {number}")
        truth[len(truth) + 1] = synsets[number]
    return truth


def _solution(place: Place) -> dict[int, str]:
    """The same by Kaggle's list, in any order: a synset with a box, and the same again for each more of it."""
    truth: dict[int, str] = {}
    for line, (text,) in place.rows(SOLUTION, 1, comment="ImageId,"):
        picture, _, boxes = text.partition(",")
        match = VALIDATION.fullmatch(f"{picture}.JPEG")
        synsets = {word for word in boxes.split() if SYNSET.fullmatch(word)}
        if match is None or len(synsets) != 1 or int(match[1]) in truth:
            wanted = "a picture that is not there before, and one synset: ILSVRC2012_val_00000001,n01751748 …"
            raise BadInput(place.label(SOLUTION), f"line {line}: expected {wanted}; received {text!r:.100}")
        truth[int(match[1])] = synsets.pop()
    return truth


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------


def _meta(place: Place) -> dict[int, tuple[str, str]]:
    """Number of the challenge → synset and words, from meta.mat."""
    label = place.label(META)
    table: dict[int, tuple[str, str]] = {}
    for row in matlab.structures(place.read(META), label, "synsets"):
        number, synset, words = (row.get(field) for field in ("ILSVRC2012_ID", "WNID", "words"))
        if not (isinstance(number, np.ndarray) and number.size == 1 and isinstance(synset, str)):
            raise BadInput(label, "synsets: expected ILSVRC2012_ID, a number, and WNID, a text, of each")
        value = float(number.reshape(-1)[0])
        if not value.is_integer() or int(value) in table or not isinstance(words, str) or not SYNSET.fullmatch(synset):
            raise BadInput(label, f"synsets: {synset!r:.40} with number {value:g} cannot be, or is there twice")
        table[int(value)] = synset, words
    return table


def _words(place: Place, synsets: list[str]) -> tuple[dict[str, str], list[str]]:
    """Synset → name of its class, each another; and what to say when they have none."""
    if place.has(MAPPING):
        words = {synset: text for _, (synset, text) in place.rows(MAPPING, 2)}
        by = MAPPING
    elif place.has(META):
        words, by = dict(_meta(place).values()), META
    else:
        return {synset: synset for synset in synsets}, [f"{place}: no {MAPPING} and no {DEVKIT}: classes are synsets"]
    if lacking := next((synset for synset in synsets if not words.get(synset, "").partition(",")[0].strip()), None):
        raise BadInput(place.label(by), f"has no words for {lacking}")
    # Groups above the thousand, which meta.mat names too, give no name away.
    known = {synset: text.partition(",")[0].strip() for synset, text in list(words.items())[:CLASSES]}
    known |= {synset: words[synset].partition(",")[0].strip() for synset in synsets}
    times = Counter(known.values())
    return {s: f"{known[s]} ({s})" if times[known[s]] > 1 else known[s] for s in synsets}, []
