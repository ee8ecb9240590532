"""Plans: values whose tables cover every parameter of the network that they were made for."""

from __future__ import annotations

import itertools

import pytest
import torch

from affinage import plans, rates
from affinage.errors import AffinageError
from affinage.lora import adapt
from affinage.net import Net
from affinage.plans import NAMES, Wishes, make

from .zoo import FAMILIES


def net(name: str) -> Net:
    return Net.of(*FAMILIES[name].make())


@pytest.fixture(scope="module", params=[("bert", "text"), ("resnet", "image")], ids=lambda p: p[0])
def known(request: pytest.FixtureRequest) -> tuple[Net, str]:
    return net(request.param[0]), request.param[1]


def learns(network: Net, stage) -> set[str]:  # type: ignore[no-untyped-def]
    """Addresses in which something learns."""
    table = rates.resolve(network, stage.rates)
    return {network.parameters[name] for name, rate in table.items() if rate is not None}


@pytest.mark.parametrize("name", NAMES)
def test_every_table_covers_the_network(name: str, known: tuple[Net, str]) -> None:
    network, kind = known
    plan = make(name, network, kind, 500, Wishes(), patience=True)
    assert plan.name == name and plan.fresh == (name == "scratch") and bool(plan.lora) == (name == "lora")
    assert len({stage.name for stage in plan.stages}) == len(plan.stages)
    for stage in plan.stages:
        if not (plan.lora and stage.how == "fit"):
            assert "head" in learns(network, stage)
        if stage.how == "solve":
            assert learns(network, stage) == {"head"} and stage is plan.stages[0]
        else:
            assert stage.patience == 3 and stage.epochs >= 1


def test_a_head_that_no_solver_fits_trains_alone(known: tuple[Net, str]) -> None:
    network, kind = known
    plan = make("two-stage", network, kind, 500, Wishes(), patience=False, solves=False)
    head, body = plan.stages
    assert (head.how, head.name) == ("fit", "head") and learns(network, head) == {"head"}
    assert head.tolerance > 0 and head.patience >= 3 and head.schedule == "constant" and head.augment == "none"
    assert body.hand_over == 1.0 and body.tolerance == 0
    assert make("frozen", network, kind, 500, Wishes(), patience=False, solves=False).stages == (head,)
    assert make("full", network, kind, 500, Wishes(), patience=False, solves=False).stages == (body,)
    assert make("frozen", network, kind, 500, Wishes(epochs=2), patience=True, solves=False).stages[0].epochs == 2
    rates_of = {rate for address, rate in body.rates if address.startswith("blocks") and rate is not None}
    assert (len(rates_of) == 1) == (kind == "image"), "the layers of a small detector learn alike"


def test_who_learns(known: tuple[Net, str]) -> None:
    """Pretrained text keeps its word embeddings; pictures and what starts from nothing learn whole."""
    network, kind = known
    whole, blocks = set(network.parameters.values()), {f"blocks.{k}" for k in range(len(network.blocks))}
    plan = make("two-stage", network, kind, 500, Wishes(), patience=False)
    assert [stage.how for stage in plan.stages] == ["solve", "fit"]
    assert learns(network, plan.stages[1]) == (whole if kind == "image" else blocks | {"head"})
    assert plan.stages[1].weight_decay == 0 and plan.stages[1].patience == 0
    assert learns(network, make("scratch", network, kind, 500, Wishes(), patience=False).stages[0]) == whole
    top = make("two-stage", network, kind, 500, Wishes(unfreeze=1), patience=False).stages[1]
    assert learns(network, top) == {f"blocks.{len(network.blocks) - 1}", "head"}


@pytest.mark.parametrize("nothing", [0, "head"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_unfrozen_is_frozen(name: str, nothing: int | str, known: tuple[Net, str]) -> None:
    plan = make(name, *known, 500, Wishes(unfreeze=nothing), patience=True)
    assert [stage.how for stage in plan.stages] == ["solve"]


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 10])
def test_gradual_thaws_from_the_top(epochs: int, known: tuple[Net, str]) -> None:
    network, kind = known
    plan = make("gradual", network, kind, 500, Wishes(epochs=epochs), patience=True)
    fits = plan.stages[1:]
    assert sum(stage.epochs for stage in fits) == epochs and all(stage.epochs for stage in fits)
    seen = [learns(network, stage) for stage in fits]
    assert all(a < b for a, b in itertools.pairwise(seen))
    assert "blocks.0" in seen[-1] and "stem" not in seen[-1]


def test_lora_beside_the_layers_of_gpt2() -> None:
    """Its linear layers have a class of their own, with the weights the other way round."""
    model, batch = FAMILIES["gpt2"].make()
    before = model.eval()(**batch).logits
    adapt(model, Net.of(model, batch).blocks, 3, 0)
    inside = {name for name, _ in model.named_parameters() if "lora_A" in name}
    assert any("c_attn" in name for name in inside) and any("mlp.c_fc" in name for name in inside)
    assert torch.equal(model(**batch).logits, before)


def test_lora_rows_match_once_the_updates_are_there() -> None:
    model, batch = FAMILIES["bert"].make()
    network = Net.of(model, batch)
    plan = make("lora", network, "text", 500, Wishes(lora_rank=3), patience=True)
    assert plan.lora == 3
    with pytest.raises(AffinageError, match="lora"):
        rates.resolve(network, plan.stages[1].rates)
    adapt(model, network.blocks, plan.lora, 0)
    table = rates.resolve(Net.of(model, batch), plan.stages[1].rates)
    trained = {name for name, rate in table.items() if rate is not None}
    assert trained == {name for name in table if "lora_" in name or name.startswith("classifier.")}
    assert {p.shape[0] for name, p in model.named_parameters() if "lora_A" in name} == {3}


def test_wishes_are_heard(known: tuple[Net, str]) -> None:
    network, kind = known
    wishes = Wishes(
        learning_rate=3e-6,
        head_learning_rate=7e-4,
        layer_decay=0.5,
        epochs=4,
        batch_size=5,
        label_smoothing=0.1,
        average=0.2,
        augment="strong",
        mix=0.4,
        hand_over=0.5,
        interpolate=0.7,
    )
    stage = make("two-stage", network, kind, 500, wishes, patience=False).stages[1]
    assert (stage.epochs, stage.batch, stage.label_smoothing, stage.average, stage.augment) == (4, 5, 0.1, 0.2, "strong")
    assert (stage.hand_over, stage.mix, stage.interpolate) == (0.5, 0.4, 0.7)
    table = rates.resolve(network, stage.rates)
    found = {network.parameters[name]: rate for name, rate in table.items()}
    count = len(network.blocks)
    assert found["head"] == 7e-4
    for k in range(count):
        assert found.get(f"blocks.{k}", 0) == pytest.approx(3e-6 * 0.5 ** (count - 1 - k))


def test_only_a_solved_head_is_tempered_and_only_once(known: tuple[Net, str]) -> None:
    for name in NAMES:
        fits = [stage for stage in make(name, *known, 500, Wishes(epochs=3), patience=True).stages if stage.how == "fit"]
        solved = name not in ("scratch", "full", "frozen")
        assert [stage.hand_over for stage in fits] == ([plans.HAND_OVER] if solved else [1.0])[: len(fits)] + [1.0] * (
            len(fits) - 1
        )


def test_more_rows_fewer_epochs_and_larger_models_lower_rates() -> None:
    epochs = [plans.passes(rows, 16) for rows in (10, 1500, 1501, 10_000, 10_001, 10**7)]
    assert epochs == sorted(epochs, reverse=True) and epochs[-1] >= 3
    sizes = (1e6, 22e6, 66e6, 110e6, 1e9)
    for kind in ("text", "image"):
        found = [plans.body_rate(kind, int(size)) for size in sizes]
        assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 48, 100])
def test_few_rows_get_enough_updates(rows: int) -> None:
    steps = plans.passes(rows, 16) * -(-rows // 16)
    assert steps >= plans.STEPS


@pytest.mark.parametrize("rows", [5, 205, 1500, 20_000])
def test_detectors_get_more_updates(rows: int) -> None:
    """They go on to gain for long; what is larger than that has ten, five or three epochs as all have."""
    stage = make("full", net("resnet"), "image", rows, Wishes(), patience=False, solves=False).stages[-1]
    solved = make("full", net("resnet"), "image", rows, Wishes(), patience=False).stages[-1]
    assert stage.epochs * -(-rows // stage.batch) >= plans.BOX_STEPS
    assert stage.epochs >= solved.epochs and (stage.epochs == solved.epochs) == (rows >= 1500)
    assert make("full", net("resnet"), "image", rows, Wishes(epochs=2), patience=False, solves=False).stages[-1].epochs == 2


def test_unknown_plan() -> None:
    with pytest.raises(AffinageError, match="did you mean 'two-stage'"):
        make("two_stage", net("bert"), "text", 10, Wishes(), patience=True)


def test_an_address_that_is_not_there() -> None:
    with pytest.raises(AffinageError, match="cannot unfreeze 9 blocks: the model has 3"):
        make("two-stage", net("bert"), "text", 10, Wishes(unfreeze=9), patience=True)


@pytest.mark.parametrize(
    ("kind", "rows", "batch"), [("text", 4_999, 16), ("text", 5_000, 32), ("image", 4_999, 16), ("image", 5_000, 64)]
)
def test_many_rows_are_taken_in_larger_updates(kind: str, rows: int, batch: int) -> None:
    model, inputs = FAMILIES["bert" if kind == "text" else "resnet"].make()
    network = Net.of(model, inputs)
    assert make("full", network, kind, rows, Wishes(), patience=False).stages[-1].batch == batch
    assert make("full", network, kind, rows, Wishes(batch_size=7), patience=False).stages[-1].batch == 7


def test_what_frozen_blocks_of_a_text_network_leave_drops_out_as_they_would(known: tuple[Net, str]) -> None:
    network, kind = known
    usual = 0.1 if kind == "text" else 0.0  # tiny.bert has the rate of BERT, a ResNet has none
    for wish, expected in ((1, usual), ("blocks.-1:", usual), ("all", 0.0), ("everything", 0.0)):
        stage = make("two-stage", network, kind, 500, Wishes(unfreeze=wish), patience=False).stages[-1]
        assert stage.cut_dropout == expected, wish
    stages = make("gradual", network, kind, 500, Wishes(), patience=False).stages[1:]
    assert [s.cut_dropout for s in stages] == [usual] * (len(stages) - 1) + [0.0]
    assert make("lora", network, kind, 500, Wishes(unfreeze=1), patience=False).stages[-1].cut_dropout == 0.0
