"""What this machine has and what is broken in it: `opsin doctor`.

Nothing here is needed to train; everything here is what one asks first when training fails or is slow.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

PACKAGES = {  # name in the registry → name to import; torch is looked at more closely
    "torch": "",
    "numpy": "numpy",
    "pillow": "PIL.Image",
    "simplejpeg": "simplejpeg",
    "safetensors": "safetensors",
    "scikit-learn": "sklearn",
    "matplotlib": "matplotlib",
    "jinja2": "jinja2",
    "cyclopts": "cyclopts",
    "rich": "rich",
}
TIMEOUT = 120  # seconds; the first import of torch from a cold disk is slow


@dataclass(frozen=True)
class Finding:
    """One line of the examination. `fix` is a command or an action, present when `state` is not "ok"."""

    name: str
    state: Literal["ok", "warning", "broken"]
    value: str
    fix: str = ""


def examine(cache: Path | None = None) -> list[Finding]:
    """Versions, devices, threads, folders and tools. `cache`: the data sets' folder, as `data.datasets` finds it.

    What fails to import is looked at in a process of its own, so one broken package cannot hide the others.
    """
    findings = [_python(), *_packages(), *_torch(), *_torchvision()]
    if cache is not None:
        findings.append(_cache(cache))
    return [*findings, _compiler()]


def _version(package: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _python() -> Finding:
    value = f"{platform.python_version()} on {platform.platform(terse=True)}, {platform.machine()}"
    return Finding("python", "ok", value)


def _packages() -> list[Finding]:
    worked, answer = run_python(_ASK_IMPORTS)
    failed = json.loads(answer.splitlines()[-1]) if worked else {}
    findings = [_package(name, failed.get(name, "")) for name in PACKAGES]
    if not worked:
        findings.append(Finding("imports", "broken", answer, f"{_pip()} install --force-reinstall opsin"))
    return findings


def _package(name: str, failed: str) -> Finding:
    version = _version(name)
    if version is None:
        return Finding(name, "broken", "not installed", f"{_pip()} install {name}")
    if failed:
        return Finding(
            name, "broken", f"{version} does not import: {failed}", f"{_pip()} install --force-reinstall {name}"
        )
    return Finding(name, "ok", version)


def _pip() -> str:
    return f"{Path(sys.executable).name} -m pip"


# Run in processes of their own: an import that fails, hangs or kills its process is then a finding like any other.
_ASK_IMPORTS = f"""
import importlib, json
failed = {{}}
for name, module in {PACKAGES}.items():
    try:
        module and importlib.import_module(module)
    except Exception as error:
        failed[name] = f"{{type(error).__name__}}: {{error}}".splitlines()[0]
print(json.dumps(failed))
"""
_ASK_TORCH = """
import json, torch
cuda = [(torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory)
        for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
# One addition on each: a driver that is too old shows only here.
for i in range(len(cuda)):
    (torch.ones(1, device=f"cuda:{i}") + 1).item()
print(json.dumps({
    "cuda": cuda, "built": torch.version.cuda or torch.version.hip,
    "mps": bool(getattr(torch.backends, "mps", None) and torch.backends.mps.is_available()),
    "threads": torch.get_num_threads(), "interop": torch.get_num_interop_threads(),
    "mkldnn": torch.backends.mkldnn.is_available(), "mkl": torch.backends.mkl.is_available(),
    "blas": torch.__config__.show(), "capability": torch.backends.cpu.get_cpu_capability(),
}))
"""


def run_python(code: str, timeout: float = TIMEOUT) -> tuple[bool, str]:
    """Whether `code` ran in a Python of its own, and what it printed, or the last line of what it complained about."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {timeout:.0f} s"
    except OSError as error:
        return False, str(error)
    if done.returncode == 0:
        return True, done.stdout
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return False, lines[-1] if lines else f"ended with exit code {done.returncode}"


def _torch() -> list[Finding]:
    if _version("torch") is None:
        return []
    worked, answer = run_python(_ASK_TORCH)
    if not worked:
        fix = f"{_pip()} install --force-reinstall torch"
        return [Finding("import torch", "broken", answer, fix)]
    facts = json.loads(answer.splitlines()[-1])
    cores = _cores()
    findings = [
        Finding(
            "cpu", "ok", f"{_cpu_name()}, {cores} cores for this process of {os.cpu_count()}, {facts['capability']}"
        )
    ]
    if facts["threads"] > cores:
        fix = f"unset OMP_NUM_THREADS, or set it to {cores}"
        findings.append(Finding("threads", "warning", f"{facts['threads']} threads on {cores} cores", fix))
    else:
        findings.append(Finding("threads", "ok", f"{facts['threads']} within an operation, {facts['interop']} between"))
    blas = re.search(r"BLAS_INFO=(\w+)", facts["blas"])
    libraries = f"BLAS {blas[1] if blas else 'unknown'}, oneDNN {'yes' if facts['mkldnn'] else 'no'}"
    findings.append(Finding("arithmetic", "ok", libraries))
    for i, (name, memory) in enumerate(facts["cuda"]):
        findings.append(Finding(f"cuda:{i}", "ok", f"{name}, {memory / 2**30:.0f} GiB"))
    if facts["mps"]:
        findings.append(Finding("mps", "ok", "available"))
    if not facts["cuda"] and shutil.which("nvidia-smi"):
        if facts["built"]:
            fix = "update the NVIDIA driver, or install the torch build that fits it: https://pytorch.org/get-started"
        else:
            fix = "this torch is built for CPUs only: https://pytorch.org/get-started"
        findings.append(Finding("cuda", "warning", "there is an NVIDIA driver, but torch sees no device", fix))
    elif not facts["cuda"] and not facts["mps"]:
        findings.append(Finding("accelerator", "ok", "none; training runs on the CPU"))
    return findings


def torchvision_for(torch_version: str) -> str | None:
    """The torchvision release made for a torch release. They are numbered in step: 2.0 ↔ 0.15, 2.11 ↔ 0.26.

    >>> torchvision_for("2.11.0+cpu"), torchvision_for("1.13.1")
    ('0.26', None)
    """
    found = re.match(r"2\.(\d+)\b", torch_version)
    return f"0.{15 + int(found[1])}" if found else None


def _torchvision() -> list[Finding]:
    """opsin never imports torchvision, but a mismatched one breaks whatever else does, in obscure ways."""
    torch, vision = _version("torch"), _version("torchvision")
    if torch is None or vision is None:
        return (
            [] if vision is None else [Finding("torchvision", "ok", f"{vision}, without torch; opsin does not use it")]
        )
    expected = torchvision_for(torch)
    fix = f"{_pip()} install --upgrade 'torchvision=={expected}.*'" if expected else ""
    fix = f"{fix or _pip() + ' uninstall torchvision'} (or uninstall it: opsin does not use it)"
    worked, answer = run_python("import torchvision; torchvision.ops.nms; print(torchvision.__version__)")
    if not worked:
        return [Finding("torchvision", "broken", f"{vision} does not import beside torch {torch}: {answer}", fix)]
    if expected and not vision.startswith(f"{expected}."):
        value = f"{vision} beside torch {torch}, which goes with torchvision {expected}"
        return [Finding("torchvision", "broken", value, fix)]
    return [Finding("torchvision", "ok", f"{vision}, imports; opsin does not use it")]


def _cache(folder: Path) -> Finding:
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        fix = "set OPSIN_HOME to a folder that can be written"
        return Finding("cache", "broken", f"{folder} cannot be written: {error.strerror or error}", fix)
    free = shutil.disk_usage(there).free / 2**30
    if free < 1:
        return Finding("cache", "warning", f"{folder}, {free:.1f} GiB free", "make room, or set OPSIN_HOME elsewhere")
    return Finding("cache", "ok", f"{folder}{'' if folder.exists() else ' (not there yet)'}, {free:.0f} GiB free")


def _compiler() -> Finding:
    names = [os.environ[key] for key in ("CXX", "CC") if os.environ.get(key)] + ["c++", "g++", "clang++", "cl"]
    for name in names:
        found = shutil.which(name.split()[0])
        if found:
            return Finding("compiler", "ok", found)
    return Finding("compiler", "warning", "none", "needed for torch.compile only: install g++ or clang")


def _cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # cgroup v2 quota, in microseconds per period
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine() or "unknown"


def to_dict(findings: list[Finding]) -> dict[str, object]:
    return {"ok": all(f.state != "broken" for f in findings), "findings": [asdict(finding) for finding in findings]}
