"""Every command on a small folder: what is on stdout, what on stderr, which exit code."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import opsin
from opsin import cli, show
from opsin.console import Console, Reporter
from opsin.data.datasets import DATASETS
from opsin.errors import UsageError
from opsin.recipe import from_toml
from opsin.types import Progress
from tests import make
from tests.conftest import write_pictures

ROOT = Path(__file__).parents[1]
COMMANDS = ("train", "resume", "evaluate", "predict", "features", "search", "group", "import", "models", "data")
COMMANDS += ("doctor",)
FAST = ("--model", "lenet", "--epochs", "2", "--lr", "0.05", "--batch-size", "8")


pytestmark = pytest.mark.usefixtures("one_thread")


def process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command line in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [sys.executable, "-m", "opsin", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=180, env=environment, **options)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pictures/`, two classes of 15, and `run/`, trained on them. Tests only read it."""
    folder = tmp_path_factory.mktemp("shared")
    write_pictures(folder / "pictures", 15)
    assert cli.call(["train", str(folder / "pictures"), *FAST, "--out", str(folder / "run"), "--quiet"]) == 0
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Help, versions, mistakes
# ---------------------------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_exit_code(opsin_) -> None:
    code, out, err = opsin_("--help")
    assert (code, err) == (0, "")
    for command in COMMANDS:
        assert re.search(rf"^│ {command} ", out, re.MULTILINE), command
    for number in (0, 1, 2, 3, 4, 5, 130):
        assert re.search(rf"^  {number}  +\w", out, re.MULTILINE), number
    assert "143" in out and "OPSIN_HOME" in out


@pytest.mark.parametrize("command", [*((c,) for c in COMMANDS), ("data", "list"), ("data", "show"), ("data", "pack")])
def test_help_of_each_command_fits_80_columns(command, monkeypatch, opsin_) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = opsin_(*command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: opsin {' '.join(command)}")
    assert max(map(len, out.splitlines())) <= 80
    assert "[default: ()]" not in out and '[default: ""]' not in out


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [command for command in COMMANDS if not re.search(rf"\bopsin {command}\b", readme)]
    assert not missing


def test_every_flag_that_the_readme_uses_exists(opsin_) -> None:
    flags: dict[str, set[str]] = {}
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        for command, rest in re.findall(r"\bopsin (data [a-z]+|[a-z]+)((?: +[^\s#`|]+)*)", line):
            flags.setdefault(command, set()).update(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", rest))
    for command, used in flags.items():
        if command.split()[0] in COMMANDS:
            known = set(re.findall(r"--[a-z][a-z0-9-]*", opsin_(*command.split(), "--help").out))
            assert used <= known, command


def test_version(opsin_) -> None:
    assert opsin_("--version") == (0, f"{opsin.__version__}\n", "")


def test_python_m_opsin() -> None:
    done = process("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{opsin.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (("tran",), "train"),
        (("train", "--epoch", "3"), "--epochs"),
        (("train", "--epochs", "many"), "int"),
        (("train", "--on-bad-image", "ignore"), "skip"),
        (("train", "digit"), "digits"),
        (("train", "--recipe", "chapter_vgg"), "chapter_vgg16"),
        (("train", "--model", "resnet21"), "20"),
        (("train", "--set", "optimiser.lr=1"), "optimizer"),
        (("train", "--set", "epochs"), "key=value"),
        (("train", "--min-top1", "98"), "fraction"),
        (("train", "--device", "gpu"), "cuda"),
        (("models", "vgg61"), "vgg16"),
        (("data", "show", "cifar"), "cifar10"),
        (("predict", "run", "--json", "--csv", "x"), "choose one"),
        (("predict", "run"), "pictures"),
        (("features", "run", "digits", "--at", "x"), "--out"),
        (("evaluate",), "RUN"),
    ],
)
def test_usage_errors_are_one_line_with_what_would_work(arguments, near, opsin_) -> None:
    code, out, err = opsin_(*arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ") and err.count("error: ") == 1 and "Traceback" not in err
    assert near in err.splitlines()[-1]


def test_a_traceback_on_request(opsin_, monkeypatch) -> None:
    monkeypatch.setenv("OPSIN_TRACEBACK", "1")
    with pytest.raises(UsageError, match="vgg16"):
        opsin_("models", "vgg61")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = [sys.executable, "-m", "opsin", "models"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(60) == 0


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def test_train_says_where_things_are(shared, tmp_path, opsin_) -> None:
    code, out, err = opsin_("train", shared / "pictures", *FAST, "--out", tmp_path / "run")
    assert code == 0
    where = dict(re.findall(r"^(report|classifier) +(.*)$", out, re.MULTILINE))
    assert where == {"report": f"{tmp_path}/run/report.html", "classifier": f"{tmp_path}/run/classifier"}
    assert all(Path(path).exists() for path in where.values())
    assert re.search(r"^right +\d+\.\d\d %  \(\d of 4; 95 % interval", out)
    assert "epoch 2/2" in err and "epoch" not in out


def test_train_json_is_one_object_and_quiet_is_quiet(shared, tmp_path, opsin_) -> None:
    code, out, err = opsin_("train", shared / "pictures", *FAST, "--out", tmp_path / "run", "--json", "--quiet")
    answer = json.loads(out)
    assert code == 0
    assert not [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert Path(answer["run"]) == tmp_path / "run" and Path(answer["classifier"]).is_dir()
    assert {"top1", "top5", "nll", "calibration_error", "n", "classes", "confusion", "per_class"} <= set(
        answer["report"]
    )
    assert answer["report"]["classes"] == ["dark", "light"]


def test_dry_run_prints_a_recipe_that_can_be_used(shared, tmp_path, opsin_) -> None:
    arguments = ("--set", "optimizer.weight_decay=0.003", "--seed", "7")
    code, out, err = opsin_("train", shared / "pictures", *FAST, *arguments, "--out", tmp_path / "no", "--dry-run")
    assert code == 0 and err
    assert not (tmp_path / "no").exists()
    (tmp_path / "mine.toml").write_text(out)
    again = opsin_("train", shared / "pictures", "--recipe", tmp_path / "mine.toml", "--dry-run")
    assert again.code == 0 and from_toml(again.out) == from_toml(out)
    values = json.loads(opsin_("train", shared / "pictures", *FAST, *arguments, "--dry-run", "--json").out)
    assert (values["epochs"], values["seed"], values["model"]["name"]) == (2, 7, "lenet")
    assert values["optimizer"]["weight_decay"] == 0.003 and values["optimizer"]["lr"] == 0.05


def test_a_recipe_made_by_a_function(shared, tmp_path, opsin_) -> None:
    code = "from dataclasses import replace\nfrom opsin.recipes import find\n"
    (tmp_path / "mine.py").write_text(code + "def two():\n    return replace(find('resnet20'), epochs=2)\n")
    said = opsin_("train", shared / "pictures", "--recipe", f"{tmp_path}/mine.py:two", "--dry-run", "--json")
    assert said.code == 0 and json.loads(said.out)["epochs"] == 2


def test_gate(tmp_path, opsin_) -> None:
    for label in ("one", "other"):  # the same pictures under two names: no classifier is right more than half the time
        write_pictures(tmp_path / "pictures", 10, (label,))
    arguments = ("train", tmp_path / "pictures", *FAST, "--quiet")
    missed = opsin_(*arguments, "--out", tmp_path / "a", "--min-top1", "0.9")
    assert missed.code == 4 and "50.00 %" in missed.err and "90.00 %" in missed.err
    assert "classifier" in missed.out, "what was trained is still there, and said"
    assert opsin_(*arguments, "--out", tmp_path / "b", "--min-top1", "0.1").code == 0


def test_a_bad_picture_stops_the_training_or_is_counted(tmp_path, opsin_) -> None:
    folder = write_pictures(tmp_path / "pictures", 10)
    (folder / "dark" / "bad.png").write_bytes(b"no picture")
    stopped = opsin_("train", folder, *FAST, "--out", tmp_path / "a")
    assert stopped.code == 3 and "bad.png" in stopped.err.splitlines()[-1]
    skipped = opsin_("train", folder, *FAST, "--out", tmp_path / "b", "--on-bad-image", "skip")
    assert skipped.code == 0 and "bad.png" in skipped.err
    said = json.loads((tmp_path / "b" / "report.json").read_text())["skipped"]
    assert said and all("bad.png" in line for line in said)


def test_a_folder_that_is_taken(shared, opsin_) -> None:
    said = opsin_("train", shared / "pictures", *FAST, "--out", shared / "run")
    assert said.code == 2 and "opsin resume" in said.err


def test_a_loss_that_diverges(shared, tmp_path, opsin_) -> None:
    arguments = ("--model", "lenet", "--epochs", "9", "--lr", "1e30", "--batch-size", "8")
    said = opsin_("train", shared / "pictures", *arguments, "--out", tmp_path / "run")
    assert said.code == 5 and said.err.splitlines()[-1].startswith("error: ")


@pytest.mark.slow  # tests/test_run.py has both signals in the ordinary suite
def test_interrupt_and_resume(shared, tmp_path, opsin_) -> None:
    command = [sys.executable, "-m", "opsin", "train", shared / "pictures", "--model", "lenet", "--epochs", "4000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*map(str, command), "--out", str(tmp_path / "run")], stderr=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("epoch "):
                break
        child.send_signal(signal.SIGTERM)
        rest = child.stderr.read()
        assert child.wait(60) == 143
    assert "opsin resume" in rest.splitlines()[-1]
    recipe = tmp_path / "run" / "recipe.toml"
    assert "epochs = 4000" in recipe.read_text()
    # A limit of a moment: the resumed training sees that its time is over, evaluates and ends.
    recipe.write_text(recipe.read_text().replace("minutes = 0.0", "minutes = 0.0001"))
    said = opsin_("resume", tmp_path / "run", "--json")
    assert said.code == 0 and json.loads(said.out)["report"]["n"] == 4
    assert "going on after step" in said.err


def test_resume_of_a_finished_run_and_of_none(shared, tmp_path, opsin_) -> None:
    said = opsin_("resume", shared / "run")
    assert said.code == 0 and "report" in said.out
    said = opsin_("resume", tmp_path)
    assert said.code == 1 and str(tmp_path) in said.err


# ---------------------------------------------------------------------------------------------------------------------
# Evaluating
# ---------------------------------------------------------------------------------------------------------------------


def test_evaluate_finds_the_data_of_the_run(shared, opsin_) -> None:
    trained = json.loads((shared / "run" / "report.json").read_text())
    for run in (shared / "run", shared / "run" / "classifier"):
        code, out, _ = opsin_("evaluate", run, "--json", "--batch-size", "3")
        answer = json.loads(out)
        assert code == 0 and answer["n"] == trained["n"] == 4
        assert answer["top1"] == trained["top1"] and answer["confusion"] == trained["confusion"]
        assert answer["nll"] == pytest.approx(trained["nll"], abs=1e-5)
    assert json.loads(opsin_("evaluate", shared / "run", "--split", "train", "--json").out)["n"] == 22
    assert (
        json.loads(opsin_("evaluate", shared / "run", shared / "pictures", "--split", "all", "--json").out)["n"] == 30
    )


def test_evaluate_another_folder_wholly(shared, tmp_path, opsin_) -> None:
    other = write_pictures(tmp_path / "other", 6)
    said = opsin_("evaluate", shared / "run", other, "--json", "--out", tmp_path / "page")
    assert said.code == 0 and json.loads(said.out)["n"] == 12
    assert "all of its pictures" in said.err
    assert json.loads((tmp_path / "page" / "report.json").read_text())["n"] == 12
    assert "<html" in (tmp_path / "page" / "report.html").read_text()
    with_parts = tmp_path / "parts"
    for part, size in (("train", 5), ("test", 2)):
        write_pictures(with_parts / part, size)
    assert json.loads(opsin_("evaluate", shared / "run", with_parts, "--json").out)["n"] == 4
    said = opsin_("evaluate", shared / "run", with_parts, "--split", "val")
    assert said.code == 2 and "train, test" in said.err


@pytest.fixture(scope="module")
def others(shared) -> dict[str, Path]:
    """The pictures of `shared` in the other forms."""
    names = sorted(path.relative_to(shared) for path in (shared / "pictures").rglob("*.png"))
    (shared / "list.csv").write_text("".join(f"{name},{name.parent.name}\n" for name in names))
    (shared / "list.txt").write_text("".join(f"{name} {name.parent.name}\n" for name in names))
    for name in ("pictures.tar", "pictures.tgz"):
        with tarfile.open(shared / name, "w:gz" if name.endswith("gz") else "w") as archive:
            archive.add(shared / "pictures", "pictures")
    return {form: shared / form for form in ("list.csv", "list.txt", "pictures.tar", "pictures.tgz")}


def test_lists_and_archives_wherever_a_folder_is_taken(shared, others, tmp_path, opsin_) -> None:
    shutil.copytree(shared / "pictures", tmp_path / "copy")
    expected = json.loads(opsin_("evaluate", shared / "run", tmp_path / "copy", "--json").out)
    for form, path in others.items():
        said = opsin_("evaluate", shared / "run", path, "--json")
        answer = json.loads(said.out)
        assert said.code == 0 and "all of its pictures" in said.err, form
        assert answer["n"] == 30 and answer["confusion"] == expected["confusion"] and answer["nll"] == expected["nll"]
        split = json.loads(opsin_("evaluate", shared / "run", path, "--split", "val", "--json").out)
        assert split["n"] == 4
        said = opsin_("features", shared / "run", path, "--at", "conv1", "-o", tmp_path / "x.npz")
        assert said.code == 0 and np.load(tmp_path / "x.npz")["keys"][0].endswith("dark/000.png")
        shown = json.loads(opsin_("data", "show", path, "--json").out)
        assert shown["splits"] == {"all": 30} and shown["pictures"]["all"] == {"dark": 15, "light": 15}
        assert re.search(r"^dark +15$.*^2 classes +30$", opsin_("data", "show", path).out, re.MULTILINE | re.DOTALL)
    assert json.loads(opsin_("data", "show", shared / "pictures", "--json").out)["splits"] == {"all": 30}
    said = opsin_("data", "show", tmp_path / "none.csv")
    assert said.code == 2 and "no such folder or file" in said.err


def test_training_on_a_list_and_evaluating_its_parts(others, tmp_path, opsin_) -> None:
    said = opsin_("train", others["list.csv"], *FAST, "--out", tmp_path / "run", "--json")
    assert said.code == 0
    answer = json.loads(opsin_("evaluate", tmp_path / "run", "--json").out)
    assert answer["n"] == 4 and answer["confusion"] == json.loads(said.out)["report"]["confusion"]
    assert json.loads(opsin_("evaluate", tmp_path / "run", "--split", "train", "--json").out)["n"] == 22


def test_a_list_and_an_archive_that_cannot_be_used(shared, others, tmp_path, opsin_) -> None:
    (tmp_path / "x.csv").write_text(others["list.csv"].read_text().replace(",light", ",purple"))
    said = opsin_("evaluate", shared / "run", tmp_path / "x.csv")
    assert said.code == 3 and "line 1: 'pictures/dark/000.png': No such file" in said.err
    shutil.copytree(shared / "pictures", tmp_path / "pictures")
    said = opsin_("evaluate", shared / "run", tmp_path / "x.csv")
    assert said.code == 3 and "purple" in said.err
    (tmp_path / "x.tar").write_bytes(others["pictures.tar"].read_bytes()[:3000])
    for command in (("train", tmp_path / "x.tar"), ("evaluate", shared / "run", tmp_path / "x.tar")):
        said = opsin_(*command)
        assert said.code == 3 and len(said.err.splitlines()) == 1 and "x.tar: damaged tar" in said.err
    (tmp_path / "one.csv").write_text("path,label,split\npictures/dark/000.png,dark,test\n")
    assert json.loads(opsin_("evaluate", shared / "run", tmp_path / "one.csv", "--json").out)["n"] == 1
    assert opsin_("train", tmp_path / "one.csv").code == 3


def test_evaluate_problems(shared, tmp_path, opsin_) -> None:
    unknown = write_pictures(tmp_path / "unknown", 3, ("dark", "purple"))
    said = opsin_("evaluate", shared / "run", unknown)
    assert said.code == 3 and "purple" in said.err
    assert opsin_("evaluate", tmp_path).code == 1
    shutil.copytree(shared / "run" / "classifier", tmp_path / "alone")
    said = opsin_("evaluate", tmp_path / "alone")
    assert said.code == 2 and "name the data" in said.err
    bad = write_pictures(tmp_path / "bad", 3)
    (bad / "light" / "zz.jpg").write_bytes(b"\xff\xd8 cut")
    assert opsin_("evaluate", shared / "run", bad).code == 3
    answer = json.loads(opsin_("evaluate", shared / "run", bad, "--on-bad-image", "skip", "--json").out)
    assert answer["n"] == 6 and len(answer["skipped"]) == 1 and "zz.jpg" in answer["skipped"][0]


# ---------------------------------------------------------------------------------------------------------------------
# Predicting
# ---------------------------------------------------------------------------------------------------------------------


def test_predict_files_folders_patterns_and_stdin(shared, tmp_path, monkeypatch, opsin_) -> None:
    folder = shared / "pictures"
    data = (folder / "dark" / "003.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    monkeypatch.chdir(folder)
    said = opsin_("predict", shared / "run", "dark/000.png", "light", "dark/00[12].png", "-", "--top", 1, "--json")
    assert said.code == 0, said.err
    answer = json.loads(said.out)
    keys = [row["key"] for row in answer["predictions"]]
    assert keys == [
        "dark/000.png",
        *(f"light/{i:03d}.png" for i in range(15)),
        "dark/001.png",
        "dark/002.png",
        "<stdin>",
    ]
    assert answer["unreadable"] == []
    for row in answer["predictions"]:
        (best,) = row["predictions"]
        assert set(best) == {"name", "label", "probability"} and 0.5 <= best["probability"] <= 1
    again = json.loads(opsin_("predict", shared / "run", "dark/003.png", "--top", "1", "--json").out)
    assert again["predictions"][0]["predictions"] == answer["predictions"][-1]["predictions"]


def test_predict_agrees_with_the_library(shared, opsin_) -> None:
    picture = shared / "pictures" / "light" / "004.png"
    (row,) = json.loads(opsin_("predict", shared / "run", picture, "--json").out)["predictions"]
    (expected,) = opsin.predict(opsin.load(shared / "run"), [picture])
    assert row["predictions"] == [prediction._asdict() for prediction in expected]
    assert len(expected) == 2 and sum(p.probability for p in expected) == pytest.approx(1)


def test_the_shipped_classifier_answers_at_once(shared, tmp_path, monkeypatch, opsin_) -> None:
    monkeypatch.chdir(tmp_path)
    picture = shared / "pictures" / "light" / "004.png"
    named = opsin_("predict", "--model", "cifar10-small", picture, "--json")
    assert named.code == 0, named.err
    (row,) = json.loads(named.out)["predictions"]
    assert row["key"] == str(picture)
    assert {prediction["name"] for prediction in row["predictions"]} < set(DATASETS["cifar10"].classes)
    assert opsin_("predict", "cifar10-small", picture, "--json").out == named.out
    made = opsin_(
        "features", "cifar10-small", shared / "pictures", "--at", "stage3", "-o", tmp_path / "f.npz", "--split=all"
    )
    assert made.code == 0, made.err
    assert np.load(tmp_path / "f.npz")["vectors"].shape[0] == 30
    assert "cifar10-small" in opsin_("predict", "no-such-run", picture).err


def test_predict_as_text(shared, opsin_) -> None:
    out = opsin_("predict", shared / "run", shared / "pictures" / "dark" / "000.png").out
    assert re.fullmatch(r".*000\.png\n +\d+\.\d\d %  (dark|light)\n +\d+\.\d\d %  (dark|light)\n", out)


def test_predict_csv_runs_no_formula(shared, tmp_path, monkeypatch, opsin_) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["=HYPERLINK(1).png", "+1.png", "@x.png", 'a,"b".png', "-dash.png"]
    for name in names:
        shutil.copy(shared / "pictures" / "dark" / "000.png", name)
    said = opsin_("predict", shared / "run", "--csv", "--top", "1", "--", *names)
    assert said.code == 0, said.err
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert [row["picture"] for row in rows] == ["'=HYPERLINK(1).png", "'+1.png", "'@x.png", 'a,"b".png', "'-dash.png"]
    assert {row["rank"] for row in rows} == {"1"} and {row["class"] for row in rows} <= {"dark", "light"}
    assert 0 <= float(rows[0]["probability"]) <= 1


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@a", "\tx", "\rx"])
def test_safe_cells(text) -> None:
    assert show.safe_cell(text) == f"'{text}" and show.safe_cell(f"a{text}") == f"a{text}"


def test_predict_names_the_bad_and_predicts_the_rest(shared, tmp_path, opsin_) -> None:
    good = shared / "pictures" / "dark" / "000.png"
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    os.mkfifo(tmp_path / "pipe.png")
    arguments = ("predict", shared / "run", bad, tmp_path / "missing.png", tmp_path / "pipe.png", good, "--json")
    said = opsin_(*arguments)
    answer = json.loads(said.out)
    assert said.code == 3
    assert [row["key"] for row in answer["predictions"]] == [str(good)]
    assert sorted(Path(row["key"]).name for row in answer["unreadable"]) == ["bad.jpg", "missing.png", "pipe.png"]
    assert all(name in said.err for name in ("bad.jpg", "missing.png", "pipe.png"))
    assert opsin_(*arguments, "--on-bad-image", "skip").code == 0
    assert opsin_("predict", shared / "run", bad, "--on-bad-image", "skip").code == 3, "nothing was predicted"
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "*.tiff"):
        said = opsin_("predict", shared / "run", nothing)
        assert said.code == 3 and nothing.name in said.err


def test_predict_sheet(shared, tmp_path, opsin_) -> None:
    (tmp_path / "p").mkdir()
    Image.fromarray(np.full((300, 400, 3), 200, np.uint8)).save(tmp_path / "p" / "<b>large & wide.jpg")
    (tmp_path / "p" / "bad.png").write_bytes(b"no picture")
    sheet = tmp_path / "out" / "sheet.html"
    said = opsin_("predict", shared / "run", tmp_path / "p", shared / "pictures" / "light", "--sheet", sheet)
    assert said.code == 3
    page = sheet.read_text(encoding="utf-8")
    assert page.count("data:image/") == 16
    assert "&lt;b&gt;large &amp; wide.jpg" in page and "<b>large" not in page
    assert "bad.png" in page and "light" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "the page loads nothing"


def test_a_name_that_is_no_text_and_one_that_moves_the_cursor(shared, tmp_path, opsin_) -> None:
    folder = os.fsencode(tmp_path) + b"/names"
    os.mkdir(folder)
    for name in (b"\xff.png", b"\x1b[2J.png"):
        shutil.copy(shared / "pictures" / "dark" / "000.png", folder + b"/" + name)
    done = process("predict", shared / "run", tmp_path / "names", "--top", "1")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and r"\x1b[2J.png" in done.stdout and r"\udcff.png" in done.stdout
    said = opsin_("predict", shared / "run", tmp_path / "names", "--top", "1", "--json")
    assert said.code == 0 and len(json.loads(said.out)["predictions"]) == 2 and said.out.isascii()


# ---------------------------------------------------------------------------------------------------------------------
# Features and foreign weights
# ---------------------------------------------------------------------------------------------------------------------


def test_features(shared, tmp_path, opsin_) -> None:
    classifier = opsin.load(shared / "run")
    stages = json.loads(opsin_("models", "lenet", "--json").out)["stages"]
    at, width = stages[1]["name"], stages[1]["shape"][0]
    file = tmp_path / "new" / "vectors.npz"
    code, out, _ = opsin_("features", shared / "run", shared / "pictures", "--split", "all", "--at", at, "-o", file)
    assert code == 0 and f"30 × {width}" in out
    with np.load(file, allow_pickle=False) as arrays:
        assert set(arrays) == {"vectors", "labels", "keys", "classes", "at"} and str(arrays["at"]) == at
        vectors, keys = arrays["vectors"], list(arrays["keys"])
        assert vectors.shape == (30, width) and vectors.dtype == np.float32
        assert sorted(arrays["labels"]) == [0] * 15 + [1] * 15 and list(arrays["classes"]) == ["dark", "light"]
        assert all(key.startswith(arrays["classes"][label]) for key, label in zip(keys, arrays["labels"], strict=True))
    paths = [shared / "pictures" / key for key in keys]
    np.testing.assert_allclose(vectors, opsin.features(classifier, paths, at).numpy(), atol=1e-5)
    said = opsin_(
        "features", shared / "run", shared / "pictures", "--at", at, "--out", tmp_path / "m.npz", "--maps", "--json"
    )
    answer = json.loads(said.out)
    assert answer["shape"][:2] == [4, width] and len(answer["shape"]) == 4
    with np.load(tmp_path / "m.npz", allow_pickle=False) as arrays:
        assert list(arrays["vectors"].shape) == answer["shape"]


def test_features_problems(shared, tmp_path, opsin_) -> None:
    said = opsin_("features", shared / "run", shared / "pictures", "--at", "stage77", "-o", tmp_path / "v.npz")
    assert said.code == 2 and "stages:" in said.err
    said = opsin_("features", shared / "run", shared / "pictures", "--at", "conv1", "-o", tmp_path / "v.csv")
    assert said.code == 2 and ".npz" in said.err


def foreign(path: Path, classes: int = 10) -> Path:
    """A ResNet-20 as training scripts leave it: torch's format, wrapped, the names of DataParallel."""
    from opsin import models

    net = models.build("resnet20", classes)
    torch.save({"state_dict": {f"module.{key}": value for key, value in net.state_dict().items()}}, path)
    return path


def test_import(tmp_path, opsin_) -> None:
    arguments = ("import", foreign(tmp_path / "net.th"), "--model", "resnet20", "--preprocess", "imagenet")
    code, out, err = opsin_(*arguments, "-o", tmp_path / "made")
    assert code == 0 and str(tmp_path / "made") in out and "module." in err
    made: Any = opsin.load(tmp_path / "made")
    assert made.classes[0] == "airplane" and len(made.classes) == 10
    assert made.preprocess.mean == (0.485, 0.456, 0.406) and made.preprocess.size == (32, 32)
    (tmp_path / "names.txt").write_text("\n".join(f"n{i}" for i in range(10)) + "\n\n")
    said = opsin_(*arguments, "-o", tmp_path / "named", "--classes", tmp_path / "names.txt", "--json")
    assert json.loads(said.out)["classes"][-1] == "n9"
    said = opsin_(*arguments, "-o", tmp_path / "no", "--classes", "cifar100")
    assert said.code == 2 and "100" in said.err and not (tmp_path / "no").exists()
    said = opsin_(*arguments, "-o", tmp_path / "no", "--set", "shortcut=B")
    assert said.code == 2 and "shortcut" in said.err
    said = opsin_("import", tmp_path / "none.th", *arguments[2:], "-o", tmp_path / "no")
    assert said.code == 3 and "none.th" in said.err


def test_imported_classes_without_names_are_numbers(tmp_path, opsin_) -> None:
    file = foreign(tmp_path / "net.th", classes=3)
    said = opsin_("import", file, "--model", "resnet20", "--preprocess", "none", "-o", tmp_path / "made", "--json")
    assert json.loads(said.out)["classes"] == ["0", "1", "2"] and "numbers" in said.err


# ---------------------------------------------------------------------------------------------------------------------
# What there is
# ---------------------------------------------------------------------------------------------------------------------


def test_models(opsin_) -> None:
    code, out, _ = opsin_("models")
    names = [line.split()[0] for line in out.splitlines()[1:]]
    assert code == 0 and names == list(opsin.MODELS)
    assert json.loads(opsin_("models", "--json").out)["vgg16"]["params"] == 138_357_544
    assert "138,357,544" in out


def test_a_model(opsin_) -> None:
    code, out, _ = opsin_("models", "vgg16_cifar")
    assert code == 0 and "15,254,602" in out and "512 × 1 × 1" in out
    answer = json.loads(opsin_("models", "resnet26", "--json").out)
    assert sum(stage["parameters"] for stage in answer["stages"]) == answer["params"]
    assert answer["stages"][-1] == {"name": "head", "shape": [10], "parameters": 650, "multiply_adds": 640}
    assert round(sum(stage["multiply_adds"] for stage in answer["stages"]) / 1e6, 1) == answer["million_macs"]


def test_a_model_with_auxiliary_heads(opsin_) -> None:
    code, out, _ = opsin_("models", "googlenet_cifar")
    assert code == 0 and re.search(r"^auxiliary head on 4d +10 +546,954 +799,744$", out, re.MULTILINE)
    answer = json.loads(opsin_("models", "googlenet_cifar", "--json").out)
    assert [head["name"] for head in answer["auxiliary"]] == ["4a", "4d"]
    both = [*answer["stages"], *answer["auxiliary"]]
    assert sum(part["parameters"] for part in both) == answer["params"] and answer["error"] is None


def test_published_errors(opsin_) -> None:
    assert "published error 6.97 %: CIFAR-10, test" in opsin_("models", "resnet56").out
    assert "published" not in opsin_("models", "resnet26").out
    told = json.loads(opsin_("models", "--json").out)["resnet50"]["error"]
    assert told["per_cent"] == 6.71 and told["of"] == "ImageNet top-5" and "table 3" in told["source"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("columns", "left_out"), [(200, ""), (80, "paper"), (58, "year, mult–adds, size, least, paper")]
)
def test_models_on_a_terminal(columns, left_out, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert cli.call(["models"]) == 0
    *lines, last = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()
    assert max(map(len, lines)) <= columns and "…" not in terminal.getvalue()
    shown = "\n".join(lines)
    assert all(re.search(rf"^ {name} ", shown, re.MULTILINE) for name in opsin.MODELS)
    assert ("for want of width" in last) == bool(left_out) and last.endswith(left_out)


@pytest.mark.parametrize("columns", [80, 100])
def test_data_on_a_terminal_of_some_width(columns, monkeypatch, opsin_) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    commands = [("list",), *(("show", name) for name in DATASETS)]
    piped = {command: opsin_("data", *command).out for command in commands}
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in commands:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal := Terminal())
            assert cli.call(["data", *command]) == 0
        shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
        long = [line for line in shown.splitlines() if len(line) > columns]
        assert not [line for line in long if len(line.split()) > 1], "only an address may be longer"
        if command == ("list",):
            assert "…" not in shown and all(re.search(rf"^ ?{name} ", shown, re.MULTILINE) for name in DATASETS)
        else:  # the same words, and in a pipe one fact a line
            assert shown.split() == piped[command].split()
            assert [line.split()[0] for line in piped[command].splitlines() if line].count("terms") == 1


def test_numbers_are_written_alike_for_people_and_plain_for_programs(tmp_path, opsin_) -> None:
    for text in (opsin_("data", "list").out, opsin_("data", "show", "cub200").out, opsin_("models").out):
        assert not re.search(r"\b(?!(19|20)\d\d\b)\d{4,}\b", re.sub(r"MD5.*|https?:.*|VOC\S*|\S*\.\w+", "", text))
    assert "5,994" in opsin_("data", "list").out and "train 5,994, test 5,794" in opsin_("data", "show", "cub200").out
    assert '"train": 5994' in opsin_("data", "list", "--json").out
    picture = make.encode(make.gradient(9, 9))
    folder = make.write(tmp_path / "d", {f"{name}/{i}.png": picture for name in "ab" for i in range(600)})
    out = opsin_("data", "show", folder).out
    assert out.splitlines()[1].split() == ["a", "600"] and out.splitlines()[3].split() == ["2", "classes", "1,200"]
    assert '"all": 1200' in opsin_("data", "show", folder, "--json").out


def test_modules_that_are_compared(opsin_) -> None:
    code, out, _ = opsin_("models", "inception-module")
    assert code == 0 and "416 × 28 × 28" in out and "256 × 28 × 28" in out
    answer = json.loads(opsin_("models", "residual-block", "--json").out)
    assert [block["input"] for block in answer["modules"]] == [[64, 56, 56], [256, 56, 56]]
    assert [block["shape"] for block in answer["modules"]] == [[64, 56, 56], [256, 56, 56]]


def test_drawings(tmp_path, opsin_) -> None:
    out = tmp_path / "new" / "lenet.svg"
    assert opsin_("models", "lenet", "--draw", out) == (0, f"drawing     {out}\n", "")
    first = out.read_bytes()
    out.write_text("an older one")
    assert json.loads(opsin_("models", "lenet", "--draw", out, "--json").out) == {"file": str(out)}
    assert out.read_bytes() == first and first.startswith(b"<svg ") and os.listdir(out.parent) == ["lenet.svg"]
    assert opsin_("models", "residual-block", "--draw", out).code == 0 and b"bottleneck" in out.read_bytes()
    assert opsin_("models", "--history", out).code == 0 and b"Trimps-Soushen" in out.read_bytes()


def test_a_drawing_with_a_hostile_name(tmp_path, opsin_) -> None:
    out = tmp_path / "\x1b[2J<b>&\n.svg"
    code, said, _ = opsin_("models", "lenet", "--draw", out)
    assert code == 0 and "\\x1b[2J<b>&\\n.svg" in said and "\x1b" not in said and said.count("\n") == 1
    assert b"<b>" not in out.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (("--draw", "x.svg"), "NAME --draw"),
        (("lenet", "--draw", "x.png"), "ends in .svg"),
        (("--history", "x"), "ends in .svg"),
        (("lenet", "--history", "x.svg"), "leave out NAME"),
        (("residual-blok", "--draw", "x.svg"), "residual-block"),
        (("lenet6", "--draw", "x.svg"), "lenet5"),
    ],
)
def test_drawings_refused(arguments, near, tmp_path, monkeypatch, opsin_) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = opsin_("models", *arguments)
    assert (code, out) == (2, "") and near in err and os.listdir() == []


def test_a_drawing_where_a_folder_is(tmp_path, opsin_) -> None:
    (tmp_path / "x.svg").mkdir()
    code, _, err = opsin_("models", "lenet", "--draw", tmp_path / "x.svg")
    assert code == 1 and "x.svg" in err and os.listdir(tmp_path) == ["x.svg"]


def test_data(opsin_) -> None:
    code, out, _ = opsin_("data", "list")
    assert code == 0 and [line.split()[0] for line in out.splitlines()[1:]] == list(
        json.loads(opsin_("data", "list", "--json").out)
    )
    out = opsin_("data", "show", "cifar10").out
    assert "170,498,071" in out and "c58f30108f718f92721af3b95e74349a" in out and "https://" in out
    answer = json.loads(opsin_("data", "show", "digits", "--json").out)
    assert answer["splits"] == {"train": 1437, "test": 360} and answer["cache"].startswith(os.environ["OPSIN_HOME"])


# ---------------------------------------------------------------------------------------------------------------------
# What a person sees
# ---------------------------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def train_on(reporter: Reporter, clock: Clock, seconds: float = 1.0) -> None:
    """Two epochs of ten steps."""
    reporter.say("the recipe in words")
    reporter.start(20, 2)
    for step in range(1, 21):
        clock.now += seconds
        reporter.step(Progress((step - 1) // 10, step % 10, step, step * 8), 2.5 - step / 10, 1234.5)
        if step % 10 == 0:
            row = {"epoch": step // 10, "train_loss": 1.5, "train_error": 0.25, "test_error": 0.125, "seconds": 10.0}
            reporter.epoch(row)
    reporter.warn("look here")
    reporter.finish()
    reporter.finish()


def test_lines_where_there_is_no_terminal() -> None:
    clock, stream = Clock(), io.StringIO()
    train_on(Console(stream=stream, clock=clock), clock, seconds=4.0)
    assert stream.getvalue().splitlines() == [
        "the recipe in words",
        "epoch 1/2  step 3/20  loss 2.200  1,234 images/s  1 min 08 s left",
        "epoch 1/2  step 6/20  loss 1.900  1,234 images/s  56 s left",
        "epoch 1/2  step 9/20  loss 1.600  1,234 images/s  44 s left",
        "epoch 1/2  train loss 1.5000  train error 25.00 %  test error 12.50 %  after 10 s",
        "epoch 2/2  step 13/20  loss 1.200  test error 12.50 %  1,234 images/s  28 s left",
        "epoch 2/2  step 16/20  loss 0.900  test error 12.50 %  1,234 images/s  16 s left",
        "epoch 2/2  step 19/20  loss 0.600  test error 12.50 %  1,234 images/s  4 s left",
        "epoch 2/2  train loss 1.5000  train error 25.00 %  test error 12.50 %  after 10 s",
        "warning: look here",
    ]


def test_quiet_says_warnings_only() -> None:
    clock, stream = Clock(), io.StringIO()
    reporter = Console(quiet=True, stream=stream, clock=clock)
    train_on(reporter, clock, 60.0)
    assert stream.getvalue() == "warning: look here\n"
    assert reporter.counter("reading") is None


def test_a_bar_on_a_terminal(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    clock, stream = Clock(), Terminal()
    train_on(Console(stream=stream, clock=clock), clock)
    shown = stream.getvalue()
    assert "\x1b[" in shown and "100%" in shown
    assert (
        "epoch 2/2" in shown and "loss 0.500" in shown and "1,234 images/s" in shown and "test error 12.50 %" in shown
    )
    assert shown.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in shown, "the cursor is back"


def test_no_color_and_a_dumb_terminal(monkeypatch) -> None:
    colour = re.compile(r"\x1b\[[\d;]*3\d")
    monkeypatch.setenv("TERM", "xterm-256color")
    clock, coloured = Clock(), Terminal()
    train_on(Console(stream=coloured, clock=clock), clock)
    monkeypatch.setenv("NO_COLOR", "1")
    clock, plain = Clock(), Terminal()
    train_on(Console(stream=plain, clock=clock), clock)
    assert colour.search(coloured.getvalue()) and not colour.search(plain.getvalue())
    monkeypatch.setenv("TERM", "dumb")
    clock, dumb = Clock(), Terminal()
    train_on(Console(stream=dumb, clock=clock), clock)
    assert "\x1b" not in dumb.getvalue() and "epoch 2/2" in dumb.getvalue()


def test_counters(monkeypatch) -> None:
    clock, stream = Clock(), io.StringIO()
    count = Console(stream=stream, clock=clock).counter("reading")
    assert count is not None
    for done in range(0, 101, 10):
        count(done, 100)
        clock.now += 4
    assert stream.getvalue().splitlines() == [
        "reading: 30 of 100 (30%)",
        "reading: 60 of 100 (60%)",
        "reading: 90 of 100 (90%)",
    ]
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    count = Console(stream=terminal).counter("reading")
    assert count is not None
    for done in range(0, 101, 10):
        count(done, 100)
    assert "reading" in terminal.getvalue() and "100%" in terminal.getvalue()


def test_the_silent_reporter_is_silent(capsys) -> None:
    train_on(Reporter(), Clock())
    assert capsys.readouterr() == ("", "")


def test_a_log_line_cannot_move_the_cursor() -> None:
    stream = io.StringIO()
    Console(stream=stream).warn("bad \x1b[2J name")
    assert stream.getvalue() == "warning: bad \\x1b[2J name\n"


# ---------------------------------------------------------------------------------------------------------------------
# Wheel and sdist
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_wheel_and_sdist_build_and_install(tmp_path) -> None:
    """Built from a copy of the tree by the declared back end, installed where the tree is not in sight, and used."""

    def pip(*arguments: object) -> None:
        command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT, tree, ignore=shutil.ignore_patterns(".venv", ".git", "__pycache__", "runs", ".*_cache", "dist")
    )
    pip("install", "--target", tmp_path / "tools", "hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path / "dist"), "-t", "sdist", "-t", "wheel"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "tools")}
    subprocess.run(build, check=True, cwd=tree, env=environment, capture_output=True, timeout=120)
    (sdist,) = (tmp_path / "dist").glob("opsin-*.tar.gz")
    (wheel,) = (tmp_path / "dist").glob("opsin-*-py3-none-any.whl")
    pip("wheel", "--no-deps", "--wheel-dir", tmp_path / "again", sdist)

    def contents(path: Path) -> set[str]:
        import zipfile

        with zipfile.ZipFile(path) as archive:
            return {name for name in archive.namelist() if not name.endswith("/RECORD")}

    names = contents(wheel)
    assert contents(next((tmp_path / "again").glob("*.whl"))) == names
    files = [p for p in (ROOT / "opsin").rglob("*") if p.is_file() and p.suffix in (".py", ".jinja", ".typed", ".csv")]
    expected = {str(p.relative_to(ROOT)) for p in [*files, ROOT / "opsin" / "py.typed"]}
    assert expected <= names and any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith("tests")]

    pip("install", "--no-deps", "--target", tmp_path / "site", wheel)
    where = os.pathsep.join([str(tmp_path / "site"), os.path.dirname(os.path.dirname(np.__file__))])
    write_pictures(tmp_path / "pictures", 10)

    def use(*arguments: str) -> str:
        command = [sys.executable, "-P", *arguments]
        environment = {**os.environ, "PYTHONPATH": where, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=180
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    use("-m", "opsin", "models", "--history", "history.svg")
    assert "5.1" in (tmp_path / "history.svg").read_text(encoding="utf-8")
    assert str(tmp_path / "site") in use("-c", "import opsin; print(opsin.__file__)")
    assert use(str(tmp_path / "site" / "bin" / "opsin"), "--version").strip() == opsin.__version__
    use("-m", "opsin", "train", "pictures", *FAST, "--out", "run")
    assert (tmp_path / "run" / "report.html").exists()
    started = time.monotonic()
    use("-m", "opsin", "predict", "run", "pictures", "--sheet", "sheet.html")
    assert "data:image/" in (tmp_path / "sheet.html").read_text() and time.monotonic() - started < 120


def test_many_labels_from_a_list_to_names(tmp_path, opsin_) -> None:
    folder, rows = write_pictures(tmp_path / "pictures", 12), ["path,labels"]
    rows += [
        f"pictures/{path.parent.name}/{path.name},{path.parent.name}|all" for path in sorted(folder.rglob("*.png"))
    ]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    train = ("train", tmp_path / "list.csv", *FAST, "--quiet")
    refused = opsin_(*train, "--min-top1", "0.5", "--out", tmp_path / "x")
    assert refused.code == 2 and "--min-map" in refused.err and not (tmp_path / "x").exists()
    assert opsin_("train", folder, *FAST, "--min-map", "0.5", "--out", tmp_path / "x").code == 2
    assert opsin_(*train, "--min-top1", "0.5", "--min-map", "0.5").code == 2
    missed = opsin_(*train, "--min-map", "1", "--set", "optimizer.lr=0", "--out", tmp_path / "run")
    assert missed.code == 4 and "--min-map asked for 100.00 %" in missed.err and "mAP" in missed.out
    measured = opsin_("evaluate", tmp_path / "run", "--json", "--out", tmp_path / "page")
    values = json.loads(measured.out)
    assert measured.code == 0 and values["classes"] == ["all", "dark", "light"] and 0 < values["map"] < 1
    assert "mean average precision" in (tmp_path / "page" / "report.html").read_text()
    named = opsin_("predict", tmp_path / "run", folder / "dark", "--json")
    least = json.loads((tmp_path / "run" / "classifier" / "classifier.json").read_text())["thresholds"]
    for row in json.loads(named.out)["predictions"]:
        assert all(p["probability"] >= least[p["label"]] for p in row["predictions"])
    assert opsin_("predict", tmp_path / "run", folder, "--csv", "--sheet", tmp_path / "s.html").code == 0
