"""What a person sees while something runs, on stderr: a bar on a terminal, a line now and then elsewhere.

Library code is handed a `Reporter` and never prints. The base class is silent; the command line uses `Console`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from opsin.types import Progress

EVERY = 10.0  # seconds between two lines where there is no terminal


class Reporter:
    """Told how far a training is; does nothing with it. Subclasses show it."""

    def say(self, text: str) -> None:
        """One line of information."""

    def warn(self, text: str) -> None:
        """One line that a person should act on; shown even when quiet."""

    def start(self, total_steps: int, epochs: int) -> None:
        """Training begins, or goes on: so many steps and epochs in all."""

    def step(self, progress: Progress, loss: float, images_per_second: float) -> None:
        """A step is done. `progress` counts it already."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch is done; `row` is what the log says of it: epoch, train_loss, train_error, test_error, seconds …"""

    def finish(self) -> None:
        """Training ended, in whatever way. May be called twice."""

    def counter(self, what: str) -> Callable[[int, int], None] | None:
        """A function (done, total) that shows how far a download, a decoding or an evaluation is; None: do not tell."""
        return None


class Console(Reporter):
    """Shows everything on `stream` (stderr); with `quiet`, warnings only.

    On a terminal there is a bar; elsewhere, and with TERM=dumb, one plain line in `EVERY` seconds and one an epoch.
    NO_COLOR is honoured. `clock` counts seconds and never goes back.
    """

    def __init__(
        self, *, quiet: bool = False, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._clock = clock
        self._live = not quiet and self._stream.isatty() and os.environ.get("TERM") not in (None, "", "dumb")
        self._bar: Bar | None = None  # of the training
        self._counting: Bar | None = None  # of anything else
        self._spoke = clock()
        self._began = (clock(), 0)  # when, and at which step, this process began to train
        self._total = self._epochs = 0
        self._error = ""

    def say(self, text: str) -> None:
        if not self._quiet:
            self._line(text)

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}", "yellow")

    def start(self, total_steps: int, epochs: int) -> None:
        self.finish()
        self._total, self._epochs = total_steps, epochs
        self._spoke, self._began, self._error = self._clock(), (self._clock(), -1), ""
        if self._live:
            self._bar = self._new_bar("{task.fields[rest]}")
            self._bar.add_task("training", total=total_steps, rest="")
            self._bar.start()

    def step(self, progress: Progress, loss: float, images_per_second: float) -> None:
        if self._quiet:
            return
        now = self._clock()
        if self._began[1] < 0:  # a resumed training begins in the middle
            self._began = (now, progress.step)
        epoch = f"epoch {min(progress.epoch + 1, self._epochs)}/{self._epochs}"
        numbers = f"loss {loss:.3f}{self._error}  {images_per_second:,.0f} images/s"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=progress.step, description=epoch, rest=numbers)
        elif now - self._spoke >= EVERY:
            self._spoke = now
            self._line(f"{epoch}  step {progress.step}/{self._total}  {numbers}{self._left(now, progress.step)}")

    def _left(self, now: float, step: int) -> str:
        since, first = self._began
        if step <= first or now <= since:
            return ""
        return f"  {duration((self._total - step) * (now - since) / (step - first))} left"

    def epoch(self, row: Mapping[str, Any]) -> None:
        for key in ("test_error", "val_error", "test_map", "val_map", "train_error"):
            if row.get(key) is not None:
                self._error = f"  {_title(key)} {percent(row[key])}"
                break
        if self._quiet:
            return
        parts = [f"epoch {row.get('epoch', '?')}/{self._epochs}"]
        for key in ("train_loss", "train_error", "val_error", "test_error", "val_map", "test_map"):
            if row.get(key) is not None:
                name = _title(key)
                parts.append(f"{name} {row[key]:.4f}" if key.endswith("loss") else f"{name} {percent(row[key])}")
        if row.get("seconds") is not None:
            parts.append(f"after {duration(row['seconds'])}")  # of training, from its first step
        self._spoke = self._clock()
        self._line("  ".join(parts))

    def finish(self) -> None:
        for bar in (self._bar, self._counting):
            if bar is not None:
                bar.stop()
        self._bar = self._counting = None

    def counter(self, what: str) -> Callable[[int, int], None] | None:
        if self._quiet:
            return None
        spoke = self._clock()

        def plain(done: int, total: int) -> None:
            nonlocal spoke
            if self._clock() - spoke >= EVERY:
                spoke = self._clock()
                self._line(f"{what}: {done:,}" + (f" of {total:,} ({done / total:.0%})" if total else ""))

        def live(done: int, total: int) -> None:
            if self._bar is not None:  # training shows its own
                return
            if self._counting is None:
                self._counting = self._new_bar("")
                self._counting.add_task(what, total=None)
                self._counting.start()
            self._counting.update(self._counting.task_ids[0], completed=done, total=total or None)
            if 0 < total <= done:
                self.finish()

        return live if self._live else plain

    def _new_bar(self, rest: str) -> Bar:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        return Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
            *([TextColumn(rest, markup=False)] if rest else []),
            console=Terminal(file=self._stream),
            refresh_per_second=4,
            transient=True,
        )

    def _line(self, text: str, style: str = "") -> None:
        try:
            self._write(text, style)
        except BrokenPipeError:  # nobody reads any more; the training goes on
            self._quiet, self._live = True, False

    def _write(self, text: str, style: str) -> None:
        if self._live:
            from rich.console import Console as Terminal

            terminal = Terminal(file=self._stream) if self._bar is None else self._bar.console
            terminal.print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)
        else:
            print(printable(text), file=self._stream, flush=True)


def _title(key: str) -> str:
    """
    >>> _title("val_map"), _title("test_error")
    ('val mAP', 'test error')
    """
    return key.replace("_", " ").replace("map", "mAP")


def percent(fraction: float) -> str:
    """
    >>> percent(0.9154)
    '91.54 %'
    """
    return f"{100 * fraction:.2f} %"


def duration(seconds: float) -> str:
    """
    >>> duration(7.25), duration(75), duration(7325)
    ('7 s', '1 min 15 s', '2 h 02 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def printable(text: str) -> str:
    """`text` with everything escaped that a terminal would obey instead of show; file names come from anywhere.

    >>> printable("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
