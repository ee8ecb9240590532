"""Checkpoints: what comes back is what went in, what was damaged is refused, and nothing in them can run code."""

from __future__ import annotations

import json
import random
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from affinage import checkpoint
from affinage.errors import AffinageError


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(7, 5, generator=draw),
        "half": torch.randn(4, generator=draw).to(torch.bfloat16),
        "count": torch.tensor(3),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
        "laid differently": torch.randn(2, 3, 4, 4, generator=draw).to(memory_format=torch.channels_last),
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, tensor in one.items():
        assert other[name].dtype == tensor.dtype and other[name].shape == tensor.shape
        assert (
            other[name].contiguous().view(torch.uint8).equal(tensor.contiguous().view(torch.uint8))
            if tensor.dim()
            else other[name].equal(tensor)
        )


def test_round_trip_is_bitwise(tmp_path: Path) -> None:
    state = {"stage": 1, "progress": {"loss": 0.1 + 0.2, "best": [0.5, -1e-300]}, "none": None}
    made = checkpoint.save(tmp_path, 4, tensors(), state)
    assert made.name == "step-000000004"
    found = checkpoint.load(tmp_path)
    assert found is not None
    same(tensors(), found[0])
    assert {k: found[1][k] for k in state} == state and found[1]["order"] == 4 and found[2] == []


def test_two_are_kept(tmp_path: Path) -> None:
    for order in (1, 2, 3, 10):
        checkpoint.save(tmp_path, order, tensors(order), {"stage": order})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000003", "step-000000010"]
    found = checkpoint.load(tmp_path)
    assert found is not None and found[1]["stage"] == 10


def test_no_folder_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "nothing") is None


def test_no_pickle(tmp_path: Path) -> None:
    """Safetensors and JSON only; neither a pickle nor the zip in which torch keeps one."""
    made = checkpoint.save(tmp_path, 1, tensors(), {})
    assert sorted(p.name for p in made.iterdir()) == ["manifest.json", "state.json", "tensors.safetensors"]
    for path in made.iterdir():
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK"))
        if path.suffix == ".json":
            json.loads(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink], ids=["truncated", "one bit flipped", "gone"])
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_damage_is_seen_and_the_one_before_is_used(name: str, damage, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for order in (1, 2):
        checkpoint.save(tmp_path, order, tensors(order), {"stage": order})
    damage(tmp_path / "step-000000002" / name)
    found = checkpoint.load(tmp_path)
    assert found is not None and found[1]["stage"] == 1
    same(tensors(1), found[0])
    assert len(found[2]) == 1 and "step-000000002 is refused" in found[2][0] and "is used" in found[2][0]
    damage(tmp_path / "step-000000001" / name)
    with pytest.raises(AffinageError, match=r"no checkpoint in .* can be trusted .*--overwrite") as error:
        checkpoint.load(tmp_path)
    assert "\n" not in str(error.value) and "is used" not in str(error.value)


def test_random_generators_go_on(tmp_path: Path) -> None:
    def draws() -> list[float]:
        return [
            torch.rand(1).item(),
            np.random.rand(),
            np.random.randn(),
            random.random(),
            random.gauss(0, 1),
            torch.randn(1).item(),
        ]

    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    draws()  # leaves a cached half of a pair of normal numbers in NumPy and in Python
    checkpoint.save(tmp_path, 1, {}, {})
    expected = [draws() for _ in range(3)]
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    found = checkpoint.load(tmp_path)
    assert found is not None
    checkpoint.set_random_state(found[0], found[1]["random"])
    assert [draws() for _ in range(3)] == expected


def test_what_a_kill_left_half_written_is_passed_over(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, tensors(), {"stage": 1})
    half = tmp_path / ".writing-000000002"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    found = checkpoint.load(tmp_path)
    assert found is not None and found[1]["order"] == 1 and found[2] == []
    checkpoint.save(tmp_path, 2, tensors(), {"stage": 2})
    assert not half.exists()


def test_no_space_is_one_line_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the write fails part of the way."""
    checkpoint.save(tmp_path, 1, tensors(), {"stage": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(AffinageError, match=r"cannot write a checkpoint in .* free some space.*--resume") as error:
            checkpoint.save(tmp_path, 2, {"large": torch.zeros(100_000)}, {"stage": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]
    found = checkpoint.load(tmp_path)
    assert found is not None and found[1]["stage"] == 1


def test_how_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AFFINAGE_CHECKPOINT_SECONDS", raising=False)
    assert checkpoint.interval() == 60.0
    monkeypatch.setenv("AFFINAGE_CHECKPOINT_SECONDS", "soon")
    with pytest.raises(AffinageError, match="AFFINAGE_CHECKPOINT_SECONDS is 'soon': expected seconds"):
        checkpoint.interval()
