"""Entry: the lowest block that the rates teach, what lies below a place, and how places are called."""

from __future__ import annotations

from affinage import rates
from affinage.entry import address, begins, entry, frozen_parameters, lowest
from affinage.net import Net

from .zoo import FAMILIES


def test_lowest() -> None:
    net = Net.of(*FAMILIES["roberta"].make())

    def k(*rows: tuple[str, float | None]) -> int | None:
        return lowest(net, rates.resolve(net, (*rows, ("*", None))))

    assert k(("head", 1.0)) == 2  # nothing but the head: at the last block
    assert k(("head", 1.0), ("blocks.-1", 1.0)) == 2
    assert k(("blocks.1", 1.0)) == 1
    assert k(("*.layer.1.*.bias", 1.0), ("blocks.2", 1.0)) == 1
    assert k(("blocks", 1.0)) == 0
    assert k(("*.LayerNorm.*", 1.0)) is None  # that of the embeddings too
    assert lowest(Net.of(*FAMILIES["albert_shares_one_block"].make()), {"classifier.weight": 1.0}) is None


def test_a_table_that_all_blocks_read_is_below_each() -> None:
    net = Net.of(*FAMILIES["deberta_v2"].make())
    assert "deberta.encoder.rel_embeddings.weight" in frozen_parameters(net, 0)
    assert not any("layer." in n for n in frozen_parameters(net, 0))


def test_only_what_has_something_frozen_below_is_entered() -> None:
    net = Net.of(*FAMILIES["roberta"].make())
    last = len(net.blocks) - 1
    assert entry(net, rates.resolve(net, ((f"blocks.{last}", 1.0), ("head", 1.0), ("*", None)))) == last
    assert entry(net, rates.resolve(net, (("blocks", 1.0), ("*", None)))) is None  # from the first block on
    assert entry(net, rates.resolve(net, (("*", 1.0),))) is None


def test_places_have_the_names_that_users_write() -> None:
    net = Net.of(*FAMILIES["roberta"].make())
    count = len(net.blocks)
    assert [address(net, k) for k in (0, count)] == ["blocks.0", "head"]
    assert begins(net, 1) == net.blocks[1] and begins(net, count) == net.head_name
