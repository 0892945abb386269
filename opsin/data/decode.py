"""Bytes of a picture file to uint8 [C, h, w].

The format is told by the content, never by the file's name, and only those of `FORMATS` are tried. Decoding is strict:
a file that ends early, fails a checksum or contradicts itself is a `BadInput` with the reason, never a picture that is
grey in its lower half. Nothing here needs torch before `upright`: decode workers (`sandbox.py`) do without it.

How the many kinds of pixels become 8 bits of grey or colour:
  palette, 1 bit       their colours, or black and white
  transparency         laid on white, as a browser or a document shows it; also the transparent colour of PNG and GIF
  16 bits              scaled, round(v / 257), so that 65,535 is 255. Colour of 16 bits: the upper byte, as Pillow
                       reads it
  32-bit integers      read as 16 bits when they all lie in 0–65,535, refused otherwise
  float                refused: no range is written in the file
  CMYK                 Pillow's conversion, without colour profile. Colour profiles are not applied anywhere.
  animation            its first frame
"""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from opsin.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

MAX_PIXELS = 50_000_000
BAND = 1 << 20  # pixels that are converted at once: a large picture is in memory once as Pillow's and once as ours
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# First column and row, and steps, of the seven passes of an interlaced PNG.
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]

# First bytes → Pillow's class of the one format that begins so. Calling the class, not `Image.open`, keeps every other
# format out, and with it the global settings and warnings of `Image.open`.
FORMATS: Mapping[bytes, Callable[[BytesIO], Image.Image]] = {
    b"\xff\xd8": JpegImagePlugin.JpegImageFile,
    PNG_SIGNATURE: PngImagePlugin.PngImageFile,
    b"GIF87a": GifImagePlugin.GifImageFile,
    b"GIF89a": GifImagePlugin.GifImageFile,
    b"RIFF": WebPImagePlugin.WebPImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
    b"II*\x00": TiffImagePlugin.TiffImageFile,
    b"MM\x00*": TiffImagePlugin.TiffImageFile,
} | {b"P%d" % i: PpmImagePlugin.PpmImageFile for i in range(1, 7)}

NAMES = {
    b"\xff\xd8": "JPEG",
    PNG_SIGNATURE: "PNG",
    **dict.fromkeys((b"GIF87a", b"GIF89a"), "GIF"),
    b"BM": "BMP",
    **dict.fromkeys((b"II*\x00", b"MM\x00*"), "TIFF"),
}

# EXIF orientation → (transpose, flip vertically, flip horizontally), done in this order (Exif 2.32, section 4.6.4).
ORIENTATIONS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}

_warning_lock = threading.Lock()


def decode(data: bytes, name: str, *, min_size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The picture in `data` as uint8, [1, h, w] when it is grey and [3, h, w] when it is in colour; laid out [h, w, C].

    The EXIF orientation is applied. min_size: (H, W) that is enough; a JPEG may then be decoded at 1/2, 1/4 or 1/8 of
    its size, as long as it still covers H and W. max_pixels: larger pictures are refused before they are decoded.
    Raises `BadInput` with `name` and the reason. Safe in any thread.
    """
    return upright(*decode_pixels(data, name, min_size=min_size, max_pixels=max_pixels))


def decode_pixels(
    data: bytes, name: str, *, min_size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, int]:
    """What `decode` decodes, as it is stored: uint8 [h, w, 1 or 3], and its EXIF orientation."""
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg(data, min_size, max_pixels)
        return _other(data, max_pixels)
    except _Refused as error:
        raise BadInput(name, str(error)) from None
    except struct.error as error:  # Pillow's and ours, when a header is not all there
        raise BadInput(name, "truncated: it ends within a header") from error
    except Exception as error:  # whatever a decoder raises on damaged bytes: each has its own list, none documents it
        raise BadInput(name, f"cannot be decoded: {error or type(error).__name__}") from error


def upright(pixels: np.ndarray, orientation: int) -> Tensor:
    """uint8 [h, w, C] as stored to a uint8 tensor [C, h, w] turned and mirrored as its EXIF says; in memory [h, w, C]:
    it is resized from there, and a copy costs a third of what decoding does."""
    import torch

    if orientation in ORIENTATIONS:
        transpose, vertical, horizontal = ORIENTATIONS[orientation]
        pixels = pixels.transpose(1, 0, 2) if transpose else pixels
        pixels = pixels[:: -1 if vertical else 1, :: -1 if horizontal else 1]
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def format_of(data: bytes) -> str:
    """The format that the first bytes say: "JPEG", "PNG", "GIF", "WebP", "BMP", "TIFF", "PPM", or "" for any other."""
    start = next((start for start in FORMATS if data.startswith(start)), b"")
    if start == b"RIFF":
        return "WebP" if data[8:12] == b"WEBP" else ""
    return NAMES.get(start, "PPM" if start else "")


class _Refused(Exception):
    """The reason of a `BadInput` whose name the caller adds."""


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1 or width * height > max_pixels:
        raise _Refused(f"{width}×{height} pixels; expected at least one and at most {max_pixels:,} in all")


# ---------------------------------------------------------------------------------------------------------------------
# JPEG
# ---------------------------------------------------------------------------------------------------------------------


def _jpeg(data: bytes, min_size: tuple[int, int] | None, max_pixels: int) -> tuple[np.ndarray, int]:
    orientation = _jpeg_orientation(data)
    min_h, min_w = min_size or (0, 0)
    if orientation >= 5:
        min_h, min_w = min_w, min_h
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(int(width), int(height), max_pixels)
        if space not in ("CMYK", "YCCK"):
            wanted = "GRAY" if space == "Gray" else "RGB"
            return simplejpeg.decode_jpeg(data, wanted, min_height=min_h, min_width=min_w), orientation
        simplejpeg.decode_jpeg(data, "CMYK", min_height=1, min_width=1)  # to find damage, which Pillow passes over
    except ValueError as error:
        # Damage ends here. Anything else (an odd header, a rare coding) may be a good picture to Pillow.
        if str(error).startswith(("Corrupt JPEG data", "Premature end")):
            raise _Refused(f"damaged JPEG: {error}") from error
        _check_jpeg(data)
    return _pixels(_open(data, max_pixels)), orientation


def _check_jpeg(data: bytes) -> None:
    """That the scans of a JPEG which only Pillow can decode end in an end marker: Pillow fills up what is missing.

    ITU T.81: B.1.1.2 (markers, fill bytes), B.1.1.4 (segments), B.1.1.5 (in entropy-coded data, FF stands before 00 or
    a restart marker only), B.2.1 (the order: SOI, frame, scans, EOI).
    """
    at = 2
    while True:
        at = data.find(b"\xff", at)
        while data[at : at + 2] == b"\xff\xff":
            at += 1
        marker = data[at + 1] if 0 <= at < len(data) - 1 else None
        if marker is None:
            raise _Refused("truncated JPEG: no end marker")
        if marker == 0xD9:
            return
        # Alone stand the stuffed FF 00, TEM and the restart markers; all others head a segment of the length they say.
        at += 2 if marker in (0x00, 0x01, *range(0xD0, 0xD8)) else 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _jpeg_orientation(data: bytes) -> int:
    """The EXIF orientation, from the segments before the picture itself; 1 when there is none that can be read."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:  # fill byte
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return _tiff_orientation(data[at + 10 : at + 2 + length])
        at += 2 + max(2, length)
    return 1


def _tiff_orientation(exif: bytes) -> int:
    """Tag 0x0112 of the first directory of a TIFF structure. Broken metadata do not make a picture bad: they say 1."""
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(exif[:4])
    if order is None:
        return 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], order)  # pyright: ignore[reportArgumentType]

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if entry + 12 <= len(exif) and number(entry, 2) == 0x0112 and number(entry + 2, 2) == 3:
            return number(entry + 8, 2)
    return 1


# ---------------------------------------------------------------------------------------------------------------------
# Everything else, by Pillow
# ---------------------------------------------------------------------------------------------------------------------


def _other(data: bytes, max_pixels: int) -> tuple[np.ndarray, int]:
    if data.startswith(PNG_SIGNATURE):
        _check_png(data, max_pixels)
    image = _open(data, max_pixels)
    if data.startswith(b"GIF8"):
        _check_gif(data)
    pixels = _pixels(image)  # first: PNG metadata may stand behind the pixels
    exif = image.info.get("exif", b"")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return pixels, image.tag_v2.get(0x0112, 1)
    return pixels, _tiff_orientation(exif.removeprefix(b"Exif\0\0"))


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Pillow's lazy picture; its header is read and its size checked, its pixels are not yet decoded."""
    if not data:
        raise _Refused("empty file")
    opener = next((opener for start, opener in FORMATS.items() if data.startswith(start)), None)
    if opener is None or (data[:4] == b"RIFF" and data[8:12] != b"WEBP"):
        raise _Refused(
            "not a picture of a known format: expected JPEG, PNG, GIF, WebP, BMP, TIFF or PPM, "
            f"its first bytes are {data[:8]!r}"
        )
    if data[:4] == b"RIFF":
        _check_size(*_webp_size(data), max_pixels)  # Pillow makes the whole canvas when it opens a WebP
    if opener is TiffImagePlugin.TiffImageFile or (opener is PngImagePlugin.PngImageFile and b"acTL" in data):
        # The two openers that warn about damage instead of raising. The filters of `warnings` belong to the whole
        # process, hence the lock, and no "error" filter that another thread could meet.
        with _warning_lock, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            image = opener(BytesIO(data))
        if caught:
            raise _Refused(f"damaged: {caught[0].message}")
    else:
        image = opener(BytesIO(data))
    _check_size(*image.size, max_pixels)
    return image


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) from the first chunk (RFC 9649, sections 2.5–2.7)."""
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X" and len(body) == 10:
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a" and len(body) == 10:
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    raise _Refused("damaged WebP: no picture header")


def _check_png(data: bytes, max_pixels: int) -> None:
    """What Pillow does not see: a wrong CRC of IDAT, no IEND, fewer rows than the header says (it leaves them black).

    PNG 3rd edition: sections 5.3 (chunks), 7.2 (a filter byte before each row), 8.1 (interlacing: Adam7).
    """
    at, kind, packed = 8, b"", []
    while kind != b"IEND":
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(data):
            raise _Refused(f"truncated PNG: chunk {kind!r} at byte {at} goes beyond the end of the file")
        if zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise _Refused(f"damaged PNG: wrong checksum of chunk {kind!r} at byte {at}")
        if kind == b"IDAT":
            packed.append(memoryview(data)[at + 8 : end])
        at = end + 4
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    _check_size(width, height, max_pixels)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    expected = 0
    for x, y, dx, dy in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        columns, rows = -((x - width) // dx), -((y - height) // dy)
        expected += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
    received, inflate = 0, zlib.decompressobj()
    for waiting in packed:
        while waiting and received < expected:
            received += len(inflate.decompress(waiting, min(1 << 20, expected - received)))
            waiting = inflate.unconsumed_tail
    if received < expected:
        raise _Refused(f"damaged PNG: {received:,} bytes of pixels; expected {expected:,}")


def _check_gif(data: bytes) -> None:
    """That the blocks of a GIF follow each other up to its trailer; Pillow looks no further than the first frame.

    GIF89a, sections 18 (screen descriptor), 20 (image descriptor), 15 (sub-blocks), 27 (trailer).
    """

    def table(flags: int) -> int:  # bytes of a colour table
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    try:
        at = 13 + table(data[10])
        while data[at] != 0x3B:
            if data[at] == 0x2C:
                at += 11 + table(data[at + 9])  # with the code size of the pixels
            elif data[at] == 0x21:
                at += 2
            else:
                raise _Refused(f"damaged GIF: a block cannot begin with {data[at]:#04x}, as at byte {at}")
            while data[at]:
                at += 1 + data[at]
            at += 1
    except IndexError:
        raise _Refused("truncated GIF: no trailer") from None


def _pixels(image: Image.Image) -> np.ndarray:
    """The decoded pixels, uint8 [h, w, 1 or 3]."""
    image.load()  # the first frame of an animation
    transparent = "transparency" in image.info
    deep = image.mode == "I" or image.mode.startswith("I;16")
    if deep:
        low, high = image.getextrema()
        if low < 0 or high > 65535:  # type: ignore[operator]  # of one channel, two numbers
            raise _Refused(f"32-bit integers from {low} to {high}; expected 0 to 65535: save it with 8 or 16 bits")
        convert, channels = _eight_bits, 1
    elif image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or (transparent and image.mode in ("1", "L", "RGB", "P")):
        channels = 1 if image.mode in ("1", "L", "LA", "La") else 3
        convert = _on_white
    elif image.mode in ("1", "L"):
        convert, channels = _grey, 1
    elif image.mode in ("P", "RGB", "RGBX", "CMYK", "YCbCr"):
        convert, channels = _colour, 3
    else:
        kind = "floating-point numbers" if image.mode == "F" else f"mode {image.mode!r}"
        raise _Refused(f"pixels are {kind}; expected 8- or 16-bit grey, colour or palette: convert it to one of these")
    width, height = image.size
    pixels = np.empty((height, width, channels), np.uint8)
    rows = max(1, BAND // width)
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height))) if rows < height else image
        pixels[top : top + rows] = convert(band)[..., :channels]
    return pixels


def _grey(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"))[..., None]


def _colour(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def _eight_bits(image: Image.Image) -> np.ndarray:
    return ((np.asarray(image).astype(np.int64)[..., None] + 128) // 257).astype(np.uint8)


def _on_white(image: Image.Image) -> np.ndarray:
    """round(alpha · value + (1 - alpha) · 255), uint8 [h, w, 3]."""
    rgba = np.asarray(image.convert("RGBA"))
    alpha = rgba[..., 3:].astype(np.uint16)
    if alpha.min() == 255:
        return rgba[..., :3]
    sums = rgba[..., :3] * alpha + (255 * (255 - alpha) + 127)
    return ((sums + 1 + (sums >> 8)) >> 8).astype(np.uint8)  # sums // 255, exact up to 65,152
