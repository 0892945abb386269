"""Small data sets in the published formats, made by the tests that need them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import strategies as st
from PIL import Image

from opsin.data import datasets

FOREIGN = Path(__file__).parent / "data" / "foreign"
CIFAR10_FILES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Random bytes, uint8 of this shape."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def listed(file: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a state dict as somebody publishes it, from the committed list of their source."""
    lines = (line.split() for line in (FOREIGN / f"{file}.txt").read_text().splitlines())
    return {key: () if size == "scalar" else tuple(map(int, size.split("x"))) for key, size in lines}


# ---------------------------------------------------------------------------------------------------------------------
# Pickles as Python 2 wrote them: protocol 2, byte strings, arrays through numpy.core.multiarray._reconstruct
# ---------------------------------------------------------------------------------------------------------------------


def pickle2(value: Any) -> bytes:
    """A pickle of dicts, lists, ints, bytes and uint8 arrays, opcode for opcode as in the published CIFAR files."""
    return b"\x80\x02" + _pickle2(value) + b"."


def _pickle2(value: Any) -> bytes:
    if isinstance(value, bytes):
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_pickle2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_pickle2(key) + _pickle2(inner) for key, inner in value.items()) + b"u"
    assert isinstance(value, np.ndarray) and value.dtype == np.uint8
    shape = b"(" + b"".join(_pickle2(size) for size in value.shape) + b"t"
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return empty + b"(K\x01" + shape + kind + b"\x89" + _pickle2(value.tobytes()) + b"tb"


# ---------------------------------------------------------------------------------------------------------------------
# CIFAR
# ---------------------------------------------------------------------------------------------------------------------


def cifar10_arrays(per_file: int = 20) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """File name → images uint8 [per_file, 3, 32, 32] and labels [per_file], each class as often as can be.

    The class shows in the brightness, so that a network can learn it.
    """
    arrays = {}
    for number, name in enumerate(CIFAR10_FILES):
        labels = (np.arange(per_file) + number) % 10
        images = noise(per_file, 3, 32, 32, seed=number) // 8 + (labels * 22).astype(np.uint8)[:, None, None, None]
        arrays[name] = images, labels
    return arrays


def cifar10_python(per_file: int = 20) -> dict[str, bytes]:
    """The seven files of cifar-10-batches-py."""
    files = {}
    for name, (images, labels) in cifar10_arrays(per_file).items():
        files[name] = pickle2(
            {
                b"batch_label": name.encode(),
                b"labels": labels.tolist(),
                b"data": images.reshape(per_file, -1),
                b"filenames": [b"picture_%d.png" % i for i in range(per_file)],
            }
        )
    names = [name.encode() for name in datasets.DATASETS["cifar10"].classes]
    files["batches.meta"] = pickle2({b"num_cases_per_batch": 10000, b"label_names": names, b"num_vis": 3072})
    return files


def cifar10_binary(per_file: int = 20) -> dict[str, bytes]:
    """The seven files of cifar-10-batches-bin: records of a label byte and 3,072 pixel bytes."""
    files = {
        f"{name}.bin": np.hstack([labels[:, None].astype(np.uint8), images.reshape(per_file, -1)]).tobytes()
        for name, (images, labels) in cifar10_arrays(per_file).items()
    }
    names = "\n".join(datasets.DATASETS["cifar10"].classes)
    return files | {"batches.meta.txt": f"{names}\n\n".encode()}


def cifar100_arrays(counts: tuple[int, int] = (200, 100)) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """File name → images [N, 3, 32, 32], fine labels [N], coarse labels [N]."""
    return {
        name: (noise(n, 3, 32, 32, seed=n), np.arange(n) % 100, np.arange(n) % 100 // 5)
        for name, n in zip(("train", "test"), counts, strict=True)
    }


def cifar100_python(counts: tuple[int, int] = (200, 100)) -> dict[str, bytes]:
    """The three files of cifar-100-python."""
    files = {}
    for name, (images, fine, coarse) in cifar100_arrays(counts).items():
        files[name] = pickle2(
            {
                b"filenames": [b"picture_%d.png" % i for i in range(len(fine))],
                b"batch_label": name.encode(),
                b"fine_labels": fine.tolist(),
                b"coarse_labels": coarse.tolist(),
                b"data": images.reshape(len(images), -1),
            }
        )
    names = [name.encode() for name in datasets.DATASETS["cifar100"].classes]
    files["meta"] = pickle2({b"fine_label_names": names, b"coarse_label_names": [b"group_%d" % i for i in range(20)]})
    return files


def cifar100_binary(counts: tuple[int, int] = (200, 100)) -> dict[str, bytes]:
    """The files of cifar-100-binary: records of a coarse label, a fine label and 3,072 pixel bytes."""
    files = {
        f"{name}.bin": np.hstack(
            [coarse[:, None].astype(np.uint8), fine[:, None].astype(np.uint8), images.reshape(len(images), -1)]
        ).tobytes()
        for name, (images, fine, coarse) in cifar100_arrays(counts).items()
    }
    return files | {"fine_label_names.txt": ("\n".join(datasets.DATASETS["cifar100"].classes) + "\n").encode()}


def tar_gz(folder: str, files: Mapping[str, bytes]) -> bytes:
    """A .tar.gz of one folder, the layout of the published archives."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        entry = tarfile.TarInfo(folder)
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
        for name, data in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Flowers-102
# ---------------------------------------------------------------------------------------------------------------------


def mat(arrays: Mapping[str, np.ndarray], packed: bool = True, order: str = "<") -> bytes:
    """A MATLAB 5 file: each array an element of elements, by itself deflated as MATLAB does."""
    kinds = {"u1": (2, 9), "u2": (4, 11), "f8": (9, 6), "i4": (5, 12)}  # dtype → type of the data, class of the array

    def element(kind: int, content: bytes) -> bytes:
        if kind != 14 and 0 < len(content) <= 4:
            return struct.pack(f"{order}I", len(content) << 16 | kind) + content.ljust(4, b"\0")
        return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)

    data = b"MATLAB 5.0 MAT-file, made by a test".ljust(124) + struct.pack(f"{order}H", 0x100)
    data += b"IM" if order == "<" else b"MI"
    for name, array in arrays.items():
        stored, kind = kinds[array.dtype.str[1:]]
        parts = element(6, struct.pack(f"{order}II", kind, 0))
        parts += element(5, struct.pack(f"{order}{array.ndim}i", *array.shape)) + element(1, name.encode())
        parts += element(stored, array.astype(array.dtype.newbyteorder(order)).tobytes("F"))
        whole = zlib.compress(element(14, parts)) if packed else b""
        data += struct.pack(f"{order}II", 15, len(whole)) + whole if packed else element(14, parts)
    return data


def flowers(count: int = 9, side: int = 24) -> dict[str, bytes]:
    """The three files, of `count` pictures; number i (from 1) has the label 10 i, and is in tstid, trnid or valid."""
    pictures = {f"image_{i:05d}.jpg": encode(gradient(side + i, side) // 2 + np.uint8(i)) for i in range(1, count + 1)}
    pictures = {name: encode(Image.open(io.BytesIO(data)), "JPEG", quality=95) for name, data in pictures.items()}
    numbers = np.arange(1, count + 1)
    sets = {name: numbers[None, i::3].astype(np.uint16) for i, name in enumerate(("tstid", "trnid", "valid"))}
    return {
        "102flowers.tgz": tar_gz("jpg", pictures),
        "imagelabels.mat": mat({"labels": (10 * numbers[None]).astype(np.uint8)}),
        "setid.mat": mat(sets),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Sets of photographs: name of each file → its bytes
# ---------------------------------------------------------------------------------------------------------------------


def _jpeg(side: int = 24) -> bytes:
    return encode(gradient(side, side + 8), "JPEG")


def voc() -> dict[str, bytes]:
    """Two pictures to train on, one to test on; in the second the only cat is difficult, in the third one of two is."""
    objects = {"a": [("dog", 0)], "b": [("cat", 1), ("dog", 0)], "c": [("cat", 1), ("cat", 0)]}
    files = {"ImageSets/Main/train.txt": b"a\nb\n", "ImageSets/Main/test.txt": b"c\n"}
    for name, some in objects.items():
        inner = "".join(f"<object><name>{c}</name><difficult>{d}</difficult></object>" for c, d in some)
        files[f"Annotations/{name}.xml"] = f"<annotation>{inner}</annotation>".encode()
        files[f"JPEGImages/{name}.jpg"] = _jpeg()
    return files


def coco() -> dict[str, bytes]:
    """Three pictures; the second is of a crowd, the third of nothing."""
    document = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 32} for i in (7, 8, 9)],
        "categories": [{"id": 5, "name": "cat"}, {"id": 2, "name": "person"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 5, "iscrowd": 0, "bbox": [0.5, 1, 2, 3]},
            {"id": 2, "image_id": 8, "category_id": 2, "iscrowd": 1, "segmentation": {"counts": [1, 2]}},
        ],
    }
    pictures = {f"val2017/{i}.jpg": _jpeg() for i in (7, 8, 9)}
    return {"annotations/instances_val2017.json": json.dumps(document).encode(), **pictures}


def cub() -> dict[str, bytes]:
    """Four pictures of two birds, each with a box of 10×6 pixels at (4, 2)."""
    names = [f"{bird}/{bird[4:]}_{i}.jpg" for bird in ("001.Auk", "002.Wren") for i in (1, 2)]
    lists = {
        "images.txt": [*enumerate(names, 1)],
        "classes.txt": [(1, "001.Auk"), (2, "002.Wren")],
        "image_class_labels.txt": [(i, 1 + i // 3) for i in (1, 2, 3, 4)],
        "train_test_split.txt": [(i, i % 2) for i in (1, 2, 3, 4)],
        "bounding_boxes.txt": [(i, "4.0 2.0 10.0 6.0") for i in (1, 2, 3, 4)],
    }
    texts = {name: "".join(f"{i} {rest}\n" for i, rest in rows).encode() for name, rows in lists.items()}
    return texts | {f"images/{name}": _jpeg() for name in names}


def dogs() -> dict[str, bytes]:
    """Two breeds, one picture of each in each part."""
    files: dict[str, bytes] = {}
    for part, i in (("train", 1), ("test", 2)):
        names = [f"n01-Pug/n01_{i}.jpg", f"n02-Toy-Poodle/n02_{i}.jpg"]
        file = io.BytesIO()
        cells = np.array([[name] for name in names], dtype=object)
        scipy.io.savemat(file, {"file_list": cells, "labels": np.array([[1.0], [2.0]])}, do_compression=True)
        files[f"{part}_list.mat"] = file.getvalue()
        files |= {f"Images/{name}": _jpeg() for name in names}
    return files


def pets() -> dict[str, bytes]:
    """Two breeds, numbered 1 and 6, one picture of each in each part."""
    lists = {"trainval": 1, "test": 2}
    texts = {f"annotations/{part}.txt": f"#list\nBengal_{i} 6 1 5\nab_c_{i} 1 1 1\n" for part, i in lists.items()}
    pictures = {f"images/{breed}_{i}.jpg": _jpeg() for breed in ("Bengal", "ab_c") for i in (1, 2)}
    return {name: text.encode() for name, text in texts.items()} | pictures


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """A plain tar of these files."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return made.getvalue()


SYNSETS = {"n01440764": "tench, Tinca tinca", "n02012849": "crane", "n03126707": "crane"}


def imagenet_devkit() -> dict[str, bytes]:
    """The labels of four validation pictures; the challenge numbers the synsets in another order than their names."""
    rows = [(3, "n01440764"), (1, "n02012849"), (2, "n03126707"), (1001, "n00001740")]
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("children", "O")]
    table = np.zeros((len(rows), 1), dtype=kinds)
    for i, (number, synset) in enumerate(rows):
        table[i, 0] = float(number), synset, SYNSETS.get(synset, "entity, crane"), np.zeros((1, 0))
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": table}, do_compression=True)
    folder = "ILSVRC2012_devkit_t12/data"
    return {f"{folder}/meta.mat": file.getvalue(), f"{folder}/ILSVRC2012_validation_ground_truth.txt": b"3\n1\n2\n3\n"}


def imagenet() -> dict[str, bytes]:
    """The three archives: two training pictures a synset, four for validation."""
    inner = {f"{s}.tar": tar_of({f"{s}_{10 * i + k}.JPEG": _jpeg() for i in (1, 2)}) for k, s in enumerate(SYNSETS)}
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": _jpeg() for i in (2, 1, 3, 4)}
    return {
        "ILSVRC2012_img_train.tar": tar_of(inner),
        "ILSVRC2012_img_val.tar": tar_of(val),
        "ILSVRC2012_devkit_t12.tar.gz": gzip.compress(tar_of(imagenet_devkit())),
    }


# ---------------------------------------------------------------------------------------------------------------------
# MNIST
# ---------------------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    """The IDX format: 0 0, type 8 (uint8), number of dimensions, their sizes big-endian, the bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_arrays(counts: tuple[int, int] = (60, 30)) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """ "train" and "t10k" → images uint8 [N, 28, 28], labels uint8 [N]."""
    return {
        name: (noise(n, 28, 28, seed=n), (np.arange(n) % 10).astype(np.uint8))
        for name, n in zip(("train", "t10k"), counts, strict=True)
    }


def mnist(counts: tuple[int, int] = (60, 30), packed: bool = True) -> dict[str, bytes]:
    """The four IDX files, with gzip unless `packed` is False."""
    files = {}
    for name, (images, labels) in mnist_arrays(counts).items():
        files[f"{name}-images-idx3-ubyte"] = idx(images)
        files[f"{name}-labels-idx1-ubyte"] = idx(labels)
    return {f"{name}.gz": gzip.compress(data, 1) for name, data in files.items()} if packed else files


# ---------------------------------------------------------------------------------------------------------------------
# On disk, and known by name
# ---------------------------------------------------------------------------------------------------------------------


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def named(
    patch: pytest.MonkeyPatch, folder: Path, name: str = "cifar10", *, per_file: int = 20, packed: bool = False
) -> Path:
    """Write a small "cifar10", "cifar100" or "mnist" below `folder`, in its published layout, and let
    `opsin.data.datasets` know its checksums and counts for the length of a test.

    `load(name, data_dir=str(folder))` then reads it. CIFAR-10: five training files and a test file of `per_file`
    pictures. packed: as the published archive.
    """
    files, below, counts = {
        "cifar10": lambda: (cifar10_python(per_file), "cifar-10-batches-py", (5 * per_file, per_file)),
        "cifar100": lambda: (cifar100_python(), "cifar-100-python", (200, 100)),
        "mnist": lambda: (mnist(), ".", (60, 30)),
    }[name]()
    info = replace(
        datasets.DATASETS[name],
        splits={"train": counts[0], "test": counts[1]},
        checksums={file: md5(data) for file, data in files.items()},
    )
    patch.setitem(datasets.DATASETS, name, info)
    if packed:
        return write(folder, {info.files[0].name: tar_gz(below, files)})
    write(folder / below, files)
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


def gradient(height: int = 48, width: int = 64, channels: int = 3) -> np.ndarray:
    """A smooth picture without symmetry, uint8 [height, width, channels], which JPEG keeps to within a few levels."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * x / max(1, width - 1), 255 * y / max(1, height - 1), 128 + 100 * np.sin((x + 2 * y) / 25)]
    return np.stack(planes, -1)[..., :channels].round().astype(np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


MODES: dict[str, tuple[str, str]] = {  # file name → Pillow's mode, format
    "grey.jpg": ("L", "JPEG"),
    "colour.jpg": ("RGB", "JPEG"),
    "cmyk.jpg": ("CMYK", "JPEG"),
    "bilevel.png": ("1", "PNG"),
    "grey.png": ("L", "PNG"),
    "grey_alpha.png": ("LA", "PNG"),
    "palette.png": ("P", "PNG"),
    "colour.png": ("RGB", "PNG"),
    "colour_alpha.png": ("RGBA", "PNG"),
    "deep.png": ("I;16", "PNG"),
    "palette.gif": ("P", "GIF"),
    "colour.bmp": ("RGB", "BMP"),
    "colour.tif": ("RGB", "TIFF"),
    "colour.webp": ("RGB", "WEBP"),
    "colour.ppm": ("RGB", "PPM"),
}


def of_mode(mode: str, image: np.ndarray) -> Image.Image:
    """uint8 [h, w, 3] as a picture of one of Pillow's modes."""
    colour = Image.fromarray(image)
    if mode == "I;16":
        return Image.fromarray(np.asarray(colour.convert("L")).astype(np.uint16) * 257)
    return colour.convert(mode)


def pictures_of_all_modes(folder: Path, classes: Iterable[str] = ("dark", "light"), side: int = 24) -> Path:
    """Class folders that each hold one picture of every mode and format of `MODES`."""
    for level, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        image = gradient(side, side + 8) // 2 + np.uint8(100 * (level % 2))
        for file, (mode, kind) in MODES.items():
            (folder / name / file).write_bytes(encode(of_mode(mode, image), kind))
    return folder


def slow_jpeg(scans: int = 1000, side: int = 7000) -> bytes:
    """A whole JPEG of 200 kB that takes minutes to decode: a progressive one with so many scans of nothing."""
    data = encode(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + b"\xff\xd9"


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth areas and some noise, uint8 [height, width, 3]: it fills the codes of a decoder as a photograph does."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return (smooth + generator.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------------------------------------


def mutated(data: bytes, draw: Any) -> bytes:
    """A file with a few flipped bits, and bytes overwritten, inserted and cut out, as hypothesis' `st.data()` draws."""
    changed = bytearray(data)
    places = st.integers(0, max(0, len(data) - 1))
    for _ in range(draw.draw(st.integers(1, 3))):
        kind, at = draw.draw(st.sampled_from(["flip", "set", "insert", "remove", "cut"])), draw.draw(places)
        if kind == "flip" and at < len(changed):
            changed[at] ^= 1 << draw.draw(st.integers(0, 7))
        elif kind == "set" and at < len(changed):
            changed[at] = draw.draw(st.sampled_from([0, 1, 0x2D, 0x30, 0x39, 0x7F, 0x80, 0xFF]))
        elif kind == "insert":
            changed[at:at] = draw.draw(st.binary(max_size=20))
        elif kind == "remove":
            del changed[at : at + draw.draw(st.integers(1, 20))]
        elif kind == "cut":
            del changed[at:]
    return bytes(changed)
