"""The doctor finds what is broken, without being broken by it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from opsin import doctor
from opsin.doctor import Finding


def install(folder: Path, name: str, version: str, code: str) -> None:
    """A package as pip leaves it: a module, and the metadata beside it."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    importlib.invalidate_caches()


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose packages come before the installed ones, here and in new processes."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def torch_release() -> str:
    return ".".join((doctor._version("torch") or "").split("+")[0].split(".")[:2])


GOOD = "class ops:\n    nms = None\n__version__ = '{}'"


def test_this_machine_is_well(tmp_path: Path) -> None:
    findings = by_name(doctor.examine(tmp_path / "not" / "there"))
    assert {"python", "torch", "numpy", "pillow", "cpu", "threads", "arithmetic", "cache", "compiler"} <= set(findings)
    assert not [finding for finding in findings.values() if finding.state == "broken"]
    assert findings["torch"].value.startswith("2.")
    assert "not there yet" in findings["cache"].value
    assert not (tmp_path / "not").exists(), "looking leaves no traces"
    report = doctor.to_dict(list(findings.values()))
    assert report["ok"] is True and json.loads(json.dumps(report)) == report


def test_a_torchvision_that_does_not_import(first: Path) -> None:
    install(first, "torchvision", "0.1.0", "raise RuntimeError('operator torchvision::nms does not exist')")
    found = by_name(doctor._torchvision())["torchvision"]
    assert found.state == "broken"
    assert "operator torchvision::nms does not exist" in found.value and "0.1.0" in found.value
    assert f"torchvision=={doctor.torchvision_for(torch_release())}.*" in found.fix
    assert "torchvision" not in sys.modules


def test_a_torchvision_of_another_release(first: Path) -> None:
    install(first, "torchvision", "0.1.0", GOOD.format("0.1.0"))
    found = by_name(doctor._torchvision())["torchvision"]
    assert found.state == "broken" and "goes with torchvision" in found.value and "pip install" in found.fix


def test_the_torchvision_that_belongs(first: Path) -> None:
    version = f"{doctor.torchvision_for(torch_release())}.0"
    install(first, "torchvision", version, GOOD.format(version))
    assert by_name(doctor._torchvision())["torchvision"].state == "ok"


@pytest.mark.parametrize(
    ("torch", "torchvision"),  # pairs from torchvision's own table of releases
    [("2.0.1", "0.15"), ("2.4.0", "0.19"), ("2.6.0+cu124", "0.21"), ("2.11.0", "0.26"), ("1.13.1", None)],
)
def test_pairs(torch: str, torchvision: str | None) -> None:
    assert doctor.torchvision_for(torch) == torchvision


def test_a_package_that_does_not_import(first: Path) -> None:
    install(first, "simplejpeg", "1.0.0", "raise ImportError('libturbojpeg.so: not found')")
    findings = by_name(doctor._packages())
    assert findings["simplejpeg"].state == "broken" and "libturbojpeg.so" in findings["simplejpeg"].value
    assert findings["torch"].state == "ok", "one broken package hides no other"


def test_a_torch_that_does_not_import(first: Path) -> None:
    install(first, "torch", "2.11.0", "raise OSError('libtorch_cpu.so: cannot open shared object file')")
    findings = by_name(doctor._torch())
    assert findings["import torch"].state == "broken" and "libtorch_cpu.so" in findings["import torch"].value


def test_an_import_that_hangs_or_dies() -> None:
    worked, why = doctor.run_python("import time; time.sleep(60)", timeout=0.5)
    assert not worked and "no answer" in why
    worked, why = doctor.run_python("import os; os.abort()")
    assert not worked and "exit code" in why


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.PACKAGES, "a-package-that-nobody-has", "")
    found = by_name(doctor._packages())["a-package-that-nobody-has"]
    assert found.state == "broken" and found.fix.endswith("install a-package-that-nobody-has")


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = doctor._cache(tmp_path / "file" / "opsin")
    assert found.state == "broken" and "OPSIN_HOME" in found.fix


def test_too_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_cores", lambda: 0)
    found = by_name(doctor._torch())["threads"]
    assert found.state == "warning" and "OMP_NUM_THREADS" in found.fix


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", os.devnull)
    assert doctor._compiler().state == "warning"


def test_the_command(tmp_path: Path) -> None:
    install(tmp_path, "torchvision", "0.1.0", "raise RuntimeError('operator torchvision::nms does not exist')")

    def opsin(*arguments: str, path: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "opsin", "doctor", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=240, env={**os.environ, "PYTHONPATH": path}
        )

    root = str(Path(__file__).parents[2])
    well = opsin("--json", path=root)
    assert well.returncode == 0, well.stderr
    assert json.loads(well.stdout)["ok"] is True
    ill = opsin(path=f"{tmp_path}{os.pathsep}{root}")
    assert ill.returncode == 1
    assert "BROKEN" in ill.stdout and "→" in ill.stdout and not ill.stderr
