"""Data sets of photographs as their publishers lay them out: recognised, and read in place.

Every reader has `found(folder)`, which looks at names only, and `read(folder, on_bad_image=…, …)`, which gives the
parts under the names that their publisher gave them. No picture is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from opsin.data import shards
from opsin.data.index import Parts
from opsin.data.published import coco, cub, dogs, flowers, imagenet, pets, voc


class Layout(NamedTuple):
    """title: for people. name: of the only data set that is laid out so, "" where there may be many."""

    title: str
    name: str
    found: Callable[[str], bool]
    read: Callable[..., Parts]


LAYOUTS = (
    Layout("PASCAL VOC", "", voc.found, voc.read),
    Layout("COCO", "", coco.found, coco.read),
    Layout("CUB-200-2011", "cub200", cub.found, cub.read),
    Layout("Stanford Dogs", "dogs120", dogs.found, dogs.read),
    Layout("Oxford Flowers-102", "flowers102", flowers.found, flowers.read),
    Layout("Oxford-IIIT Pet", "pets37", pets.found, pets.read),
    Layout("ImageNet-2012", "imagenet2012", imagenet.found, imagenet.read_parts),
    Layout("shards", "", shards.found, shards.read_parts),
)

READERS: dict[str, Callable[..., Parts]] = {  # name of a data set → how it is read
    "voc2007": partial(voc.read, year="2007"),
    "voc2012": partial(voc.read, year="2012", parts=("train", "val")),
    "coco2017": coco.read,
    "cub200": cub.read,
    "cub200-boxes": partial(cub.read, boxes=True),
    "dogs120": dogs.read,
    "flowers102": flowers.read,
    "flowers102-swapped": partial(flowers.read, swapped=True),
    "pets37": pets.read,
    "imagenet2012": partial(imagenet.read_parts, whole=True),
}


def layout(folder: str) -> Layout | None:
    """The layout of a folder; None for one that has none of these."""
    return next((layout for layout in LAYOUTS if layout.found(folder)), None)
