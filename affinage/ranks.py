"""Ranks: one run in several processes: who takes which rows, and what they tell each other.

Every rank goes the same way through `run.py`; rank 0 alone writes and speaks. Outside `team.joined()`, and in one process, every
function here gives back what it was given, and nothing of torch.distributed is imported.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from affinage import team

if TYPE_CHECKING:
    import numpy as np
    import torch

T = TypeVar("T")

BUCKET = 2**24  # numbers that are summed at once: 64 MiB
ALONE = 12  # times AFFINAGE_RANK_SECONDS, an hour, that the others wait while rank 0 solves or writes


def count() -> int:
    """How many processes the run has; 1 outside `joined()`."""
    here = team.here()
    return here.count if here else 1


def number() -> int:
    """Which of them this is, from 0."""
    here = team.here()
    return here.number if here else 0


def first() -> bool:
    """Whether this is the one that writes the run folder."""
    return number() == 0


# ------------------------------------------------------------------------------------------------------- who takes what
def own(rows: np.ndarray) -> np.ndarray:
    """The rows that are this rank's: every `count`-th, so that each has long and short ones."""
    return rows[number() :: count()]


def draw(*words: Any) -> None:
    """Seed torch's generators from `words` and the rank, so that a rank draws the same after any stop; nothing in one process."""
    if team.here() is None:
        return
    import numpy as np
    import torch

    numbers = [byte for word in (*words, number()) for byte in f"{word}\0".encode()]
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


# ------------------------------------------------------------------------------------------------ what they tell each other
def gathered(value: T) -> list[T]:
    """What each rank gave (JSON), in their order, on all of them."""
    if team.here() is None:
        return [value]
    import torch
    import torch.distributed as dist

    mine = torch.frombuffer(bytearray(json.dumps(value, default=float).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(count())]
    dist.all_gather(sizes, torch.tensor([len(mine)]))
    longest = max(int(s) for s in sizes)
    parts = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
    dist.all_gather(parts, torch.nn.functional.pad(mine, (0, longest - len(mine))))
    return [json.loads(part[: int(s)].numpy().tobytes()) for part, s in zip(parts, sizes, strict=True)]


def shared(value: T) -> T:
    """What rank 0 gave (JSON), on all of them."""
    if team.here() is None:
        return value
    import torch
    import torch.distributed as dist

    content = json.dumps(value, default=float).encode() if first() else b""
    size = torch.tensor([len(content)])
    dist.broadcast(size, 0)
    told = torch.frombuffer(bytearray(content), dtype=torch.uint8) if first() else torch.zeros(int(size), dtype=torch.uint8)
    dist.broadcast(told, 0)
    return json.loads(told.numpy().tobytes())


def total(*values: float) -> list[float]:
    """The sum of each value over the ranks, in float64."""
    if team.here() is None:
        return list(values)
    import torch
    import torch.distributed as dist

    told = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(told)
    return told.tolist()


def same(tensors: Iterable[torch.Tensor]) -> None:
    """Rank 0's values in these tensors on all ranks, in place."""
    if team.here() is None:
        return
    import torch.distributed as dist

    for tensor in tensors:
        if tensor.is_contiguous():
            dist.broadcast(tensor.detach(), 0)
        else:  # channels last: what travels is a plain copy
            plain = tensor.detach().contiguous()
            dist.broadcast(plain, 0)
            tensor.detach().copy_(plain)


def add(tensors: Sequence[torch.Tensor]) -> None:
    """Sum these tensors over the ranks, in place, up to `BUCKET` numbers at once."""
    if team.here() is None:
        return
    import torch
    import torch.distributed as dist

    bucket: list[torch.Tensor] = []

    def flush() -> None:
        if bucket:
            flat = torch.cat([t.reshape(-1) for t in bucket])
            dist.all_reduce(flat)
            for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                tensor.copy_(part.view(tensor.shape))
            bucket.clear()

    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or sum(t.numel() for t in bucket) + tensor.numel() > BUCKET):
            flush()
        bucket.append(tensor.detach())
    flush()


def add_gradients(parameters: Sequence[torch.Tensor]) -> None:
    """Sum the gradients over the ranks. One that no rank has stays None; one that only some have is zero on the others."""
    if team.here() is None:
        return
    import torch

    there = total(*(float(p.grad is not None) for p in parameters))
    used = [p for p, n in zip(parameters, there, strict=True) if n]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    add([p.grad for p in used if p.grad is not None])


def sent(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rank 0's named tensors, on all ranks (those of the others are not looked at)."""
    if team.here() is None:
        return dict(tensors)
    import torch

    about: Any = shared([(name, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items()])
    found: dict[str, torch.Tensor] = {}
    for name, dtype, shape in about:
        found[name] = tensors[name].contiguous() if first() else torch.zeros(shape, dtype=getattr(torch, dtype))
        same([found[name].view(torch.uint8) if found[name].dim() else found[name]])
    return found


def alone(make: Callable[[], T]) -> T | None:
    """What `make` gives on rank 0; the others wait as long as it lives, and get None.

    Raises:
        RankLost: rank 0 died or failed, or is at it for `ALONE` times as long as a rank waits for a word: its disk may be stuck.
    """
    here = team.here()
    if here is None:
        return make()
    key = f"alone/{here.waits}"
    here.waits += 1
    if first():
        try:
            made = make()
        except BaseException:  # it may live on, in a program that takes this for no end
            here.store.set(key, "failed")
            raise
        here.store.set(key, "done")
        return made
    beat, began = "", time.monotonic()
    heard, most, rest = began, ALONE * team.patience(), 0.001
    while not here.store.check([key]):
        time.sleep(rest)
        rest = min(1.5 * rest, 0.1)  # most of what is waited for is short
        (latest,) = here.beats([0])
        if latest != beat:
            beat, heard = latest, time.monotonic()
        elif time.monotonic() - heard > max(team.SILENT, 10.0):
            raise here.lost([0])
        if time.monotonic() - began > most:
            raise team.RankLost(
                f"rank 0 has solved or written for {most:g} s ({ALONE} times AFFINAGE_RANK_SECONDS): {here.resume}"
            )
    if bytes(here.store.get(key)) == b"failed":
        raise team.RankLost(f"rank 0 could not go on: {here.resume}")
    return None


def fill(array: np.ndarray, rows: np.ndarray) -> None:
    """(N, ...) of which each rank has made `rows`, no row on two ranks: all N on all of them, in place."""
    if team.here() is None:
        return
    import numpy as np
    import torch
    import torch.distributed as dist

    others = np.ones(len(array), bool)
    others[rows] = False
    array[others] = 0
    flat = torch.from_numpy(array.reshape(-1))
    for part in flat.split(BUCKET):
        dist.all_reduce(part)  # a value and zeros: the value, to the bit


def given(arrays: Sequence[np.ndarray]) -> None:
    """Hand these arrays to rank 0, which must be in `received`."""
    import torch
    import torch.distributed as dist

    for array in arrays:
        if array.size:
            dist.send(torch.from_numpy(array).contiguous(), 0)


def received(arrays: list[np.ndarray], rank: int) -> list[np.ndarray]:
    """The arrays that a rank has `given`, in these, which have the same shapes."""
    import torch
    import torch.distributed as dist

    for array in arrays:
        if array.size:
            dist.recv(torch.from_numpy(array), rank)
    return arrays
