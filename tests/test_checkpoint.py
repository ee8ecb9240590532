"""Checkpoints: what comes back is what went in, what was damaged is refused, and nothing in them can run code."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from traceback import StackSummary

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.api import CheckpointException

from affinage import checkpoint, reach
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
    same(tensors(), found.tensors)
    assert {k: found.state[k] for k in state} == state and found.state["order"] == 4 and found.warnings == []


def test_two_are_kept(tmp_path: Path) -> None:
    for order in (1, 2, 3, 10):
        checkpoint.save(tmp_path, order, tensors(order), {"stage": order})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000003", "step-000000010"]
    found = checkpoint.load(tmp_path)
    assert found is not None and found.state["stage"] == 10


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
    assert found is not None and found.state["stage"] == 1
    same(tensors(1), found.tensors)
    assert len(found.warnings) == 1 and "step-000000002 is refused" in found.warnings[0] and "is used" in found.warnings[0]
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
    checkpoint.set_random_state(found.tensors, found.state["random"])
    assert [draws() for _ in range(3)] == expected


def test_what_a_kill_left_half_written_is_passed_over(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, tensors(), {"stage": 1})
    half = tmp_path / ".writing-000000002"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    found = checkpoint.load(tmp_path)
    assert found is not None and found.state["order"] == 1 and found.warnings == []
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
    assert found is not None and found.state["stage"] == 1


def test_how_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AFFINAGE_CHECKPOINT_SECONDS", raising=False)
    assert checkpoint.interval() == 60.0
    monkeypatch.setenv("AFFINAGE_CHECKPOINT_SECONDS", "soon")
    with pytest.raises(AffinageError, match="AFFINAGE_CHECKPOINT_SECONDS is 'soon': expected seconds"):
        checkpoint.interval()


# ---------------------------------------------------------------------------------------------------- in parts over two ranks
ROWS = {"weights.even": (6, 3), "weights.odd": (7, 5), "average.one": (1, 4), "optimizer.one.exp_avg": (5,)}
PARTS = """
import resource, sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor, empty

from affinage import checkpoint, ranks, team
from affinage.errors import AffinageError
from tests.test_checkpoint import ROWS, some, tensors

what, folder = sys.argv[1], Path(sys.argv[2])
with team.joined(folder):
    mesh = init_device_mesh("cpu", (2,))
    apart = {k: distribute_tensor(t, mesh, [Shard(0)]) for k, t in some().items()}
    if what == "save":
        for order in (1, 2):
            checkpoint.save(folder / "made", order, {**apart, **tensors()}, {"stage": order})
    elif what == "full":
        checkpoint.save(folder / "made", 1, {**apart, **tensors()}, {"stage": 1})
        large = distribute_tensor(torch.zeros(200_000), mesh, [Shard(0)])
        if ranks.number() == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        try:
            checkpoint.save(folder / "made", 2, {"large": large}, {"stage": 2})
        except AffinageError as error:
            (folder / f"told-{ranks.number()}").write_text(str(error))
        ranks.gathered(0)
    else:
        def laid(name, like):
            if name not in ROWS:
                return like
            return empty(*like.shape, dtype=like.dtype, device_mesh=mesh, placements=[Shard(0)])

        saved = checkpoint.newest(folder / "made")
        found = checkpoint.read(saved.path, lambda name: not name.startswith("random."), laid)
        local = {k: getattr(t, "to_local", lambda t=t: t)().clone() for k, t in found.items()}
        assert all(torch.equal(local[k], apart[k].to_local()) for k in apart)
        save_file(local, folder / f"read-{ranks.number()}.safetensors")
    ranks.gathered(0)
team.leave(0)  # as a command ends
"""


def some() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {name: torch.randn(*shape, generator=draw) for name, shape in ROWS.items()}


def both(what: str, folder: Path) -> None:
    """`PARTS` in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = Path(__file__).parents[1]
    meet = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PARTS, what, str(folder)],
            env={**os.environ, **meet, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
            cwd=root,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(told)


@pytest.fixture(scope="module")
def parted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two ranks saved tensors in parts, twice."""
    folder = tmp_path_factory.mktemp("parted")
    both("save", folder)
    return folder


def test_what_two_ranks_saved_in_parts_is_read_whole_by_one(parted: Path) -> None:
    """By us, and by torch's own reader; each rank wrote its pieces alone, in safetensors."""
    import torch.distributed.checkpoint as dcp

    found = checkpoint.load(parted / "made")
    assert found is not None and found.state["stage"] == 2 and found.warnings == []
    same({**some(), **tensors()}, found.tensors)
    pieces = sorted(path.name for path in found.path.glob("shard-*"))
    assert pieces == [f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)]
    sizes = [sum(t.numel() for t in load_file(found.path / name).values()) for name in pieces]
    assert sum(sizes) == sum(t.numel() for t in some().values()) and min(sizes) > 0
    assert sorted(p.suffix for p in found.path.iterdir()) == [".json"] * 2 + [".safetensors"] * 3
    theirs = {name: torch.empty_like(tensor) for name, tensor in {**some(), **tensors()}.items()}
    with pytest.warns(UserWarning, match="load in a single process"):
        dcp.load(theirs, storage_reader=dcp.HuggingFaceStorageReader(str(found.path)), no_dist=True)
    same({**some(), **tensors()}, theirs)
    only = checkpoint.read(found.path, lambda name: name.startswith("weights."))
    assert only.keys() == {"weights.even", "weights.odd"}


@pytest.mark.parametrize("before", [2, 1])
def test_each_of_two_ranks_reads_its_part(before: int, parted: Path, tmp_path: Path) -> None:
    """Of what two have saved, and of what one has: the same bits."""
    if before == 2:
        shutil.copytree(parted / "made", tmp_path / "made")
    else:
        checkpoint.save(tmp_path / "made", 1, {**some(), **tensors()}, {})
    both("read", tmp_path)
    first, second = (load_file(tmp_path / f"read-{rank}.safetensors") for rank in range(2))
    for name, whole in some().items():
        assert torch.cat([first[name], second[name]]).equal(whole) and len(second[name]) < len(whole)
    same(tensors(), first)
    same(tensors(), second)


@pytest.mark.parametrize(
    "damage", [cut, flip, Path.unlink, "stray"], ids=["truncated", "one bit flipped", "gone", "one too many"]
)
def test_a_damaged_part_is_seen(damage, parted: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(parted / "made", tmp_path / "made")
    last = tmp_path / "made" / "step-000000002"
    if damage == "stray":
        shutil.copy(last / "tensors.safetensors", last / "shard-00003-model-00001-of-00001.safetensors")
    else:
        damage(last / "shard-00002-model-00001-of-00001.safetensors")
    found = checkpoint.load(tmp_path / "made")
    assert found is not None and found.state["stage"] == 1 and len(found.warnings) == 1
    assert "step-000000002 is refused" in found.warnings[0]
    same({**some(), **tensors()}, found.tensors)


@pytest.mark.parametrize("name", ["shard-00001-model-00001-of-00001.safetensors", "tensors.safetensors", "manifest.json"])
def test_a_view_that_lacks_a_file_is_told(name: str, parted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine may not see yet what rank 0 has looked at: it waits, and then does not go on with numbers of nobody's."""
    monkeypatch.setattr(reach, "LAG", 0.3)
    shutil.copytree(parted / "made", tmp_path / "made")
    last = tmp_path / "made" / "step-000000002"
    (last / name).unlink()
    with pytest.raises(AffinageError, match=r"does not see all of .*step-000000002"):
        checkpoint.read(last, laid=lambda name, like: like)


def test_of_torchs_collected_errors_the_first_is_told() -> None:
    """Those of writing with their rank; Ctrl-C stays what it is."""
    for cause, kind, words in ((OSError(28, "full"), OSError, "rank 1: .*full"), (KeyboardInterrupt(), KeyboardInterrupt, None)):
        with pytest.raises(kind, match=words):
            checkpoint._told(CheckpointException("save", {1: (cause, StackSummary())}))


def test_no_space_on_one_rank_is_told_by_both(tmp_path: Path) -> None:
    both("full", tmp_path)
    for rank in range(2):
        told = (tmp_path / f"told-{rank}").read_text()
        assert "cannot write a checkpoint in" in told and "rank 1:" in told and "free some space" in told and "\n" not in told
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["step-000000001"]
    assert checkpoint.load(tmp_path / "made") is not None
