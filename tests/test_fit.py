"""The loop: frozen to the bit, the best epoch handed on, and a state that can be put back."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from affinage import augment, rates
from affinage.errors import AffinageError
from affinage.fit import Fitting, _clip
from affinage.net import Net
from affinage.pictures import ImageRows
from affinage.recompute import recomputed
from affinage.record import Records, read
from affinage.tasks.image_classification import task as images
from affinage.tasks.text_classification import TokenRows
from affinage.tasks.text_classification import task as texts
from affinage.types import Stage

from .zoo import FAMILIES
from .zoo_wide import WIDE

STAGE = Stage("body", "fit", (("*", 1e-3),), epochs=2, batch=8)


def fitting(name: str, stage: Stage, rows: int = 24, seed: int = 0, **options: Any) -> Fitting:
    """A stage on random rows for a small random network; targets that can be learnt from the first token or channel."""
    model, batch = {**FAMILIES, **WIDE}[name].make()
    draw = np.random.default_rng(0)
    targets = np.arange(rows) % 3
    if "input_ids" in batch:
        lengths = draw.integers(3, 12, rows)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        values = draw.integers(20, 90, starts[-1]).astype(np.int32)
        values[starts[:-1]] = targets + 10
        data: Any = TokenRows(values, starts, 0)
    else:
        model.to(memory_format=torch.channels_last)
        pixels = draw.integers(0, 100, (rows, 3, 32, 32)).astype(np.uint8)
        pixels[np.arange(rows), targets] += 100
        data = ImageRows(pixels, np.full(3, 1 / 64, np.float32), np.full(3, -1, np.float32))
    task = texts if "input_ids" in batch else images
    torch.manual_seed(seed)
    aims = task.aims(targets, data, None, model)
    options = {"weights": None, "precision": "fp32", **options}
    return Fitting(Net.of(model, batch), stage, task, data, aims, seed=seed, **options)


def run(made: Fitting, path: Path, scores: Callable[[], list[float] | None] = lambda: None) -> list[str]:
    """Train to the end; what happened, in order: steps by their rows, and saves."""
    seen: list[str] = []
    records = Records(path)
    made.run(scores, records, lambda: seen.append("save"), lambda rows, words: seen.append(str(rows)))
    records.close()
    return seen


def tensors(made: Fitting) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in made.net.model.state_dict().items()}


def test_a_head_that_is_trained_stops_once_its_loss_stands_still(tmp_path: Path) -> None:
    """Without a validation split, by what it is taught: as long as an epoch takes enough off the loss, it goes on."""
    stage = replace(STAGE, epochs=80, patience=3, tolerance=0.1, schedule="constant", rates=(("head", 1e-2), ("*", None)))
    made = fitting("bert", replace(stage, dropout=False))
    run(made, tmp_path / "a")
    assert made.progress.done and 3 < made.progress.epoch < 80
    losses = [record.value for record in read(tmp_path / "a") if record.name == "loss"]
    best = losses[0]
    gained = [0]
    for epoch, loss in enumerate(losses[1:], 1):
        if loss <= best * (1 - 0.1):
            gained.append(epoch)
        best = min(best, loss)
    assert len(losses) - 1 - gained[-1] == 3  # the last gain, and three epochs without one
    other = fitting("bert", replace(stage, tolerance=0.0, epochs=12))
    run(other, tmp_path / "b")
    assert not other.progress.done and other.progress.epoch == 12


# ----------------------------------------------------------------------------------------------------------- schedule
def test_rates_follow_the_schedule() -> None:
    made = fitting("bert", replace(STAGE, rates=(("head", 1e-2), ("blocks.-1", 1e-3), ("*", None)), warmup=0.5))
    for step in range(made.steps):
        made.step(np.arange(8))
        now = rates.share(made.stage, step, made.steps)
        assert {group["lr"] for group in made.optimizer.param_groups} == {1e-2 * now, 1e-3 * now}


# ------------------------------------------------------------------------------------------------------------- frozen
@pytest.mark.parametrize("top", [("head",), ("head", "blocks.-1")], ids=["head", "top-1"])
@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2", "bert", "roberta", "gpt2", "convnext"])
def test_frozen_to_the_bit(name: str, top: tuple[str, ...], tmp_path: Path) -> None:
    """Parameters and batch-norm statistics outside the rows that learn; inside, everything moves."""
    stage = replace(STAGE, rates=(*((address, 1e-3) for address in top), ("*", None)), weight_decay=0.1)
    made = fitting(name, stage)
    before = tensors(made)
    learned = set(made.learned())
    run(made, tmp_path / "records.jsonl")
    after = tensors(made)
    assert learned >= made.trained.keys()
    assert {made.net.parameters[n] for n in made.trained} <= {"head", f"blocks.{len(made.net.blocks) - 1}"}
    for n in before:
        gradient = made.trained[n].grad if n in made.trained else torch.ones(1)
        silent = gradient is None or gradient.abs().max() < 1e-6  # behind units that never fire, or below the eps of Adam
        if n not in learned:
            assert after[n].equal(before[n]), n
        elif not silent:
            assert not after[n].equal(before[n]), n
    if name == "resnet" and "blocks.-1" in top:
        assert any("running_mean" in n for n in learned) and any("running_mean" in n for n in before.keys() - learned)


@pytest.mark.parametrize(("top", "there"), [(1, True), (0, False), (3, False)], ids=["top-1", "head", "all"])
def test_only_what_frozen_blocks_leave_drops_out_at_the_cut(top: int, there: bool) -> None:
    addresses = ("head", *(f"blocks.{-i}" for i in range(1, top + 1)))
    rates_of = (*((address, 1e-3) for address in addresses), ("*", None))
    depth = len(fitting("bert", STAGE).net.blocks)
    assert depth == 3
    found = []
    for changes in ({}, {"cut_dropout": 0.5}, {"cut_dropout": 0.5, "dropout": False}, {"dropout": False}):
        made = fitting("bert", replace(STAGE, rates=rates_of, **changes))
        torch.manual_seed(1)
        rates.train_mode(made.net, made.table, dropout=made.stage.dropout)
        found.append(gradients(made, np.arange(24))[0])
    assert (found[0] != found[1]) == there
    assert found[2] == found[3], "a stage without dropout has none there either"


# ------------------------------------------------------------------------------------------------------------- the loop
@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_it_learns(name: str, tmp_path: Path) -> None:
    made = fitting(name, replace(STAGE, rates=(("*", 5e-3),), epochs=8))
    seen = run(made, tmp_path / "records.jsonl")
    losses = [r.value for r in read(tmp_path / "records.jsonl") if r.name == "loss"]
    assert len(losses) == 8 and losses[-1] < 0.5 * losses[0]
    assert seen == ["8"] * 3 * 8  # every row once an epoch, and no checkpoint within the first minute
    assert made.progress.step == made.steps == 24 and made.progress.seconds > 0


def test_checkpoints_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFINAGE_CHECKPOINT_SECONDS", "0")
    seen = run(fitting("bert", replace(STAGE, epochs=1)), tmp_path / "records.jsonl")
    assert seen == ["8", "save"] * 3 + ["save"]


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_the_best_epoch_is_handed_on(average: float, tmp_path: Path) -> None:
    """The scores are dictated: the second epoch is the best, three worse ones end it."""
    made = fitting("bert", replace(STAGE, epochs=9, patience=3, average=average))
    dictated = iter([[0.5, -1.0], [0.6, -0.9], [0.6, -0.95], [0.1, -0.1], [0.59, -0.5]])
    held: list[dict[str, torch.Tensor]] = []

    def scores() -> list[float]:
        held.append(tensors(made))
        return next(dictated)

    run(made, tmp_path / "records.jsonl", scores)
    assert made.progress.epoch == 5 and made.progress.best_epoch == 2 and made.progress.done
    assert all(tensor.equal(held[1][name]) for name, tensor in tensors(made).items())  # what was scored is what goes on
    assert not all(tensor.equal(held[4][name]) for name, tensor in tensors(made).items())


def test_without_validation_the_last_epoch_is_handed_on(tmp_path: Path) -> None:
    made = fitting("bert", replace(STAGE, epochs=3, patience=1))
    run(made, tmp_path / "records.jsonl")
    assert made.progress.epoch == made.progress.best_epoch == 3


def test_the_average_by_hand() -> None:
    """Uniform over the first steps, then exponential with a window of `average` * steps; statistics of batch norm alike."""
    made = fitting("resnet", replace(STAGE, epochs=4, average=0.25))
    assert made.steps == 12
    expected = {n: t.clone().double() for n, t in made.average.items()}
    for step in range(1, 9):
        made.step(np.arange(8) + step)
        weight = max(1 / step, 1 / 3)
        for n, tensor in made.learned().items():
            if n in expected:
                expected[n] += (tensor.double() - expected[n]) * weight
    assert any("running_var" in n for n in expected)
    candidate = made.candidate()
    for n, tensor in expected.items():
        assert torch.allclose(candidate[n].double(), tensor, atol=1e-6), n
    assert candidate.keys() == made.learned().keys()


def test_a_loss_that_is_not_finite_stops() -> None:
    made = fitting("bert", replace(STAGE, rates=(("*", 1e30),), warmup=0.0))
    with pytest.raises(
        AffinageError, match=r"the loss is (nan|inf) in stage body, epoch 1, step \d.* lower --learning-rate"
    ) as error:
        for _ in range(10):
            made.step(np.arange(8))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("most", [0.5, 3.0, 1e6])
def test_gradients_are_clipped_as_torch_clips_them(most: float) -> None:
    """To the bit, whether they are too long, short enough, or not there."""
    found = []
    for clip in (_clip, torch.nn.utils.clip_grad_norm_):
        torch.manual_seed(0)
        parameters = [
            torch.nn.Parameter(torch.zeros(3, 2)),
            torch.nn.Parameter(torch.zeros(5)),
            torch.nn.Parameter(torch.zeros(1)),
        ]
        for parameter in parameters[:2]:
            parameter.grad = torch.randn_like(parameter)
        clip(parameters, most)
        found.append([p.grad for p in parameters[:2] if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and len(found[0]) == 2


# -------------------------------------------------------------------------------------------------------------- pieces
def gradients(made: Fitting, rows: np.ndarray) -> tuple[float, dict[str, torch.Tensor]]:
    value = made._gradients(rows)
    return value, {n: p.grad.clone() for n, p in made.trained.items() if p.grad is not None}


def test_convolutions_see_channels_last_and_the_optimizer_is_fused() -> None:
    """What convolutions are fed and what they make lies channel by channel beside each other, so that nothing is laid anew."""
    made = fitting("resnet", STAGE)
    laid: list[bool] = []
    for module in made.net.model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda m, args, out: laid.extend(t.is_contiguous(memory_format=torch.channels_last) for t in (args[0], out))
            )
    gradients(made, np.arange(4))
    assert len(laid) > 10 and all(laid)
    assert all(group["fused"] for group in made.optimizer.param_groups)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.2, 1.0, 3.0])], ids=["plain", "weighted"])
@pytest.mark.parametrize("stage", [{"accumulate": 3}, {"tokens": 20}], ids=["accumulate", "tokens"])
def test_pieces_give_the_gradient_of_the_whole(stage: dict[str, int], weights: torch.Tensor | None) -> None:
    """In fp32, without dropout: to rounding, with class weights and smoothing too."""
    whole, parts = (
        fitting("bert", replace(STAGE, dropout=False, label_smoothing=0.1, **one), weights=weights) for one in ({}, stage)
    )
    for made in (whole, parts):
        rates.train_mode(made.net, made.table, dropout=False)
    rows = np.arange(11)
    a, b = gradients(whole, rows), gradients(parts, rows)
    assert a[0] == pytest.approx(b[0], abs=1e-6) and a[1].keys() == b[1].keys()
    for n in a[1]:
        assert torch.allclose(a[1][n], b[1][n], atol=1e-6), n


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_an_update_that_did_not_fit_is_made_in_pieces(error: Exception) -> None:
    """More than three rows at once are refused, in the middle of the network: the result is that of the whole."""
    whole, small = fitting("bert", STAGE), fitting("bert", STAGE)
    for made in (whole, small):
        rates.train_mode(made.net, made.table, dropout=False)
    module = small.net.model.get_submodule(small.net.blocks[0])

    def refuse(_: torch.nn.Module, args: Any) -> None:
        if len(args[0]) > 3:
            raise error

    module.register_forward_pre_hook(refuse)
    rows = np.arange(8)
    a, b = gradients(whole, rows), gradients(small, rows)
    assert small.progress.least_pieces == 4 and a[0] == pytest.approx(b[0], abs=1e-6)
    assert all(torch.allclose(a[1][n], b[1][n], atol=1e-6) for n in a[1])
    state = small.state()
    assert state[1]["progress"]["least_pieces"] == 4  # a resumed run goes on in pieces


def test_an_update_that_did_not_fit_leaves_no_trace_in_batch_norm(capsys: pytest.CaptureFixture[str]) -> None:
    """Refused in the last block, so that those before it have moved: as if it had been made in pieces from the start."""
    stage = replace(STAGE, dropout=False)
    planned, refused = fitting("resnet", replace(stage, accumulate=2)), fitting("resnet", stage)
    for made in (planned, refused):
        made.net.model.train()
    module = refused.net.model.get_submodule(refused.net.blocks[-1])

    def refuse(_: torch.nn.Module, args: Any) -> None:
        if len(args[0]) > 4:
            raise torch.OutOfMemoryError("full")

    module.register_forward_pre_hook(refuse)
    a, b = gradients(planned, np.arange(8)), gradients(refused, np.arange(8))
    assert refused.progress.least_pieces == 2 and a[0] == b[0]
    one, other = (dict(made.net.model.named_buffers()) for made in (planned, refused))
    assert all(torch.equal(one[n], other[n]) for n in one) and all(torch.equal(a[1][n], b[1][n]) for n in a[1])
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "batch norm takes each piece of them by itself" in told


def test_one_row_that_does_not_fit_is_told() -> None:
    made = fitting("bert", STAGE)

    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("full")

    made.net.model.register_forward_pre_hook(refuse)
    with pytest.raises(AffinageError, match=r"one row of \d+ tokens does not fit in memory: --unfreeze fewer"):
        made.step(np.arange(8))


def test_another_runtime_error_is_not_taken_for_memory() -> None:
    made = fitting("bert", STAGE)

    def refuse(*_: Any) -> None:
        raise RuntimeError("shapes differ")

    made.net.model.register_forward_pre_hook(refuse)
    with pytest.raises(RuntimeError, match="shapes differ"):
        made.step(np.arange(8))


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2"])
def test_recomputing_gives_the_same_gradients(name: str) -> None:
    plain, again = fitting(name, STAGE), fitting(name, STAGE)
    for made in (plain, again):
        rates.train_mode(made.net, made.table, dropout=False)
    a = gradients(plain, np.arange(8))
    with recomputed(again.net.model):
        b = gradients(again, np.arange(8))
    assert a[0] == b[0] and all(a[1][n].equal(b[1][n]) for n in a[1])
    assert not again.net.model.is_gradient_checkpointing


def test_it_goes_on_from_behind_the_last_batch_of_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint may be written there, before the epoch is judged: the same bits as without a stop."""
    monkeypatch.setenv("AFFINAGE_CHECKPOINT_SECONDS", "0")
    stage = replace(STAGE, dropout=False)
    whole, again = fitting("bert", stage), fitting("bert", stage)
    found: list[Any] = []

    def save() -> None:
        if whole.progress.batch == 3 and whole.progress.epoch == 0:  # of 24 rows, 8 a batch
            kept, state = whole.state()
            found.append(({n: t.clone() for n, t in kept.items()}, copy.deepcopy(state)))

    for made, path, saving in ((whole, "a", save), (again, "b", lambda: None)):
        if made is again:
            (saved,) = found
            made.restore(*saved)
        records = Records(tmp_path / path)
        made.run(lambda: None, records, saving, lambda rows, words: None)
        records.close()
    want, got = tensors(whole), tensors(again)
    assert all(torch.equal(got[n], t) for n, t in want.items())


def test_recomputed_batches_count_once() -> None:
    """Batch norm sees each batch twice, forwards and where it is computed again; its statistics are those of one look."""
    plain, again = fitting("mobilevit", STAGE), fitting("mobilevit", STAGE)
    for made in (plain, again):
        rates.train_mode(made.net, made.table, dropout=False)
    plain.step(np.arange(8))
    with recomputed(again.net.model):
        again.step(np.arange(8))
    known = dict(again.net.model.named_buffers())
    counts = {n: b for n, b in plain.net.model.named_buffers() if n.endswith("num_batches_tracked")}
    assert counts and all(int(b) == int(known[n]) == 1 for n, b in counts.items())
    assert all(torch.allclose(b, known[n]) for n, b in plain.net.model.named_buffers())


@pytest.mark.slow
def test_compiled_it_learns_the_same() -> None:
    plain, fast = fitting("bert", STAGE), fitting("bert", STAGE, compiled=True)
    for made in (plain, fast):
        rates.train_mode(made.net, made.table, dropout=False)
    for _ in range(3):
        assert fast.step(np.arange(8)) == pytest.approx(plain.step(np.arange(8)), abs=1e-4)
    assert fast.compiling_seconds() > 0


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_interpolated_weights_lie_on_the_line_and_the_loop_goes_on_from_its_own(average: float, tmp_path: Path) -> None:
    """What is scored and handed on is a quarter of the way from the beginning; the steps themselves are those of a stage without."""
    stage = replace(STAGE, epochs=3, average=average)
    whole, part = fitting("resnet", stage), fitting("resnet", replace(stage, interpolate=0.25))
    start = {n: t.clone() for n, t in tensors(part).items()}
    scored: list[dict[str, torch.Tensor]] = []
    run(whole, tmp_path / "whole.jsonl")
    run(part, tmp_path / "part.jsonl", lambda: scored.append(tensors(part)))
    assert len(scored) == 3
    for name, end in tensors(whole).items():
        expected = start[name].lerp(end, 0.25) if end.is_floating_point() else end
        assert tensors(part)[name].equal(expected) and scored[-1][name].equal(expected), name
    assert any(not t.equal(start[n]) for n, t in tensors(part).items())


def test_a_stage_that_trains_nothing_is_refused() -> None:
    with pytest.raises(AffinageError, match="stage body trains nothing"):
        fitting("bert", replace(STAGE, rates=(("*", None),)))


# -------------------------------------------------------------------------------------------------------------- restore
@pytest.mark.parametrize("average", [0.0, 0.5])
@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_restore_is_the_inverse_of_state(name: str, average: float) -> None:
    """A new stage from the state of another goes on as that one, bit by bit: moments, averages and memory layout included.

    The tensors come back as from a file: in another order, each contiguous.
    """
    stage = replace(STAGE, rates=(("head", 1e-2), ("blocks.-1", 1e-3), ("*", None)), average=average, augment="light")
    one, other = fitting(name, stage), fitting(name, stage)
    for made in (one, other):
        rates.train_mode(made.net, made.table)
    for step in range(2):
        one.step(np.arange(8) + step)
    held, state = one.state()
    held = {n: held[n].detach().contiguous().clone() for n in sorted(held, reverse=True)}
    generator = torch.get_rng_state()
    other.restore(held, state)
    again, state_again = other.state()
    assert state_again == state and again.keys() == held.keys()
    assert all(tensor.equal(held[n]) for n, tensor in again.items())
    for made in (one, other):
        torch.set_rng_state(generator)
        for step in range(3):
            made.step(np.arange(8) + step)
    assert all(t.equal(u) for t, u in zip(tensors(one).values(), tensors(other).values(), strict=True))
    assert all(one.average[n].equal(t) for n, t in other.average.items()) and bool(one.average) == bool(average)


def test_another_plans_checkpoint_is_refused() -> None:
    held, state = fitting("bert", STAGE).state()
    for other in (replace(STAGE, epochs=3), replace(STAGE, rates=(("head", 1e-3), ("*", None)))):
        with pytest.raises(AffinageError, match="the checkpoint is of another plan"):
            fitting("bert", other).restore(held, state)


# --------------------------------------------------------------------------------------------------------------- mixing
def test_a_mixed_step_is_the_mean_of_two_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.7 of one class and 0.3 of another: the loss against those shares, as torch computes it of class probabilities."""
    made = fitting("resnet", replace(STAGE, mix=1.0))
    made.net.model.eval()
    seen: dict[str, torch.Tensor] = {}

    def blended(pixels: torch.Tensor, share: float) -> augment.Mixed:
        assert share == 1.0
        other = torch.arange(len(pixels)).roll(1)
        seen["pixels"] = 0.7 * pixels + 0.3 * pixels[other]
        return augment.Mixed(seen["pixels"], other, 0.7)

    monkeypatch.setattr(sys.modules["affinage.fit"], "mixed", blended)
    rows = np.arange(8)
    loss = made.loss(rows)
    logits = made.net.model(pixel_values=seen["pixels"]).logits
    own = torch.nn.functional.one_hot(made.aims.batch(rows), logits.shape[1]).float()
    soft = 0.7 * own + 0.3 * own.roll(1, 0)
    assert torch.allclose(loss, torch.nn.functional.cross_entropy(logits, soft), atol=1e-6)


def test_mixing_goes_on_after_a_stop_bit_by_bit() -> None:
    stage = replace(STAGE, mix=0.7, augment="strong")
    one, other = fitting("resnet", stage), fitting("resnet", stage)
    for made in (one, other):
        rates.train_mode(made.net, made.table)
    for step in range(3):
        one.step(np.arange(8) + step)
    held, state = one.state()
    held = {name: tensor.clone() for name, tensor in held.items()}
    generator = torch.get_rng_state()
    other.restore(held, state)
    for made in (one, other):
        torch.set_rng_state(generator)
        for step in range(4):
            made.step(np.arange(8) + step)
    assert all(t.equal(u) for t, u in zip(tensors(one).values(), tensors(other).values(), strict=True))
