"""What `benchmarks/collect.py` keeps of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import collect

REPORT = {"run": {"epochs": 1, "steps": 2, "minutes": 3}, "n": 4, "num_wrong": 1, "top1": 0.75, "top1_interval": [0, 1]}
WHERE = {"processor": "x", "cores": 1, "threads": 1, "torch_build": "2", "python": "3", "commit": "c"}


@pytest.mark.parametrize("data", ["/somewhere/pictures", "/somewhere/pictures/", "somewhere/pictures", "pictures"])
def test_no_folder_of_the_machine_is_written_down(data: str, tmp_path: Path) -> None:
    command = ["train", data, "--data-dir", "/somewhere", "--weights", "/somewhere/w", "--seed", "3", "--out", "/r"]
    recipe = f'seed = 3\n[data]\nname = "{data}"\n[model]\nname = "smallnet"\n'
    (tmp_path / "recipe.toml").write_text(recipe)
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    (tmp_path / "environment.json").write_text(json.dumps({**WHERE, "command": command}))
    row = collect.row(tmp_path)
    assert row["data"] == "pictures" and row["command"] == "opsin train pictures --weights w --seed 3"
