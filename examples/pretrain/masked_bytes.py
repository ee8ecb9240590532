"""A byte encoder learns to fill hidden bytes of requests, headers, hosts and JSON: the recipe of starter-bytes.

    python examples/pretrain/masked_bytes.py --data DATA --out bases/starter-bytes --epochs 100 --batch-size 256 \\
        --learning-rate 2e-3

BERT's pretraining (Devlin 2019, arXiv 1810.04805) without sentence pairs, on bytes (as ByT5, Xue 2022, arXiv 2105.13626). Spans
of three bytes are hidden, since a single byte is told by its neighbours. Loop, batches and checkpoints are affinage's: called
again after a stop, it goes on where it was. No label is read, and no row of the sets on which the transfer is measured
(`benchmarks/starters.py`: domains, parameters, messages).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy

from affinage import checkpoint, facts
from affinage.batches import by_tokens
from affinage.features import auto_precision, autocast, device
from affinage.fit import Fitting
from affinage.net import Net
from affinage.record import Records
from affinage.tasks.text_classification import task as text
from affinage.types import Batch, Rows, Stage

HERE = Path(__file__).resolve().parent
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, MASK, FIRST = 0, 4, len(SPECIAL)  # FIRST: the smallest id of a byte
LOGS = ("semicomplete_apache", "scan_acunetix", "scan_netsparker")
WINDOW = 160  # bytes of a JSON body or of a header list that are looked at at once
JSON_WINDOWS = 9_000  # of 7 MB of bodies: about a third of all bytes, so that requests are not drowned
HELD_OUT = 1_000  # rows that are never learnt from
START = 0.06  # share of the bytes at which a hidden span of three begins: a sixth is hidden, as in BERT
SHOWN = 0.2  # of the hidden bytes: half as they are, half as another byte; so the encoder cannot trust what it sees


# --------------------------------------------------------------------------------------------------------------- data
def rows(data: Path, draw: np.random.Generator) -> list[str]:
    """Different texts of 4 bytes or more: request lines, agents, hosts, values, headers, windows of JSON."""
    found: dict[str, None] = {}
    line = re.compile(r'^\S+ \S+ \S+ \[[^]]*] "([^"]*)" \d+ \S+ "([^"]*)" "([^"]*)"')
    for name in LOGS:
        for entry in (data / "access_logs" / f"{name}.log").read_text(encoding="utf8", errors="replace").splitlines():
            if seen := line.match(entry):
                request, referrer, agent = seen.groups()
                found |= dict.fromkeys((request, agent, *_parts(request.split(" ")[1:2]), *_parts([referrer])))
    for entry in _lines(data / "http_headers_hpack" / "headers.jsonl"):
        pairs = [f"{name}: {value}" for name, value in entry["headers"]]
        targets = [value for name, value in entry["headers"] if name in (":path", ":authority")]
        found |= dict.fromkeys((*pairs, "\n".join(pairs)[:WINDOW], *_parts(targets)))
    for entry in _lines(data / "json_github_api" / "headers.jsonl"):
        found |= dict.fromkeys((entry["start"], *(f"{name}: {value}" for name, value in entry["headers"])))
    bodies = [entry["body"] for entry in _lines(data / "json_github_api" / "messages.jsonl")]
    sizes = np.array([len(body) for body in bodies])
    for place in np.sort(draw.choice(sizes.sum(), JSON_WINDOWS, replace=False)):
        body = int(np.searchsorted(np.cumsum(sizes), place, side="right"))
        start = int(place - (np.cumsum(sizes)[body] - sizes[body]))
        found[bodies[body][start : start + int(draw.integers(16, WINDOW))]] = None
    return [row for row in found if len(row) >= 4]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def _parts(targets: Sequence[str]) -> list[str]:
    """The host, the path and the decoded values of each URL or path: what traffic is asked about on its own."""
    found = []
    for target in targets:
        rest = target.split("://", 1)[-1]
        place, _, query = rest.partition("?")
        found += [place, place.split("/", 1)[0]]
        found += [unquote_plus(pair.partition("=")[2], errors="replace") for pair in query.split("&")]
    return found


# -------------------------------------------------------------------------------------------------------------- model
def tokenizer() -> Any:
    """A byte is a token: byte-level BPE without merges, 256 bytes after the five special ones. Needs no file."""
    names = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[], unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    ends = [(name, names.index(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    roles = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=256, **roles)


class Masked:
    """Bytes that are hidden anew at each step, and the loss that asks for them: what the loop needs of a `Task`."""

    classifies = False

    def teach(self, batch: Batch, targets: torch.Tensor, augment: str) -> tuple[Batch, torch.Tensor]:
        """(the batch with bytes hidden, the hidden bytes (B, T), -100 elsewhere) of the true ids (B, T)."""
        hidden = torch.rand(targets.shape) < START
        hidden[:, 1:] |= hidden[:, :-1].clone()
        hidden[:, 1:] |= hidden[:, :-1].clone()
        hidden &= targets.cpu() >= FIRST
        hidden[:, 1] |= ~hidden.any(1)  # every row asks for something
        ids = targets.cpu()
        other = torch.where(torch.rand(ids.shape) < 0.5, ids, torch.randint(FIRST, FIRST + 256, ids.shape))
        shown = torch.where(hidden, torch.where(torch.rand(ids.shape) < SHOWN, other, MASK), ids)
        return {**batch, "input_ids": shown.to(targets.device)}, torch.where(hidden, ids, -100).to(targets.device)

    def loss(self, outputs: Any, targets: torch.Tensor, *, weights: Any, smoothing: float) -> torch.Tensor:
        """Mean cross entropy over the hidden bytes, logits (B, T, V) against (B, T), in nats."""
        return cross_entropy(outputs.logits.flatten(0, 1).float(), targets.flatten(), label_smoothing=smoothing)


class Bytes:
    """The targets of rows that are asked for their own bytes."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.counts = rows.lengths.astype(np.float64)  # a longer row hides more

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: np.ndarray) -> torch.Tensor:
        """(B, T) ids, padded to the longest."""
        return self.rows.batch(rows)["input_ids"]


@torch.no_grad()
def measured(model: Any, rows: Rows, precision: str) -> dict[str, Any]:
    """Over held-out rows, always the same bytes hidden: the share that is filled rightly, and the mean loss in nats."""
    model.eval()
    task, right, lost, asked = Masked(), 0, 0.0, 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for numbers in by_tokens(rows.lengths, 4096):
            batch = {name: value.to(model.device) for name, value in rows.batch(numbers).items()}
            batch, wanted = task.teach(batch, batch["input_ids"], "none")
            with autocast(precision):
                outputs = model(**batch)
            count = int((wanted >= 0).sum())
            right += int((outputs.logits.argmax(-1) == wanted).sum())
            lost += count * task.loss(outputs, wanted, weights=None, smoothing=0.0).item()
            asked += count
    return {"masked_accuracy": right / asked, "masked_loss": lost / asked, "n": asked}


# ---------------------------------------------------------------------------------------------------------------- run
def main(words: Sequence[str] | None = None) -> Path:
    """Train, or go on; the folder of the finished model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds the data sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rows", type=int, help="learn from so many rows only")
    parser.add_argument("--config", type=Path, default=HERE / "starter-bytes" / "config.json")
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args(words)
    commit = facts.commit()  # of the code that is loaded now, whatever the checkout becomes meanwhile
    draw = np.random.default_rng(told.seed)
    texts = rows(told.data, draw)
    texts = [texts[i] for i in draw.permutation(len(texts))][: told.rows and told.rows + HELD_OUT]
    torch.manual_seed(told.seed)
    made = tokenizer()
    config = transformers.BertConfig.from_json_file(told.config)
    model = transformers.BertForMaskedLM._from_config(config, attn_implementation="eager").to(device())
    learnt = text.encode(texts[HELD_OUT:], made, model)
    held = text.encode(texts[:HELD_OUT], made, model)
    print(
        f"{len(learnt):,} rows of {learnt.lengths.sum():,} tokens, {sum(p.numel() for p in model.parameters()):,} parameters",
        flush=True,
    )
    stage = Stage(
        "bytes",
        "fit",
        (("*", told.learning_rate),),
        epochs=told.epochs,
        batch=told.batch_size,
        tokens=8192 if device().type == "cpu" else 2**17,
        warmup=0.05,
        weight_decay=0.01,
        average=0.05,
        dropout=False,  # a pass or two over each text: there is nothing yet to learn by heart
    )
    precision = auto_precision()
    net = Net.of(model, {name: value.to(device()) for name, value in learnt.batch(np.arange(1)).items()})
    options: dict[str, Any] = {"seed": told.seed, "precision": precision, "weights": None}
    fitting = Fitting(net, stage, Masked(), learnt, Bytes(learnt), **options)  # type: ignore[arg-type]
    told.out.mkdir(parents=True, exist_ok=True)
    saved = checkpoint.load(told.out / "checkpoints")
    if saved:
        tensors, state = saved.tensors, saved.state
        fitting.restore(tensors, state)
        checkpoint.set_random_state(tensors, state["random"])
    records = Records(told.out / "records.jsonl", keep=saved.state["records"] if saved else None)
    started = time.perf_counter()

    def evaluate() -> list[float]:
        scores = measured(model, held, precision)
        print(
            f"epoch {fitting.progress.epoch}: {scores['masked_accuracy']:.4f} right, loss {scores['masked_loss']:.4f}, "
            f"{fitting.progress.cpu_seconds:.0f} CPU s",
            flush=True,
        )
        return [scores["masked_accuracy"]]

    def save() -> None:
        records.flush()
        tensors, state = fitting.state()
        checkpoint.save(told.out / "checkpoints", fitting.progress.step, tensors, state | {"records": records.count})

    with closing(records):
        fitting.run(evaluate, records, save, lambda count, words: None)
    model.eval().save_pretrained(told.out)
    made.save_pretrained(told.out)
    fingerprint = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    facts.write_json(
        told.out / "run.json",
        {
            "status": "finished",
            "task": "fill-mask",
            "seed": told.seed,
            "kept": f"{stage.name}, epoch {fitting.progress.best_epoch}",
            "data": {
                "source": str(told.data.name),
                "fingerprint": fingerprint,
                "rows": {"train": len(learnt), "validation": len(held)},
            },
            "validation": measured(model, held, "fp32"),
            "cost": {"seconds": time.perf_counter() - started, "cpu_seconds": fitting.progress.cpu_seconds},
            "versions": facts.versions(),
            "commit": commit,
            "hardware": facts.hardware(precision),
        },
    )
    return told.out


if __name__ == "__main__":
    print(main())
