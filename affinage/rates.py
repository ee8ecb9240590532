"""Rates: one ordered table says who learns and how fast; patterns are addresses (`blocks.-2:`) or globs over parameter names."""

from __future__ import annotations

import math
import re
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from affinage.errors import AffinageError, nearest
from affinage.net import Net
from affinage.types import Rates, Stage

DECODER = "head+decoder"
_BLOCKS = re.compile(r"blocks(?:\.(?P<one>-?\d+)|\.(?P<start>-?\d+)?:(?P<stop>-?\d+)?)?")


def match(net: Net, pattern: str) -> list[str]:
    """Names of the parameters that `pattern` stands for, in the model's order.

    Addresses: `stem`, `head`, `blocks`, `blocks.3`, `blocks.-1`; ranges as in Python: `blocks.-2:`, `blocks.:3`, `blocks.1:4`.
    Anything else is a glob over parameter names: `*`, `*.bias`.

    Raises:
        AffinageError: the pattern matches nothing; the message names the nearest address or parameter.
    """
    if (numbers := block_numbers(net, pattern)) is not None:
        wanted = {f"blocks.{k}" for k in numbers}
        found = [name for name, address in net.parameters.items() if address in wanted]
    elif pattern in ("stem", "head"):
        found = [name for name, address in net.parameters.items() if address == pattern]
    else:
        found = [name for name in net.parameters if fnmatchcase(name, pattern)]
    if not found:
        known = [address for address, names in net.addresses().items() if names]
        words = get_close_matches(pattern, [*known, *net.parameters], n=1, cutoff=0.0)
        near = _block_near(net, pattern) or (words[0] if words else "")
        raise AffinageError(
            f"'{pattern}' matches no parameter{f', the nearest is {near!r}' if near else ''}"
            f" (addresses: {known[0]}{f' ... {known[-1]}' if len(known) > 1 else ''}; or a glob over parameter names)"
        )
    return found


def block_numbers(net: Net, pattern: str) -> list[int] | None:
    """The numbers, from 0, of the blocks that an address stands for; None if it is not an address of blocks."""
    parts = _BLOCKS.fullmatch(pattern)
    if parts is None:
        return None
    every = range(len(net.blocks))
    if parts["one"] is not None:
        k = int(parts["one"])
        return [every[k]] if -len(every) <= k < len(every) else []
    start, stop = (int(parts[end]) if parts[end] else None for end in ("start", "stop"))
    return list(every[start:stop])


def _closest(net: Net, address: str) -> str:
    """`, did you mean 'blocks.5'?`: the blocks of the closest numbers, or the closest word; nothing where none is close."""
    if near := _block_near(net, address):
        return f", did you mean '{near}'?"
    return nearest(address, ["all", "everything", "blocks.-2:", *(name for name in net.addresses() if name != "head")])


def _block_near(net: Net, address: str) -> str:
    """The address of the block, or of the blocks from one on, whose number is nearest; "" where that is no address of blocks."""
    parts, last = _BLOCKS.fullmatch(address), len(net.blocks) - 1
    given = parts and (parts["one"] or parts["start"])
    if parts is None or not given or last < 0:
        return ""
    return f"blocks.{min(max(int(given), 0), last)}" + (":" if parts["one"] is None else "")


def resolve(net: Net, rates: Rates) -> dict[str, float | None]:
    """Parameter name -> learning rate, None if frozen. The first row that matches wins.

    Raises:
        AffinageError: a row matches nothing, a parameter is covered by no row, or a rate is not a positive number.
    """
    table: dict[str, float | None] = {}
    for pattern, rate in rates:
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise AffinageError(f"the rate of '{pattern}' is {rate}: it must be a positive number, or None to freeze")
        for name in match(net, pattern):
            table.setdefault(name, rate)
    missing = [name for name in net.parameters if name not in table]
    if missing:
        raise AffinageError(
            f"no row of the rates covers '{missing[0]}' ({len(missing)} such parameters):"
            " end the table with ('*', None) to freeze the rest"
        )
    return {name: table[name] for name in net.parameters}


def decayed(net: Net, rate: float, decay: float, head_rate: float | None, unfreeze: int | str = "all") -> Rates:
    """Layer-wise decay: the head at `head_rate`, the last block at `rate`, each block below at `decay` times the one above.

    Source: discriminative fine-tuning (Howard & Ruder, ULMFiT, ACL 2018), in the geometric form of ELECTRA and BEiT.

    Args:
        unfreeze: "all" blocks (the stem stays frozen), "everything" (the stem too, at rate * decay**L for L blocks), the last N
            blocks as an int (0: the head alone), an address ("blocks.-2:", "stem" at `rate`, "head"), or "head+decoder": whatever
            stands in a module of that name, beside the head.

    Raises:
        AffinageError: `unfreeze` stands for no blocks of this network.
    """
    count = len(net.blocks)
    numbers: list[int] | None
    if unfreeze == DECODER:
        if not any(fnmatchcase(name, "*decoder.*") for name in net.parameters):
            raise AffinageError(
                f"this network has no decoder: '{DECODER}' is for detectors and the like; use 'all', 2 or 'blocks.-2:'"
            )
        return (("head", head_rate), ("*decoder.*", rate), ("*", None))
    if unfreeze == "stem" and net.addresses()["stem"]:
        return (("head", head_rate), ("stem", rate), ("*", None)) if net.addresses()["head"] else (("stem", rate), ("*", None))
    if unfreeze == "head":
        unfreeze = 0
    if isinstance(unfreeze, int):
        if not 0 <= unfreeze <= count:
            raise AffinageError(f"cannot unfreeze {unfreeze} blocks: the model has {count}{f' ({net.why})' if net.why else ''}")
        numbers = list(range(count - unfreeze, count))
    elif unfreeze in ("all", "everything"):
        if not count and unfreeze == "all":
            raise AffinageError(f"{net.why}; unfreeze 'everything' trains it whole, 0 trains the head alone")
        numbers = list(range(count))
    else:
        numbers = block_numbers(net, unfreeze)
        if not numbers:
            raise AffinageError(
                f"'{unfreeze}' stands for none of the {count} blocks{_closest(net, unfreeze)} (or use 'all', 'everything', "
                "a number of blocks, or blocks.-2:)"
            )
    filled = {address for address, names in net.addresses().items() if names}
    rows: list[tuple[str, float | None]] = [("head", head_rate)] if "head" in filled else []
    rows += [(f"blocks.{k - count}", rate * decay ** (count - 1 - k)) for k in reversed(numbers) if f"blocks.{k}" in filled]
    if unfreeze == "everything" and "stem" in filled:
        rows.append(("stem", rate * decay**count))
    return (*rows, ("*", None))


# --------------------------------------------------------------------------------------------- what the table does to a model
def freeze(net: Net, table: dict[str, float | None]) -> None:
    """Gradients for the parameters that learn, none (nor a stale one) for the others. `table` as from `resolve`."""
    for name, parameter in net.model.named_parameters():
        learns = table[name] is not None
        parameter.requires_grad_(learns)
        if not learns:
            parameter.grad = None


def train_mode(net: Net, table: dict[str, float | None], dropout: bool = True) -> None:
    """Train mode where everything learns, eval mode elsewhere: frozen means batch-norm statistics and dropout too.

    A module is in train mode iff all its parameters learn (attention reads its own flag for dropout). One without parameters
    follows the nearest module around it that has some, if that lies in a block or in the head, or learns as a whole; else (a
    Dropout beside the classifier) the address where it is called. With `dropout=False` only running statistics (batch norm) are
    in train mode.
    """
    learning = {name for name, rate in table.items() if rate is not None}
    modules = dict(net.model.named_modules())
    whole: dict[str, bool] = {}  # module name -> all its parameters learn; absent if it has none
    for name, module in modules.items():
        inside = [f"{name}.{p}" if name else p for p, _ in module.named_parameters()]
        own = [p for p in inside if p in table]  # a tied parameter is in the table under its first name only
        if own:
            whole[name] = all(p in learning for p in own)
    by_address = {address: all(p in learning for p in names) for address, names in net.addresses().items() if names}

    def learns(name: str) -> bool:
        around = name
        while around not in whole and around:
            around = around.rpartition(".")[0]
        if around == name or whole.get(around, False) or any(around == b or around.startswith(b + ".") for b in net.blocks):
            return whole.get(around, False)
        return by_address.get(net.places.get(name, ""), False)

    for name, module in modules.items():
        module.training = learns(name) and (dropout or _has_statistics(module))


def _has_statistics(module: nn.Module) -> bool:
    return "running_mean" in dict(module.named_buffers(recurse=False))


def groups(net: Net, table: dict[str, float | None]) -> list[dict[str, Any]]:
    """Parameter groups for AdamW, one for each rate, with weight decay and without: `params`, `names`, `lr`.

    Groups of biases, norms and single vectors have `weight_decay` 0; the others take the optimizer's own. Frozen parameters are
    in none.
    """
    found: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in net.model.named_parameters():
        rate = table[name]
        if rate is None:
            continue
        # (1, 1, D) is one vector as well: a class token, ConvNeXt V2's response norm
        vector = parameter.dim() < 2 or (parameter.dim() > 2 and parameter.numel() == max(parameter.shape))
        decays = not vector and "bias" not in name.rpartition(".")[2]
        group = found.setdefault((rate, decays), {"params": [], "names": [], "lr": rate})
        if not decays:
            group["weight_decay"] = 0.0
        group["params"].append(parameter)
        group["names"].append(name)
    return list(found.values())


def share(stage: Stage, step: int, steps: int) -> float:
    """The learning rate after `step` of `steps` updates, as a share of its peak: linear rise, then the stage's schedule."""
    warm = max(1, round(stage.warmup * steps)) if stage.warmup else 0
    if step < warm:
        return (step + 1) / (warm + 1)
    if stage.schedule == "constant":
        return 1.0
    left = (step - warm) / max(1, steps - warm)
    return 0.5 * (1 + math.cos(math.pi * left)) if stage.schedule == "cosine" else 1.0 - left
