"""Damage that decoders hide is found and called damaged, and no whole picture is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from opsin.data.decode import decode_pixels
from opsin.errors import BadInput
from tests import make

JPEG = [
    {},
    {"progressive": True},
    {"optimize": True},
    {"restart_marker_blocks": 4},
    {"restart_marker_rows": 1},
    {"subsampling": 0},
    {"subsampling": 1},
    {"progressive": True, "restart_marker_rows": 1},
]


def pictures(seed: int) -> dict[str, np.ndarray]:
    """Of odd sizes, so that the last blocks are part of the picture only."""
    photograph = make.photograph(57, 75, seed)
    return {
        "photograph": photograph,
        "flat": np.full_like(photograph, 40 * seed % 256),
        "gradient": make.gradient(57, 75),
        "half black": np.concatenate([photograph[:29], np.zeros_like(photograph[29:])]),
    }


def whole(data: bytes) -> bool:
    try:
        decode_pixels(data, "x")
    except BadInput:
        return False
    return True


def jpegs(seeds: range) -> Iterator[tuple[str, bytes]]:
    for seed in seeds:
        for name, image in pictures(seed).items():
            for quality in (10, 75, 95):
                for options in JPEG:
                    for mode in ("RGB", "L", "CMYK") if "subsampling" not in options else ("RGB",):
                        data = make.encode(Image.fromarray(image).convert(mode), "JPEG", quality=quality, **options)
                        yield f"{name} {quality} {options} {mode}", data


@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 11), marks=pytest.mark.slow)])
def test_damaged_jpegs_are_found(seeds: range, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut at each 5 %; the second half zero, as a download leaves it, and the same with its end marker; a hole."""
    tried: Counter[str] = Counter()
    found: Counter[str] = Counter()
    files = 0
    for name, data in jpegs(seeds):
        files += 1
        assert whole(data), f"false alarm: {name}"
        n = len(data)
        damaged = [("cut", data[: n * part // 100]) for part in range(5, 100, 5)]
        damaged.append(("half zero", data[: n // 2] + bytes(n - n // 2)))
        damaged.append(("half zero, ended", data[: n // 2] + bytes(n - n // 2 - 2) + data[-2:]))
        damaged.append(("hole", data[: n // 2] + bytes(n // 10) + data[n // 2 + n // 10 :]))
        for kind, changed in damaged:
            if changed != data:  # the codes of a flat picture may be zeros
                tried[kind] += 1
                found[kind] += not whole(changed)
    with capsys.disabled():
        print(f"\n{files} JPEGs, 0 false alarms; found: {', '.join(f'{k} {found[k]}/{tried[k]}' for k in tried)}")
    assert found["cut"] == tried["cut"] and found["half zero"] == tried["half zero"]
    assert found["half zero, ended"] >= 0.97 * tried["half zero, ended"]
    # JPEG has no checksum: a short run of zeros may be as many codes of zeros as it replaced.
    assert found["hole"] >= 0.85 * tried["hole"]


OTHERS = {
    "PNG": [{}, {"compress_level": 0}],
    "GIF": [{}, {"interlace": 0}],
    "WEBP": [{}, {"lossless": True}],
    "BMP": [{}],
    "TIFF": [{"compression": name} for name in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")],
    "PPM": [{}],
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("animated", [False, True])
def test_cut_files_of_other_formats_are_found(kind: str, animated: bool, capfd: pytest.CaptureFixture[str]) -> None:
    if animated and kind not in ("PNG", "GIF", "WEBP"):
        pytest.skip("there are no animations of it")
    cut = 0
    for image in pictures(1).values():
        for options in OTHERS[kind]:
            for mode in ("1", "L", "P", "RGB", "RGBA"):
                if (kind, mode) == ("PPM", "P") or (options.get("compression") == "jpeg" and mode not in ("L", "RGB")):
                    continue
                frames = [Image.fromarray(make.photograph(57, 75, seed)).convert(mode) for seed in (7, 8)]
                more = {"save_all": True, "append_images": frames} if animated else {}
                data = make.encode(Image.fromarray(image).convert(mode), kind, **options, **more)
                assert whole(data), f"false alarm: {kind} {options} {mode}"
                for length in [len(data) * part // 100 for part in range(5, 100, 5)] + [len(data) - 4]:
                    assert not whole(data[:length]), f"{kind} {options} {mode}, {length} of {len(data)} bytes"
                    cut += 1
    capfd.readouterr()  # what libtiff says
    assert cut >= 300


def resampled(data: bytes, factors: tuple[int, ...]) -> bytes:
    """A JPEG whose frame header says these sampling factors."""
    changed, at = bytearray(data), 2
    while changed[at + 1] != 0xC0:
        at += 2 + int.from_bytes(changed[at + 2 : at + 4], "big")
    for component, factor in enumerate(factors):
        changed[at + 11 + 3 * component] = factor
    return bytes(changed)


def test_a_jpeg_that_only_pillow_decodes_must_reach_its_end() -> None:
    """Its sampling is legal and rare; Pillow, which fills up what is missing, is alone in knowing it."""
    data = resampled(make.encode(make.photograph(64, 64), "JPEG", subsampling=0), (0x31, 0x11, 0x11))
    assert decode_pixels(data, "x")[0].shape == (64, 64, 3)
    for part in (*range(5, 100, 5), 99.9):
        with pytest.raises(BadInput):
            decode_pixels(data[: int(len(data) * part / 100)], "x")
    with pytest.raises(BadInput, match="truncated JPEG: no end marker"):
        decode_pixels(data[: len(data) // 2] + bytes(len(data) // 2), "x")


@pytest.mark.parametrize("tail", [bytes(1000), make.noise(1000).tobytes(), b"\xff\xd8 another picture"])
def test_what_stands_behind_a_picture_does_not_make_it_bad(tail: bytes) -> None:
    for kind in ("JPEG", "PNG", "GIF"):
        assert whole(make.encode(make.gradient(), kind) + tail), kind


def test_fill_bytes_and_stray_segments_of_a_jpeg_are_no_damage() -> None:
    data = make.encode(make.gradient(), "JPEG")
    assert whole(data[:2] + b"\xff\xff\xff" + data[3:])
    assert whole(data[:2] + b"\xff\xe5\0\x05abc\xff\xfe\0\x04\xff\xd9" + data[2:]), "an end marker within a comment"
    odd = resampled(make.encode(make.photograph(64, 64), "JPEG", subsampling=0), (0x31, 0x11, 0x11))
    assert whole(odd[:2] + b"\xff\xff\xfe\0\x04\xff\xd9" + odd[2:])
    with pytest.raises(BadInput, match="truncated JPEG: no end marker"):
        decode_pixels(odd[:2] + b"\xff\xff\xfe\0\x04\xff\xd9" + odd[2:-2], "x")
