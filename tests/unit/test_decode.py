"""Every mode and format, EXIF, and damage that must be found."""

from __future__ import annotations

import threading
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from opsin.data.decode import decode
from opsin.errors import BadInput
from tests import make

COLOUR = make.gradient()  # [48, 64, 3]
GREY = np.asarray(Image.fromarray(COLOUR).convert("L"))


def pixels(data: bytes, **options: object) -> np.ndarray:
    image = decode(data, "picture", **options)  # pyright: ignore[reportArgumentType]
    assert image.dtype == torch.uint8 and image.permute(1, 2, 0).is_contiguous()
    return image.numpy()


def difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("file", make.MODES)
def test_every_mode_and_format(file: str) -> None:
    mode, kind = make.MODES[file]
    picture = make.of_mode(mode, COLOUR)
    image = pixels(make.encode(picture, kind, **({"quality": 95} if kind in ("JPEG", "WEBP") else {})))
    if mode == "I;16":
        expected = GREY[None]
    elif mode in ("1", "L", "LA"):
        expected = np.asarray(picture.convert("L"))[None]
    else:
        expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    assert difference(image, expected) <= {"JPEG": 8, "WEBP": 30}.get(kind, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = make.encode(COLOUR, kind, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")
    assert difference(pixels(data), np.asarray(expected).transpose(2, 0, 1)) <= 1


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_broken_exif_does_not_make_a_picture_bad(exif: bytes) -> None:
    data = make.encode(COLOUR, "JPEG", quality=95)
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    assert np.array_equal(pixels(data[:2] + segment + data[2:]), pixels(data))


def test_reduced_jpeg_covers_what_is_asked_for_and_looks_the_same() -> None:
    data = make.encode(make.gradient(800, 1200), "JPEG", quality=95)
    small = pixels(data, min_size=(100, 100))
    assert small.shape == (3, 100, 150)
    assert pixels(data, min_size=(101, 100)).shape == (3, 200, 300)
    assert pixels(data, min_size=(5000, 5000)).shape == (3, 800, 1200)
    means = pixels(data).astype(float).reshape(3, 100, 8, 150, 8).mean((2, 4))
    assert np.abs(small - means).max() < 4


def test_reduced_jpeg_that_is_turned_covers_height_and_width_after_turning() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = make.encode(make.gradient(400, 800), "JPEG", exif=exif)
    assert pixels(data).shape == (3, 800, 400)
    assert pixels(data, min_size=(200, 100)).shape == (3, 200, 100)


def test_cmyk_jpeg_as_pillow_converts_it() -> None:
    data = make.encode(Image.fromarray(COLOUR).convert("CMYK"), "JPEG", quality=95)
    expected = np.asarray(Image.open(BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(pixels(data), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(mode: str) -> None:
    picture = Image.fromarray(COLOUR).convert(mode)
    alpha = make.noise(48, 64)
    picture.putalpha(Image.fromarray(alpha))
    values = COLOUR if mode == "RGBA" else GREY[..., None]
    share = alpha[..., None] / 255
    expected = np.floor(values * share + 255 * (1 - share) + 0.5).transpose(2, 0, 1)
    assert difference(pixels(make.encode(picture)), expected) == 0


def test_transparent_colours_of_palette_grey_and_gif() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        image = pixels(make.encode(palette, kind, transparency=0))
        assert image[:, 0].T.tolist() == [[255, 255, 255], [40, 50, 60]]
    half = pixels(make.encode(palette, transparency=bytes([0, 51])))  # alpha of each colour: 0 and a fifth
    assert half[:, 0].T.tolist() == [[255, 255, 255], [212, 214, 216]]
    grey = pixels(make.encode(np.array([[7, 9]], np.uint8), transparency=7))
    assert grey.tolist() == [[[255, 9]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    assert pixels(make.encode(Image.fromarray(values), kind)).tolist() == [[[0, 0, 1, 1, 128, 255]]]


def test_integers_of_32_bits() -> None:
    values = np.array([[0, 257, 65535]], np.int32)
    assert pixels(make.encode(Image.fromarray(values), "TIFF")).tolist() == [[[0, 1, 255]]]
    with pytest.raises(BadInput, match="from 0 to 70000; expected 0 to 65535"):
        decode(make.encode(Image.fromarray(values * 0 + np.array([0, 1, 70000], np.int32)), "TIFF"), "x")


def test_float_is_refused_with_a_reason() -> None:
    with pytest.raises(BadInput, match=r"x\.tif: pixels are floating-point numbers"):
        decode(make.encode(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), "x.tif")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    options = {"lossless": True} if kind == "WEBP" else {}
    image = pixels(make.encode(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert image[:, 3, 3].tolist() == [200, 0, 0]


def test_format_is_told_by_content() -> None:
    assert np.array_equal(decode(make.encode(COLOUR, "PNG"), "photo.jpg"), decode(make.encode(COLOUR, "BMP"), "a.png"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "expected JPEG, PNG, GIF, WebP, BMP, TIFF or PPM"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture of a known format"),
        (make.encode(COLOUR, "TGA"), "not a picture of a known format"),
        (b"RIFF\x10\0\0\0WAVEfmt " + bytes(40), "not a picture of a known format"),
        (b"\xff\xd8\xff", "truncated JPEG: no end marker"),
    ],
)
def test_what_is_no_picture(data: bytes, reason: str) -> None:
    with pytest.raises(BadInput, match=reason) as caught:
        decode(data, "some/file.jpg")
    assert caught.value.path == "some/file.jpg" and reason in caught.value.reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_truncated_files_are_bad(kind: str) -> None:
    data = make.encode(COLOUR, kind)
    for part in (0.02, 0.3, 0.6, 0.9, 0.99):
        with pytest.raises(BadInput):
            decode(data[: int(len(data) * part)], "x")


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_damaged_jpeg_is_bad(mode: str, options: dict[str, bool]) -> None:
    data = make.encode(Image.fromarray(make.noise(64, 64, 3)).convert(mode), "JPEG", quality=90, **options)
    middle = len(data) // 2
    with pytest.raises(BadInput, match="damaged JPEG: Premature end of JPEG file"):
        decode(data[:-2], "x")  # even the end marker alone
    with pytest.raises(BadInput, match="damaged JPEG: "):
        decode(data[:middle] + b"\xff\xd9" + data[middle + 2 :], "x")


def test_every_flipped_bit_of_a_png_is_found() -> None:
    data = make.encode(make.gradient(6, 5), "PNG")
    for at in range(len(data)):
        with pytest.raises(BadInput):
            decode(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :], "x")


def test_damaged_png_says_where() -> None:
    data = bytearray(make.encode(make.noise(16, 16, 3), "PNG"))
    at = data.index(b"IDAT")
    data[at + 20] ^= 1
    with pytest.raises(BadInput, match=rf"wrong checksum of chunk b'IDAT' at byte {at - 4}"):
        decode(bytes(data), "x")
    with pytest.raises(BadInput, match=r"truncated PNG: chunk b'IEND'"):
        decode(make.encode(COLOUR)[:-1], "x")


def test_png_of_too_few_rows_is_bad_although_its_checksums_are_right() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head = (8).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    whole, half = zlib.compress(bytes(9 * 8)), zlib.compress(bytes(9 * 4))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    assert decode(start + chunk(b"IDAT", whole) + chunk(b"IEND", b""), "x").shape == (1, 8, 8)
    with pytest.raises(BadInput, match="36 bytes of pixels; expected 72"):
        decode(start + chunk(b"IDAT", half) + chunk(b"IEND", b""), "x")
    # Interlaced: 1 × 1, 1 × 1 (column 4), 2 × 1 (row 4), 2 × 2 (column 2), 4 × 2, 4 × 4, 8 × 4 pixels, and 15 rows.
    interlaced = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head[:-1] + b"\1")
    assert decode(interlaced + chunk(b"IDAT", zlib.compress(bytes(64 + 15))) + chunk(b"IEND", b""), "x").shape == (
        1,
        8,
        8,
    )
    with pytest.raises(BadInput, match="78 bytes of pixels; expected 79"):
        decode(interlaced + chunk(b"IDAT", zlib.compress(bytes(64 + 14))) + chunk(b"IEND", b""), "x")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_pixel_cap_is_checked_before_decoding(kind: str) -> None:
    data = make.encode(COLOUR, kind)
    decode(data, "x", max_pixels=48 * 64)
    with pytest.raises(BadInput, match="64×48 pixels; expected at least one and at most 3,071"):
        decode(data, "x", max_pixels=48 * 64 - 1)
    with pytest.raises(BadInput, match="64×48 pixels"):  # the header is enough
        decode(data[: len(data) * 9 // 10] if kind != "PNG" else data, "x", max_pixels=10)


def test_huge_png_header_allocates_nothing_and_warns_nobody() -> None:
    body = b"IHDR" + (60000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    end = b"\0\0\0\0IEND" + zlib.crc32(b"IEND").to_bytes(4, "big")
    data = b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + body + zlib.crc32(body).to_bytes(4, "big")
    idat = b"IDAT" + zlib.compress(b"")
    data += len(idat[4:]).to_bytes(4, "big") + idat + zlib.crc32(idat).to_bytes(4, "big") + end
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadInput, match="60000×60000 pixels"):
            decode(data, "x")


def test_pillow_warnings_become_errors_and_the_filters_are_left_alone() -> None:
    data = bytearray(make.encode(COLOUR, "TIFF"))
    at = data.index(bytes([0x01, 0x01, 4, 0, 1]))  # the entry "ImageLength, LONG, one value"
    data[at + 4] = 2
    before = list(warnings.filters)
    with pytest.raises(BadInput):
        decode(bytes(data), "x.tif")
    assert warnings.filters == before


def test_same_pixels_in_every_thread() -> None:
    files = [make.encode(make.of_mode(mode, COLOUR), kind) for mode, kind in make.MODES.values()]
    expected = [pixels(data) for data in files]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(3):
            wrong.extend(i for i, data in enumerate(files) if not np.array_equal(pixels(data), expected[i]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# libtiff writes its own complaints to stderr, so TIFF is not among these.
FILES = [make.encode(make.gradient(12, 10), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "PPM")]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(FILES), st.data())
def test_any_bytes_give_a_picture_or_bad_input(data: bytes, draw: st.DataObject) -> None:
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        changed[draw.draw(st.integers(0, len(changed) - 1))] = draw.draw(st.integers(0, 255))
    cut = draw.draw(st.integers(0, 3 * len(changed)))
    try:
        image = decode(bytes(changed[:cut] if cut < len(changed) else changed), "x", max_pixels=10**6)
    except BadInput as error:
        assert error.reason
    else:
        assert image.ndim == 3 and image.shape[0] in (1, 3) and image.dtype == torch.uint8


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8", b"GIF89a", b"BM", b"P6 ", b"RIFF\0\0\0\0WEBP"]))
def test_random_bytes_give_bad_input(data: bytes, start: bytes) -> None:
    try:
        decode(start + data, "x", max_pixels=10**6)
    except BadInput as error:
        assert error.reason


# ---------------------------------------------------------------------------------------------------------------------
# Kinds that Pillow does not write
# ---------------------------------------------------------------------------------------------------------------------


def test_ycck_jpeg_as_pillow_converts_it() -> None:
    inks = np.asarray(Image.fromarray(COLOUR).convert("CMYK"))
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(255 - inks), 95, "CMYK", "444")
    assert simplejpeg.decode_jpeg_header(data)[2] == "YCCK"
    expected = np.asarray(Image.open(BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(pixels(data), expected)
    assert difference(pixels(data), np.asarray(Image.fromarray(inks, "CMYK").convert("RGB")).transpose(2, 0, 1)) < 16
    with pytest.raises(BadInput, match="damaged JPEG"):
        decode(data[: len(data) // 2], "x")


def png(width: int, height: int, depth: int, colour: int, rows: bytes, interlaced: int = 0) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, interlaced])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_png_of_16_bits_in_grey_colour_and_with_alpha() -> None:
    def row(*values: int) -> bytes:
        return b"\0" + b"".join(value.to_bytes(2, "big") for value in values)

    assert pixels(png(2, 1, 16, 0, row(128, 65535))).tolist() == [[[0, 255]]]
    assert pixels(png(2, 1, 16, 2, row(0, 32768, 65535, 257, 514, 771))).tolist() == [[[0, 1]], [[128, 2]], [[255, 3]]]
    rgba = row(0x6400, 0x6500, 0x6600, 65535, 0, 0, 0, 0)
    assert pixels(png(2, 1, 16, 6, rgba)).tolist() == [[[100, 255]], [[101, 255]], [[102, 255]]]
    grey = pixels(png(2, 1, 16, 4, row(0x6400, 65535, 0, 0)))
    assert grey[0].tolist() == [[100, 255]], "grey, laid on white"


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_png_of_few_bits(depth: int) -> None:
    levels = 2**depth
    packed = sum(value << 8 - depth * (i + 1) for i, value in enumerate((levels - 1, 0)))
    assert pixels(png(2, 1, depth, 0, bytes([0, packed]))).tolist() == [[[255, 0]]]


def test_interlaced_png() -> None:
    values = make.noise(8, 8)
    rows = b""
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in values[y::dy, x::dx])
    assert np.array_equal(pixels(png(8, 8, 8, 0, rows, 1))[0], values)


def test_netpbm_in_text_and_in_bytes() -> None:
    assert pixels(b"P1\n# a comment\n2 1\n0 1\n").tolist() == [[[255, 0]]]
    assert pixels(b"P2\n2 1\n15\n0 15\n").tolist() == [[[0, 255]]]
    assert pixels(b"P3\n1 1\n255\n1 2 3\n").tolist() == [[[1]], [[2]], [[3]]]
    assert pixels(b"P4\n2 1\n\x40").tolist() == [[[255, 0]]]
    assert pixels(b"P5\n2 1\n65535\n\0\x80\xff\xff").tolist() == [[[0, 255]]]


@pytest.mark.parametrize(("mode", "kind"), [("1", "BMP"), ("L", "BMP"), ("P", "BMP"), ("1", "TIFF"), ("1", "PPM")])
def test_few_bits_in_other_formats(mode: str, kind: str) -> None:
    picture = Image.fromarray(COLOUR).convert(mode)
    expected = np.asarray(picture.convert("L" if mode == "1" else "RGB")).reshape(48, 64, -1).transpose(2, 0, 1)
    image = pixels(make.encode(picture, kind))
    assert difference(image, expected[: image.shape[0]]) == 0


@pytest.mark.parametrize("mode", ["CMYK", "RGBA", "P", "I;16", "LAB", "YCbCr"])
def test_tiff_of_several_pages_and_kinds(mode: str) -> None:
    first = make.of_mode(mode, COLOUR) if mode != "LAB" else Image.new("LAB", (4, 4))
    data = make.encode(first, "TIFF", save_all=True, append_images=[Image.new("L", (9, 9))])
    if mode == "LAB":
        with pytest.raises(BadInput, match="pixels are mode 'LAB'; expected 8- or 16-bit grey, colour or palette"):
            decode(data, "x")
        return
    expected = np.asarray(first.convert("RGB")).transpose(2, 0, 1) if mode != "I;16" else GREY[None]
    assert difference(pixels(data), expected) <= 1


def test_large_pictures_are_converted_in_bands() -> None:
    """Of every mode, as if it were small: no seam where a band ends."""
    image = make.photograph(1100, 1300)  # more than one band, and the last one short
    for mode, kind in (("RGBA", "TIFF"), ("P", "TIFF"), ("CMYK", "TIFF"), ("I;16", "TIFF")):
        picture = make.of_mode(mode, image)
        if mode == "RGBA":
            picture.putalpha(Image.fromarray(make.noise(1100, 1300)))
        whole = pixels(make.encode(picture, kind))
        for top in (0, 800, 1099):
            part = pixels(make.encode(picture.crop((0, top, 1300, top + 1)), kind))
            assert np.array_equal(whole[:, top : top + 1], part), (mode, top)
