"""Curves while a training runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from opsin.v2.plot import Ploter


def test_a_figure_in_a_file(tmp_path: Path) -> None:
    from matplotlib import pyplot

    ploter = Ploter("Train cost", "Test cost")
    ploter.plot(tmp_path / "empty.png")
    for step in range(5):
        ploter.append("Train cost", step, 1 / (1 + step))
    ploter.append(title="Test cost", step=3, value=0.5)
    ploter.plot(path=str(tmp_path / "train.png"))
    ploter.plot()  # no notebook and no window here: nothing to show, and no warning
    assert not pyplot.get_fignums()
    ploter.reset()
    ploter.plot(tmp_path / "reset.png")
    empty, train, reset = (Image.open(tmp_path / f"{name}.png").convert("L") for name in ("empty", "train", "reset"))
    assert empty.tobytes() == reset.tobytes() != train.tobytes()
    with pytest.raises(AssertionError, match="no curve 'Tset cost'; there are 'Train cost', 'Test cost'"):
        ploter.append("Tset cost", 0, 1)


def test_silent_and_without_matplotlib_when_it_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
import sys
from opsin.v2.plot import Ploter
ploter = Ploter("a")
ploter.append("a", 0, 1)
ploter.plot({str(tmp_path / "a.png")!r})
assert "matplotlib" not in sys.modules
"""
    monkeypatch.setenv("DISABLE_PLOT", "True")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=Path(__file__).parents[3])
    assert not list(tmp_path.iterdir())
