"""Pictures as OpenCV gave them: the original's own test (test_image.py at v0.11.0), bicubic against a slow version, and
the grey paths, which failed in 0.11."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opsin.errors import BadInput, UsageError
from opsin.v2 import image
from tests.make import encode, gradient, noise, tar_gz


def test_the_order_is_blue_green_red(tmp_path: Path) -> None:
    picture = gradient(20, 30)
    path = tmp_path / "cat.png"
    path.write_bytes(encode(picture))
    im = image.load_image(path)
    assert im.dtype == np.uint8 and im.flags.c_contiguous and np.array_equal(im, picture[..., ::-1])
    assert np.array_equal(image.load_image_bytes(bytearray(path.read_bytes())), im)
    grey = image.load_image(path, is_color=False)
    assert grey.shape == (20, 30) and np.abs(grey - (picture @ [0.299, 0.587, 0.114])).max() <= 0.51


def test_grey_files_and_turned_ones(tmp_path: Path) -> None:
    grey = gradient(6, 5, 1)[..., 0]
    assert np.array_equal(image.load_image_bytes(encode(grey)), np.stack([grey] * 3, -1))
    assert np.array_equal(image.load_image_bytes(encode(grey), is_color=False), grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert (
        image.load_image_bytes(encode(Image.fromarray(grey), "PNG", exif=exif), False).tolist()
        == np.rot90(grey, -1).tolist()
    )


def test_what_cannot_be_read_is_an_error_not_none(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.jpg: cannot be read"):
        image.load_image(tmp_path / "none.jpg")
    with pytest.raises(BadInput, match="not a picture of a known format"):
        image.load_image_bytes(b"GIF-like")


def bicubic(im: np.ndarray, height: int, width: int) -> np.ndarray:
    """Keys' kernel with a = −0.75 at pixel centres, borders repeated, in float64."""

    def weight(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.25 * x**3 - 2.25 * x**2 + 1
        return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    def matrix(old: int, new: int) -> np.ndarray:
        rows = np.zeros((new, old))
        for i in range(new):
            at = (i + 0.5) * old / new - 0.5
            for k in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
                rows[i, min(max(k, 0), old - 1)] += weight(at - k)
        return rows

    return np.einsum("yh,hwc,xw->yxc", matrix(im.shape[0], height), im.astype(float), matrix(im.shape[1], width))


@pytest.mark.parametrize(
    ("h", "w", "size", "expected"), [(40, 61, 17, (17, 25)), (50, 20, 33, (82, 33)), (9, 9, 9, (9, 9))]
)
def test_resize_short(h: int, w: int, size: int, expected: tuple[int, int]) -> None:
    im = noise(h, w, 3)
    got = image.resize_short(im, size)
    assert got.shape == (*expected, 3) and got.dtype == np.uint8
    assert np.abs(got - bicubic(im, *expected).clip(0, 255)).max() <= 0.501
    assert np.array_equal(image.resize_short(im[..., 1], size), got[..., 1])  # grey, which 0.11 could not


def test_resize_flip_and_order_as_in_the_original_test() -> None:
    im = image.load_image_bytes(encode(gradient(300, 401), "JPEG"))
    small = image.resize_short(im, 256)
    assert min(small.shape[:2]) == 256 and small.shape[2] == 3
    assert np.array_equal(image.left_right_flip(small), np.flip(small, 1))
    assert image.to_chw(small).shape == (3, *small.shape[:2])
    with pytest.raises(AssertionError, match="expected 3 dimensions"):
        image.to_chw(small[..., 0])


def test_crops() -> None:
    im = noise(10, 13, 3)
    assert np.array_equal(image.center_crop(im, 4), im[3:7, 4:8])
    assert np.array_equal(image.center_crop(im[..., 0], 4, is_color=False), im[3:7, 4:8, 0])
    seen = set()
    for _ in range(300):
        crop = image.random_crop(im, 8)
        seen.add(next((y, x) for y in range(3) for x in range(6) if np.array_equal(im[y : y + 8, x : x + 8], crop)))
    assert len(seen) == 3 * 6
    with pytest.raises(UsageError, match="a square of 11 does not fit into a picture of 10×13"):
        image.center_crop(im, 11)


def test_simple_transform(tmp_path: Path) -> None:
    im = noise(8, 12, 3)
    plain = image.simple_transform(im, 8, 6, is_train=False)
    assert plain.dtype == np.float32 and np.array_equal(plain, im[1:7, 3:9].transpose(2, 0, 1))
    by_channel = image.simple_transform(im, 8, 6, False, mean=[1, 2, 3.5])
    assert np.array_equal(by_channel, plain - np.array([1, 2, 3.5], np.float32)[:, None, None])
    each = noise(3, 6, 6, seed=1)
    assert np.array_equal(image.simple_transform(im, 8, 6, False, mean=each), plain - each)
    grey = image.simple_transform(im[..., 0], 8, 6, False, is_color=False, mean=[7])
    assert np.array_equal(grey, im[1:7, 3:9, 0].astype(np.float32) - 7)
    with pytest.raises(UsageError, match=r"an array \(3, 6, 6\), received shape \(2,\)"):
        image.simple_transform(im, 8, 6, False, mean=[1, 2])
    path = tmp_path / "x.png"
    path.write_bytes(encode(im[..., ::-1]))
    assert np.array_equal(image.load_and_transform(path, 8, 6, False), plain)


def test_simple_transform_in_training_mirrors_every_second_picture() -> None:
    im = np.tile(np.arange(12, dtype=np.uint8)[None, :, None], (12, 1, 3))
    mirrored = []
    for _ in range(200):
        got = image.simple_transform(im, 12, 12, is_train=True)
        mirrored.append(got[0, 0, 0] == 11)
        assert np.array_equal(got[0, 0], np.arange(12)[:: -1 if mirrored[-1] else 1])
    assert 70 < sum(mirrored) < 130
    np.random.seed(3)
    first = image.simple_transform(noise(12, 12), 12, 5, True, is_color=False)
    np.random.seed(3)
    assert np.array_equal(image.simple_transform(noise(12, 12), 12, 5, True, is_color=False), first)


def test_batch_images_from_tar(tmp_path: Path) -> None:
    pictures = {f"{i}.jpg": encode(noise(8, 8, 3, seed=i)) for i in range(5)}
    (tmp_path / "some.tgz").write_bytes(tar_gz("jpg", pictures))
    labels = {f"jpg/{i}.jpg": i for i in (0, 2, 3, 4)}
    listing = image.batch_images_from_tar(tmp_path / "some.tgz", "train", labels, num_per_batch=3)
    read: dict[str, list] = {"data": [], "label": []}
    for path in Path(listing).read_text().split():
        for key, values in pickle.loads(Path(path).read_bytes()).items():
            read[key] += values
    assert read == {"label": [0, 2, 3, 4], "data": [pictures[f"{i}.jpg"] for i in (0, 2, 3, 4)]}
    assert image.batch_images_from_tar(tmp_path / "some.tgz", "train", {}) == listing
