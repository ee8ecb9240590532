"""What a network of pictures takes at the least: its own forward and backward passes on batches that are there already.

The products of narrow convolutions are far from the peak of a core, so that, unlike with text, the floor is measured: each pass
alone, in fp32 and under bf16 autocast, channels last, the best of some repeats, in CPU seconds: no reading, no optimizer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH = 16  # pictures an update, as our side of the benchmark has them
PASS = 64  # pictures at once where nothing learns
REPEATS = 7


def floor(base: Path, rows: int, learning: int | str, epochs: int, classes: int) -> float:
    """CPU seconds: `learning` blocks of a ResNet, or all where it is a word, for so many epochs; what is frozen once."""
    import torch
    import transformers

    from affinage.net import Net

    model = transformers.AutoModelForImageClassification.from_pretrained(base, num_labels=classes, ignore_mismatched_sizes=True)
    side = transformers.AutoImageProcessor.from_pretrained(base, backend="pil").size["height"]
    model.to(memory_format=torch.channels_last)
    pictures = torch.randn(PASS, 3, side, side).contiguous(memory_format=torch.channels_last)
    once = rows / PASS * best(lambda: model.eval()(pixel_values=pictures), learn=False)
    some = pictures[:BATCH].contiguous(memory_format=torch.channels_last)
    step: Callable[[], Any]
    if learning == 0:
        return once
    if isinstance(learning, str):
        once, step = 0.0, lambda: model.train()(pixel_values=some).logits
    else:
        net = Net.of(model, {"pixel_values": some})
        blocks = [model.get_submodule(name) for name in net.blocks[-learning:]]
        entered: list[torch.Tensor] = []
        hook = blocks[0].register_forward_pre_hook(lambda _, args: entered.append(args[0].detach()))
        with torch.no_grad():
            model(pixel_values=some)
        hook.remove()
        above = torch.nn.Sequential(*blocks, model.resnet.pooler, model.classifier).train()

        def step() -> Any:
            return above(entered[0])

    return once + epochs * rows / BATCH * best(step, learn=True)


def best(run: Callable[[], Any], learn: bool, passes: int = 4) -> float:
    """CPU seconds of one pass, with its backward pass where it learns: the least of both precisions and some repeats."""
    import torch

    least = float("inf")
    for half in (False, True):
        for _ in range(REPEATS):
            clock = time.process_time()
            for _ in range(passes):
                with torch.set_grad_enabled(learn), torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                    found = run()
                if learn:
                    found.float().square().sum().backward()
            least = min(least, (time.process_time() - clock) / passes)
    return least
