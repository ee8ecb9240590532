"""Checkpoints: atomic, hash-listed folders of safetensors and JSON from which a run goes on bit by bit as if never stopped.

Tensors of which each rank holds a piece (`--shard`) are written by `torch.distributed.checkpoint`, a file a rank, through its
storage of safetensors, which knows where each piece lies: what was saved on so many ranks is read by any other number, and
nothing is pickled. What every rank has is one more such file, so that torch's own reader takes the folder as it is.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from affinage import ranks, reach
from affinage.errors import AffinageError
from affinage.facts import digest, flush

WHOLE = "tensors.safetensors"  # what every rank has
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
    """Write checkpoint number `order` under `folder`: all of it or nothing; the `KEPT` newest stay. All ranks call this.

    `tensors`: those that are in parts (`DTensor`) are written by all ranks together, each its own pieces; the others by rank 0.

    Raises:
        AffinageError: no space left on the disk; the checkpoints written before stay as they are.
    """
    part, final = folder / f".writing-{order:09d}", folder / f"step-{order:09d}"
    apart = {k: v for k, v in tensors.items() if hasattr(v, "to_local")}

    def rest(digests: list[dict[str, str]]) -> None:
        rng, rng_state = random_state()
        whole = {k: v.detach().contiguous().cpu().clone() for k, v in {**tensors, **rng}.items() if k not in apart}
        save_file(whole, part / WHOLE)
        (part / "state.json").write_text(json.dumps({**state, "order": order, "random": rng_state}), encoding="utf8")
        manifest = {name: digest(part / name) for name in (WHOLE, "state.json")}
        for theirs in digests:
            manifest |= theirs
        if missing := [name for name in manifest if not (part / name).exists()]:
            raise OSError(f"{missing[0]} is not there: the ranks do not write in the same folder any more")
        (part / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf8")
        for written in part.iterdir():
            flush(written)
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
        for old in sorted(folder.glob("step-*"))[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    try:
        if ranks.first():
            _begin(folder, part)
        digests: list[dict[str, str]] = []
        if apart:
            ranks.alone(lambda: None)  # no rank writes before the folder is there
            _save_pieces(part, apart)
            mine = part.glob(f"shard-{ranks.number() + 1:05d}-*.safetensors")
            digests = ranks.gathered({path.name: digest(path) for path in mine})
        ranks.alone(lambda: rest(digests))
    except (OSError, SafetensorError) as error:  # a full disk is either, by who wrote
        if ranks.first():
            shutil.rmtree(part, ignore_errors=True)
        raise AffinageError(f"cannot write a checkpoint in {folder} ({error}): free some space, then --resume") from error
    return final


def _begin(folder: Path, part: Path) -> None:
    """An empty folder to write in, and none that a kill left."""
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(".writing-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    part.mkdir()


def _save_pieces(part: Path, apart: dict[str, torch.Tensor]) -> None:
    """This rank's pieces, as `shard-0000R-model-00001-of-00001.safetensors` with R from 1; all ranks call it."""
    from torch.distributed.checkpoint import state_dict_saver
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    try:
        state_dict_saver.save(apart, storage_writer=HuggingFaceStorageWriter(str(part), save_distributed=True))
    except CheckpointException as error:  # not an Exception; raised on all ranks, whichever of them failed
        _told(error)


def _told(error: Any) -> NoReturn:
    """The first rank's own error, out of torch's collection of all, which takes even Ctrl-C for one of writing."""
    rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
    if isinstance(cause, (OSError, SafetensorError)):
        raise OSError(f"rank {rank}: {cause}") from error
    raise cause


def refused(folder: Path) -> str | None:
    """Why this checkpoint cannot be trusted, or None if its files are the ones that were written."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf8"))
        if odd := {path.name for path in folder.glob("*.safetensors")} - manifest.keys():
            return f"{min(odd)} is none of the files that were written"
        for name in {WHOLE, "state.json", *manifest}:
            if digest(folder / name) != manifest[name]:
                return f"{name} is not the file that was written (truncated or changed)"
    except (OSError, ValueError, KeyError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    return None


@dataclass(frozen=True)
class Saved:
    """A checkpoint that can be trusted. `tensors`: what was read of it, each whole; `path`: its folder, for those in parts."""

    path: Path
    state: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def newest(folder: Path) -> Saved | None:
    """The newest checkpoint whose hashes match, without its tensors, or None if there is none.

    Raises:
        AffinageError: there are some, and none can be trusted.
    """
    doubts: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        why = refused(path)
        if why is None:
            state = json.loads((path / "state.json").read_text(encoding="utf8"))
            return Saved(path, state, [f"{doubt}; the one before it is used" for doubt in doubts])
        doubts.append(f"checkpoint {path.name} is refused: {why}")
    if doubts:
        raise AffinageError(
            f"no checkpoint in {folder} can be trusted ({doubts[0]}): start again without --resume, with --overwrite"
        )
    return None


def load(folder: Path) -> Saved | None:
    """As `newest`, with all its tensors."""
    found = newest(folder)
    return replace(found, tensors=read(found.path)) if found else None


def read(
    path: Path, wanted: Callable[[str], bool] = bool, laid: Callable[[str, torch.Tensor], torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """The tensors of one checkpoint whose names are `wanted`.

    `laid(name, like)` may give, for one of the shape and dtype of `like` (which has no memory), a tensor in parts over the ranks:
    then only this rank's piece of it is read.
    """
    _all_there(path)
    try:
        return _read(path, wanted, laid)
    except (OSError, ValueError, SafetensorError) as error:
        raise AffinageError(f"cannot read the checkpoint {path} ({error}): mend that, then --resume") from error


def _all_there(path: Path) -> None:
    """Another machine's view of a folder that all share may lag behind that of rank 0, which has looked at the hashes."""
    there = [path / "manifest.json"]
    if all(reach.wait(there)):
        there = [path / name for name in json.loads(there[0].read_text(encoding="utf8"))]
        if all(reach.wait(there)):
            return
    raise AffinageError(f"rank {ranks.number()} does not see all of {path}: --resume once it does, or leave --shard out")


def _read(
    path: Path, wanted: Callable[[str], bool], laid: Callable[[str, torch.Tensor], torch.Tensor] | None
) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    if not laid and not any(path.glob("shard-*.safetensors")):
        with safe_open(path / WHOLE, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    about: Any = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    for name in filter(wanted, about):
        like = torch.empty(about[name].size, dtype=about[name].properties.dtype, device="meta")
        found[name] = laid(name, like) if laid else like
        if found[name].is_meta:
            found[name] = torch.empty_like(like, device="cpu")
    try:
        with warnings.catch_warnings():  # that there is no process group: none is needed to read
            warnings.simplefilter("ignore")
            state_dict_loader.load(found, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    except CheckpointException as error:
        _told(error)
    return found
