"""Order and randomness as pure functions, batches from memory and from disk."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from opsin.data.index import ArraySource, Index, scan
from opsin.data.loader import (
    LOOK_AHEAD,
    DiskLoader,
    MemoryLoader,
    batch_bounds,
    decode_size,
    drawn,
    load_memory,
    order,
    shares,
)
from opsin.data.rng import uniform
from opsin.errors import BadInput, DataError, UsageError
from opsin.preprocess import Preprocess
from tests import make

MASK = (1 << 64) - 1


# ---------------------------------------------------------------------------------------------------------------------
# Randomness
# ---------------------------------------------------------------------------------------------------------------------


def test_order_is_a_permutation_and_a_pure_function() -> None:
    first = order(3, 5, 1000)
    assert first.dtype == np.int64 and sorted(first) == list(range(1000))
    np.random.default_rng(0).random(7)
    assert np.array_equal(first, order(3, 5, 1000))
    for seed, epoch in ((4, 5), (3, 6), (5, 3), (-3, 5)):
        assert (order(seed, epoch, 1000) == first).mean() < 0.02
    assert order(0, 0, 10).tolist() == [
        0,
        2,
        9,
        1,
        8,
        5,
        4,
        3,
        6,
        7,
    ]  # for ever: runs are resumed
    assert order(1, 2, 0).tolist() == []


def test_every_place_comes_everywhere_in_the_order() -> None:
    positions = np.stack([order(0, epoch, 50) for epoch in range(2000)])  # [2000, 50]
    counts = np.stack([np.bincount(column, minlength=50) for column in positions.T])
    chi_squared = ((counts - 40) ** 2 / 40).sum() / 49**2
    assert 0.9 < chi_squared < 1.1


def reference(seed: int, epoch: int, index: int, draw: int) -> float:
    """The same hash, one number at a time, in Python's integers."""

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) & MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return x ^ (x >> 31)

    stream = mix((mix((mix(seed & MASK) + epoch) & MASK) + index) & MASK)
    return (mix((stream + (draw + 1) * 0x9E3779B97F4A7C15) & MASK) >> 40) / 2**24


def test_uniform_is_the_hash_of_its_arguments() -> None:
    indices = torch.tensor([0, 7, 123456789, 2**40])
    for seed, epoch in ((0, 0), (1, 0), (0, 1), (-5, 199), (2**63, 3)):
        numbers = uniform(seed, epoch, indices, 6)
        assert numbers.dtype == torch.float32 and numbers.shape == (4, 6)
        for row, index in enumerate(indices.tolist()):
            assert numbers[row].tolist() == [reference(seed, epoch, index, draw) for draw in range(6)]


def test_uniform_does_not_depend_on_the_batch() -> None:
    whole = uniform(1, 2, torch.arange(100), 8)
    shuffled = torch.from_numpy(order(0, 0, 100))
    assert torch.equal(uniform(1, 2, shuffled, 8), whole[shuffled])
    assert torch.equal(uniform(1, 2, np.array([42]), 3)[0], whole[42, :3])
    assert uniform(1, 2, torch.arange(0), 3).shape == (0, 3)


def test_uniform_is_uniform_and_uncorrelated() -> None:
    numbers = uniform(0, 0, torch.arange(50_000), 8).double().numpy()
    assert numbers.min() >= 0 and numbers.max() < 1
    deciles = np.stack([np.histogram(column, 10, (0, 1))[0] for column in numbers.T])
    assert np.abs(deciles - 5000).max() < 5 * np.sqrt(5000 * 0.9)
    epochs = np.stack([uniform(0, epoch, torch.arange(50_000), 1)[:, 0].double() for epoch in range(4)], 1)
    seeds = np.stack([uniform(seed, 0, torch.arange(50_000), 1)[:, 0].double() for seed in range(1, 4)], 1)
    together = np.hstack([numbers, epochs[:, 1:], seeds, np.roll(numbers[:, :1], 1, axis=0)])
    correlations = np.corrcoef(together.T) - np.eye(together.shape[1])
    assert np.abs(correlations).max() < 5 / np.sqrt(50_000)


# ---------------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "size", "sizes"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (8, 4, [4, 4]), (5, 4, [5]), (1, 4, [1]), (0, 4, []), (3, 1, [1, 1, 1])],
)
def test_batch_bounds(n: int, size: int, sizes: list[int]) -> None:
    bounds = batch_bounds(n, size)
    assert [stop - start for start, stop in bounds] == sizes
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(n))


def test_batch_size_below_one() -> None:
    with pytest.raises(UsageError, match="batch_size: expected at least 1, received 0"):
        batch_bounds(3, 0)


N = 23
IMAGES = make.noise(N, 3, 4, 5)
LABELS = np.arange(N) % 3
KEYS = [f"picture {i}" for i in range(N)]


def memory(**options: object) -> MemoryLoader:
    values = {"batch_size": 5, "seed": 1, "keys": KEYS} | options
    return MemoryLoader(torch.from_numpy(IMAGES), torch.from_numpy(LABELS), **values)  # pyright: ignore


def invert_some(image: Tensor, i: int, epoch: int) -> Tensor:
    """A preparation that depends on its arguments, and takes unequal time."""
    time.sleep(0.002 * (i % 3))
    return 255 - image if uniform(0, epoch, np.array([i]), 1).item() < 0.5 else image


def disk(prepare: Callable[[Tensor, int, int], Tensor] = invert_some, **options: object) -> DiskLoader:
    index = Index(KEYS, LABELS, ("a", "b", "c"), ArraySource(IMAGES))
    values = {"size": (4, 5), "batch_size": 5, "seed": 1} | options
    return DiskLoader(index, prepare, **values)  # pyright: ignore


@pytest.mark.parametrize("make_loader", [memory, disk])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_gives_every_picture_once_with_its_label_and_key(
    make_loader: Callable[..., MemoryLoader | DiskLoader], shuffle: bool
) -> None:
    loader = make_loader(shuffle=shuffle, **({"prepare": lambda x, i, e: x} if make_loader is disk else {}))
    batches = list(loader.epoch(2))
    assert len(loader) == len(batches) == 5 and loader.num_samples == N
    places = torch.cat([batch.indices for batch in batches])
    assert places.tolist() == (order(1, 2, N).tolist() if shuffle else list(range(N)))
    for batch in batches:
        assert batch.images.dtype == torch.uint8 and batch.labels.dtype == batch.indices.dtype == torch.int64
        assert np.array_equal(batch.images, IMAGES[batch.indices]) and np.array_equal(
            batch.labels, LABELS[batch.indices]
        )
        assert list(batch.keys) == [KEYS[i] for i in batch.indices] and batch.epoch == 2


@pytest.mark.parametrize("make_loader", [memory, disk])
def test_starting_in_the_middle_gives_the_same_batches(make_loader: Callable[..., MemoryLoader | DiskLoader]) -> None:
    loader = make_loader()
    whole = list(loader.epoch(3))
    for start in range(len(loader) + 1):
        rest = list(loader.epoch(3, start))
        assert len(rest) == len(whole) - start
        for a, b in zip(rest, whole[start:], strict=True):
            assert torch.equal(a.images, b.images) and torch.equal(a.indices, b.indices) and a.keys == b.keys
    with pytest.raises(UsageError, match="start: expected 0 to 5"):
        next(loader.epoch(3, 6))


def test_same_batches_for_any_number_of_workers() -> None:
    expected = [batch.images for batch in disk(workers=0).epoch(7)]
    assert not torch.equal(torch.cat(expected), torch.cat([batch.images for batch in disk(workers=0).epoch(8)]))
    for workers in (1, 2, 5):
        images = [batch.images for batch in disk(workers=workers).epoch(7)]
        assert all(torch.equal(a, b) for a, b in zip(images, expected, strict=True))


def test_batches_may_be_kept() -> None:
    kept = list(disk(lambda image, i, epoch: image, workers=3).epoch(0))
    assert np.array_equal(torch.cat([b.images for b in kept]), IMAGES[torch.cat([b.indices for b in kept])])


def test_memory_loader_without_keys_and_with_wrong_lengths() -> None:
    assert next(memory(keys=()).epoch(0)).keys == ()
    with pytest.raises(UsageError, match="received 23, 23, 2"):
        memory(keys=["a", "b"])
    with pytest.raises(UsageError, match="received 23, 3, 0"):
        MemoryLoader(torch.from_numpy(IMAGES), torch.zeros(3, dtype=torch.int64), batch_size=2)


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("opsin")]


def test_look_ahead_is_bounded_and_threads_end() -> None:
    prepared: list[int] = []

    def prepare(image: Tensor, i: int, epoch: int) -> Tensor:
        prepared.append(i)
        return image

    batches = disk(prepare, workers=2, batch_size=2).epoch(0)
    assert not prepared and not loader_threads()  # nothing starts before the first batch is asked for
    next(batches)
    time.sleep(0.1)
    assert len(prepared) <= 2 * (LOOK_AHEAD + 1) and loader_threads()
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not loader_threads()
    for _ in disk(workers=2).epoch(0):
        break
    gc.collect()
    assert not loader_threads()
    list(disk(workers=2).epoch(0))
    assert not loader_threads()


def test_bad_picture_surfaces_in_the_consumer_and_leaves_no_threads(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for i in range(30):
        (tmp_path / f"a/{i:02d}.png").write_bytes(make.encode(make.gradient(4, 5)))
    for i in (12, 27):
        (tmp_path / f"a/{i:02d}.png").write_bytes(b"junk")
    for workers in (0, 3):
        loader = DiskLoader(
            scan(tmp_path), lambda x, i, e: x, size=(4, 5), batch_size=5, shuffle=False, workers=workers
        )
        batches = loader.epoch(0)
        assert len(next(batches).images) == 5 and len(next(batches).images) == 5
        with pytest.raises(BadInput, match=r"a/12\.png: not a picture"):
            next(batches)
        assert not loader_threads()


def test_prepare_of_a_wrong_size_or_type() -> None:
    with pytest.raises(UsageError, match=r"prepare: expected uint8 \(3, 4, 5\), received torch.uint8 \(3, 4, 4\)"):
        next(disk(lambda image, i, epoch: image[..., 1:]).epoch(0))
    with pytest.raises(UsageError, match=r"received torch.float32"):
        next(disk(lambda image, i, epoch: image.float(), workers=0).epoch(0))


def test_min_size_reaches_the_decoder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.jpg").write_bytes(make.encode(make.gradient(160, 240), "JPEG"))
    seen: list[tuple[int, ...]] = []

    def prepare(image: Tensor, i: int, epoch: int) -> Tensor:
        seen.append(tuple(image.shape))
        return image[:, :8, :8]

    for min_size in (None, (40, 40)):
        next(DiskLoader(scan(tmp_path), prepare, size=(8, 8), batch_size=1, min_size=min_size).epoch(0))
    assert seen == [(3, 160, 240), (3, 40, 60)]


# ---------------------------------------------------------------------------------------------------------------------
# Everything in memory
# ---------------------------------------------------------------------------------------------------------------------

PLAIN = Preprocess(size=(4, 5))


def test_pictures_that_fit_are_copied_as_they_are() -> None:
    index = Index(KEYS, LABELS, ("a", "b", "c"), ArraySource(IMAGES))
    images, labels, kept = load_memory(index, PLAIN)
    assert np.array_equal(images, IMAGES) and np.array_equal(labels, LABELS) and kept is index
    images.fill_(0)
    assert IMAGES.any()


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(size=(8, 8)),
        Preprocess(size=(4, 5), channels=1, mean=(0.0,), std=(1.0,)),
        Preprocess(size=(4, 5), crop_fraction=0.5),
    ],
)
def test_pictures_are_prepared_as_one_by_one(preprocess: Preprocess, workers: int) -> None:
    index = Index(KEYS, LABELS, ("a", "b", "c"), ArraySource(IMAGES))
    seen: list[int] = []
    images, _, _ = load_memory(index, preprocess, workers=workers, progress=lambda done, total: seen.append(done))
    assert torch.equal(images, torch.stack([preprocess.prepare(index.image(i)) for i in range(N)]))
    assert seen[-1] == N


def test_files_are_decoded_at_twice_the_size_that_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.jpg").write_bytes(make.encode(make.gradient(320, 320), "JPEG", quality=95))
    preprocess = Preprocess(size=(16, 16), crop_fraction=0.8)
    index = scan(tmp_path)
    assert decode_size(preprocess) == (40, 40)
    images, _, _ = load_memory(index, preprocess)
    assert torch.equal(images[0], preprocess.prepare(index.image(0, (40, 40))))
    full = preprocess.prepare(index.image(0))
    difference = (images[0].float() - full.float()).abs()
    assert difference.max() <= 6 and difference.mean() <= 1.5


@dataclass
class Fragile:
    """A source of which some pictures cannot be read."""

    bad: set[int]

    def image(self, i: int, min_size: tuple[int, int] | None = None) -> Tensor:
        if i in self.bad:
            raise BadInput(f"{i}.png", "torn")
        return torch.full((3, 4, 5), i, dtype=torch.uint8)

    def subset(self, indices: np.ndarray) -> Fragile:
        return Fragile(set())


@pytest.mark.parametrize("workers", [1, 4])
def test_bad_pictures_stop_or_are_left_out(workers: int) -> None:
    index = Index(KEYS, LABELS, ("a", "b", "c"), Fragile({4, 9, 20}))
    with pytest.raises(BadInput, match=r"^4\.png: torn \(2 more of 23 pictures cannot be used either\)$"):
        load_memory(index, PLAIN, workers=workers)
    images, labels, kept = load_memory(index, PLAIN, workers=workers, on_bad_image="skip")
    left = [i for i in range(N) if i not in (4, 9, 20)]
    assert images[:, 0, 0, 0].tolist() == left and labels.tolist() == LABELS[left].tolist()
    assert kept.keys == [KEYS[i] for i in left] and [error.path for error in kept.skipped] == [
        "4.png",
        "9.png",
        "20.png",
    ]
    with pytest.raises(BadInput, match=r"^4\.png: torn$"):
        load_memory(Index(KEYS, LABELS, ("a", "b", "c"), Fragile({4})), PLAIN, workers=workers)


def test_a_class_that_loses_all_its_pictures_is_an_error() -> None:
    index = Index(KEYS, LABELS, ("a", "b", "c"), Fragile({i for i in range(N) if LABELS[i] == 1}))
    with pytest.raises(DataError, match="no picture that can be read is left in b"):
        load_memory(index, PLAIN, on_bad_image="skip")


# ---------------------------------------------------------------------------------------------------------------------
# Balanced drawing
# ---------------------------------------------------------------------------------------------------------------------

UNEVEN = np.repeat(np.arange(3), [700, 250, 50]).astype(np.int64)


@pytest.mark.parametrize(("balance", "power"), [("classes", 0.0), ("root", 0.5)])
def test_a_pass_draws_classes_as_often_as_asked(balance: str, power: float) -> None:
    wanted = shares(UNEVEN, balance)
    assert wanted is not None and shares(UNEVEN, "") is None
    part = np.array([700, 250, 50]) ** power
    for epoch in range(3):
        places = drawn(5, epoch, wanted)
        counts = np.bincount(UNEVEN[places])
        assert len(places) == 1000 and np.abs(counts - 1000 * part / part.sum()).max() <= 1
        times = np.bincount(places, minlength=1000)
        assert ((times >= np.floor(wanted - 1e-9)) & (times <= np.ceil(wanted + 1e-9))).all()
    assert np.array_equal(drawn(5, 1, wanted), drawn(5, 1, wanted))
    assert not np.array_equal(drawn(5, 1, wanted), drawn(5, 2, wanted))
    assert not np.array_equal(drawn(5, 1, wanted), drawn(6, 1, wanted))
    assert abs(np.corrcoef(np.arange(1000), UNEVEN[drawn(5, 0, wanted)])[0, 1]) < 0.1  # shuffled


def test_every_picture_comes_in_some_pass() -> None:
    wanted = shares(UNEVEN, "classes")
    assert wanted is not None
    assert len(np.unique(np.concatenate([drawn(0, epoch, wanted) for epoch in range(20)]))) == 1000


def test_of_many_labels_the_rarest_decides() -> None:
    labels = np.zeros((100, 3), dtype=np.float32)
    labels[:80, 0], labels[70:90, 1], labels[78:80, 2], labels[95:, 2] = 1, 1, 1, -1
    wanted = shares(labels, "classes")
    assert wanted is not None
    np.testing.assert_allclose(wanted / wanted[0], [1.0] * 70 + [4.0] * 8 + [40.0] * 2 + [4.0] * 10 + [8.0] * 10)


def test_both_loaders_draw_alike_and_start_anywhere() -> None:
    images = make.noise(90, 1, 4, 4)
    labels = np.repeat([0, 1], [80, 10]).astype(np.int64)
    index = Index([str(i) for i in range(90)], labels, ("a", "b"), ArraySource(images))
    memory = MemoryLoader(
        torch.from_numpy(images), torch.from_numpy(labels), batch_size=16, seed=2, balance="classes", keys=index.keys
    )
    disk = DiskLoader(
        index, lambda image, i, epoch: image, size=(4, 4), channels=1, batch_size=16, seed=2, balance="classes"
    )
    whole = list(memory.epoch(3))
    assert 43 <= sum(int((batch.labels == 1).sum()) for batch in whole) <= 47
    for start in (0, 4):
        for one, other in zip(whole[start:], disk.epoch(3, start), strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
            assert torch.equal(one.indices, other.indices) and list(one.keys) == list(other.keys)
