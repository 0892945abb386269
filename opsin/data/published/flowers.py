"""Oxford Flowers-102 (Nilsback and Zisserman 2008).

    jpg/image_00001.jpg
    imagelabels.mat    labels: the class of each picture, 1 to 102
    setid.mat          trnid, valid, tstid: the numbers of the pictures of each part

The published training part is the smallest, of ten pictures a class; many papers train on tstid instead.
"""

from __future__ import annotations

import os

import numpy as np

from opsin.data import matlab
from opsin.data.index import Parts
from opsin.data.published.listing import Listing, parts_of
from opsin.data.published.place import Place
from opsin.errors import BadInput, DataError

ARCHIVES = ("102flowers.tgz",)
LABELS, SETS = "imagelabels.mat", "setid.mat"
PARTS = {"train": "trnid", "val": "valid", "test": "tstid"}
SWAPPED = {"train": "tstid", "val": "valid", "test": "trnid"}
# The files have numbers only; the publisher's page of categories has names and how many pictures there are of each, but
# no numbers. Names: that page's, in the order in which TensorFlow Datasets (oxford_flowers102, Apache-2.0), torchvision
# and Udacity's cat_to_name.json give them to the numbers; the three agree. By their authors (tensorflow/datasets #1641,
# pytorch/vision #8838) all counts of the page are those of imagelabels.mat in this order; tests/test_samples.py has
# the 31 that these threads quote. 32 counts are of one class only; the other 70 classes share theirs with up to six
# others, and that those are not exchanged among themselves is unchecked here: it needs eyes on the pictures.
NAMES = """pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily,
moon orchid, bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea, spear thistle,
yellow iris, globe-flower, purple coneflower, peruvian lily, balloon flower, giant white arum lily, fire lily,
pincushion flower, fritillary, red ginger, grape hyacinth, corn poppy, prince of wales feathers, stemless gentian,
artichoke, sweet william, carnation, garden phlox, love in the mist, mexican aster, alpine sea holly,
ruby-lipped cattleya, cape flower, great masterwort, siam tulip, lenten rose, barbeton daisy, daffodil, sword lily,
poinsettia, bolero deep blue, wallflower, marigold, buttercup, oxeye daisy, common dandelion, petunia, wild pansy,
primula, sunflower, pelargonium, bishop of llandaff, gaura, geranium, orange dahlia, pink-yellow dahlia,
cautleya spicata, japanese anemone, black-eyed susan, silverbush, californian poppy, osteospermum, spring crocus,
bearded iris, windflower, tree poppy, gazania, azalea, water lily, rose, thorn apple, morning glory, passion flower,
lotus, toad lily, anthurium, frangipani, clematis, hibiscus, columbine, desert-rose, tree mallow, magnolia, cyclamen,
watercress, canna lily, hippeastrum, bee balm, ball moss, foxglove, bougainvillea, camellia, mallow, mexican petunia,
bromelia, blanket flower, trumpet creeper, blackberry lily"""
CLASSES = tuple(" ".join(name.split()) for name in NAMES.split(","))


def found(folder: str) -> bool:
    return all(os.path.isfile(os.path.join(folder, name)) for name in (LABELS, SETS))


def read(folder: str, *, on_bad_image: str = "error", swapped: bool = False) -> Parts:
    """train, val and test. swapped: with the largest part for training, and the published training part as the test."""
    if not found(folder):
        raise DataError(f"{folder}: no Flowers-102 here: expected jpg/ or {ARCHIVES[0]}, {LABELS} and {SETS}")
    place = Place(folder, ARCHIVES)
    labels, sets = place.read(LABELS), place.read(SETS)
    listings = {}
    for part, variable in (SWAPPED if swapped else PARTS).items():
        label_of = pictures(labels, place.label(LABELS), sets, place.label(SETS), variable)
        listings[part] = Listing([*label_of], np.array([*label_of.values()], dtype=np.int64), SETS)
    return parts_of(place, listings, CLASSES, on_bad_image)


def pictures(labels: bytes, labels_name: str, sets: bytes, sets_name: str, variable: str) -> dict[str, int]:
    """Name of the picture → label from 0 on, of one part. The bytes of the two files, and how messages name them."""
    numbers, of_all = matlab.integers(sets, sets_name, variable), matlab.integers(labels, labels_name, "labels")
    if numbers.min(initial=1) < 1 or numbers.max(initial=1) > len(of_all):
        raise BadInput(sets_name, f"{variable}: pictures {numbers.min()} to {numbers.max()}, but {len(of_all)} labels")
    if of_all.min(initial=1) < 1 or of_all.max(initial=1) > len(CLASSES):
        raise BadInput(labels_name, f"labels {of_all.min()} to {of_all.max()}; expected 1 to {len(CLASSES)}")
    label_of = {f"jpg/image_{number:05d}.jpg": int(of_all[number - 1]) - 1 for number in numbers.tolist()}
    if len(label_of) < len(numbers):
        raise BadInput(sets_name, f"{variable}: a picture is there twice")
    return label_of
