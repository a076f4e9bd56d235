"""This machine: Python, package versions, processors, GPUs, disks, permissions, limits."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import stat
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from data2vec.errors import Data2VecError

from ..figures import data_size
from ..home import d2v_home, home_folder
from .findings import Finding

_DISTRIBUTION = "data2vec-platform"
_LITTLE, _FEW = 2e9, 20e9  # bytes of free disk: fails soon, worth knowing
_SHARED_MEMORY = 1e9
_FILES = 4096
_EXACT = ("ray", "mlflow", "torch", "torchvision")  # another release is another database, cluster or rounding
_HOME_PARTS = ("runs", "sweeps", "queue", "cache", "mlflow")


def versions() -> Iterator[Finding]:
    """Installed packages against what the distribution asks for and against the tested set."""
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    try:
        needed = [Requirement(text) for text in metadata.requires(_DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:
        yield Finding("versions", "note", f"{_DISTRIBUTION} is not installed here", "run: make setup")
        return
    wrong = 0
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": "platform"}):
            continue
        if canonicalize_name(requirement.name) == _DISTRIBUTION:
            continue
        found = installed(requirement.name)
        if found is None:
            wrong += 1
            yield Finding("versions", "bad", f"{requirement.name} is not installed", "run: make setup")
        elif not requirement.specifier.contains(found, prereleases=True):
            wrong += 1
            rule = f"{requirement.name} {found} does not satisfy {requirement.name}{requirement.specifier}"
            yield Finding("versions", "bad", rule, f"pip install '{requirement.name}{requirement.specifier}'")
    tested = constraints()
    names = {canonicalize_name(r.name) for r in needed}
    others = [
        f"{name} {found} (tested: {wanted})"
        for name, wanted in tested.items()
        if name in names and (found := installed(name)) is not None and _release(found) != wanted
    ]
    exact = [text for text in others if text.split()[0] in _EXACT]
    if others:
        why = "; their results or files may differ" if exact else ""
        yield Finding(
            "versions", "note", f"not the tested releases: {', '.join(others)}{why}",
            "pip install -c constraints.txt -e '.[platform]' gives the tested set",
        )  # fmt: skip
    elif not wrong:
        told = f"{len(names)} packages as required" + (", all of the tested releases" if tested else "")
        yield Finding("versions", "ok", told)


def installed(name: str) -> str | None:
    """A package's version."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def constraints(root: Path | None = None) -> dict[str, str]:
    """The tested releases of ``constraints.txt``; empty outside a checkout."""
    path = (root or Path(__file__).resolve().parents[3]) / "constraints.txt"
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [re.match(r"([A-Za-z0-9_.\-]+)==([^\s;#]+)", line) for line in lines]
    return {canonicalize_name(m[1]): m[2] for m in found if m}


def processors() -> Iterator[Finding]:
    """CPUs, memory, GPUs."""
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory()
    told = f"{cpus} CPUs, {data_size(memory.total)} of memory ({data_size(memory.available)} free)"
    yield Finding("processors", "ok", told)
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads and threads.isdigit() and int(threads) > cpus:
        yield Finding(
            "processors", "note", f"OMP_NUM_THREADS={threads} on {cpus} CPUs",
            "unset it: each worker takes platform.threads_per_worker",
        )  # fmt: skip
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            bf16 = "bf16" if torch.cuda.is_bf16_supported() else "fp16 with a scaler (no bf16)"
            what = f"{index}: {found.name}, {data_size(found.total_memory)}, mixed precision in {bf16}"
            yield Finding("gpu", "ok", what)
        return
    seen = _nvidia_gpus()
    if seen:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        yield Finding(
            "gpu", "bad",
            f"{', '.join(seen)}: there, but PyTorch {torch.__version__} ({built}) cannot use it",
            "install PyTorch for the driver's CUDA (https://pytorch.org/get-started), or update the driver",
        )  # fmt: skip
    else:
        yield Finding("gpu", "ok", "none: trainings run on the CPU")


def _nvidia_gpus() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        done = subprocess.run(
            [tool, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def disks() -> Iterator[Finding]:
    """The home folder and its room, shared memory, open files."""
    try:
        home = d2v_home()
    except Data2VecError as error:
        yield Finding("home", "bad", str(error).split(";")[0], "set D2V_HOME to a folder you may write to")
        return
    free = shutil.disk_usage(home).free
    what = f"{home}: {data_size(free)} free"
    advice = f"free space there, or set D2V_HOME to a larger disk; du -sh {home}/* shows what takes it"
    if free < _LITTLE:
        yield Finding("disk", "bad", what, advice)
    else:
        yield Finding("disk", "note" if free < _FEW else "ok", what, advice if free < _FEW else "")
    yield from permissions(home)
    shared = Path("/dev/shm")
    if shared.is_dir() and (size := shutil.disk_usage(shared).total) < _SHARED_MEMORY:
        yield Finding(
            "disk", "note", f"/dev/shm has {data_size(size)}: too little for Ray's object store and loaders",
            "start the container with --shm-size=2g (compose: shm_size: 2gb)",
        )  # fmt: skip
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FILES:
        yield Finding(
            "limits", "note", f"{soft} open files a process", f"ulimit -n {min(max(_FILES, soft), hard)}"
        )


def permissions(home: Path) -> Iterator[Finding]:
    """Whether everything that must be written can be, and whether others can read it."""
    mode = stat.S_IMODE(home.stat().st_mode)
    if mode & 0o077:
        yield Finding(
            "permissions", "note",
            f"{home} can be read by others (mode {mode:o}); recipes and logs lie there",
            f"chmod 700 {home}",
        )  # fmt: skip
    locked = [
        str(folder)
        for folder in [home / part for part in _HOME_PARTS]
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK)
    ]
    for part in ("queue", "mlflow"):
        folder = home / part
        if folder.is_dir() and os.access(folder, os.X_OK):
            locked += [str(file) for file in folder.glob("*.db") if not os.access(file, os.W_OK)]
    if locked:
        yield Finding(
            "permissions", "bad", f"not writable for this user: {', '.join(locked)}",
            f"sudo chown -R $(id -un) {home}",
        )  # fmt: skip
        return
    try:
        probe = home_folder("cache", home) / f".doctor-{os.getpid()}"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        yield Finding("permissions", "bad", f"cannot write into {home}: {error}", "see the disk's line")
        return
    yield Finding("permissions", "ok", f"{home} is writable")


def _release(version: str) -> str:
    return version.partition("+")[0]
