"""Nothing is lost: processes killed at any moment and at any call, disks that fill up or fail, bits that flip, and many
who start at once. The long forms are marked slow and print what they did; DURABLE_COUNT=N sets their size."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from opsin import checkpoint, cli, optim, storage
from opsin.data import datasets
from opsin.errors import NonFiniteLoss, StorageError, UsageError
from opsin.recipe import SGD
from opsin.runfolder import Lock, Log
from opsin.train import Precision, TrainState
from opsin.types import Progress
from tests import crash, make
from tests.conftest import write_pictures

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no fork")
pytestmark = posix


def sizes(short, long):
    """The short form, and the long one marked slow."""
    return [short, pytest.param(int(os.environ.get("DURABLE_COUNT", long)), marks=pytest.mark.slow)]


def figures(**numbers):
    print("  ".join(f"{name} {value}" for name, value in numbers.items()))


@pytest.fixture
def tmp_path(tmp_path):
    """A disk in memory where there is one: who is killed by a signal does not care, and syncing takes no time there."""
    with crash.fast_folder(tmp_path) as folder:
        yield folder


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    with crash.nursery(tmp_path_factory.mktemp("said")) as made:
        yield made


SETTINGS = ["save_every=1", "model.options.widths=[4, 4, 4]", "data.batch_size=8", "ema=0.9", "augment.mixup=0.2"]


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory):
    """A training command, and the folder of the run that it makes when nobody disturbs it, and its seconds."""
    with crash.fast_folder(tmp_path_factory.mktemp("whole")) as folder:
        pictures = write_pictures(folder / "pictures", 20)
        command = ["train", str(pictures), "--epochs", "2"] + [word for s in SETTINGS for word in ("--set", s)]
        began = time.monotonic()
        done = nursery.call(*command, "--out", str(folder / "run"), draw=False)
        assert done.code == 0, done.said
        yield command, folder / "run", time.monotonic() - began


def go_on(nursery, command, run, **options):
    """What a person does after a crash: resume, or start again when nothing was begun."""
    words = ["resume", str(run)] if (run / "recipe.toml").exists() else [*command, "--out", str(run)]
    return nursery.start(words, **options)


def check_readable(run):
    for path in checkpoint.steps(run / "checkpoints"):
        storage.read_folder(path)
    if (run / "classifier").exists():
        storage.read_folder(run / "classifier")


# ---------------------------------------------------------------------------------------------------------------------
# Killed
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", sizes(20, 200))
def test_killed_at_random_moments_and_resumed_gives_the_same_bits(nursery, whole, tmp_path, kills):
    command, expected, seconds = whole
    seed = 1
    rng, began, done, runs = random.Random(seed), time.monotonic(), 0, 0
    while done < kills:
        run = tmp_path / "run"
        while True:
            [pid] = go_on(nursery, command, run, draw=False)
            if done < kills:
                time.sleep(rng.uniform(0, 0.9 * seconds))
                with contextlib.suppress(ProcessLookupError):  # it may just have ended
                    os.kill(pid, signal.SIGKILL)
            [child] = nursery.wait()
            if child.code == 0:
                break
            assert child.code == -signal.SIGKILL, child.said
            done += 1
            check_readable(run)
        assert crash.trace(run) == crash.trace(expected)
        assert not crash.leftovers(run)
        shutil.rmtree(run)
        runs += 1
    figures(kills=done, runs=runs, seed=seed, seconds=round(time.monotonic() - began))


@pytest.mark.parametrize("signals", sizes(6, 100))
def test_a_signal_at_any_moment_ends_within_a_step_and_loses_nothing(nursery, whole, tmp_path, signals):
    """SIGTERM and SIGINT, also during a save; what comes before the first step needs no saving."""
    command, expected, seconds = whole
    rng, done, saved, slowest = random.Random(4), 0, 0, 0.0
    while done < signals:
        run = tmp_path / "run"
        while True:
            number = rng.choice([signal.SIGTERM, signal.SIGINT])
            [pid] = go_on(nursery, command, run, draw=False)
            sent = time.monotonic()
            if done < signals:
                time.sleep(rng.uniform(0.1, 0.8) * seconds)
                with contextlib.suppress(ProcessLookupError):
                    sent = time.monotonic()
                    os.kill(pid, number)
            [child] = nursery.wait()
            if child.code == 0:
                break
            done += 1
            slowest = max(slowest, time.monotonic() - sent)
            assert "Traceback" not in child.said
            check_readable(run)
            if "saved; go on with: opsin resume" in child.said:
                saved += 1
                assert child.code == 128 + number
            else:  # while it started, or when all was done but the report
                assert child.code in (128 + number, -number)
        assert crash.trace(run) == crash.trace(expected)
        shutil.rmtree(run)
    assert saved > signals / 4
    figures(signals=done, saved=saved, slowest=round(slowest, 2))


@pytest.fixture(scope="module")
def packing(tmp_path_factory):
    """A command that packs, but for its last word, and what it gives when nobody disturbs it."""
    with crash.fast_folder(tmp_path_factory.mktemp("packing")) as folder:
        files = {f"{name}/{i}.png": make.encode(make.noise(200, 200, 3, seed=i)) for name in "ab" for i in range(40)}
        make.write(folder / "pictures", files)
        command = ["data", "pack", str(folder / "pictures"), "--quiet", "-o"]
        assert cli.call([*command, str(folder / "out")]) == 0
        yield command, packed(folder / "out")


def packed(folder):
    """The bytes of packed data, which is whole: `datasets` compares its note."""
    assert len(datasets.scan_parts(folder)["all"]) == 80
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_packing_that_is_killed_leaves_nothing_under_its_name_and_the_next_clears_up(nursery, packing, tmp_path):
    command, expected = packing
    out, killed = tmp_path / "out", 0
    other = tmp_path / ".other.opsin-tmp-1"  # nobody fills it, but it is not of this name
    other.mkdir()
    for nth in (2, 5, 8, 11):  # calls by which storage.py touches the disk
        child = nursery.call(*command, str(out), fault={"nth": nth, "how": "KILL"})
        if child.code == 0:
            assert packed(out) == expected
            shutil.rmtree(out)
        else:
            assert child.code == -signal.SIGKILL and not (out.exists() and any(out.iterdir())), child.said
            killed += 1
    for number in (signal.SIGKILL, signal.SIGTERM):  # in the middle of a shard
        [pid] = nursery.start([*command, str(out)])
        while not any(path.stat().st_size for path in tmp_path.glob(f".out.opsin-tmp-{pid}/*.tar")):
            time.sleep(0.001)
        os.kill(pid, number)
        [child] = nursery.wait()
        if number == signal.SIGTERM:
            assert child.code == 143 and f"SIGTERM: {out} was not finished" in child.said and not out.exists()
            assert not list(tmp_path.glob(f".out.opsin-tmp-{pid}"))
        else:
            assert child.code == -number and not out.exists() and crash.leftovers(tmp_path)
    assert killed >= 2
    assert nursery.call(*command, str(out)).code == 0
    assert packed(out) == expected and crash.leftovers(tmp_path) == [str(other)]


def test_two_that_pack_to_one_name_do_not_clear_up_after_each_other(nursery, packing, tmp_path):
    command, expected = packing
    nursery.start([*command, str(tmp_path / "out")], [*command, str(tmp_path / "out")])
    first, second = sorted(nursery.wait())
    assert (first.code, second.code) == (0, 1) and str(tmp_path / "out") in second.said
    assert packed(tmp_path / "out") == expected and not crash.leftovers(tmp_path)


def check_saves(folder):
    """Whatever happened to `crash.saves`: what is there is whole, old or new, and the next start leaves no trace."""
    done = (folder / "done").stat().st_size if (folder / "done").exists() else 0
    found = checkpoint.steps(folder / "checkpoints")
    for path in found:
        storage.read_folder(path)
    newest = checkpoint.step_of(found[-1]) if found else 0
    assert newest in (min(done, 3), min(done + 1, 3))
    assert len(found) >= min(2, newest)
    states = {3: [None, b"old"], 4: [b"old", b"new"], 5: [b"new"]}.get(done, [None])
    held = storage.read_folder(folder / "classifier") if storage.holds(folder / "classifier") else None
    assert held in [text and {"weights": 1000 * text, "config": text} for text in states]
    report = folder / "report.json"
    assert (report.read_bytes() if report.exists() else None) in states
    with Lock(folder):
        assert crash.saves(folder) == 0
    assert not crash.leftovers(folder)
    assert [path.name for path in checkpoint.steps(folder / "checkpoints")] == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("how", ["KILL", "EIO", "ENOSPC"])
@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_a_fault_at_every_call_of_three_saves(nursery, tmp_path, how, every):
    """Open, write, fsync, rename, mkdir, unlink, rmdir of three checkpoints with the purge, and of a folder and a file
    that are replaced: at the first call, the second, … until the fault no longer fires."""
    began, nth, ended = time.monotonic(), random.Random(how).randrange(every) + 1, 0
    struck = True
    while struck:
        folder, mark = tmp_path / str(nth), tmp_path / f"mark{nth}"
        folder.mkdir()
        child = nursery.call("saves", str(folder), fault={"nth": nth, "how": how, "mark": str(mark)})
        struck = mark.exists()
        ended += child.code != 0
        if how == "KILL":
            assert child.code == (-signal.SIGKILL if struck else 0), child.said
        elif child.code:
            assert child.code == 1 and child.said.count("\n") == 1 and f" {folder}" in child.said, child.said
        if not child.code:  # what could not be removed is removed by the next save; everything is saved
            assert (folder / "done").stat().st_size == 5
        check_saves(folder)
        shutil.rmtree(folder)
        nth += every
    assert ended > 80 / every
    figures(how=how, calls=nth - 1, ended=ended, seconds=round(time.monotonic() - began))


STRACE = shutil.which("strace")
SYSCALLS = ("openat", "write", "fsync", "rename", "renameat2", "mkdir", "unlinkat", "rmdir")


def straced(folder, *options):
    folder.mkdir(exist_ok=True)
    words = [STRACE, "-f", "-qq", "-o", str(folder.with_suffix(".strace")), *options]
    words += [sys.executable, "-B", str(Path(crash.__file__)), str(folder)]
    path = os.pathsep.join([str(Path(crash.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(words, capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": path})


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_by_the_kernel_at_every_system_call_of_a_save(tmp_path, every):
    began, killed, names = time.monotonic(), 0, [f"?{name}" for name in SYSCALLS]
    plain = straced(tmp_path / "plain", "-e", f"trace={','.join(names)}")
    if plain.returncode:
        pytest.skip(f"strace cannot trace here: {plain.stderr[:200]}")
    lines = (tmp_path / "plain.strace").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if "mkdir" in line and "classifier.opsin-tmp" in line)
    points = []
    for name in SYSCALLS:
        here = [i for i, line in enumerate(lines) if f" {name}(" in line]
        points += [(name, n) for n, i in enumerate(here, 1) if i >= first]
    assert {name for name, _ in points} >= {"openat", "write", "fsync", "rename", "mkdir", "unlinkat"}
    for name, nth in points[every // 2 :: every]:
        folder = tmp_path / f"{name}{nth}"
        child = straced(folder, "-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={nth}")
        killed += child.returncode != 0
        done = (folder / "done").stat().st_size if (folder / "done").exists() else 0
        states = {0: [None, b"old"], 1: [b"old", b"new"], 2: [b"new"]}[done]
        held = storage.read_folder(folder / "classifier") if storage.holds(folder / "classifier") else None
        assert (held and held["config"]) in states
        crash.replace_folder_and_file(folder)
        with Lock(folder):
            assert not crash.leftovers(folder)
    assert killed >= 0.9 * len(points[every // 2 :: every])
    figures(points=len(points[every // 2 :: every]), killed=killed, seconds=round(time.monotonic() - began))


# ---------------------------------------------------------------------------------------------------------------------
# Disks that are full, that fail, or that cannot be written
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faults", sizes(2, 60))
def test_a_run_on_a_failing_disk_ends_in_one_line_and_goes_on_when_it_is_mended(nursery, whole, tmp_path, faults):
    command, expected, _ = whole
    rng, ended = random.Random(2), 0
    for trial in range(faults):
        run = tmp_path / str(trial)
        how = rng.choice(["EIO", "ENOSPC"])
        fault = {"nth": rng.randrange(1, 400), "how": how}
        child = nursery.call(*command, "--out", str(run), "--quiet", draw=False, fault=fault)
        if child.code:
            ended += 1
            said = [line for line in child.said.splitlines() if line.startswith("error: ")]
            assert child.code == 1 and len(said) == 1 and str(run) in said[0] and "Traceback" not in child.said
            check_readable(run)
            go_on(nursery, command, run, draw=False)
            [child] = nursery.wait()
            assert child.code == 0, child.said
        assert crash.trace(run) == crash.trace(expected)
        assert not crash.leftovers(run)
    figures(faults=faults, ended=ended)


def test_files_that_may_not_grow_leave_the_older_state(nursery, whole, tmp_path):
    """A real limit of the system, below the size of a checkpoint; RLIMIT_FSIZE."""
    command, expected, _ = whole
    run = tmp_path / "run"
    size = max(path.stat().st_size for path in expected.glob("checkpoints/*/tensors.safetensors"))
    child = nursery.call(*command, "--out", str(run), "--quiet", draw=False, file_bytes=size - 1000)
    assert child.code == 1 and "File too large" in child.said and str(run / "checkpoints") in child.said
    go_on(nursery, command, run, draw=False)
    assert nursery.wait()[0].code == 0
    assert crash.trace(run) == crash.trace(expected)


def test_a_real_disk_that_fills_up(nursery, whole, tmp_path):
    command, expected, _ = whole
    (tmp_path / "disk").mkdir()
    size = sum(path.stat().st_size + 4096 for path in (expected / "checkpoints").rglob("*"))
    disk = (str(tmp_path / "disk"), size + (64 << 10))  # for about two checkpoints, where three are needed at a time
    run = tmp_path / "disk" / "run"
    child = nursery.call(*command, "--out", str(run), "--quiet", draw=False, disk=disk)
    if child.code == 99:
        pytest.skip("this user may not mount a disk")
    assert child.code == 1 and "No space left on device" in child.said, child.said
    assert str(run) in child.said and child.said.count("error: ") == 1
    shutil.rmtree(tmp_path / "disk")
    shutil.move(tmp_path / "disk.copy", tmp_path / "disk")  # to a larger disk
    check_readable(run)
    assert checkpoint.steps(run / "checkpoints")
    go_on(nursery, command, run, draw=False)
    assert nursery.wait()[0].code == 0
    assert crash.trace(run) == crash.trace(expected)
    assert not crash.leftovers(run)


def test_a_full_disk_while_the_log_is_written(tmp_path, monkeypatch):
    log = Log(tmp_path)
    log.write({"step": 1})
    length, real = log.length, os.write
    with monkeypatch.context() as patch:
        calls = []

        def full(descriptor, data):
            calls.append(len(data))
            if len(calls) > 1:
                raise OSError(28, "No space left on device")
            return real(descriptor, data[: len(data) // 2])

        patch.setattr(os, "write", full)
        with pytest.raises(StorageError, match=r"cannot write .*log\.jsonl: No space left on device"):
            log.write({"step": 2})
    log.close()
    assert log.length == length
    again = Log(tmp_path, length)  # what was half written is cut off
    again.write({"step": 2})
    again.close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    short = Log(tmp_path, 1000)  # bytes that are gone are not made up
    assert short.length == 24
    short.close()
    assert (tmp_path / "log.jsonl").stat().st_size == 24


def test_a_folder_that_cannot_be_written_is_said_before_training(nursery, whole, tmp_path):
    """Root may write anywhere, so a file stands in the folder's way."""
    (tmp_path / "file").write_bytes(b"x")
    child = nursery.call(*whole[0], "--out", str(tmp_path / "file" / "run"))
    assert child.code == 1 and f"cannot write into {tmp_path / 'file' / 'run'}" in child.said
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        child = nursery.call(*whole[0], "--out", str(tmp_path / "closed" / "run"))
        assert child.code == 1 and "Permission denied" in child.said
        with pytest.raises(StorageError, match="Permission denied"):
            storage.write_file(tmp_path / "closed" / "x", b"x")


# ---------------------------------------------------------------------------------------------------------------------
# Damage, order, what is kept
# ---------------------------------------------------------------------------------------------------------------------


def saved(folder, *steps, keep=2, verified=None):
    torch.manual_seed(0)
    state = TrainState(model := torch.nn.Linear(30, 20), optim.build(model, SGD()))
    for step in steps:
        state.progress = Progress(step=step)
        checkpoint.save(
            state,
            folder,
            precision=Precision(),
            notes={"step": step},
            tensors={"ema": model.state_dict()},
            keep=keep,
            verified=verified,
        )
    return state


def restored(state, folder, said):
    found = checkpoint.restore(state, folder, precision=Precision(), warn=said.append)
    return found and found.notes["step"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def names(folder):
    return [checkpoint.step_of(path) for path in checkpoint.steps(folder)]


def test_two_thousand_flipped_bits_and_five_hundred_truncations_are_all_found(tmp_path):
    state = saved(tmp_path, 1, 2)
    rng, began, passed = random.Random(3), time.monotonic(), 0
    files = sorted((tmp_path / "step-00000002").iterdir())
    assert [path.name for path in files] == ["manifest.json", "state.json", "tensors.safetensors"]
    for trial in range(2500):
        path = files[trial % 3]
        data = bytearray(path.read_bytes())
        whole = bytes(data)
        if trial < 2000:
            bit = rng.randrange(8 * len(data))
            data[bit // 8] ^= 1 << bit % 8
        else:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        with pytest.raises(StorageError, match=str(tmp_path)):
            storage.read_folder(tmp_path / "step-00000002")
        if trial % 50 == 0:  # and the one before is taken, which is said
            said = []
            assert restored(state, tmp_path, said) == 1
            assert len(said) == 1 and "step-00000002 cannot be used" in said[0]
            passed += 1
        path.write_bytes(whole)
    assert restored(state, tmp_path, []) == 2
    figures(flips=2000, truncations=500, found=2500, fallen_back=passed, seconds=round(time.monotonic() - began, 1))


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_what_is_not_a_file_is_refused_at_once(tmp_path, name):
    saved(tmp_path, 1)
    (tmp_path / "step-00000001" / name).unlink()
    os.mkfifo(tmp_path / "step-00000001" / name)
    with pytest.raises(StorageError, match=f"{name}: not a regular file"):
        storage.read_folder(tmp_path / "step-00000001")


def test_the_purge_keeps_two_that_verify_whatever_happened_to_the_others(tmp_path):
    saved(tmp_path, 1, 2, 3, keep=3)
    flip(tmp_path / "step-00000002" / "tensors.safetensors")
    saved(tmp_path, 4)  # of another process, which has verified nothing
    assert names(tmp_path) == [3, 4]
    flip(tmp_path / "step-00000004" / "state.json")
    state = saved(tmp_path, 5)
    assert names(tmp_path) == [3, 4, 5]  # one damaged, two whole
    flip(tmp_path / "step-00000005" / "state.json")
    said = []
    assert restored(state, tmp_path, said) == 3 and len(said) == 2
    saved(tmp_path, 6, keep=1)  # no recipe can ask for fewer than two
    assert names(tmp_path) == [3, 4, 5, 6]
    saved(tmp_path, 7, 8, 9, keep=3, verified=set())
    assert names(tmp_path) == [7, 8, 9]


def test_order_is_by_step_never_by_clock(tmp_path, monkeypatch):
    clock = iter([2e9, 0.0, 1e9, -5.0])
    monkeypatch.setattr(time, "time", lambda: next(clock, 7.0))
    saved(tmp_path, 1, 2, 3, keep=3)
    for step, when in ((1, 4e9), (2, 0), (3, 1)):
        for path in (tmp_path / f"step-{step:08d}").iterdir():
            os.utime(path, (when, when))
        os.utime(tmp_path / f"step-{step:08d}", (when, when))
    state = saved(tmp_path, 4)
    assert names(tmp_path) == [3, 4]
    assert restored(state, tmp_path, []) == 4
    os.rename(tmp_path / "step-00000003", tmp_path / "step-123456789")  # beyond eight digits
    assert names(tmp_path) == [4, 123456789]
    (tmp_path / "step-of-mine").mkdir()
    assert names(tmp_path) == [4, 123456789]


@pytest.mark.parametrize("where", ["weights", "momentum", "average"])
def test_what_is_not_finite_is_never_saved(tmp_path, where):
    state = saved(tmp_path, 1)
    bad, tensors = torch.full((30,), float("inf")), {}
    weight = state.model.weight
    if where == "weights":
        weight.data[0] = bad
    elif where == "momentum":
        state.optimizer.state[weight]["momentum_buffer"] = torch.full_like(weight, float("nan"))
    else:
        tensors = {"ema": {"weight": bad}}
    state.progress = Progress(step=2)
    with pytest.raises(NonFiniteLoss, match="became NaN or infinite in step 2"):
        checkpoint.save(state, tmp_path, precision=Precision(), notes={}, tensors=tensors)
    assert names(tmp_path) == [1]


# ---------------------------------------------------------------------------------------------------------------------
# Readers and other writers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("swap", [True, False])
def test_a_reader_never_meets_half_a_folder_while_it_is_replaced(tmp_path, monkeypatch, swap):
    """With the exchange in one step, and with the two renames of file systems that have none."""
    if not swap:
        monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
    folder = tmp_path / "state"

    def write(number):
        storage.write_folder(folder, {name: b"%d" % number for name in ("a", "b", "c")})

    write(0)
    stop, seen, problems = threading.Event(), [], []

    def reader():
        while not stop.is_set():
            try:
                found = set(storage.read_folder(folder).values())
                assert len(found) == 1 and storage.holds(folder)
                seen.append(int(found.pop()))
            except Exception as error:
                problems.append(error)

    threads = [threading.Thread(target=reader) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(1, 150):
        write(number)
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems and len(seen) > 20 and len(set(seen)) > 5
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


STARTS = """
import os, signal, sys
from pathlib import Path
from opsin.errors import UsageError
from opsin.runfolder import Lock
folder, count = Path(sys.argv[1]), int(sys.argv[2])
go, gone = os.pipe()
answer, told = os.pipe()
children = []
for _ in range(count):
    pid = os.fork()
    if not pid:
        os.close(gone)
        os.read(go, 1)  # until all are there
        try:
            with Lock(folder):
                os.write(told, b"W%d\\n" % os.getpid())
                signal.pause()
        except UsageError as error:
            os.write(told, b"L%s\\n" % str(error).split("process ")[1].split()[0].encode())
        os._exit(0)
    children.append(pid)
os.close(gone)
text = b""
while text.count(b"\\n") < count:
    text += os.read(answer, 65536)
for pid in children:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    os.waitpid(pid, 0)
sys.stdout.write(text.decode())
"""


@pytest.mark.parametrize("rounds", sizes(3, 50))
def test_of_fifty_starts_at_once_one_wins_and_every_loser_names_it(tmp_path, rounds):
    """The holder is killed at the end of each round, and its name stays in the file: nobody takes it for the next."""
    began = time.monotonic()
    (tmp_path / "starts.py").write_text(STARTS)
    path = os.pathsep.join([str(Path(crash.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    for _ in range(rounds):
        words = [sys.executable, str(tmp_path / "starts.py"), str(tmp_path / "run"), "50"]
        environment = os.environ | {"PYTHONPATH": path}
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60, env=environment)
        lines = done.stdout.split()
        winners = [line[1:] for line in lines if line[0] == "W"]
        assert len(lines) == 50 and len(winners) == 1
        assert {line[1:] for line in lines if line[0] == "L"} == set(winners)
    figures(rounds=rounds, starts=50, seconds=round(time.monotonic() - began))


def test_of_several_real_trainings_in_one_folder_one_wins(nursery, whole, tmp_path):
    command, expected, _ = whole
    run = tmp_path / "run"
    pids = nursery.start(*[[*command, "--out", str(run)]] * 4, draw=False)
    done = nursery.wait()
    winners = [i for i, child in enumerate(done) if child.code == 0]
    assert len(winners) == 1, done
    for i, child in enumerate(done):
        if i not in winners:
            busy, late = f"is in use by process {pids[winners[0]]} on ", "already holds a run"
            assert child.code == 2 and (busy in child.said or late in child.said)
    assert crash.trace(run) == crash.trace(expected)


def test_a_child_process_does_not_hold_its_parents_lock(tmp_path, nursery):
    """A killed training whose decoder is still alive can be resumed at once."""
    code = "import os, sys, time, pathlib\nfrom opsin.runfolder import Lock\nlock = Lock(pathlib.Path(sys.argv[1]))\n"
    code += "pid = os.fork()\nprint(pid, flush=True) if pid else None\ntime.sleep(60)"
    path = os.pathsep.join([str(Path(crash.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            with pytest.raises(UsageError, match=f"in use by process {process.pid} on "):
                Lock(tmp_path)
            process.kill()
            process.wait()
            os.kill(child, 0)
            for wait in range(100):  # the child lets go of it when it first runs, which a busy machine may put off
                with contextlib.suppress(UsageError):
                    Lock(tmp_path).release()
                    break
                assert wait < 99
                time.sleep(0.1)
        finally:
            os.kill(child, signal.SIGKILL)
