"""Readers made of readers. A reader is a function that returns a new iterator of samples, each time it is called.

What goes wrong in a thread is raised where the samples are taken, and no thread outlives its iterator: also when that
is left early.
"""

from __future__ import annotations

import gzip
import io
import itertools
import queue
import random
import shlex
import subprocess
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from opsin.errors import DataError, UsageError

Reader = Callable[[], Iterable[Any]]


class ComposeNotAligned(ValueError):
    """The readers that `compose` joins are of different lengths."""


def map_readers(func: Callable[..., Any], *readers: Reader) -> Reader:
    """func(a sample of the first reader, of the second …), as long as all have one."""
    return lambda: map(func, *(reader() for reader in readers))


def chain(*readers: Reader) -> Reader:
    """All samples of the first reader, then all of the second …"""
    return lambda: itertools.chain.from_iterable(reader() for reader in readers)


def firstn(reader: Reader, n: int) -> Reader:
    """The first n samples."""
    return lambda: itertools.islice(reader(), n)


def compose(*readers: Reader, check_alignment: bool = True) -> Reader:
    """One tuple of a sample of each reader; what is a tuple already is joined flat: (1, 2), 3 → (1, 2, 3).

    `ComposeNotAligned` at the end of the shortest, unless check_alignment is False: then all end there. (None is a
    sample like any other; the original took it for the end.)
    """
    end = object()

    def composed() -> Iterator[tuple[Any, ...]]:
        for samples in itertools.zip_longest(*(reader() for reader in readers), fillvalue=end):
            if any(sample is end for sample in samples):
                if check_alignment:
                    at = [i for i, sample in enumerate(samples) if sample is end]
                    raise ComposeNotAligned(f"readers of different lengths: number {at[0]} (from 0) ended first")
                return
            yield tuple(itertools.chain.from_iterable(x if isinstance(x, tuple) else (x,) for x in samples))

    return composed


def shuffle(reader: Reader, buf_size: int) -> Reader:
    """buf_size samples at a time in a random order, by Python's `random`; 0 and 1 keep the order."""

    def shuffled() -> Iterator[Any]:
        samples = iter(reader())
        while buffer := list(itertools.islice(samples, max(1, buf_size))):
            random.shuffle(buffer)
            yield from buffer

    return shuffled


def buffered(reader: Reader, size: int) -> Reader:
    """The same samples, read by a thread up to `size` ahead; 0 for any number."""

    def ahead() -> Iterator[Any]:
        waiting: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        places, left = threading.Semaphore(size), threading.Event()

        def fill() -> None:
            try:
                for sample in reader():
                    if size > 0:
                        places.acquire()
                    if left.is_set():
                        return
                    waiting.put((True, sample))
                waiting.put((False, None))
            except BaseException as error:
                waiting.put((False, error))

        threading.Thread(target=fill, name="buffered reader", daemon=True).start()
        try:
            while True:
                more, value = waiting.get()
                if not more:
                    if value is not None:
                        raise value
                    return
                places.release()
                yield value
        finally:
            left.set()
            places.release()

    return ahead


def xmap_readers(
    mapper: Callable[[Any], Any], reader: Reader, process_num: int, buffer_size: int, order: bool = False
) -> Reader:
    """mapper(sample) of every sample, by `process_num` threads, at most `buffer_size` samples ahead of each of these.

    The order is kept for either `order`, which is more than was promised: so the same program sees the same batches.
    """
    if process_num < 1:
        raise UsageError(f"xmap_readers: process_num: expected at least 1, received {process_num}")
    most = process_num + max(1, buffer_size)

    def mapped() -> Iterator[Any]:
        pool, running = ThreadPoolExecutor(process_num, "xmap reader"), deque[Future[Any]]()

        def started() -> Iterator[Future[Any]]:
            try:
                for sample in buffered(reader, max(1, buffer_size))():
                    yield pool.submit(mapper, sample)
            except Exception as error:  # the reader's; raised after the samples before it
                failed: Future[Any] = Future()
                failed.set_exception(error)
                yield failed

        try:
            for job in started():
                running.append(job)
                if len(running) >= most:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    return mapped


def pipe_reader(
    left_cmd: str,
    parser: Callable[[Any], Iterable[Any]],
    bufsize: int = 8192,
    file_type: str = "plain",
    cut_lines: bool = True,
    line_break: str = "\n",
) -> Reader:
    """The samples that `parser` finds in what a command writes, for instance "hadoop fs -cat PATH".

    The command is started anew for each iterator; no shell sees it. file_type: "plain" or "gzip". parser: is called
    again and again with a list of lines (UTF-8, without their ends "\\n", "\\r" or "\\r\\n") of about `bufsize` bytes,
    or unless cut_lines with so many bytes; it returns samples. A command that fails is a `DataError`.
    """
    if not isinstance(left_cmd, str):
        raise TypeError(f"left_cmd: expected a string, received {type(left_cmd).__name__}")
    if file_type not in ("plain", "gzip") or line_break not in ("\n", "\r", "\r\n"):
        raise UsageError(
            "pipe_reader: expected a file_type of plain or gzip and a line_break of \\n, \\r or \\r\\n, "
            f"received {file_type!r} and {line_break!r}"
        )

    def samples() -> Iterator[Any]:
        with subprocess.Popen(shlex.split(left_cmd), stdout=subprocess.PIPE) as process:
            assert process.stdout
            try:
                stream: Any = gzip.GzipFile(fileobj=process.stdout) if file_type == "gzip" else process.stdout
                if cut_lines:
                    text = io.TextIOWrapper(stream, encoding="utf-8", newline=line_break)
                    while lines := text.readlines(bufsize):
                        yield from parser([line.removesuffix(line_break) for line in lines])
                else:
                    while piece := stream.read(bufsize):
                        yield from parser(piece)
            except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
                raise DataError(f"{left_cmd}: {error}") from error
            except GeneratorExit:
                process.kill()
                raise
        if process.returncode:
            raise DataError(f"{left_cmd}: ended with exit code {process.returncode}")

    return samples
