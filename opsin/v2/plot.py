"""Curves drawn while a training runs, by matplotlib; none with DISABLE_PLOT=True in the environment."""

from __future__ import annotations

import os
import sys
from typing import Any


class Ploter:
    """A figure of one curve a title. (The spelling is the original's.)"""

    def __init__(self, *titles: str) -> None:
        self._curves: dict[str, tuple[list[Any], list[Any]]] = {title: ([], []) for title in titles}
        self._silent = os.environ.get("DISABLE_PLOT") == "True"

    def append(self, title: str, step: float, value: float) -> None:
        """Add a point to a curve."""
        if title not in self._curves:
            raise AssertionError(f"no curve {title!r}; there are {', '.join(map(repr, self._curves)) or 'none'}")
        steps, values = self._curves[title]
        steps.append(step)
        values.append(value)

    def plot(self, path: str | os.PathLike[str] | None = None) -> None:
        """Draw all points so far into the file `path`, or without one into the notebook or window that there is."""
        if self._silent:
            return
        if path is not None:  # needs no display, and touches none of matplotlib's global state
            from matplotlib.figure import Figure

            figure = Figure()
            self._draw(figure)
            figure.savefig(path)
            return
        from matplotlib import pyplot

        figure = pyplot.figure("opsin.v2.plot", clear=True)
        self._draw(figure)
        if "IPython" in sys.modules:
            from IPython import display  # pyright: ignore[reportMissingImports]

            display.clear_output(wait=True)
            display.display(figure)
        elif getattr(figure.canvas, "required_interactive_framework", None):
            pyplot.pause(0.001)  # shows the window, and goes on
            return
        pyplot.close(figure)

    def _draw(self, figure: Any) -> None:
        axes = figure.add_subplot()
        for title, (steps, values) in self._curves.items():
            if steps:
                axes.plot(steps, values, label=title)
        if axes.lines:
            axes.legend(loc="upper left")

    def reset(self) -> None:
        """Forget all points."""
        for curve in self._curves.values():
            for numbers in curve:
                numbers.clear()
