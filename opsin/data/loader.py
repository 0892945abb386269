"""Batches: from memory when everything fits, else decoded by threads while training runs.

Both loaders give the same pictures in the same order for a (seed, epoch), whatever the number of workers, and can start
at any batch of an epoch: a training that was interrupted goes on exactly.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opsin.data.index import ArraySource, Index, first_of, in_threads, pick, without
from opsin.data.rng import order as order
from opsin.errors import BadInput, OpsinError, UsageError
from opsin.preprocess import Preprocess, put
from opsin.types import Batch

LOOK_AHEAD = 3  # batches under way beside the one that is waited for
PATIENCE = 0.5  # seconds after which the caller does itself what no worker has begun


def batch_bounds(n: int, batch_size: int) -> list[tuple[int, int]]:
    """(start, stop) of each batch of n pictures. The last one may be short, but a single picture joins the batch
    before it: batch normalisation needs two.

    >>> batch_bounds(9, 4)
    [(0, 4), (4, 9)]
    """
    if batch_size < 1:
        raise UsageError(f"batch_size: expected at least 1, received {batch_size}")
    starts = list(range(0, n, batch_size))
    if len(starts) > 1 and n - starts[-1] == 1 < batch_size:
        starts.pop()
    return list(zip(starts, [*starts[1:], n], strict=True)) if starts else []


def shares(labels: np.ndarray, balance: str) -> np.ndarray | None:
    """How often each picture is to come in a pass, float64 [N] of mean 1; None for once each.

    labels: int64 [N] or float32 [N, K]. "classes": by the inverse frequency of its class, "root": by the root of that.
    Of many labels the rarest decides; pictures without any are a class of their own.
    """
    if not balance:
        return None
    if labels.ndim == 1:
        frequency = np.bincount(labels)[labels].astype(np.float64)
    else:
        there = np.column_stack([labels == 1, ~(labels == 1).any(1)])
        frequency = np.where(there, there.sum(0), len(labels)).min(1).astype(np.float64)
    wanted = frequency ** (-1.0 if balance == "classes" else -0.5)
    return wanted / wanted.mean()


def drawn(seed: int, epoch: int, shares: np.ndarray) -> np.ndarray:
    """The places of a pass, int64 [N], in which picture i comes ⌊shares[i]⌋ or ⌈shares[i]⌉ times, and those of one
    share as often as they should, to one picture: systematic sampling of pictures in a random order within their share,
    then shuffled. A function of the arguments alone."""
    n = len(shares)
    first, second = order(seed, 2 * epoch, n), order(seed, 2 * epoch + 1, n)
    first = first[np.argsort(shares[first], kind="stable")]
    ends = shares[first].cumsum()
    ends *= n / ends[-1]
    offset = (second[0] + 0.5) / n
    taken = np.searchsorted(ends, np.arange(n) + offset, side="right").clip(max=n - 1)
    return first[taken][second]


class _Loader:
    """What both loaders share: which pictures are in which batch. shares: see `shares`."""

    def __init__(
        self, num_samples: int, batch_size: int, seed: int, shuffle: bool, shares: np.ndarray | None = None
    ) -> None:
        self.num_samples, self.seed, self.shuffle, self.shares = num_samples, seed, shuffle, shares
        self.bounds = batch_bounds(num_samples, batch_size)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.bounds)

    def places(self, epoch: int, start: int) -> Iterator[np.ndarray]:
        """The places in the data set of each batch from number `start` on, int64 [B]."""
        if not 0 <= start <= len(self.bounds):
            raise UsageError(f"start: expected 0 to {len(self.bounds)} (batches in an epoch), received {start}")
        if self.shares is not None:
            places = drawn(self.seed, epoch, self.shares)
        else:
            places = order(self.seed, epoch, self.num_samples) if self.shuffle else np.arange(self.num_samples)
        return (places[first:last] for first, last in self.bounds[start:])


class MemoryLoader(_Loader):
    """Batches of pictures that lie in memory, on any device.

    images: uint8 [N, C, H, W]. labels: int64 [N] or float32 [N, K], on the same device. keys: names of the
    pictures, for reports. Batches are on that device; their `indices` stay on the CPU.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        keys: Sequence[str] = (),
        balance: str = "",
    ) -> None:
        if len(images) != len(labels) or (keys and len(keys) != len(labels)):
            raise UsageError(
                f"expected as many labels and keys as pictures, received {len(images)}, {len(labels)}, {len(keys)}"
            )
        super().__init__(len(images), batch_size, seed, shuffle, shares(labels.cpu().numpy(), balance))
        self.images, self.labels, self.keys = images, labels, keys

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""
        for places in self.places(epoch, start):
            indices = torch.from_numpy(np.ascontiguousarray(places))
            keys = pick(self.keys, places) if self.keys else ()
            if self.shuffle or self.shares is not None:
                there = indices.to(self.images.device, non_blocking=True)
                images, labels = self.images.index_select(0, there), self.labels.index_select(0, there)
            else:
                first = int(places[0])
                images, labels = self.images[first : first + len(places)], self.labels[first : first + len(places)]
            yield Batch(images, labels, indices, epoch, keys)


class DiskLoader(_Loader):
    """Batches whose pictures are decoded and prepared by threads, a few batches ahead of who asks for them.

    prepare(image, place in the index, epoch): a decoded picture, uint8 [c, h, w], to uint8 [channels, *size]; its
    randomness may depend on its arguments alone. min_size: (H, W) at which JPEGs may be decoded (see
    `opsin.data.decode.decode`), or None for the full size. workers: threads; 0 prepares in the caller's.
    Memory: `LOOK_AHEAD` + 1 batches, and one decoded picture per worker.
    """

    def __init__(
        self,
        index: Index,
        prepare: Callable[[Tensor, int, int], Tensor],
        *,
        size: tuple[int, int],
        channels: int = 3,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        workers: int = 2,
        min_size: tuple[int, int] | None = None,
        balance: str = "",
    ) -> None:
        super().__init__(len(index), batch_size, seed, shuffle, shares(index.labels, balance))
        self.index, self.prepare, self.shape = index, prepare, (channels, *size)
        self.workers, self.min_size = workers, min_size
        self.labels = torch.from_numpy(index.labels.copy())

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on. `BadInput` names the first picture that cannot be read.

        The threads end when the iterator does, or is closed; one amid a picture that takes long ends after it.
        """
        places = self.places(epoch, start)  # here, so that a wrong `start` is an error now, not at the first batch
        return self._threaded(epoch, places) if self.workers else self._plain(epoch, places)

    def _row(self, images: Tensor, row: int, place: int, epoch: int) -> None:
        put(images[row], self._checked(self.prepare(self.index.image(place, self.min_size), place, epoch)))

    def _checked(self, image: Tensor) -> Tensor:
        if image.shape != self.shape or image.dtype != torch.uint8:
            raise UsageError(f"prepare: expected uint8 {self.shape}, received {image.dtype} {tuple(image.shape)}")
        return image

    def _batch(self, images: Tensor, places: np.ndarray, epoch: int) -> Batch:
        indices = torch.from_numpy(places.copy())
        return Batch(images, self.labels[indices], indices, epoch, pick(self.index.keys, places))

    def _plain(self, epoch: int, batches: Iterator[np.ndarray]) -> Iterator[Batch]:
        for places in batches:
            images = torch.empty((len(places), *self.shape), dtype=torch.uint8)
            for row, place in enumerate(places):
                self._row(images, row, int(place), epoch)
            yield self._batch(images, places, epoch)

    def _settle(self, task: Future[None], images: Tensor, row: int, place: int, epoch: int) -> None:
        """Wait for a worker's row, or do it here when its worker was killed before it or in it.

        A row is a pure function of its place and the epoch: whoever does it, it is the same.
        """
        try:
            error = task.exception(PATIENCE)
        except TimeoutError:
            error = CancelledError() if task.cancel() else task.exception()
        if isinstance(error, OpsinError):
            raise error
        if error is not None:
            self._row(images, row, place, epoch)

    def _threaded(self, epoch: int, batches: Iterator[np.ndarray]) -> Iterator[Batch]:
        threads: list[threading.Thread] = []
        pool = ThreadPoolExecutor(
            self.workers, "opsin-loader", initializer=lambda: threads.append(threading.current_thread())
        )
        waiting: deque[tuple[Tensor, np.ndarray, list[Future[None]]]] = deque()
        try:
            while True:
                while len(waiting) <= LOOK_AHEAD and (places := next(batches, None)) is not None:
                    # One allocation a batch; the workers write into its rows. It is not used again: the consumer may
                    # keep a batch as long as it likes.
                    images = torch.empty((len(places), *self.shape), dtype=torch.uint8)
                    tasks = [pool.submit(self._row, images, row, int(i), epoch) for row, i in enumerate(places)]
                    waiting.append((images, places, tasks))
                if not waiting:
                    return
                images, places, tasks = waiting.popleft()
                for row, task in enumerate(tasks):
                    self._settle(task, images, row, int(places[row]), epoch)
                yield self._batch(images, places, epoch)
        finally:
            # Not `wait=True`: a worker that was killed where it waits for work can swallow the one word that tells all
            # to end, and the others would be waited for without end. They end with the process, then.
            pool.shutdown(wait=False, cancel_futures=True)
            for thread in threads:
                thread.join(PATIENCE)


# ---------------------------------------------------------------------------------------------------------------------
# Everything at once
# ---------------------------------------------------------------------------------------------------------------------


class Loaded(NamedTuple):
    """Prepared pictures, uint8 [N, C, H, W], their labels as the index has them, and the index of just these pictures.

    `kept.skipped` lists what was left out.
    """

    images: Tensor
    labels: Tensor
    kept: Index


def decode_size(preprocess: Preprocess) -> tuple[int, int]:
    """The (H, W) at which a JPEG may be decoded for this preprocessing: twice what the network sees, so that the
    anti-aliased resize, not the DCT's scaling, decides how the small picture looks. Training, evaluation and prediction
    all use it."""
    height, width = preprocess.size
    return math.ceil(2 * height / preprocess.crop_fraction), math.ceil(2 * width / preprocess.crop_fraction)


def load_memory(
    index: Index,
    preprocess: Preprocess,
    *,
    workers: int = 2,
    on_bad_image: str = "error",
    progress: Callable[[int, int], None] | None = None,
) -> Loaded:
    """Every picture of an index, decoded and prepared once.

    on_bad_image: "error" raises `BadInput` with the first picture, in order, that cannot be read, and the number of the
    others; "skip" leaves them out, listed in the returned index's `skipped`; `DataError` when a class loses them all.
    """
    source = index.source
    shape = (preprocess.channels, *preprocess.size)
    if isinstance(source, ArraySource) and source.images.shape[1:] == shape and preprocess.crop_fraction == 1:
        return Loaded(torch.from_numpy(source.copy()), torch.from_numpy(index.labels.copy()), index)
    images = torch.empty((len(index), *shape), dtype=torch.uint8)
    min_size = decode_size(preprocess)
    bad: dict[int, BadInput] = {}

    def prepare_one(i: int) -> None:
        try:
            put(images[i], preprocess.prepare(index.image(i, min_size)))
        except BadInput as error:
            bad[i] = error

    in_threads(prepare_one, len(index), workers, progress)
    if bad:
        bad = dict(sorted(bad.items()))
        if on_bad_image != "skip":
            raise first_of(list(bad.values()), len(index))
        images = images[[i for i in range(len(index)) if i not in bad]]
        index = without(index, bad)
    return Loaded(images, torch.from_numpy(index.labels.copy()), index)
