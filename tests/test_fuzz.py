"""Broken pictures by the thousand through the decode workers, with their real limits: decoded, or refused in words.

A crash, five seconds or 512 MB would cost one named picture, not the run; here each is a finding all the same.
"""

from __future__ import annotations

import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from opsin.data.decode import format_of
from opsin.data.sandbox import LIMITS, Decoders
from opsin.errors import BadInput, DecoderStopped
from tests import make


def originals() -> list[bytes]:
    """JPEG, PNG, GIF and WebP files of every coding that Pillow writes."""
    colour = Image.fromarray(make.photograph(40, 56))
    frames = [Image.fromarray(make.photograph(40, 56, seed)) for seed in (1, 2)]
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    jpeg = [
        {},
        {"progressive": True},
        {"restart_marker_blocks": 3},
        {"subsampling": 0, "exif": exif},
        {"optimize": True},
    ]
    files = [make.encode(colour.convert(mode), "JPEG", **options) for mode in ("RGB", "L", "CMYK") for options in jpeg]
    files += [make.encode(colour.convert(mode)) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")]
    files += [make.encode(make.of_mode("I;16", np.asarray(colour))), make.encode(colour.convert("P"), transparency=3)]
    files += [make.encode(colour, "WEBP", **options) for options in ({}, {"lossless": True}, {"exif": exif})]
    files += [make.encode(colour.convert("RGBA"), "WEBP"), make.encode(colour.convert("L"), "GIF")]
    files += [make.encode(colour.convert("P"), "GIF", transparency=3, interlace=0)]
    return files + [make.encode(colour, kind, save_all=True, append_images=frames) for kind in ("PNG", "GIF", "WEBP")]


def mutate(files: list[bytes], generator: np.random.Generator) -> bytes:
    """One of the files with one to four mutations: flipped bits, runs of bytes, cuts, splices, edited numbers."""
    data = bytearray(files[generator.integers(len(files))])
    for _ in range(generator.integers(1, 5)):
        at, kind = int(generator.integers(len(data))), generator.integers(7)
        if kind <= 1:
            for place in generator.integers(0, len(data), generator.integers(1, 9)):
                data[place] ^= 1 << int(generator.integers(8))
        elif kind == 2:
            run = int(generator.integers(1, 200))
            data[at : at + run] = bytes([int(generator.choice([0, 255, 127, 1]))]) * len(data[at : at + run])
        elif kind == 3:
            data[at : at + 64] = generator.bytes(len(data[at : at + 64]))
        elif kind == 4:
            data = data[: max(8, at)] if generator.integers(2) else data[:at] + data[at + int(generator.integers(64)) :]
        elif kind == 5:
            other = files[generator.integers(len(files))]
            data = data[:at] + other[int(generator.integers(len(other))) :]
        else:
            place = int(generator.integers(min(64, len(data))))  # among the sizes and counts of a header
            number = int(generator.choice([0, 1, 2, 255, 256, 4096, 9999, 32767, 65535]))
            data[place : place + 2] = number.to_bytes(2, "big" if generator.integers(2) else "little")
        data = data or bytearray(b"\xff\xd8")
    # A wrong checksum would hide all else from the decoder.
    return repaired(bytes(data)) if generator.integers(2) else bytes(data)


def repaired(data: bytes) -> bytes:
    """A PNG with the checksums that its chunks should have, as far as there are chunks; anything else as it is."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    at, mended = 8, bytearray(data)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        mended[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(mended)


@pytest.mark.parametrize("count", [500, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutated_pictures_are_decoded_or_refused(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    seed, files = count, originals()
    outcomes: Counter[str] = Counter()
    findings: list[str] = []
    slowest = 0.0

    def one(i: int) -> tuple[str, str, float]:
        data, start = mutate(files, np.random.default_rng([seed, i])), time.monotonic()
        try:
            decoders.decode(data, f"number {i}")
        except DecoderStopped as error:
            return "stopped", str(error), time.monotonic() - start
        except BadInput as error:
            assert error.reason
            memory = f"{LIMITS.megabytes} MB" in error.reason
            return "out of memory" if memory else "refused", str(error), time.monotonic() - start
        return f"decoded {format_of(data)}", "", time.monotonic() - start

    with Decoders(2) as decoders:
        for data in files:  # whole ones
            decoders.decode(data, "original")
        began = time.monotonic()
        with ThreadPoolExecutor(2) as threads:
            for outcome, words, seconds in threads.map(one, range(count)):
                outcomes[outcome] += 1
                slowest = max(slowest, seconds)
                findings += [words] if outcome in ("stopped", "out of memory") else []
        workers = len(decoders._all)
    figures = (
        f"{count} mutated pictures, seed {seed}, {time.monotonic() - began:.0f} s: {dict(sorted(outcomes.items()))}"
    )
    with capsys.disabled():
        print(f"\n{figures}, slowest {slowest:.2f} s, {workers} workers; findings: {findings or 'none'}")
    assert not findings
    assert outcomes["refused"] > count / 3
    assert all(outcomes[f"decoded {kind}"] for kind in ("JPEG", "PNG", "WebP")), outcomes
