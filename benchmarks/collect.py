"""Append finished runs to `results/runs.csv`, one row each; the curves of networks go to `results/curves/NAME.csv`.

python benchmarks/collect.py RUN ...
"""

from __future__ import annotations

import csv
import json
import os
import sys
import tomllib
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def row(run: Path) -> dict[str, object]:
    recipe = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    where = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    data, command = recipe["data"]["name"], list(where["command"])
    for flag in ("--data-dir", "--out"):  # folders of the machine say nothing
        if flag in command:
            del command[command.index(flag) : command.index(flag) + 2]
    return {
        "run": run.name,
        "data": _last(data),
        "model": recipe["model"]["name"],
        "seed": recipe["seed"],
        "epochs": report["run"].get("epochs", ""),
        "steps": report["run"].get("steps", ""),
        "n": report["n"],
        "wrong": report["num_wrong"],
        "top1": report["top1"],
        "low": report["top1_interval"][0],
        "high": report["top1_interval"][1],
        "minutes": report["run"]["minutes"],
        "command": "opsin "
        + " ".join(_last(word) if word == data or os.path.isabs(word) else word for word in command),
        "machine": where["processor"],
        "cores": where["cores"],
        "threads": where["threads"],
        "torch": where["torch_build"],
        "python": where["python"],
        "commit": where["commit"],
    }


def _last(path: str) -> str:
    """The name of a file or folder, without where it lies on this machine; a name of a data set as it is."""
    return os.path.basename(os.path.normpath(path))


def main() -> None:
    table = RESULTS / "runs.csv"
    (RESULTS / "curves").mkdir(parents=True, exist_ok=True)
    known = []
    if table.exists():
        with open(table, newline="", encoding="utf-8") as file:
            known = list(csv.DictReader(file))
    for name in sys.argv[1:]:
        new = row(Path(name))
        known = [old for old in known if old["run"] != new["run"]] + [new]
        if (Path(name) / "log.csv").exists():  # a classical pipeline has no passes
            (RESULTS / "curves" / f"{new['run']}.csv").write_text((Path(name) / "log.csv").read_text(encoding="utf-8"))
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(known[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(known)


if __name__ == "__main__":
    main()
