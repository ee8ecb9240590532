"""What reaches the head, computed once: one pass without gradients, in eval mode, over rows sorted by length."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from affinage import ranks
from affinage.attention import quick_attention
from affinage.batches import by_tokens
from affinage.instead import instead, untouched
from affinage.product import fused
from affinage.types import Aims, Answers, Batch, Rows, Task

# Bytes of what a block leaves of a batch of text: what stays in a core's own cache, where that is a MiB. Half of it is slower,
# and four times as much (benchmarks/tried.py).
HIDDEN = 3 * 2**18
NARROW = 384
PICTURES = 64  # pictures a batch
PAYS = 1.2  # times that bf16 must be faster: it costs accuracy
SMALL = 1e11  # FLOP of an update: a few milliseconds of a GPU in fp32, as much as bf16 takes longer to launch
GPU_TOKENS, GPU_PICTURES = 32_768, 256  # a GPU waits for the next kernel where a batch is small; what does not fit is halved


@lru_cache
def bf16_pays() -> bool:
    """Whether this machine multiplies bf16 matrices clearly faster than fp32 ones: told by a GPU, measured once on a CPU.

    A flag of the processor is not enough: of two with `avx512_bf16` one was 2.5 times faster in bf16, the other half as fast.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    if not ("avx512_bf16" in flags or "amx_bf16" in flags):
        return False  # emulated, and many times slower
    return PAYS * _product_seconds(torch.bfloat16) < _product_seconds(torch.float32)


def _product_seconds(kind: torch.dtype, repeats: int = 5) -> float:
    """The least CPU seconds, on all threads, of a product as a layer of a small encoder makes it: (512, 384) x (384, 1536)."""
    left, right = torch.ones(512, 384, dtype=kind), torch.ones(384, 1536, dtype=kind)
    best = float("inf")
    for _ in range(repeats + 1):
        clock = time.process_time()
        left @ right
        best = min(best, time.process_time() - clock)
    return best


def auto_precision(model: nn.Module | None = None, row: Batch | None = None, rows: int = 0) -> str:
    """bf16 where it pays, the same for all ranks of a run; else fp32.

    `row`: one row on the model's device, `rows`: those of an update, where there are updates. On a GPU a small one waits for the
    processor that launches its kernels, and bf16 adds a cast of every weight and gradient (measured on an H200: 22 ms against 15
    to 19 ms for 16 short texts and MiniLM, of which the card was busy for 2).
    """
    found = "bf16" if bf16_pays() else "fp32"
    if model is not None and row is not None and rows and found == "bf16" and device().type == "cuda":
        found = "fp32" if 3 * rows * flop(model, row) < SMALL else "bf16"  # backwards is twice the work of forwards
    return ranks.shared(found)


@torch.no_grad()  # in inference mode the counter's hooks fail on weights that are computed (weight norm)
def flop(model: nn.Module, row: Batch) -> int:
    """FLOP of the products and convolutions of one forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counted:
        model.eval()(**row)
    return int(counted.get_total_flops())


@lru_cache
def keep_freed_memory() -> bool:
    """Let the C allocator keep what is freed for the next batch, up to 512 MiB, where it is glibc's. Whether it does.

    By default every large temporary goes back to the system when it is freed, and its pages are zeroed anew at the next layer:
    a tenth to a fifth of a pass over short texts. It is a matter of the whole process.
    """
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"):
        return False
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD; 32 MiB is the most that glibc takes for the second
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(trim, 1 << 29) and libc.mallopt(mmap, 1 << 25))


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: the GPU's, or the CPU's, which torch reports as a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def at_once(model: nn.Module, precision: str) -> int:
    """Padded tokens of a batch of text that suit a CPU, in a pass without learning; a narrower network gets no more of them."""
    width = getattr(getattr(getattr(model, "model", model), "config", None), "hidden_size", None) or NARROW
    return max(128, HIDDEN // (max(width, NARROW) * (4 if precision == "fp32" else 2)))


def batched(lengths: np.ndarray, model: nn.Module, precision: str) -> list[np.ndarray]:
    """Every row once, longest first, in batches for a pass without learning that suit the device and the model."""
    gpu = device().type == "cuda"
    if lengths.max(initial=1) <= 1:
        return by_tokens(lengths, GPU_PICTURES if gpu else PICTURES)
    return by_tokens(lengths, GPU_TOKENS, most=GPU_TOKENS // 8) if gpu else by_tokens(lengths, at_once(model, precision))


def autocast(precision: str) -> AbstractContextManager[None]:
    """bf16 where the matrix products are, or nothing for fp32. Of a pass forwards."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device().type, dtype=torch.bfloat16)  # type: ignore[return-value]


@contextmanager
def kernels(precision: str) -> Iterator[None]:
    """How a GPU computes, forwards and backwards: convolutions of `fp32` not in TF32, which is cuDNN's default, and attention not
    by cuDNN, which plans anew for each shape: 0.1 s for every length of a batch that it has not seen. Nothing on a CPU.
    """
    if device().type != "cuda":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    others = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with _convolutions(precision), sdpa_kernel(others):
        yield


def _convolutions(precision: str) -> AbstractContextManager[None]:
    """Without TF32 for `fp32`; as they are where the user has told torch how each operation is to be computed."""
    known = torch.backends.cudnn
    if precision != "fp32":
        return nullcontext()
    try:
        if not known.allow_tf32:
            return nullcontext()
    except RuntimeError:  # torch does not mix this flag with `torch.backends.cudnn.conv.fp32_precision` and its like
        return nullcontext()
    return known.flags(enabled=known.enabled, benchmark=known.benchmark, deterministic=known.deterministic, allow_tf32=False)


Replaced = Callable[[Mapping[Any, Callable[..., Any]]], AbstractContextManager[None]]  # `instead`, or what does more


@contextmanager
def packed(model: nn.Module, precision: str, but: nn.Module | None = None, replaced: Replaced = instead) -> Iterator[None]:
    """While it lasts, linear layers hold their weights in bf16 as the CPU's kernel lays them out: cast and packed once, not at
    every batch (7 % of a pass over short texts). The numbers are those of autocast. No gradients. `but`: a layer left alone;
    `replaced`: what puts the layers' forwards in their place.
    """
    ops = torch.ops.mkldnn
    if precision != "bf16" or device().type != "cpu" or not fused():
        with replaced({}):
            yield
        return

    def forward(weight: torch.Tensor, bias: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: ops._linear_pointwise(x.to(torch.bfloat16), weight, bias, "none", [], "")

    forwards, rows = {}, at_once(model, precision)
    for layer in model.modules():
        if type(layer) is nn.Linear and layer is not but and untouched(layer):
            weight = ops._reorder_linear_weight(layer.weight.to(torch.bfloat16), rows)
            bias = layer.bias.to(torch.bfloat16) if layer.bias is not None else None
            forwards[layer] = forward(weight, bias)
    with replaced(forwards), quick_attention(model):
        yield


@torch.inference_mode()
def passed(
    model: nn.Module,
    rows: Rows,
    precision: str,
    linear: nn.Linear | None = None,
    progress: Callable[[int], None] | None = None,
    replaced: Replaced = instead,
) -> tuple[np.ndarray | None, np.ndarray]:
    """(features (N, D) or None, logits (N, C)) of every row, float32, in the order of the rows.

    Of several ranks each passes every n-th batch, and all of them get all rows.

    Features are the input of `linear`, the layer whose output is the logits. Where that layer is applied to every token and
    one is picked afterwards (decoders), the features are those of the token that was picked; where none is, their mean over
    the tokens, padding too: to be compared with such a mean and no more. The logits are then empty, (N, 0).

    `replaced`: as of `packed`.
    """
    features: np.ndarray | None = None
    logits: np.ndarray | None = None
    caught: list[torch.Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, args: caught.append(args[0])) if linear is not None else None

    def look(batch: np.ndarray) -> None:
        nonlocal features, logits
        caught.clear()
        out = model(**{k: v.to(device()) for k, v in rows.batch(batch).items()}).logits.float()
        if logits is None:
            logits = np.empty((len(rows), out.shape[-1] if out.dim() == 2 else 0), np.float32)
        if out.dim() == 2:
            logits[batch] = out.cpu().numpy()
        if linear is not None:
            found = caught[-1].float()
            found = _picked(found, linear, out) if out.dim() == 2 else found.flatten(1, -2).mean(1)
            if features is None:
                features = np.empty((len(rows), found.shape[-1]), np.float32)
            features[batch] = found.cpu().numpy()

    try:
        mine = _each(model, rows, precision, look, linear, progress, replaced)
    finally:
        if hook is not None:
            hook.remove()
    assert logits is not None, "_each() looks at a batch at least"
    for made in (logits, features):
        if made is not None:
            ranks.fill(made, mine)
    return features, logits


@torch.inference_mode()
def answered(
    task: Task,
    model: nn.Module,
    rows: Rows,
    processor: Any,
    precision: str,
    aims: Aims | None = None,
    progress: Callable[[int], None] | None = None,
) -> Answers:
    """What the task reads from a pass over every row, batch by batch: an array (N, ...), or a list of N.

    Of several ranks each passes every n-th batch, and all of them get all rows.
    """
    array: np.ndarray | None = None
    told: dict[int, Any] = {}

    def look(batch: np.ndarray) -> None:
        nonlocal array
        inputs = {k: v.to(device()) for k, v in rows.batch(batch).items()}
        found = task.answer(
            model, inputs, rows.lengths[batch], processor, placed(aims.batch(batch)) if aims is not None else None
        )
        if isinstance(found, np.ndarray):
            if array is None:
                array = np.empty((len(rows), *found.shape[1:]), found.dtype)
            array[batch] = found
        else:
            told.update(zip(batch.tolist(), found, strict=True))

    mine = _each(model, rows, precision, look, None, progress)
    if array is not None:
        ranks.fill(array, mine)
        return array
    own = set(mine.tolist())
    every = dict(pair for part in ranks.gathered([(i, one) for i, one in told.items() if i in own]) for pair in part)
    return [every[i] for i in range(len(rows))]


def placed(nest: Any) -> Any:
    """The tensors in nested lists, tuples and dicts on the network's device."""
    from torch.utils._pytree import tree_map_only

    where = device()
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(where), nest)


def _each(
    model: nn.Module,
    rows: Rows,
    precision: str,
    look: Callable[[np.ndarray], None],
    but: nn.Linear | None,
    progress: Callable[[int], None] | None,
    replaced: Replaced = instead,
) -> np.ndarray:
    """`look(rows)` at one batch after the other, halved where memory does not suffice; the numbers of this rank's rows."""
    keep_freed_memory()
    model.eval()
    if not len(rows):
        raise ValueError("no rows to pass through the network")
    batches = batched(rows.lengths, model, precision)
    batches, spare = batches[ranks.number() :: ranks.count()], batches[:1]
    mine = np.concatenate(batches) if batches else np.zeros(0, np.int64)
    batches = batches or spare  # a rank with nothing to do looks at one for its shapes
    with packed(model, precision, but, replaced), kernels(precision), autocast(precision):
        batches.reverse()
        while batches:
            batch = batches.pop()
            try:
                look(batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or len(batch) == 1:
                    raise
                most = len(batch) // 2  # of those that are left, too: they would not fit either
                batches = [part for each in (*batches, batch) for part in reversed(np.array_split(each, -(-len(each) // most)))]
                continue
            if progress:
                progress(len(batch) * ranks.count())
    return mine


def _picked(found: torch.Tensor, linear: nn.Linear, logits: torch.Tensor) -> torch.Tensor:
    """(B, D) from (B, D), or from (B, T, D) the token whose logits were returned."""
    if found.dim() == 2:
        return found
    every = linear(found)
    token = (every - logits[:, None]).abs().amax(-1).argmin(1)
    return found[torch.arange(len(found), device=found.device), token]
