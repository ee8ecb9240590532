"""Entry: the place where what learns is entered, below which all is frozen, as the learning rates tell it."""

from __future__ import annotations

from collections.abc import Mapping

from affinage.net import Net


def begins(net: Net, k: int) -> str:
    """The module before which a cut at `k` lies: block k, or for k = L the layer of the head that gives the logits."""
    return net.blocks[k] if k < len(net.blocks) else str(net.head_name)


def address(net: Net, k: int) -> str:
    """That place as users write it: "blocks.3", "head"."""
    return f"blocks.{k}" if k < len(net.blocks) else "head"


def lowest(net: Net, table: Mapping[str, float | None]) -> int | None:
    """The number of the lowest block that the rates teach; where the head learns alone the number of blocks L if of it only the
    layer of the logits learns, else that of the last block.

    Nothing that is read before that place learns. None where something below block 0 learns, or there are no blocks. `table` as
    from `rates.resolve`.
    """
    learning = {net.parameters[name] for name, rate in table.items() if rate is not None}
    if not net.blocks or "stem" in learning:
        return None
    head = {name.rpartition(".")[0] for name, rate in table.items() if rate is not None and net.parameters[name] == "head"}
    last = len(net.blocks) - (head != {net.head_name})
    return min((int(a.removeprefix("blocks.")) for a in learning if a != "head"), default=last)


def entry(net: Net, table: Mapping[str, float | None]) -> int | None:
    """The number of the block that a cut lies before, where blocks below it are frozen; else None. `table` as in `lowest`."""
    k = lowest(net, table)
    return k if k and k < len(net.blocks) else None


def frozen_parameters(net: Net, k: int) -> list[str]:
    """Names of the parameters that are read before block k begins: they must not learn above a cut there.

    For k = L those of the head, too, but for the layer of the logits: a pooler's.
    """
    below = {"stem", *(f"blocks.{i}" for i in range(k))}
    logits = net.head_name if k == len(net.blocks) else None
    return [
        name
        for name, address in net.parameters.items()
        if address in below or (logits and address == "head" and name.rpartition(".")[0] != logits)
    ]
