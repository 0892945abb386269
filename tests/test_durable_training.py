"""What a training that is cut, or whose workers die, ends in: the same bits. What is not finite ends it at once, and
hundreds of steps leave nothing behind. The long forms are marked slow and print what they did."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from opsin import figures, optim
from opsin import run as runs
from opsin.console import Reporter
from opsin.data import loader
from opsin.data.index import ArraySource, Index
from opsin.errors import BadInput, Interrupted, NonFiniteLoss
from opsin.preprocess import Preprocess
from opsin.recipe import SGD, Augment, CrossEntropy, Data, ModelSpec, Muon, Recipe, Stop
from opsin.schedule import Constant, Linear
from opsin.train import TrainState, train
from tests import crash

EVERYTHING = Recipe(
    data=Data(name="made", batch_size=4),
    model=ModelSpec(name="vgg16_cifar", options={"width": 2, "hidden": 4}),
    preprocess=Preprocess(size=(32, 32), channels=1, mean=(0.5,), std=(0.3,)),
    augment=Augment(shift=2, flip="random", rotate=5, colour=0.1, mixup=0.3, cutmix=0.5, cutout=6),
    optimizer=Muon(lr=0.05, sgd_lr=0.1),
    schedule=Linear(),
    loss=CrossEntropy(label_smoothing=0.1),
    stop=Stop(patience=1),
    epochs=2,
    ema=0.9,
)


def pictures(n, seed=0, side=32, classes=("dark", "middle", "light")):
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % len(classes)
    images = np.clip(40 + 80 * labels[:, None, None, None] + generator.normal(0, 20, (n, 1, side, side)), 0, 255)
    return Index([f"{seed}/{i}" for i in range(n)], labels, classes, ArraySource(images.astype(np.uint8)))


def splits():
    return {"train": pictures(48), "val": pictures(9, 1), "test": pictures(9, 2)}


@pytest.fixture(autouse=True)
def small_and_plain(monkeypatch, one_thread):
    """One thread; the same pictures on resume; figures, which are not compared, are not drawn."""
    monkeypatch.setattr(runs, "_load", lambda *_: splits())
    monkeypatch.setattr(figures, "_encode", lambda *_, **__: b"<svg/>")


@pytest.fixture
def tmp_path(tmp_path):
    with crash.fast_folder(tmp_path) as folder:
        yield folder


class SignalAt(Reporter):
    """Sends this process a SIGTERM within step `at`."""

    def __init__(self, at):
        self.at = at

    def step(self, progress, loss, images_per_second):
        if progress.step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def cut(recipe, folder, at):
    with pytest.raises(Interrupted) as caught:
        runs.fit(recipe, folder, splits=splits(), reporter=SignalAt(at))
    assert caught.value.exit_code == 143
    torch.manual_seed(99)  # another process has other random numbers


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_resumed_at_every_step_of_two_epochs_with_everything_switched_on(tmp_path, every):
    whole = runs.fit(EVERYTHING, tmp_path / "whole", splits=splits())
    expected, total = crash.trace(whole.folder), len(expected_steps(whole.folder))
    assert total == 24 and any(isinstance(m, nn.Dropout) and m.p for m in runs._build(EVERYTHING, 3)[0].modules())
    cuts = range(1 + (total - 1) % every, total + 1, every)
    for at in cuts:
        cut(EVERYTHING, tmp_path / "cut", at)
        runs.resume(tmp_path / "cut")
        assert crash.trace(tmp_path / "cut") == expected, at
        shutil.rmtree(tmp_path / "cut")
    print(f"resumed at {len(cuts)} of {total} steps, bit for bit")


def expected_steps(run):
    return [row for row in crash.trace(run).log if row["event"] == "step"]


LOADERS = replace(
    EVERYTHING,
    model=ModelSpec(name="smallnet", options={"widths": [4, 4, 4]}),
    preprocess=Preprocess(size=(10, 10), channels=1, mean=(0.5,), std=(0.3,)),
    augment=Augment(crop=0.5, flip="random", mixup=0.3, cutout=3),
    stop=Stop(),
)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_no_number_of_workers_changes_the_result_also_after_a_resume(tmp_path, kind):
    traces = []
    for before, after in ((0, 0), (0, 4), (1, 2), (2, 1), (4, 0)):
        recipe = replace(LOADERS, data=replace(LOADERS.data, loader=kind, workers=before))
        folder = tmp_path / f"{before}{after}"
        if before == after:
            runs.fit(recipe, folder, splits=splits())
        else:
            cut(recipe, folder, 17)
            text = (folder / "recipe.toml").read_text()
            assert f"workers = {before}\n" in text
            (folder / "recipe.toml").write_text(text.replace(f"workers = {before}\n", f"workers = {after}\n"))
            runs.resume(folder)
        traces.append(crash.trace(folder))
    assert all(trace == traces[0] for trace in traces)


class Victims:
    """Prepares pictures; in the worker that prepares one of `places` for the first time, something strikes."""

    def __init__(self, strike, places=()):
        self.strike, self.places, self.lock = strike, set(places), threading.Lock()

    def __call__(self, image, place, epoch):
        with self.lock:
            hit = place in self.places
            self.places.discard(place)
        if hit:
            self.strike()
        return image + epoch

    def batches(self, workers):
        made = loader.DiskLoader(pictures(40, side=4), self, size=(4, 4), channels=1, batch_size=8, workers=workers)
        return [batch for epoch in (0, 1) for batch in made.epoch(epoch)]


def raise_(error):
    raise error


def kill_thread():
    """As far as a thread can be killed from outside: an exception set in it that nothing expects."""
    here = ctypes.c_ulong(threading.get_ident())
    ctypes.pythonapi.PyThreadState_SetAsyncExc(here, ctypes.py_object(SystemExit))


@pytest.mark.parametrize("strike", [kill_thread, lambda: raise_(MemoryError()), lambda: raise_(OSError("gone"))])
def test_a_killed_worker_is_made_up_for_and_the_batches_are_the_same(strike):
    plain = Victims(strike).batches(0)
    struck = Victims(strike, range(0, 40, 5))
    for one, other in zip(plain, struck.batches(2), strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.indices, other.indices)
    assert not struck.places and not [t for t in threading.enumerate() if t.name.startswith("opsin-loader")]


def test_when_every_worker_is_dead_the_caller_goes_on_alone(monkeypatch):
    """The pool's threads are killed where they wait for work: it does not replace them within an epoch."""
    monkeypatch.setattr(loader, "PATIENCE", 0.02)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    victims = Victims(None)
    plain = victims.batches(0)
    made = loader.DiskLoader(pictures(40, side=4), victims, size=(4, 4), channels=1, batch_size=8, workers=2)
    epoch = made.epoch(0)
    images = [next(epoch).images]
    workers = [thread for thread in threading.enumerate() if thread.name.startswith("opsin-loader")]
    assert workers
    for thread in workers:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
    images += [batch.images for batch in epoch]
    assert all(torch.equal(one, other.images) for one, other in zip(images, plain[:5], strict=True))


def test_workers_killed_where_they_wait_do_not_hold_up_the_end(monkeypatch):
    """Both wait for work when they are killed: each dies of the next word, and there may be one for the two of them."""
    monkeypatch.setattr(loader, "PATIENCE", 0.02)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    made = loader.DiskLoader(pictures(8, side=4), Victims(None), size=(4, 4), channels=1, batch_size=8, workers=2)
    epoch = made.epoch(0)
    next(epoch)
    time.sleep(0.05)  # all is done, and both wait
    for thread in [thread for thread in threading.enumerate() if thread.name.startswith("opsin-loader")]:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
    assert next(epoch, None) is None


def test_an_error_of_a_picture_is_not_made_up_for():
    calls = []

    def bad():
        calls.append(1)
        raise BadInput("x.png", "damaged")

    with pytest.raises(BadInput, match=r"x\.png: damaged"):
        Victims(bad, [3]).batches(2)
    assert len(calls) == 1


class Trap(nn.Module):
    """A finite output whose gradient is NaN from step `at` on: the square root at zero, times zero."""

    def __init__(self):
        super().__init__()
        self.linear, self.at = nn.Linear(2, 1), 3

    def forward(self, x, step):
        out = self.linear(x).square().mean()
        return out + (0 * self.linear.weight).abs().sum().sqrt() if step >= self.at else out


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gradient_that_is_not_finite_is_found_in_its_step_before_the_weights_are_touched(accumulate):
    state = TrainState(model := Trap(), optim.build(model, SGD(lr=0.1)))
    kept = None
    with pytest.raises(NonFiniteLoss, match=r"the gradient's norm became nan at a loss of .* in step 4 \(epoch 1\)"):
        for _ in train(
            state,
            lambda epoch, start: [(torch.ones(3, 2),)] * 20,
            lambda model, batch, progress: (model(batch[0], progress.step), None),
            total_steps=20,
            until=lambda progress: progress.epoch >= 1,
            schedule=Constant(),
            accumulate=accumulate,
        ):
            kept = model.linear.weight.detach().clone()
    assert torch.equal(model.linear.weight, kept)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_hundreds_of_steps_leave_no_descriptors_threads_processes_or_memory_behind(tmp_path):
    """240 steps with workers and a save every tenth; looked at after each epoch, from the third on."""
    seen = []

    class Watch(Reporter):
        def epoch(self, row):
            gc.collect()
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            descriptors = len(os.listdir("/proc/self/fd"))
            seen.append((descriptors, threading.active_count(), len(children), resident / 2**20))

    recipe = replace(LOADERS, data=replace(LOADERS.data, loader="disk", workers=2), epochs=20, save_every=10)
    runs.fit(recipe, tmp_path / "run", splits=splits(), reporter=Watch())
    assert len(seen) == 20
    assert len({row[:3] for row in seen[2:]}) == 1, seen
    growth = seen[-1][3] - seen[4][3]
    print(f"240 steps: {seen[-1][0]} descriptors, {seen[-1][1]} threads, memory {growth:+.1f} MB in the last 180")
    assert growth < 8
