"""Readers: what the original's own tests asked for (decorator_test.py, creator_test.py at v0.11.0), and what broke it:
exceptions in threads, threads that never ended."""

from __future__ import annotations

import gzip
import itertools
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opsin.errors import DataError, UsageError
from opsin.v2 import minibatch, reader


def ten(pause: float = 0) -> Callable[[], Iterator[int]]:
    def numbers() -> Iterator[int]:
        for i in range(10):
            time.sleep(pause)
            yield i

    return numbers


def broken() -> Iterator[int]:
    yield from range(3)
    raise DataError("picture 3 is damaged")


def settle(before: int) -> None:
    """Wait until no more threads run than before."""
    deadline = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.001)


def test_map_readers() -> None:
    words = {"h": 0, "i": 1}
    assert list(reader.map_readers(words.__getitem__, lambda: iter("hi"))()) == [0, 1]
    assert list(reader.map_readers(max, ten(), lambda: iter([5, 5, 0]))()) == [5, 5, 2]


@pytest.mark.parametrize("size", range(20))
def test_buffered_keeps_the_order(size: int) -> None:
    made = reader.buffered(ten(), size)
    assert list(made()) == list(made()) == list(range(10))


def test_buffered_reads_ahead_but_not_more() -> None:
    read = []

    def numbers() -> Iterator[int]:
        for i in itertools.count():
            read.append(i)
            yield i

    before = threading.active_count()
    ahead = reader.buffered(numbers, 4)()
    assert next(iter(ahead)) == 0
    deadline = time.monotonic() + 10
    while len(read) < 6 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(read) == 6  # one taken, four waiting, one in the thread's hand
    ahead.close()  # type: ignore[attr-defined]
    settle(before)


def test_buffered_hides_the_time_of_reading() -> None:
    taken = reader.buffered(ten(0.03), 10)()
    next(iter(taken))
    time.sleep(0.6)
    start = time.monotonic()
    assert list(taken) == list(range(1, 10))
    assert time.monotonic() - start < 0.15  # 0.27 s unless they were read meanwhile


def test_compose() -> None:
    assert list(reader.compose(ten(), ten())()) == [(i, i) for i in range(10)]
    pairs = reader.compose(lambda: iter([(1, 2), (6, None)]), lambda: iter([3, None]), lambda: iter([(4, 5), ()]))
    assert list(pairs()) == [(1, 2, 3, 4, 5), (6, None, None)]


def test_compose_tells_that_readers_are_not_aligned() -> None:
    longer = reader.chain(ten(), ten())
    got = []
    with pytest.raises(reader.ComposeNotAligned, match=r"number 1 \(from 0\) ended first"):
        for sample in reader.compose(longer, ten())():
            got.append(sample)
    assert len(got) == 10 and issubclass(reader.ComposeNotAligned, ValueError)
    assert len(list(reader.compose(longer, ten(), check_alignment=False)())) == 10


def test_chain_and_firstn() -> None:
    both = reader.chain(ten(), ten())
    assert list(both()) == list(both()) == [*range(10), *range(10)]
    assert list(reader.firstn(both, 12)()) == [*range(10), 0, 1]
    assert list(reader.firstn(ten(), 0)()) == [] and len(list(reader.firstn(ten(), 99)())) == 10


@pytest.mark.parametrize(("size", "same"), [(0, True), (1, True), (10, False), (100, False)])
def test_shuffle(size: int, same: bool) -> None:
    random.seed(1)
    got = list(reader.shuffle(ten(), size)())
    assert sorted(got) == list(range(10)) and (got == list(range(10))) == same


def test_shuffle_mixes_within_its_buffer_only() -> None:
    got = list(reader.shuffle(ten(), 4)())
    assert [sorted(got[i : i + 4]) for i in (0, 4, 8)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("order", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 4, 8, 16])
def test_xmap_readers(threads: int, order: bool) -> None:
    before = threading.active_count()
    for size in (1, 2, 4, 8, 16):
        made = reader.xmap_readers(lambda x: x + 1, ten(), threads, size, order)
        for _ in range(3):
            assert list(made()) == list(range(1, 11))
    settle(before)


def test_xmap_keeps_the_order_of_slow_and_fast_samples_and_runs_them_together() -> None:
    together = threading.Barrier(4, timeout=10)

    def slow_first(x: int) -> int:
        if x < 4:
            together.wait()  # passes only when four threads are in it at once
            time.sleep(0.02 * (4 - x))
        return x

    assert list(reader.xmap_readers(slow_first, ten(), 4, 8)()) == list(range(10))


def fail_at_five(x: int) -> int:
    if x == 5:
        raise DataError("picture 5 is damaged")
    return x


@pytest.mark.parametrize(
    ("made", "good"),
    [
        (reader.buffered(broken, 2), 3),
        (reader.xmap_readers(abs, broken, 2, 2), 3),
        (reader.xmap_readers(fail_at_five, ten(), 3, 2), 5),
        (reader.xmap_readers(fail_at_five, ten(), 3, 2, order=True), 5),
        (reader.map_readers(fail_at_five, ten()), 5),
    ],
)
def test_an_error_is_raised_where_the_samples_are_taken(made: Callable[[], Iterator[int]], good: int) -> None:
    before, got = threading.active_count(), []
    with pytest.raises(DataError, match="is damaged"):
        for sample in made():
            got.append(sample)
    assert got == list(range(good))
    settle(before)


def test_no_thread_outlives_an_iterator_that_is_left() -> None:
    before = threading.active_count()
    endless = itertools.count
    for made in (
        reader.buffered(endless, 3),
        reader.xmap_readers(abs, endless, 4, 3),
        reader.buffered(reader.xmap_readers(abs, reader.buffered(endless, 1), 2, 1), 1),
    ):
        taken = made()
        assert [next(iter(taken)) for _ in range(5)] == list(range(5))
        taken.close()  # type: ignore[attr-defined]
        settle(before)


def test_xmap_needs_a_thread() -> None:
    with pytest.raises(UsageError, match="process_num: expected at least 1, received 0"):
        reader.xmap_readers(abs, ten(), 0, 1)


def test_batch() -> None:
    assert list(minibatch.batch(ten(), 4)()) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(reader.batch(reader=ten(), batch_size=4, drop_last=True)()) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert list(minibatch.batch(lambda: iter(()), 4)()) == []
    with pytest.raises(UsageError, match="batch_size: expected at least 1, received 0"):
        minibatch.batch(ten(), 0)


def test_np_array() -> None:
    rows = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    assert [row.tolist() for row in reader.creator.np_array(rows)()] == rows.tolist()
    assert list(reader.creator.np_array(7)()) == [7]


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes("one\n\nthrée \nend".encode())
    made = reader.creator.text_file(path)
    assert list(made()) == list(made()) == ["one", "", "thrée ", "end"]


def test_record_files_are_out_of_scope() -> None:
    with pytest.raises(AttributeError, match="RecordIO files are not supported"):
        _ = reader.creator.recordio


@pytest.mark.parametrize("packed", [False, True])
def test_pipe_reader(tmp_path: Path, packed: bool) -> None:
    lines = [f"{i} é" for i in range(1000)]
    path = tmp_path / "some lines.txt"
    data = "\r\n".join(lines).encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    kind: Any = "gzip" if packed else "plain"
    made = reader.pipe_reader(f"cat '{path}'", lambda lines: lines, 64, kind, line_break="\r\n")
    assert list(made()) == list(made()) == lines
    pieces = reader.pipe_reader(f"cat '{path}'", lambda piece: [piece], 64, kind, cut_lines=False)
    assert b"".join(pieces()) == data and max(map(len, pieces())) <= 64


def test_pipe_reader_says_what_went_wrong(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="left_cmd: expected a string"):
        reader.pipe_reader(["cat"], list)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="received 'zip'"):
        reader.pipe_reader("cat x", list, file_type="zip")
    with pytest.raises(DataError, match="ended with exit code 3"):
        list(reader.pipe_reader(f"{sys.executable} -c 'raise SystemExit(3)'", list)())
    (tmp_path / "cut.gz").write_bytes(gzip.compress(bytes(9999))[:-9])
    with pytest.raises(DataError, match="end-of-stream"):
        list(reader.pipe_reader(f"cat {tmp_path / 'cut.gz'}", list, file_type="gzip")())


def test_a_pipe_that_is_left_ends_its_command() -> None:
    start = time.monotonic()
    lines = reader.pipe_reader(f"{sys.executable} -uc 'print(1); import time; time.sleep(60)'", list, bufsize=1)()
    assert next(iter(lines)) == "1"
    lines.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 30
