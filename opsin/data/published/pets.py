"""Oxford-IIIT Pet (Parkhi et al. 2012): 37 breeds of cats and dogs.

    images/Abyssinian_100.jpg
    annotations/trainval.txt, test.txt    "NAME CLASS SPECIES BREED" of each picture, its name without .jpg

A class is called by its breed, the name without its last number; classes are in the order of their numbers.
"""

from __future__ import annotations

import os

import numpy as np

from opsin.data.index import Parts
from opsin.data.published.listing import Listing, parts_of
from opsin.data.published.place import Place
from opsin.errors import BadInput, DataError

ARCHIVES = ("images.tar.gz", "annotations.tar.gz")
LISTS = {"train": "annotations/trainval.txt", "test": "annotations/test.txt"}


def found(folder: str) -> bool:
    here = [all(os.path.exists(os.path.join(folder, n)) for n in (*LISTS.values(), "images"))]
    return any(here) or all(os.path.isfile(os.path.join(folder, name)) for name in ARCHIVES)


def read(folder: str, *, on_bad_image: str = "error") -> Parts:
    """train (the published trainval) and test."""
    place = Place(folder, ARCHIVES)
    if not all(place.has(name) for name in LISTS.values()):
        raise DataError(f"{place}: no Oxford-IIIT Pet here: expected images/ and {' and '.join(LISTS.values())}")
    breeds: dict[int, str] = {}
    listed: dict[str, tuple[list[str], list[int]]] = {}
    for part, file in LISTS.items():
        names, labels = listed.setdefault(part, ([], []))
        for line, (name, number, _, _) in place.rows(file, 4, comment="#"):
            label, breed = place.number(file, line, number), name.rpartition("_")[0]
            if not breed or breeds.setdefault(label, breed) != breed:
                raise BadInput(
                    place.label(file),
                    f"line {line}: {name!r:.200} has the number {label} of {breeds.get(label)!r:.200}",
                )
            names.append(f"images/{name}.jpg")
            labels.append(label)
    if len(set(breeds.values())) < len(breeds):
        raise BadInput(place.label(LISTS["train"]), "two numbers are of the same breed")
    numbers = sorted(breeds)
    listings = {
        part: Listing(names, np.searchsorted(numbers, labels).astype(np.int64), LISTS[part])
        for part, (names, labels) in listed.items()
    }
    return parts_of(place, listings, [breeds[number] for number in numbers], on_bad_image)
