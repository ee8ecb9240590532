"""A run becomes a starter: its weights in fp16 beside its own files, a card, and the hash of each file.

    python examples/pretrain/pack.py RUN NAME

RUN is a run folder, or one that a recipe here wrote; what its `run.json` does not tell (the data's licence, what the model is not
good for) stands in `examples/pretrain/NAME/about.json`. The folder goes to `affinage/starters/NAME`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from affinage.errors import AffinageError
from affinage.facts import digest
from affinage.trained import OWN

HERE = Path(__file__).resolve().parent
STARTERS = HERE.parents[1] / "affinage" / "starters"
MOST = 5_000_000  # bytes of one starter's weights
WEIGHTS = ("model.safetensors", "head.safetensors")
ABOUT = ("task", "serves", "licence", "summary", "data", "recipe", "not_for")


def small(tensor: torch.Tensor) -> torch.Tensor:
    """Matrices in fp16; vectors (norms, running statistics, biases) stay as they are: they are few, and a variance may be tiny.

    Raises:
        AffinageError: a number that fp16 does not hold.
    """
    if not tensor.is_floating_point() or tensor.dim() < 2:
        return tensor
    half = tensor.to(torch.float16)
    if not half.isfinite().all():
        raise AffinageError(f"a weight of {tensor.abs().max().item():g} is beyond fp16: these weights cannot be packed")
    return half


def about(name: str) -> dict[str, Any]:
    """What `examples/pretrain/NAME/about.json` tells.

    Raises:
        AffinageError: there is none, or it leaves something out.
    """
    path = HERE / name / "about.json"
    try:
        told = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise AffinageError(f"cannot read {path} ({error}): it says what no run knows: {', '.join(ABOUT)}") from error
    missing = [key for key in ABOUT if key not in told]
    if missing:
        raise AffinageError(f"{path} does not say {', '.join(missing)}")
    return told


def pack(run: Path, name: str, into: Path = STARTERS) -> Path:
    """The starter's folder, whole or not at all; an older one of that name is replaced.

    Raises:
        AffinageError: no finished run, weights that are too large or beyond fp16, or an `about.json` that is incomplete.
    """
    told = about(name)
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise AffinageError(f"no run at {run} ({error}): expected a folder with run.json") from error
    if record.get("status") != "finished":
        raise AffinageError(f"the run at {run} is not finished ({record.get('status')}): end it first")
    part = into / f".{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    parameters = 0
    try:
        for file in sorted(run.iterdir()):
            if file.name in WEIGHTS:
                tensors = {key: small(tensor).contiguous() for key, tensor in load_file(file).items()}
                parameters += sum(t.numel() for k, t in tensors.items() if t.is_floating_point() and "running_" not in k)
                save_file(tensors, part / file.name, metadata={"format": "pt"})
            elif file.is_file() and file.name not in OWN and not file.name.startswith("."):
                shutil.copyfile(file, part / file.name)
        size = sum((part / weights).stat().st_size for weights in WEIGHTS if (part / weights).exists())
        if not 0 < size <= MOST:
            raise AffinageError(f"weights of {size:,} bytes: a starter has some, and at most {MOST:,}")
        (part / "README.md").write_text(card(name, told, record, parameters, size), encoding="utf8")
        facts = {
            "task": told["task"],
            "serves": told["serves"],
            "licence": told["licence"],
            "parameters": parameters,
            "summary": told["summary"],
            "files": {file.name: digest(file) for file in sorted(part.iterdir())},
        }
        (part / "starter.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf8")
        for file in part.iterdir():
            file.chmod(0o644)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(into / name, ignore_errors=True)
    os.replace(part, into / name)
    return into / name


def card(name: str, told: dict[str, Any], record: dict[str, Any], parameters: int, size: int) -> str:
    """The model card: data, licence, recipe, scores, limits. All numbers are the run's."""
    scores = {split: record.get(split) or {} for split in ("validation", "test")}
    rows = [
        f"| {split} | {measure.replace('_', ' ')} | {value:.4g} | {found.get('n', '')} |"
        for split, found in scores.items()
        for measure, value in found.items()
        if isinstance(value, float)
    ]
    versions = ", ".join(f"{package} {version}" for package, version in (record.get("versions") or {}).items())
    seconds = (record.get("cost") or {}).get("cpu_seconds", 0)
    hardware = record.get("hardware") or {}
    where = " and a ".join(hardware[part] for part in ("cpu", "gpu") if part in hardware) or "a machine that is not known"
    fingerprint = record.get("data", {}).get("fingerprint", "")
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {told['task']}",
        "license: other",
        f"license_name: {json.dumps(told['licence'])}",
        "tags: [affinage, starter]",
        "---",
        "",
        f"# {name}",
        "",
        f"{told['summary']} {parameters:,} parameters, {size / 1e6:.1f} MB (matrices in fp16, loaded to fp32).",
        "",
        "```bash",
        f"affinage fit --model {name} --data DATA",
        "```",
        "",
        "## Data and licence",
        "",
        *(f"- {line}" for line in told["data"]),
        "",
        "## Scores",
        "",
        "Of the run itself, before packing; validation chose the epoch, so expect a little less.",
        "",
        "| split | measure | value | rows |",
        "|---|---|---:|---:|",
        *rows,
        "",
        "How it transfers: `docs/starters.md`.",
        "",
        "## Recipe",
        "",
        "```bash",
        *told["recipe"],
        "```",
        "",
        f"Seed {record.get('seed')}; kept: {record.get('kept')}; {seconds:,.0f} CPU seconds of this run on {where}; "
        f"commit `{record.get('commit') or 'not known'}`; data fingerprint `{fingerprint}`; {versions}.",
        "",
        "## What it is not good for",
        "",
        *(f"- {line}" for line in told["not_for"]),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--into", type=Path, default=STARTERS)
    told = parser.parse_args()
    try:
        folder = pack(told.run, told.name, told.into)
    except AffinageError as error:
        raise SystemExit(f"pack: {error}") from None
    print(folder, f"{sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
