"""Decoding in processes of their own: a picture that crashes its decoder, or lets it run away, costs itself only.

Decoders are large C programs that read bytes from anywhere. A decode worker is a new Python (never a fork: this process
may have threads) with numpy and the decoders but without torch, which answers one request after the other over a
socket: lengths and bytes, nothing that could be executed. It has no core files, can write no file, and is killed when
a picture takes longer than `Limits.seconds`; on Linux a decoder gets `Limits.megabytes` of memory beside the file
itself (macOS does not enforce such a limit). Workers end with their parent, however that ends: they read the end of the
socket, their own alarm clock ends a decoder that does not come back, and Linux kills them at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from opsin.data.decode import MAX_PIXELS, decode_pixels, upright
from opsin.errors import BadInput, DecoderStopped, OpsinError

if TYPE_CHECKING:
    from types import TracebackType

    from torch import Tensor

START_SECONDS = 60.0  # for a new worker to import what it needs
REQUEST = struct.Struct(">QIIQ?")  # bytes of the file, least height and width (0: full size), most pixels, send pixels?
REPLY = struct.Struct(">BIIBI")  # orientation, height, width, channels, bytes of the reason why it is refused


class Limits(NamedTuple):
    """What decoding one picture may take. megabytes: beside the bytes of its file."""

    seconds: float = 5.0
    megabytes: int = 512


LIMITS = Limits()

# ---------------------------------------------------------------------------------------------------------------------
# This side
# ---------------------------------------------------------------------------------------------------------------------


class Decoders:
    """Up to `workers` decode workers, started when they are needed. A context manager, to be used from any threads."""

    def __init__(self, workers: int = 2, limits: Limits = LIMITS) -> None:
        self.limits = limits
        # To Linux, the parent of a process is the thread that started it: it has to live as long as this object.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="opsin-decoders")
        self._all: list[_Worker] = []
        self._free: queue.LifoQueue[_Worker | None] = queue.LifoQueue()  # None: one that may be started
        for _ in range(max(1, workers)):
            self._free.put(None)

    def __enter__(self) -> Decoders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers. What is being decoded ends as a `DecoderStopped`."""
        for worker in self._all:
            worker.close()
        self._starter.shutdown()

    def check(self, data: bytes, name: str) -> None:
        """Decode and forget: `BadInput` when the picture is damaged, `DecoderStopped` when it stopped its worker.

        JPEGs are decoded at an eighth of their size, which reads all their bytes.
        """
        self._ask(data, name, (1, 1), MAX_PIXELS, False)

    def decode(
        self, data: bytes, name: str, *, min_size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
    ) -> Tensor:
        """As `opsin.data.decode.decode`; also raises `DecoderStopped`."""
        return upright(*self._ask(data, name, min_size, max_pixels, True))

    def _start(self) -> _Worker:
        try:
            worker = self._starter.submit(_Worker, self.limits).result()
        except OSError as error:
            raise OpsinError(f"cannot start a decode worker: {error}") from error
        self._all.append(worker)
        return worker

    def _ask(
        self, data: bytes, name: str, min_size: tuple[int, int] | None, max_pixels: int, pixels: bool
    ) -> tuple[np.ndarray, int]:
        worker = self._free.get()
        try:
            if worker is not None and worker.process.poll() is not None:  # ended, by its last picture or another's hand
                self._all.remove(worker)
                worker.close()
                worker = None
            worker = worker or self._start()
            return worker.ask(data, name, min_size, max_pixels, pixels)
        finally:
            self._free.put(worker)


class _Worker:
    """One process and the socket to it."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.ready = limits, False
        # It finds the modules that this process has found, and never those of the working directory.
        path = [*filter(None, sys.path), str(Path(__file__).parents[2])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OPENBLAS_NUM_THREADS": "1"}
        arguments = [str(limits.seconds), str(limits.megabytes)]
        self.link, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-B", "-m", "opsin.data.sandbox", *arguments],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libtiff complains there
                env=environment,
            )

    def ask(
        self, data: bytes, name: str, min_size: tuple[int, int] | None, max_pixels: int, pixels: bool
    ) -> tuple[np.ndarray, int]:
        try:
            if not self.ready:
                self._receive(1, time.monotonic() + START_SECONDS)
                self.ready = True
        except (OSError, EOFError) as error:
            code = self.close()
            raise OpsinError(f"a decode worker does not start: {error or type(error).__name__}, exit {code}") from error
        deadline = time.monotonic() + self.limits.seconds
        try:
            self.link.settimeout(self.limits.seconds)
            self.link.sendall(REQUEST.pack(len(data), *(min_size or (0, 0)), max_pixels, pixels))
            self.link.sendall(data)
            head = self._receive(REPLY.size, deadline)
            orientation, height, width, channels, length = REPLY.unpack(head)
            reason = self._receive(length, deadline).decode()
            body = self._receive(height * width * channels if pixels else 0, deadline)
        except (OSError, EOFError) as error:
            code = self.close(kill=isinstance(error, TimeoutError))
            if isinstance(error, TimeoutError) or code == -signal.SIGALRM:
                raise DecoderStopped(name, f"took longer than {self.limits.seconds:g} s to decode") from None
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise DecoderStopped(name, f"the decoder crashed ({how})") from None
        if reason:
            raise BadInput(name, reason)
        return np.frombuffer(body, np.uint8).reshape(height, width, channels if pixels else 0), orientation

    def _receive(self, size: int, deadline: float) -> bytearray:
        return _receive(self.link, size, deadline)

    def close(self, kill: bool = True) -> int:
        """End the process, if it has not ended by itself; its exit code."""
        self.link.close()
        if kill:
            self.process.kill()
        try:
            return self.process.wait(1)
        except subprocess.TimeoutExpired:  # it has closed the socket, and yet it lives
            self.process.kill()
            return self.process.wait()


def _receive(link: socket.socket, size: int, deadline: float | None = None) -> bytearray:
    """Exactly `size` bytes; `EOFError` when the other side has gone, `TimeoutError` after the deadline."""
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        if deadline is not None:
            link.settimeout(max(1e-3, deadline - time.monotonic()))
        n = link.recv_into(rest)
        if not n:
            raise EOFError
        rest = rest[n:]
    return data


# ---------------------------------------------------------------------------------------------------------------------
# The other side
# ---------------------------------------------------------------------------------------------------------------------


def _serve(limits: Limits) -> None:
    """Answer requests on descriptor 0 until the other side has gone."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a whole terminal: the parent ends us
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    link = socket.socket(fileno=0)
    with contextlib.suppress(EOFError, OSError):
        link.sendall(b"\1")
        while True:
            size, height, width, max_pixels, wanted = REQUEST.unpack(_receive(link, REQUEST.size))
            data = bytes(_receive(link, size))
            # Ends this process even within a decoder, and when nobody else is left to do it.
            signal.setitimer(signal.ITIMER_REAL, limits.seconds + 1)
            head, body = _answer(data, (height, width) if height else None, max_pixels, limits)
            signal.setitimer(signal.ITIMER_REAL, 0)
            link.sendall(head)
            if wanted:
                link.sendall(body)


def _answer(
    data: bytes, min_size: tuple[int, int] | None, max_pixels: int, limits: Limits
) -> tuple[bytes, memoryview | bytes]:
    import resource

    more = limits.megabytes << 20
    used, peak = _address_space()
    before = resource.getrlimit(resource.RLIMIT_AS)
    if used:
        hard = before[1]
        resource.setrlimit(
            resource.RLIMIT_AS, (used + more if hard == resource.RLIM_INFINITY else min(hard, used + more), hard)
        )
    try:
        pixels, orientation = decode_pixels(data, "", min_size=min_size, max_pixels=max_pixels)
    except BadInput as error:
        reason = error.reason
        if isinstance(error.__cause__, MemoryError):
            reason = f"needed more than {limits.megabytes} MB to decode"
        elif used and _address_space()[1] > max(peak, used + more // 2):
            # Most decoders do not say that memory was all they lacked.
            reason = f"cannot be decoded with {limits.megabytes} MB: {reason}"
        text = reason.encode("utf-8", "backslashreplace")
        return REPLY.pack(1, 0, 0, 0, len(text)) + text, b""
    finally:
        if used:
            resource.setrlimit(resource.RLIMIT_AS, before)
    orientation = orientation if 1 <= orientation <= 8 else 1
    return REPLY.pack(orientation, *pixels.shape, 0), np.ascontiguousarray(pixels).data.cast("B")


def _address_space() -> tuple[int, int]:
    """(bytes now, bytes at most so far) of this process; zeros where there is no Linux to ask."""
    try:
        with open("/proc/self/status", "rb") as file:
            lines = dict(line.split(b":", 1) for line in file)
    except OSError:
        return 0, 0
    now, most = (int(lines[key].split()[0]) << 10 for key in (b"VmSize", b"VmPeak"))
    return now, most


if __name__ == "__main__":
    _serve(Limits(float(sys.argv[1]), int(sys.argv[2])))
