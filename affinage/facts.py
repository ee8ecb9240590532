"""Facts about this process for the run's record: versions, commit, hardware, time, and JSON written whole."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from affinage.types import Cost

PART = ".{}.part"  # what a file is called while it is written


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """JSON, all of it or nothing, whatever happens to the machine."""
    part = path.with_name(PART.format(path.name))
    try:
        part.write_text(json.dumps(content, indent=1, default=float), encoding="utf8")
        flush(part)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Have the disk hold what a file says, or which files a folder has; of a folder, where its file system can."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(file)


def versions() -> dict[str, str]:
    """Of Python and of the libraries that numbers depend on."""
    from importlib.metadata import version

    names = ("torch", "transformers", "safetensors", "peft", "numpy", "scipy", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def commit() -> str | None:
    """The commit of affinage itself where it runs from a checkout, with '+' for local changes.

    AFFINAGE_COMMIT says it where the files were copied without their history, or with an older one, as into a container.
    """
    if told := os.environ.get("AFFINAGE_COMMIT"):
        return told
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "-C", here, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "-C", here, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if dirty else "")


def hardware(precision: str) -> dict[str, Any]:
    """The processor, its threads, the precision, and the GPU where there is one."""
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0] if models else name
    found = {"cpu": name, "threads": torch.get_num_threads(), "precision": precision}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


class Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def cost(self) -> Cost:
        return Cost(time.perf_counter() - self.wall, time.process_time() - self.cpu)
