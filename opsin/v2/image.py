"""Pictures as OpenCV gives them, without OpenCV: uint8 [h, w, 3] in the order blue, green, red, or grey [h, w].

Files are decoded by `opsin.data.decode`: a damaged one is a `BadInput` (OpenCV returned None), transparency is laid on
white. `resize_short` keeps the aspect ratio (in 0.11 it swapped height and width), and grey pictures work throughout.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from opsin import storage
from opsin.data import index, tar
from opsin.data.decode import decode
from opsin.errors import UsageError
from opsin.preprocess import to_channels


def load_image_bytes(bytes: bytes | bytearray, is_color: bool = True, name: str = "image") -> np.ndarray:
    """The picture in the bytes of a file, upright: uint8 [h, w, 3] (BGR), or grey [h, w]. name: for errors."""
    image = to_channels(decode(memoryview(bytes).tobytes(), name), 3 if is_color else 1)
    pixels = image.permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels[:, :, ::-1] if is_color else pixels[:, :, 0])


def load_image(file: str | os.PathLike[str], is_color: bool = True) -> np.ndarray:
    """The picture in a file, as `load_image_bytes` gives it."""
    return load_image_bytes(index.read(file), is_color, index.printable(file))


def resize_short(im: np.ndarray, size: int) -> np.ndarray:
    """The picture with its shorter side scaled to `size`, the longer one to size · long // short.

    Bicubic with a = −0.75 and without anti-aliasing, which is what OpenCV's INTER_CUBIC does.
    """
    h, w = im.shape[:2]
    height, width = max(size, size * h // w), max(size, size * w // h)
    if (h, w) == (height, width):
        return im
    planes = torch.from_numpy(np.ascontiguousarray(im).reshape(1, h, w, -1)).permute(0, 3, 1, 2)
    scaled = functional.interpolate(planes.float(), (height, width), mode="bicubic", align_corners=False)
    if im.dtype == np.uint8:
        scaled = scaled.round().clamp(0, 255)
    return scaled.permute(0, 2, 3, 1).numpy().reshape(height, width, *im.shape[2:]).astype(im.dtype)


def to_chw(im: np.ndarray, order: Sequence[int] = (2, 0, 1)) -> np.ndarray:
    """[h, w, C] to [C, h, w]."""
    if im.ndim != len(order):
        raise AssertionError(f"to_chw: expected {len(order)} dimensions (h, w, channels), received shape {im.shape}")
    return im.transpose(order)


def _crop(im: np.ndarray, size: int, top: int, left: int) -> np.ndarray:
    return im[top : top + size, left : left + size]


def _room(im: np.ndarray, size: int) -> tuple[int, int]:
    """Rows and columns that a square of `size` leaves."""
    h, w = im.shape[:2]
    if min(h, w) < size:
        raise UsageError(
            f"a square of {size} does not fit into a picture of {h}×{w}; resize it to {size} or more first"
        )
    return h - size, w - size


def center_crop(im: np.ndarray, size: int, is_color: bool = True) -> np.ndarray:
    """The square of `size` in the middle."""
    rows, columns = _room(im, size)
    return _crop(im, size, rows // 2, columns // 2)


def random_crop(im: np.ndarray, size: int, is_color: bool = True) -> np.ndarray:
    """A square of `size` somewhere, by NumPy's global random numbers."""
    rows, columns = _room(im, size)
    return _crop(im, size, np.random.randint(0, rows + 1), np.random.randint(0, columns + 1))


def left_right_flip(im: np.ndarray, is_color: bool = True) -> np.ndarray:
    """The mirror image."""
    return im[:, ::-1]


def simple_transform(
    im: np.ndarray,
    resize_size: int,
    crop_size: int,
    is_train: bool,
    is_color: bool = True,
    mean: Any = None,
) -> np.ndarray:
    """Shorter side to `resize_size`, a square of `crop_size` cut out, float32 [C, h, w] (grey [h, w]), minus `mean`.

    In training the square lies anywhere and every second picture is mirrored (NumPy's global random numbers), otherwise
    it is the middle. mean: one number a channel, or an array of the result's shape. Pixels stay 0–255.
    """
    im = resize_short(im, resize_size)
    if is_train:
        im = random_crop(im, crop_size, is_color)
        if np.random.randint(2) == 0:
            im = left_right_flip(im, is_color)
    else:
        im = center_crop(im, crop_size, is_color)
    if im.ndim == 3:
        im = to_chw(im)
    im = np.ascontiguousarray(im, dtype=np.float32)
    if mean is not None:
        mean = np.asarray(mean, dtype=np.float32)
        fits = (im.shape, (), (1,), *([(len(im),), (len(im), 1, 1)] if im.ndim == 3 else []))
        if mean.shape not in fits:
            raise UsageError(f"mean: expected one number a channel or an array {im.shape}, received shape {mean.shape}")
        im -= mean.reshape(-1, 1, 1) if mean.ndim == 1 and im.ndim == 3 else mean
    return im


def load_and_transform(
    filename: str | os.PathLike[str],
    resize_size: int,
    crop_size: int,
    is_train: bool,
    is_color: bool = True,
    mean: Any = None,
) -> np.ndarray:
    """`simple_transform` of the picture in a file."""
    return simple_transform(load_image(filename, is_color), resize_size, crop_size, is_train, is_color, mean)


def batch_images_from_tar(
    data_file: str | os.PathLike[str], dataset_name: str, img2label: Mapping[str, Any], num_per_batch: int = 1024
) -> str:
    """Files of `num_per_batch` pictures each, for programs that read them: {"label": list, "data": list of bytes}.

    img2label: name in the archive → label. The files are pickles (nothing in opsin reads them), in
    DATA_FILE_batch/DATASET_NAME/; returns the path of the list of their paths, which is made once.
    """
    folder = Path(f"{os.fspath(data_file)}_batch").absolute()
    listing = folder / f"{dataset_name}.txt"
    if listing.is_file():
        return str(listing)
    paths, data, labels = [], [], []

    def write() -> None:
        path = folder / dataset_name / f"batch_{len(paths)}"
        storage.write_file(path, pickle.dumps({"label": [*labels], "data": [*data]}, protocol=2))
        paths.append(str(path))
        data.clear()
        labels.clear()

    for name, picture in tar.files(data_file):
        if name in img2label:
            data.append(picture)
            labels.append(img2label[name])
            if len(data) == num_per_batch:
                write()
    if data:
        write()
    storage.write_file(listing, "".join(f"{path}\n" for path in paths))
    return str(listing)
