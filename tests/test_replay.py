"""What is recorded is what would have run: on a CPU with a recorder that does the work again, on a GPU (test_gpu.py) for real."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from affinage.cut import Cut, Resumed
from affinage.fit import Fitting
from affinage.frozen import Captured
from affinage.ragged import Column
from affinage.replay import SEEN, Replay, wanted
from affinage.store import in_memory

from .test_fit import STAGE, fitting, run, tensors


class Again:
    """In place of a card: what is recorded is done anew, from what it then finds in the tensors that it reads."""

    def __init__(self, *, waits: str = "", full: str = "", fails: bool = False, looks: bool = False) -> None:
        """`looks`: a pass waits unless it hears that it is recorded."""
        self.waits, self.full, self.fails, self.recorded = waits, full, fails, 0
        self.looks, self.heard = looks, list[bool]()

    @contextmanager
    def aside(self) -> Iterator[None]:
        yield

    @contextmanager
    def saying(self, recorded: bool) -> Iterator[None]:
        self.heard.append(recorded)
        yield

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        if self.fails:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        self.recorded += 1
        return work

    def watched(self, model: Any, work: Callable[[], object]) -> str:
        if not self.looks:
            return self.waits
        self.heard.clear()
        work()
        return "a pass waits" if self.heard == [False] else ""

    def too_full(self) -> str:
        return self.full

    def sound(self, error: Exception) -> None:
        pass


def replayed(made: Fitting, recorder: Again) -> Fitting:
    made.replay = Replay(made.net.model, list(made.trained.values()), made._loss, made._along, recorder)  # type: ignore[arg-type]
    return made


def unrecorded(made: Fitting) -> Fitting:
    """Kernel by kernel, with the rates of 24 bits that a recording reads, so that weights can be compared to the bit."""
    return replayed(made, Again(waits="never"))


def alike(a: Fitting, b: Fitting) -> bool:
    other = tensors(b)
    return all(torch.equal(value, other[name]) for name, value in tensors(a).items())


@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_recorded_updates_are_those_of_the_plain_loop(name: str, tmp_path: Path) -> None:
    stage = replace(STAGE, epochs=8, average=0.2, dropout=False)
    plain, other = unrecorded(fitting(name, stage)), replayed(fitting(name, stage), recorder := Again())
    for i, one in enumerate((plain, other)):
        run(one, tmp_path / str(i))
    assert other.replay and not other.replay.why
    shapes = other.replay.shapes
    assert 0 < shapes < 8 and recorder.recorded == shapes + 1  # and the update, once
    assert other.replay.launched > shapes and other.replay.launched < other.progress.step - SEEN + 1
    assert alike(plain, other)
    assert all(p.grad is None for p in other.trained.values())


def test_updates_in_pieces_between_recorded_ones(tmp_path: Path) -> None:
    """Long rows come in pieces, which are not recorded: their gradients are stepped along, not those recorded before."""
    stage = replace(STAGE, epochs=8, dropout=False, tokens=70)
    plain, other = unrecorded(fitting("bert", stage)), replayed(fitting("bert", stage), Again())
    seen: list[int] = []
    split = other._in_pieces

    def counting(batch: np.ndarray, even: bool) -> float:
        before = other.replay.launched if other.replay else 0
        value = split(batch, even)
        assert other.replay
        seen.append(other.replay.launched - before)
        return value

    other._in_pieces = counting  # type: ignore[method-assign]
    for i, one in enumerate((plain, other)):
        run(one, tmp_path / str(i))
    assert 0 < sum(seen) < len(seen) - 4  # some of either, beyond the first of each shape
    assert alike(plain, other)


def test_what_a_cut_left_is_laid_out_before(tmp_path: Path) -> None:
    """Of two batches of one shape the numbers of tokens differ; what is recorded reads neither."""
    stage = replace(STAGE, epochs=8, dropout=False, rates=(("head", 1e-2), ("blocks.-1:", 1e-3), ("*", None)))
    runs = []
    for i in range(2):
        made = fitting("bert", stage)
        cut = Cut(made.net, len(made.net.blocks) - 1, made.rows)
        columns = [Column("float32", layout.unit, True) for layout in cut.layouts()]
        with torch.no_grad():
            every = cut.packed(made.rows.batch(np.arange(len(made.rows))))
        writer = in_memory(columns, made.rows.lengths)
        writer.add(np.arange(len(made.rows)), [units.numpy() for units in every])
        made.rows, made.forward = Captured(made.rows, writer.done({})), Resumed(cut)
        run(replayed(made, Again()) if i else unrecorded(made), tmp_path / str(i))
        runs.append(made)
    assert runs[1].replay and runs[1].replay.launched
    assert alike(*runs)


def test_a_parameter_that_no_pass_reads_stays(tmp_path: Path) -> None:
    made = fitting("bert", replace(STAGE, epochs=8, dropout=False))
    idle = torch.nn.Parameter(torch.ones(3))
    made.trained["idle"] = idle
    made.optimizer.add_param_group({"params": [idle], "lr": 1.0, "weight_decay": 0.5})
    made.peaks.append(1.0)
    run(replayed(made, Again()), tmp_path / "run")
    assert made.replay and made.replay.launched and idle.tolist() == [1, 1, 1]


@pytest.mark.parametrize("looks", [False, True])
def test_every_pass_goes_the_way_that_a_recording_can_go(looks: bool, tmp_path: Path) -> None:
    """A pass hears that it is recorded where it would wait otherwise, whether it is or not; what steps always hears that it is."""
    made = replayed(fitting("bert", replace(STAGE, epochs=4, dropout=False)), recorder := Again(looks=looks))
    run(made, tmp_path / "run")
    assert made.replay and made.replay.launched
    assert recorder.heard.count(False) == (0 if looks else made.progress.step)


@pytest.mark.parametrize(
    ("recorder", "says"),
    [
        (Again(waits="a pass waits for the card (modeling_bert.py, line 7)"), "modeling_bert.py, line 7"),
        (Again(full="no room"), "no room"),
        (Again(fails=True), "recording failed (RuntimeError: operation not permitted when stream is capturing)"),
    ],
)
def test_where_nothing_can_be_recorded_it_learns_all_the_same(recorder: Again, says: str, tmp_path: Path) -> None:
    stage = replace(STAGE, epochs=6, dropout=False)
    plain, other = unrecorded(fitting("bert", stage)), replayed(fitting("bert", stage), recorder)
    for i, one in enumerate((plain, other)):
        run(one, tmp_path / str(i))
    assert other.replay and says in other.replay.why and not other.replay.launched and not other.replay.shapes
    assert not any(group["capturable"] for group in other.optimizer.param_groups)  # else it warns that it is not recorded
    assert alike(plain, other)


def test_other_parameters_from_batch_to_batch(tmp_path: Path) -> None:
    """Where a batch reads another part of the network, nothing is recorded: zeros are no gradient, they move by momentum."""
    stage = replace(STAGE, epochs=6, dropout=False)
    runs = []
    for i in range(2):
        made = fitting("bert", stage)
        extra = torch.nn.Parameter(torch.ones(1))
        made.trained["extra"] = extra
        made.optimizer.add_param_group({"params": [extra], "lr": 1e-3, "weight_decay": 0.0})
        made.peaks.append(1e-3)
        whole = made.net.model

        def sometimes(whole: Any = whole, extra: Any = extra, **batch: Any) -> Any:
            out = whole(**batch)
            if batch["input_ids"].shape[1] % 2:
                out.logits = out.logits * extra
            return out

        made.forward = sometimes
        run(replayed(made, Again()) if i else unrecorded(made), tmp_path / str(i))
        runs.append((made, extra))
    assert runs[1][0].replay and "changes from batch to batch" in runs[1][0].replay.why
    assert alike(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])


def test_a_state_goes_on_with_or_without(tmp_path: Path) -> None:
    """A checkpoint of the one is a checkpoint of the other."""
    stage = replace(STAGE, epochs=6, dropout=False)
    whole = replayed(fitting("bert", stage), Again())
    kept: list[Any] = []
    step = whole.step

    def watching(batch: np.ndarray) -> float:
        if whole.progress.step == 9:
            state, about = whole.state()
            kept.append(({k: t.clone() for k, t in state.items()}, about))
        return step(batch)

    whole.step = watching  # type: ignore[method-assign]
    run(whole, tmp_path / "whole")
    for i in range(2):
        on = fitting("bert", stage)
        on.restore(copy.deepcopy(kept[0][0]), kept[0][1])
        run(replayed(on, Again()) if i else unrecorded(on), tmp_path / str(i))
        assert alike(whole, on)


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wanted()
    monkeypatch.setenv("AFFINAGE_GRAPHS", "off")
    assert not wanted()
