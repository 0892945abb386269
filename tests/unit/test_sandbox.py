"""Decode workers: the same pictures, and what a picture costs that crashes its decoder or lets it run away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opsin.data.decode import decode
from opsin.data.sandbox import Decoders, Limits
from opsin.errors import BadInput, DecoderStopped
from tests import make

COLOUR = make.gradient()
PNG = make.encode(COLOUR)
SLOW = make.slow_jpeg()
ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def pids(decoders: Decoders) -> list[int]:
    return [worker.process.pid for worker in decoders._all]


def wait_until(true: object, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def test_workers_give_the_same_pictures_and_the_same_reasons() -> None:
    with Decoders(1) as decoders:
        for mode, kind in make.MODES.values():
            data = make.encode(make.of_mode(mode, COLOUR), kind)
            assert np.array_equal(decoders.decode(data, "x").numpy(), decode(data, "x").numpy()), (mode, kind)
            assert decoders.check(data, "x") is None
        exif = Image.Exif()
        exif[0x0112] = 6
        turned = make.encode(make.gradient(400, 800), "JPEG", exif=exif)
        small = decoders.decode(turned, "x", min_size=(200, 100))
        assert small.shape == (3, 200, 100) and (small == decode(turned, "x", min_size=(200, 100))).all()
        for data in (b"", b"junk", PNG[:-20], turned[:-300]):
            with pytest.raises(BadInput) as here:
                decode(data, "a/b.png")
            with pytest.raises(BadInput) as there:
                decoders.check(data, "a/b.png")
            assert str(there.value) == str(here.value)
        with pytest.raises(BadInput, match="64×48 pixels; expected at least one and at most 99 in all"):
            decoders.decode(PNG, "x", max_pixels=99)
        assert len(pids(decoders)) == 1
    assert wait_until(lambda: not any(map(alive, pids(decoders))))


def test_a_picture_that_takes_too_long_costs_itself() -> None:
    """The others, before, beside and after it, are decoded; the worker is killed and replaced."""
    names = [f"{i}.png" for i in range(6)]
    failed: dict[str, str] = {}
    with Decoders(2, Limits(seconds=1)) as decoders:

        def work(name: str) -> None:
            try:
                decoders.check(SLOW if name in ("1.png", "2.png") else PNG, name)
            except DecoderStopped as error:
                failed[name] = str(error)

        work("0.png")
        first = pids(decoders)
        began = time.monotonic()
        threads = [threading.Thread(target=work, args=(name,)) for name in names[1:]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == {name: f"{name}: took longer than 1 s to decode" for name in ("1.png", "2.png")}
        assert time.monotonic() - began < 10
        work("5.png")
        assert "5.png" not in failed and not any(map(alive, first)) and len(pids(decoders)) <= 2


def test_a_picture_that_needs_too_much_memory_costs_itself() -> None:
    rgba = make.encode(Image.new("RGBA", (2500, 2500), (1, 2, 3, 4)))
    with Decoders(1, Limits(megabytes=24)) as decoders:
        if sys.platform == "linux":
            with pytest.raises(BadInput, match=r"x\.png: needed more than 24 MB to decode"):
                decoders.check(rgba, "x.png")
        before = pids(decoders)
        assert decoders.decode(PNG, "y").shape == (3, 48, 64)
        assert sys.platform != "linux" or pids(decoders) == before, "memory is refused, nobody is killed for it"
    with Decoders(1) as decoders:
        decoders.check(rgba, "x.png")


@linux
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP", "JPEG"])
def test_pictures_of_the_largest_size_are_decoded_within_the_limits(kind: str) -> None:
    image = Image.new("L" if kind == "GIF" else "RGB", (7000, 7000), 60)
    data = make.encode(image, kind, **({"progressive": True, "subsampling": 0} if kind == "JPEG" else {}))
    with Decoders(1, Limits(seconds=60)) as decoders:
        decoders.check(data, "large")


@linux
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_decoder_that_crashes_costs_one_picture(number: signal.Signals) -> None:
    with Decoders(1) as decoders:
        decoders.check(PNG, "x")
        (pid,) = pids(decoders)
        crash = threading.Timer(0.3, os.kill, (pid, number))
        crash.start()
        with pytest.raises(DecoderStopped, match=rf"slow\.jpg: the decoder crashed \({number.name}\)"):
            decoders.check(SLOW, "slow.jpg")
        crash.join()
        assert decoders.decode(PNG, "y").shape == (3, 48, 64)
        os.kill(pids(decoders)[0], number)  # while it is idle: no picture is to blame
        assert wait_until(lambda: not alive(pids(decoders)[0]))
        assert decoders.decode(PNG, "y").shape == (3, 48, 64)


@linux
def test_what_a_worker_may_do() -> None:
    with Decoders(1) as decoders:
        decoders.check(PNG, "x")
        (pid,) = pids(decoders)
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert [line.split()[-3:] for line in limits.splitlines() if "core file" in line] == [["0", "0", "bytes"]]
        assert [line.split()[-3:] for line in limits.splitlines() if "Max file size" in line] == [["0", "0", "bytes"]]
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "simplejpeg" in maps and "libtorch" not in maps
        assert not os.listdir(f"/proc/{pid}/task")[1:], "one thread"


def test_a_module_in_the_working_directory_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    with Decoders(1) as decoders:
        decoders.check(PNG, "x")
    assert not (tmp_path / "ran").exists()


@linux
@pytest.mark.parametrize("busy", [False, True])
def test_no_worker_is_left_when_the_parent_is_killed(busy: bool) -> None:
    code = f"""
import sys, threading, time
from opsin.data.sandbox import Decoders, Limits
from tests import make
decoders = Decoders(2, Limits(seconds=60))
threads = [threading.Thread(target=decoders.check, args=(make.encode(make.gradient()), "x")) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
if {busy}:
    slow = make.slow_jpeg()
    for _ in range(2): threading.Thread(target=decoders.check, args=(slow, "slow"), daemon=True).start()
    time.sleep(0.5)
print(*(worker.process.pid for worker in decoders._all), flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert workers and all(map(alive, workers))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: not any(map(alive, workers)), 5)


@linux
def test_descriptors_and_processes_stay_flat() -> None:
    def open_now() -> int:
        return len(os.listdir("/proc/self/fd"))

    with Decoders(1) as decoders:
        decoders.check(PNG, "x")
    before = open_now()
    for _ in range(3):
        with Decoders(1, Limits(seconds=0.3)) as decoders:
            decoders.check(PNG, "x")
            with pytest.raises(DecoderStopped):
                decoders.check(SLOW, "slow")
    assert open_now() == before
