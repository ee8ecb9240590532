"""Checkpoints: atomic, hash-listed folders of safetensors and JSON from which a run goes on bit by bit as if never stopped."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from affinage.errors import AffinageError

KEPT = 2  # the newest, and the one before it in case the newest is damaged


def interval() -> float:
    """Seconds between two checkpoints within an epoch: AFFINAGE_CHECKPOINT_SECONDS, or 60: a crash costs a minute at most.

    Raises:
        AffinageError: the variable holds no number.
    """
    text = os.environ.get("AFFINAGE_CHECKPOINT_SECONDS", "60")
    try:
        return float(text)
    except ValueError:
        raise AffinageError(f"AFFINAGE_CHECKPOINT_SECONDS is '{text}': expected seconds, such as 60") from None


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def random_state() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Every random generator that a step may draw from: torch's, CUDA's, NumPy's and Python's."""
    tensors = {"random.torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"random.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    legacy: Any = np.random.get_state()
    kind, keys, position, gauss, cached = legacy
    version, internal, python_gauss = random.getstate()
    return tensors, {"numpy": [kind, keys.tolist(), position, gauss, cached], "python": [version, list(internal), python_gauss]}


def set_random_state(tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(tensors["random.torch"])
    cuda = [tensors[k] for k in sorted(tensors) if k.startswith("random.cuda.")]
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(cuda)
    kind, keys, position, gauss, cached = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), position, gauss, cached))
    version, internal, python_gauss = state["python"]
    random.setstate((version, tuple(internal), python_gauss))


def save(folder: Path, order: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Path:
    """Write checkpoint number `order` under `folder`: all of it or nothing; the `KEPT` newest stay.

    Raises:
        AffinageError: no space left on the disk; the checkpoints written before stay as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(".writing-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    part = folder / f".writing-{order:09d}"
    part.mkdir()
    try:
        rng, rng_state = random_state()
        whole = {k: v.detach().contiguous().cpu().clone() for k, v in {**tensors, **rng}.items()}
        save_file(whole, part / "tensors.safetensors")
        (part / "state.json").write_text(json.dumps({**state, "order": order, "random": rng_state}), encoding="utf8")
        manifest = {name: digest(part / name) for name in ("tensors.safetensors", "state.json")}
        (part / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf8")
        for name in part.iterdir():
            with name.open("rb") as file:
                os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:  # a full disk is either, by who wrote
        shutil.rmtree(part, ignore_errors=True)
        raise AffinageError(f"cannot write a checkpoint in {folder} ({error}): free some space, then --resume") from error
    final = folder / f"step-{order:09d}"
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def refused(folder: Path) -> str | None:
    """Why this checkpoint cannot be trusted, or None if its files are the ones that were written."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf8"))
        for name in ("tensors.safetensors", "state.json"):
            if digest(folder / name) != manifest[name]:
                return f"{name} is not the file that was written (truncated or changed)"
    except (OSError, ValueError, KeyError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    return None


def load(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[str]] | None:
    """(tensors, state, warnings) of the newest checkpoint whose hashes match, or None if there is none."""
    warnings: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        why = refused(path)
        if why is None:
            warnings = [f"{warning}; the one before it is used" for warning in warnings]
            return load_file(path / "tensors.safetensors"), json.loads((path / "state.json").read_text(encoding="utf8")), warnings
        warnings.append(f"checkpoint {path.name} is refused: {why}")
    if warnings:
        raise AffinageError(
            f"no checkpoint in {folder} can be trusted ({warnings[0]}): start again without --resume, with --overwrite"
        )
    return None
