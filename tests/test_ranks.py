"""Several processes are one run: the same batches, losses and result; a dead one ends it in one line, and it goes on from there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file

from affinage import ranks, record, team
from affinage.errors import AffinageError

from . import tiny
from .test_resume import ROOT, STEPWISE, Commands, environment, finished, in_mid_epoch, in_stage_1

CLOSE = 1e-5  # of losses and probabilities; a step sums in another order
MISSING = "no file or folder 'nothing'"

Words = list[str]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


class Ranks:
    """Starts `affinage` commands, each as so many processes as are asked for, without a launcher around them."""

    def __init__(self, folder: Path) -> None:
        self.starters = [Commands(folder / str(i)) for i in range(2) if (folder / str(i)).mkdir() is None]

    def start(self, count: int, *words: str, **env: str) -> list[int]:
        """Process ids, by rank."""
        many = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "AFFINAGE_RANK_SECONDS": "60"}
        return [self.starters[i].start(*words, **(many if count > 1 else {}), RANK=str(i), **env) for i in range(count)]

    def wait(self, count: int) -> tuple[list[int], list[str]]:
        """(exit codes, what was printed), by rank."""
        return [s.wait() for s in self.starters[:count]], [s.told.read_text() for s in self.starters[:count]]

    def run(self, count: int, *words: str, **env: str) -> list[str]:
        self.start(count, *words, **env)
        codes, told = self.wait(count)
        assert codes == [0] * count, "\n".join(told)
        return told

    def killed(self, count: int, words: Words, out: Path, moment: Callable[[Path], bool] = in_mid_epoch) -> None:
        """Leave in `out` a run all of whose processes were killed at that moment."""
        for pid in self.at(count, words, out, moment):
            os.kill(pid, signal.SIGKILL)
        assert self.wait(count)[0] == [-signal.SIGKILL] * count
        assert not finished(out)

    def at(self, count: int, words: Words, out: Path, moment: Callable[[Path], bool]) -> list[int]:
        """Process ids of a run that has reached that moment."""
        pids = self.start(count, *words, "--out", str(out), **STEPWISE)
        end = time.monotonic() + 120
        while not moment(out) and time.monotonic() < end and not finished(out):
            time.sleep(0.001)
        assert moment(out), self.starters[0].told.read_text()
        return pids


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    made = Ranks(tmp_path_factory.mktemp("ranks"))
    yield made
    for starter in made.starters:
        starter.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Words:
    """Arguments of a fit without dropout, whose draws differ by rank; the last batch of an epoch has one row, for two ranks."""
    folder = tmp_path_factory.mktemp("text")
    model = tiny.bert(folder / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    data = tiny.csvs(folder / "data", train=91, validation=31)
    words = ["--model", str(model), "--data", str(data), "--batch-size", "10", "--epochs", "6", "--precision", "fp32"]
    return ["fit", *words, "--class-weights", "balanced"]


@pytest.fixture(scope="module")
def whole(text: Words, launch: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that nobody stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    launch.run(1, *text, "--out", str(out))
    return out


def close(one: Path, other: Path) -> None:
    """The same records in the same order, the same probabilities and weights, all but for rounding."""
    ours, theirs = list(record.read(one / "records.jsonl")), list(record.read(other / "records.jsonl"))
    assert [r._replace(value=0, seconds=0) for r in ours] == [r._replace(value=0, seconds=0) for r in theirs]
    assert [r.value for r in ours] == pytest.approx([r.value for r in theirs], abs=CLOSE)
    assert any((r.split, r.name) == ("train", "loss") for r in ours)
    tables = [pq.read_table(run / "predictions.parquet") for run in (one, other)]
    assert tables[0]["id"].equals(tables[1]["id"]) and tables[0]["prediction"].equals(tables[1]["prediction"])
    found = [np.asarray(t["probabilities"].to_pylist()) for t in tables]
    assert np.abs(found[0] - found[1]).max() < CLOSE
    weights = [load_file(run / "model.safetensors") for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        if not name.endswith("key.bias"):  # it moves no score: its gradient is rounding alone, and Adam makes steps of that
            np.testing.assert_allclose(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-4, err_msg=name)
    stories = [json.loads((run / "run.json").read_text()) for run in (one, other)]
    assert [s["status"] for s in stories] == ["finished"] * 2
    assert stories[0]["kept"] == stories[1]["kept"] and stories[0]["data"] == stories[1]["data"]
    assert [s["details"].get("steps") for s in stories[0]["stages"]] == [s["details"].get("steps") for s in stories[1]["stages"]]
    assert not (other / "checkpoints").exists()


# ------------------------------------------------------------------------------------------------------- in one process
def test_alone_everything_is_as_given() -> None:
    rows = np.arange(5)
    assert ranks.count() == 1 and ranks.first() and team.speaks()
    assert ranks.own(rows).tolist() == rows.tolist()
    assert ranks.total(1.5, 2.0) == [1.5, 2.0] and ranks.gathered("x") == ["x"] and ranks.shared({"a": 1}) == {"a": 1}
    assert ranks.alone(lambda: 3) == 3


def test_no_sign_of_life_is_on_its_way_when_a_process_ends(tmp_path: Path) -> None:
    """Python would end its thread within the store's code, which aborts the process: a finished run left with code -6."""

    class Slow:
        def clone(self) -> Slow:
            return self

        def set(self, key: str, value: str) -> None:
            if value != "0":
                began.set()
                time.sleep(0.3)

    began = threading.Event()
    one = team.Team(0, 2, Slow(), tmp_path)
    assert began.wait(10)
    one.end()
    assert not one.living.is_alive()


ENDS = """
import sys, time
from pathlib import Path
from torch.distributed import TCPStore
from affinage import team
team.PULSE = 0.0  # a sign of life is always on its way
one = team.Team(0, 2, TCPStore("127.0.0.1", 0, 2, True, wait_for_workers=False), Path())
time.sleep(0.2)
sys.exit(3)
"""


def test_a_program_that_leaves_without_a_word_is_not_aborted() -> None:
    """As one of the user's own does after an error, when nobody has ended the signs of life."""
    ended = subprocess.run([sys.executable, "-c", ENDS], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (3, "")


def test_nobody_waits_for_ever_for_rank_0_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It shows that it lives, and gets nowhere: its disk does not answer."""
    signs = iter(range(10**9))
    stuck: Any = SimpleNamespace(number=1, count=2, waits=0, resume="go on", beats=lambda ranks: [str(next(signs))])
    stuck.store = SimpleNamespace(check=lambda keys: False)
    monkeypatch.setattr(team, "_here", stuck)
    monkeypatch.setenv("AFFINAGE_RANK_SECONDS", "0.05")
    with pytest.raises(team.RankLost, match=r"rank 0 has solved or written for 0\.6 s .*: go on"):
        ranks.alone(lambda: None)


def test_where_rank_0_fails_alone_the_others_hear_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its process may live on, in a program that catches the error."""
    words: dict[str, bytes] = {}
    store = SimpleNamespace(
        set=lambda key, value: words.update({key: value.encode()}), check=lambda keys: keys[0] in words, get=words.get
    )
    for number in (0, 1):
        here = SimpleNamespace(
            waits=0, number=number, count=2, store=store, resume="go on with: ...", beats=lambda numbers: ["1"]
        )
        monkeypatch.setattr(team, "_here", here)
        with pytest.raises(
            ZeroDivisionError if number == 0 else team.RankLost, match=r"division|rank 0 could not go on: go on with"
        ):
            ranks.alone(lambda: 1 / 0)


def test_one_process_imports_nothing_of_torch_distributed() -> None:
    code = (
        "from affinage import team\nfrom pathlib import Path\nimport sys\n"
        "with team.joined(Path('x')): pass\nassert not [m for m in sys.modules if m.startswith('torch')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment())


def test_each_row_is_one_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = np.asarray([7, 3, 9, 1, 4])
    taken = []
    for number in range(7):  # more ranks than rows
        monkeypatch.setattr(ranks, "number", lambda number=number: number)
        monkeypatch.setattr(ranks, "count", lambda: 7)
        taken.append(ranks.own(batch))
    assert np.concatenate(taken).tolist() == batch.tolist()


@pytest.mark.parametrize("values", [("x", "2"), ("2", "2"), ("0", "two")])
def test_a_launchers_slip_is_told(values: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(team.NAMES, (*values, "127.0.0.1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(AffinageError, match="as torchrun sets"):
        team.launched()
    team.tell("told all the same")
    team.leave(2)  # does not end this process


@pytest.mark.parametrize("text", ["soon", "0", "nan", "-3"])
def test_patience_is_a_number_of_seconds(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFINAGE_RANK_SECONDS", text)
    with pytest.raises(AffinageError, match=f"AFFINAGE_RANK_SECONDS is '{text}'"):
        team.patience()


def test_the_pages_examples_are_valid(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf8")
    found = {kind: re.findall(rf"^```{kind}\n(.*?)^```", page, flags=re.M | re.S) for kind in ("bash", "yaml")}
    for script in found["bash"]:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    service, job = yaml.safe_load_all(found["yaml"][0])
    assert (service["kind"], job["kind"], job["spec"]["completionMode"]) == ("Service", "Job", "Indexed")
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]  # affinage-0.affinage is the first pod's name
    subprocess.run(["bash", "-n"], input=pod["containers"][0]["args"][0], text=True, check=True)
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


# ----------------------------------------------------------------------------------------------------- in two processes
def test_two_ranks_are_one_run(text: Words, whole: Path, launch: Ranks, tmp_path: Path) -> None:
    told = launch.run(2, *text, "--out", str(tmp_path / "run"))
    close(whole, tmp_path / "run")
    assert "test accuracy" in told[0] and told[1] == ""  # rank 0 alone speaks
    assert json.loads((tmp_path / "run" / "run.json").read_text())["hardware"]["ranks"] == 2


@pytest.mark.parametrize("shard", [[], pytest.param(["--shard"], marks=pytest.mark.slow)], ids=["plain", "shard"])
def test_batch_norm_sees_the_rows_of_both(shard: Words, launch: Ranks, tmp_path: Path) -> None:
    """A network of convolutions, trained whole: the losses, statistics and weights of one process; the last batch has one row."""
    model, data = tiny.resnet(tmp_path / "model"), tiny.pictures(tmp_path / "data", train=37)
    words = ["fit", "--model", str(model), "--data", str(data), "--plan", "full", "--batch-size", "9", "--epochs", "3"]
    words += ["--precision", "fp32", "--augment", "none", "--learning-rate", "1e-3"]
    for count in (1, 2):
        launch.run(count, *words, *(shard if count > 1 else []), "--out", str(tmp_path / str(count)))
    close(tmp_path / "1", tmp_path / "2")
    one, two = (load_file(tmp_path / str(count) / "model.safetensors") for count in (1, 2))
    assert any("running_var" in name for name in one)
    for name in one:
        if "running_" in name:
            np.testing.assert_allclose(one[name], two[name], rtol=1e-4, atol=1e-5, err_msg=name)


VARIANTS = {
    "cut": ["--unfreeze", "1", "--class-weights", "none", "--label-smoothing", "0.1"],
    "average": ["--plan", "full", "--average", "0.3", "--accumulate", "3"],
    "lora": ["--plan", "lora"],
    "named": ["--plan", "full", "--unfreeze", "everything"],  # one process and two teach the rows that texts name, shards all
}


@pytest.mark.parametrize("shard", [[], ["--shard"]], ids=["plain", "shard"])
@pytest.mark.parametrize("name", ["cut", *(pytest.param(n, marks=pytest.mark.slow) for n in ("average", "lora", "named"))])
def test_two_ranks_are_one_run_in_other_plans(name: str, shard: Words, text: Words, launch: Ranks, tmp_path: Path) -> None:
    """What is frozen runs once, shared by both; weights in parts; averages; pieces of a step."""
    env = {"AFFINAGE_CACHE": str(tmp_path / "cache")}
    if name == "named":
        sizes = {"vocab_size": 40_000, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        text = [*text, "--model", str(tiny.bert(tmp_path / "model", **sizes))]
    launch.run(2, *text, *VARIANTS[name], *shard, "--out", str(tmp_path / "two"), **env)
    launch.run(1, *text, *VARIANTS[name], "--out", str(tmp_path / "one"), **env)
    close(tmp_path / "one", tmp_path / "two")
    if name == "cut":
        cuts = [json.loads((tmp_path / n / "run.json").read_text())["cuts"]["body"] for n in ("two", "one")]
        assert [c["address"] for c in cuts] == ["blocks.1"] * 2
        assert [c["reused"] for c in cuts] == [False, True]  # what two ranks left is found by one


SMALL_BATCHES = """
import os, sys
import numpy as np
from affinage import filling, store
from affinage.cli import main

filling.batched = lambda lengths, model, precision: np.array_split(np.arange(len(lengths)), 7)
made, add, calls = filling._made, store.Writer.add, []

def counted(cut, rows, batch, precision):
    if not isinstance(batch, list):
        with open(os.environ["COUNTED"] + os.environ["RANK"], "a") as file:
            print(len(batch), file=file)
    return made(cut, rows, batch, precision)

def full(self, rows, values):
    calls.append(rows)
    if os.environ["FULL"] and len(calls) == 3:
        raise OSError(28, "No space left on device")
    add(self, rows, values)

filling._made, store.Writer.add = counted, full
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("disk", ["fills up", "cannot be written", ""])
def test_two_ranks_fill_the_store(disk: str, text: Words, launch: Ranks, tmp_path: Path) -> None:
    """Each passes half of the rows; a disk that has no room, at once or on the way, leaves a run that goes on uncut."""
    cache = tmp_path / "cache"
    if disk == "cannot be written":
        cache.write_text("a file")
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "AFFINAGE_CACHE": str(cache)}
    env |= {"COUNTED": str(tmp_path / "rank"), "FULL": disk * (disk == "fills up")}
    words = [sys.executable, "-c", SMALL_BATCHES, *text, *VARIANTS["cut"], "--out", str(tmp_path / "two")]
    ran = [
        subprocess.Popen(words, cwd=ROOT, env=environment(**env, RANK=str(i)), stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    told = [process.communicate(timeout=120)[1] for process in ran]
    assert [process.returncode for process in ran] == [0, 0], told
    launch.run(1, *text, *VARIANTS["cut"], "--cache", "off", "--out", str(tmp_path / "one"))
    ours, theirs = ([r.value for r in record.read(tmp_path / name / "records.jsonl")] for name in ("two", "one"))
    assert ours == pytest.approx(theirs, abs=CLOSE)
    facts = json.loads((tmp_path / "two" / "run.json").read_text())["cuts"]["body"]
    if disk:
        assert "AFFINAGE_CACHE should name one that all ranks read" in told[0] and not told[1]
        assert "anywhere that all ranks can read" in facts["why"]
        assert cache.is_file() or not list(cache.iterdir())
        return
    assert not facts["why"]
    passed = [sum(map(int, (tmp_path / f"rank{i}").read_text().split())) for i in range(2)]
    few = 2 * 16  # that tell how long the rest will take, on each
    rows = json.loads((tmp_path / "two" / "run.json").read_text())["data"]["rows"]
    assert sum(passed) == rows["train"] + rows["validation"] + 2 * few and abs(passed[0] - passed[1]) < 0.3 * sum(passed), passed


SLOW_DISK = """
import sys, time
from affinage import checkpoint, contents, ranks, store
from affinage.cli import main

def slow(place, name):
    quick, calls = getattr(place, name), []
    def waits(*words, **more):
        if ranks.first() and not calls:
            calls.append(1)
            time.sleep(12)
        return quick(*words, **more)
    setattr(place, name, waits)

for place, name in ((contents, "about"), (store.Store, "write"), (store.Writer, "done"), (checkpoint, "refused"), (checkpoint, "digest"), (checkpoint, "_read")):
    slow(place, name)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("shard", [[], ["--shard"]], ids=["plain", "shard"])
def test_a_slow_disk_of_rank_0_is_waited_for(shard: Words, text: Words, launch: Ranks, tmp_path: Path) -> None:
    """What it hashes, finds, makes room for, writes through or reads again may be hundreds of GB: longer than a word may take."""
    words = [*text, *VARIANTS["cut"], *shard]
    launch.killed(2, words, tmp_path / "run")
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "AFFINAGE_RANK_SECONDS": "10"}
    env |= {"AFFINAGE_CACHE": str(tmp_path / "cache"), **STEPWISE}
    again = [sys.executable, "-c", SLOW_DISK, "fit", "--resume", "--out", str(tmp_path / "run")]
    ran = [
        subprocess.Popen(again, cwd=ROOT, env=environment(**env, RANK=str(i)), stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    told = [process.communicate(timeout=300)[1] for process in ran]
    assert [process.returncode for process in ran] == [0, 0], told
    assert finished(tmp_path / "run")


@pytest.mark.parametrize("shard", [[], pytest.param(["--shard"], marks=pytest.mark.slow)], ids=["plain", "shard"])
@pytest.mark.parametrize("before", [2, 1])
def test_a_checkpoint_goes_on_with_another_number_of_ranks(
    before: int, shard: Words, text: Words, whole: Path, launch: Ranks, tmp_path: Path
) -> None:
    launch.killed(before, [*text, *shard], tmp_path / "run")
    launch.run(3 - before, "fit", "--resume", "--out", str(tmp_path / "run"))
    close(whole, tmp_path / "run")


def test_parts_are_saved_by_every_rank_and_none_is_sent(text: Words, launch: Ranks, tmp_path: Path) -> None:
    """Each checkpoint in the middle of a sharded stage is a file a rank; two go on from it, and one does."""
    out = tmp_path / "run"
    launch.killed(2, [*text, "--shard"], out)
    (last,) = sorted((out / "checkpoints").glob("step-*"))[-1:]
    pieces = [load_file(path) for path in sorted(last.glob("shard-*.safetensors"))]
    whole = load_file(last / "tensors.safetensors")
    assert len(pieces) == 2 and pieces[0].keys() == pieces[1].keys() and not pieces[0].keys() & whole.keys()
    assert any(name.endswith(".exp_avg") for name in pieces[0]) and any(name.startswith("stage.weights.") for name in pieces[0])
    shutil.copytree(out, tmp_path / "again")
    launch.run(2, "fit", "--resume", "--out", str(out))
    launch.run(1, "fit", "--resume", "--out", str(tmp_path / "again"))
    close(out, tmp_path / "again")


def test_a_machine_that_does_not_see_the_run_folder(text: Words, launch: Ranks, tmp_path: Path) -> None:
    """Parts are saved by every rank: one that would write elsewhere is refused before anything learns, and nothing stays."""
    words = [*text, "--shard", "--out"]
    others = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "AFFINAGE_RANK_SECONDS": "20"}
    for rank, starter in enumerate(launch.starters):
        starter.start(*words, str(tmp_path / str(rank)), RANK=str(rank), **others)
    codes, told = launch.wait(2)
    assert codes == [2, 2]
    assert "rank 1 does not write in" in told_once(told) and "--shard" in told_once(told)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_ranks_go_on_to_the_same_bits(launch: Ranks, tmp_path: Path) -> None:
    """With dropout, of which every rank draws its own."""
    model, data = tiny.bert(tmp_path / "model"), tiny.csvs(tmp_path / "data")
    words = ["fit", "--model", str(model), "--data", str(data), "--batch-size", "8", "--epochs", "6"]
    launch.run(2, *words, "--out", str(tmp_path / "whole"))
    launch.killed(2, words, tmp_path / "run")
    launch.run(2, "fit", "--resume", "--out", str(tmp_path / "run"))
    close(tmp_path / "whole", tmp_path / "run")
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (tmp_path / "run" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("dies", "sends", "moment"),
    [
        (1, signal.SIGKILL, in_mid_epoch),
        pytest.param(1, signal.SIGKILL, in_stage_1, marks=pytest.mark.slow),
        pytest.param(0, signal.SIGKILL, in_mid_epoch, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGSTOP, in_mid_epoch, marks=pytest.mark.slow),
    ],
)
def test_a_dead_rank_ends_the_run(
    dies: int, sends: signal.Signals, moment: Callable[[Path], bool], text: Words, whole: Path, launch: Ranks, tmp_path: Path
) -> None:
    """No launcher stops the other one: it finds out by itself."""
    out = tmp_path / "run"
    pids = launch.at(2, text, out, moment)
    began = time.monotonic()
    os.kill(pids[dies], sends)
    lives = launch.starters[1 - dies]
    assert lives.wait() == 1
    assert time.monotonic() - began < (30 if sends == signal.SIGKILL else 90)
    lines = [line for line in lives.told.read_text().splitlines() if line.startswith("affinage:")]
    assert len(lines) == 1 and f"rank {dies} is gone" in lines[0] and f"affinage fit --resume --out {out}" in lines[0]
    assert ("no checkpoint was written yet" if moment is in_stage_1 else "the last checkpoint is whole") in lines[0]
    assert "Traceback" not in lives.told.read_text()
    if sends == signal.SIGSTOP:
        os.kill(pids[dies], signal.SIGKILL)
    launch.starters[dies].wait()
    launch.run(1, "fit", "--resume", "--out", str(out))
    close(whole, out)


@pytest.mark.slow
def test_torchrun_and_a_dead_rank(text: Words, whole: Path, launch: Ranks, tmp_path: Path) -> None:
    """As a user starts it; torchrun stops the rank that lives, which still says what happened."""
    out = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with subprocess.Popen(
        [*torchrun, "-m", "affinage", *text, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**STEPWISE),
    ) as process:
        while not in_mid_epoch(out) and process.poll() is None:
            time.sleep(0.001)
        os.kill(_rank(process.pid, 1), signal.SIGKILL)
        told = process.communicate(timeout=90)[1]
    assert process.returncode != 0
    lines = [line for line in told.splitlines() if line.startswith("affinage:")]
    assert len(lines) == 1 and "rank 1 is gone" in lines[0] and f"affinage fit --resume --out {out}" in lines[0]
    launch.run(1, "fit", "--resume", "--out", str(out))
    close(whole, out)


def _rank(parent: int, number: int) -> int:
    """The process of that rank among the children of torchrun."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={number}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise LookupError(f"no rank {number}")


def told_once(told: list[str]) -> str:
    lines = [line for text in told for line in text.splitlines() if line.startswith("affinage:")]
    assert len(lines) == 1, told
    return lines[0]


@pytest.mark.parametrize("slip", [["--data", "nothing"], ["--modl", "x"], ["--epochs", "few"]], ids=lambda s: s[0])
def test_bad_input_is_told_once(slip: Words, text: Words, launch: Ranks, tmp_path: Path) -> None:
    launch.start(2, *text, *slip, "--out", str(tmp_path / "run"))
    codes, told = launch.wait(2)
    assert codes == [2, 2]
    assert {"--data": MISSING, "--modl": "did you mean '--model'", "--epochs": "epochs is 'few'"}[slip[0]] in told_once(told)
    assert not (tmp_path / "run").exists()


def test_ranks_that_never_meet_say_so(text: Words, launch: Ranks, tmp_path: Path) -> None:
    launch.starters[1].start(
        *text, "--out", str(tmp_path / "run"), RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1",
        AFFINAGE_RANK_SECONDS="1",
    )  # fmt: skip
    assert launch.starters[1].wait() == 1
    assert "did not all meet at 127.0.0.1:1" in launch.starters[1].told.read_text().splitlines()[-1]


def test_other_data_on_a_rank_is_refused(text: Words, launch: Ranks, tmp_path: Path) -> None:
    """Each machine reads its own copy: here the two ranks stand in folders of their own."""
    other = tiny.csvs(tmp_path / "other", train=91, validation=31, seed=1)
    words = [*text, "--out", str(tmp_path / "run")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        many = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    for i, starter in enumerate(launch.starters):
        starter.start(*words, *(["--data", str(other)] if i else []), RANK=str(i), **many)
    codes, told = launch.wait(2)
    assert codes == [2, 2] and "rank 1 reads other data than rank 0" in told_once(told)
    assert not (tmp_path / "run").exists()


def test_diverged_is_told_once_and_marked(text: Words, launch: Ranks, tmp_path: Path) -> None:
    launch.start(2, *text, "--learning-rate", "1e30", "--plan", "full", "--out", str(tmp_path / "run"))
    codes, told = launch.wait(2)
    assert codes == [2, 2] and "lower --learning-rate" in told_once(told)
    story: dict[str, Any] = json.loads((tmp_path / "run" / "run.json").read_text())
    assert story["status"] == "failed"
