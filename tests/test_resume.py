"""A run that was killed goes on to the very same bits: weights, predictions and records equal those of a run never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import affinage
from affinage import hold, record
from affinage.errors import AffinageError

from . import detectors, tiny

ROOT = Path(__file__).resolve().parents[1]
STEPWISE = {"AFFINAGE_CHECKPOINT_SECONDS": "0"}  # a checkpoint after every step: any moment is a moment to be killed at
TRIES = 8  # a moment can be missed on a busy machine

# Starting Python with torch takes seconds. This process does it once, learns nothing, and forks a command for each line that it
# reads: it answers with the process id, and with the exit status once the command has ended.
STARTER = """
import json, os, sys
import affinage.run, affinage.cli, pandas, peft, pyarrow.parquet
from transformers import BertForSequenceClassification, BertTokenizerFast, ConvNextImageProcessorPil, ResNetForImageClassification
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.environ.update(job["env"])
        told = os.open(job["told"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(told, 1)
        os.dup2(told, 2)
        try:
            code = affinage.cli.main(job["words"])
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Commands:
    """Starts `affinage` commands one at a time, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.told = folder / "told.txt"  # what the last command printed
        self.process = subprocess.Popen(
            [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
        )

    def start(self, *words: str, **env: str) -> int:
        """The process id of the command."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"words": words, "env": env, "told": str(self.told)}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """The exit code of the command, or minus the signal that ended it."""
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def run(self, *words: str, **env: str) -> str:
        """What a command that must succeed has printed."""
        self.start(*words, **env)
        assert self.wait() == 0, self.told.read_text()
        return self.told.read_text()


def environment(**more: str) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **more}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    made = Commands(tmp_path_factory.mktemp("commands"))
    yield made
    made.process.communicate(timeout=60)  # closes both pipes


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a fit: dropout on, a validation split, 12 steps in each of 8 epochs."""
    folder = tmp_path_factory.mktemp("text")
    model, data = tiny.bert(folder / "model"), tiny.csvs(folder / "data")
    return ["--model", str(model), "--data", str(data), "--batch-size", "8", "--epochs", "8"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("image")
    model, data = tiny.resnet(folder / "model"), tiny.pictures(folder / "data")
    return ["--model", str(model), "--data", str(data), "--batch-size", "4", "--epochs", "4"]


@pytest.fixture(scope="module")
def whole(text: list[str], commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text run that nobody stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    commands.run("fit", *text, "--out", str(out))
    return out


# ------------------------------------------------------------------------------------------------------------- moments
def newest(out: Path) -> dict[str, Any] | None:
    """The state in the newest checkpoint."""
    for path in sorted((out / "checkpoints").glob("step-*"), reverse=True):
        try:
            return json.loads((path / "state.json").read_text())
        except FileNotFoundError:  # taken away between the look and the read
            continue
    return None


def progress(out: Path) -> dict[str, Any]:
    state = newest(out)
    return state["fitting"]["progress"] if state and state["fitting"] else {}


def in_stage_1(out: Path) -> bool:
    return (out / "run.json").exists() and newest(out) is None


def in_mid_epoch(out: Path) -> bool:
    return progress(out).get("batch", 0) > 4


def after_an_epoch(out: Path) -> bool:
    return progress(out).get("epoch", 0) >= 2


def while_writing(out: Path) -> bool:
    return (out / ".writing").exists()


def killed(commands: Commands, words: list[str], out: Path, moment: Callable[[Path], bool], **env: str) -> None:
    """Leave in `out` a run that was killed at that moment."""
    for _ in range(TRIES):
        pid = commands.start(*words, "--out", str(out), **STEPWISE, **env)
        end = time.monotonic() + 60
        while not moment(out) and time.monotonic() < end and not finished(out):
            time.sleep(0.0005)
        os.kill(pid, signal.SIGKILL)
        code = commands.wait()
        if code == -signal.SIGKILL and moment(out):
            assert json.loads((out / "run.json").read_text())["status"] == "running"
            return
        assert code in (0, -signal.SIGKILL), commands.told.read_text()
        words = [*words, *(["--overwrite"] if "--overwrite" not in words else [])]
    pytest.fail(f"missed the moment {moment.__name__} {TRIES} times")


def finished(out: Path) -> bool:
    try:
        return json.loads((out / "run.json").read_text())["status"] == "finished"
    except FileNotFoundError:
        return False


def same(one: Path, other: Path) -> None:
    """Weights, predictions, records and what the stages left, bit by bit; only clocks may differ."""
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert (one / "config.json").read_bytes() == (other / "config.json").read_bytes()
    assert pq.read_table(one / "predictions.parquet").equals(pq.read_table(other / "predictions.parquet"))
    facts = [[r._replace(seconds=0) for r in record.read(run / "records.jsonl")] for run in (one, other)]
    assert facts[0] == facts[1] and len(facts[0]) > 5
    stories = [json.loads((run / "run.json").read_text()) for run in (one, other)]
    for story in stories:
        assert story["status"] == "finished"
        assert all(stage["cost"]["seconds"] > 0 for stage in story["stages"])
        for stage in story["stages"]:
            del stage["cost"]
    for key in ("stages", "kept", "drift", "validation", "test", "plan", "data", "settings"):
        if key == "settings":
            del stories[0][key]["out"], stories[1][key]["out"]
        assert stories[0][key] == stories[1][key], key
    assert not (other / "checkpoints").exists() and not (other / ".writing").exists()
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())


# --------------------------------------------------------------------------------------------------------------- tests
def test_a_run_repeats_itself(text: list[str], whole: Path, commands: Commands, tmp_path: Path) -> None:
    """Checkpoints after every step change nothing: they draw no random number."""
    commands.run("fit", *text, "--out", str(tmp_path / "run"), **STEPWISE)
    same(whole, tmp_path / "run")


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_a_run_that_is_alive_is_left_alone(how: str, text: list[str], whole: Path, commands: Commands, tmp_path: Path) -> None:
    """Another process that would go on with it, or begin again in its folder, is refused; the run comes to its own end."""
    out = tmp_path / "run"
    pid = commands.start("fit", *text, "--out", str(out), **STEPWISE)
    while not progress(out):
        time.sleep(0.001)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(AffinageError, match=rf"another run is at work in .*run \(process {pid} on .*: wait for its end"):
            affinage.fit(text[1], text[3], batch_size=8, epochs=8, out=out, quiet=True, **{how: True})
    finally:
        os.kill(pid, signal.SIGCONT)
    assert commands.wait() == 0, commands.told.read_text()
    same(whole, out)


@pytest.mark.parametrize(
    "moment",
    [in_stage_1, in_mid_epoch, after_an_epoch, pytest.param(while_writing, marks=pytest.mark.slow)],
    ids=lambda m: m.__name__,
)
def test_killed_and_resumed(
    moment: Callable[[Path], bool], text: list[str], whole: Path, commands: Commands, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    killed(commands, ["fit", *text], out, moment)
    told = commands.run("fit", "--resume", "--out", str(out))
    assert "refused" not in told
    same(whole, out)


@pytest.mark.slow
def test_killed_twice(text: list[str], whole: Path, commands: Commands, tmp_path: Path) -> None:
    out = tmp_path / "run"
    killed(commands, ["fit", *text], out, in_mid_epoch)
    before = progress(out)["step"]
    pid = commands.start("fit", "--resume", "--out", str(out), **STEPWISE)
    while progress(out).get("step", before + 15) < before + 15:
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    commands.wait()
    commands.run("fit", "--resume", "--out", str(out))
    same(whole, out)


@pytest.mark.slow
def test_a_detector_goes_on_to_the_same_bits(commands: Commands, tmp_path: Path) -> None:
    """Moving boxes and noisy queries draw from the generator that checkpoints keep."""
    pytest.importorskip("faster_coco_eval", reason="pip install 'affinage[detection]' for the scores of detectors")
    model, data = detectors.saved(tmp_path / "model"), detectors.pictures(tmp_path / "data")
    words = ["fit", "--model", str(model), "--data", str(data), "--plan", "full", "--batch-size", "2", "--epochs", "4"]
    commands.run(*words, "--out", str(tmp_path / "whole"))
    killed(commands, words, tmp_path / "run", in_mid_epoch)
    commands.run("fit", "--resume", "--out", str(tmp_path / "run"))
    same(tmp_path / "whole", tmp_path / "run")


def test_resume_does_not_start_again(text: list[str], commands: Commands, tmp_path: Path) -> None:
    """What was done is not done twice: its seconds stand in the checkpoint and in the end's account."""
    out = tmp_path / "run"
    killed(commands, ["fit", *text], out, after_an_epoch)
    state = newest(out)
    assert state is not None
    commands.run("fit", "--resume", "--out", str(out))
    story = json.loads((out / "run.json").read_text())
    assert story["stages"][0] == state["outcomes"][0]  # the head's own clock: it was not solved again
    assert story["stages"][1]["cost"]["seconds"] > state["fitting"]["progress"]["seconds"]


def test_a_damaged_checkpoint_is_passed_over(text: list[str], whole: Path, commands: Commands, tmp_path: Path) -> None:
    out = tmp_path / "run"
    killed(commands, ["fit", *text], out, in_mid_epoch)
    last = max((out / "checkpoints").glob("step-*")) / "tensors.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    told = commands.run("fit", "--resume", "--out", str(out))
    assert f"checkpoint {last.parent.name} is refused" in told and "the one before it is used" in told
    same(whole, out)


def test_other_data_is_refused(commands: Commands, tmp_path: Path) -> None:
    model, data, out = tiny.bert(tmp_path / "model"), tiny.csvs(tmp_path / "data"), tmp_path / "run"
    killed(commands, ["fit", "--model", str(model), "--data", str(data), "--batch-size", "8"], out, in_mid_epoch)
    tiny.table(data / "train.csv", tiny.splits(seed=1)["train"])
    left = {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file() and p.name != hold.WORD}
    commands.start("fit", "--resume", "--out", str(out))
    assert commands.wait() == 2
    assert "fingerprint differs" in commands.told.read_text()
    assert left == {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


VARIANTS = {
    "average": ["--average", "0.3", "--interpolate", "0.5"],
    "lora": ["--plan", "lora"],
    "cut": ["--unfreeze", "1"],
    "gradual": ["--plan", "gradual"],
    "balanced": ["--plan", "full", "--class-weights", "balanced", "--precision", "fp32"],
    "named": ["--plan", "scratch", "--average", "0.3"],  # of a large table, the rows that the texts name
}


@pytest.mark.parametrize(
    "name", ["average", "lora", "cut", "named", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gradual", "balanced"))]
)
def test_killed_and_resumed_text(name: str, text: list[str], commands: Commands, tmp_path: Path) -> None:
    words = ["fit", *text, *VARIANTS[name], "--epochs", "4"]
    if name == "named":
        words += ["--model", str(tiny.bert(tmp_path / "model", vocab_size=40_000))]
    commands.run("cache", "clear")  # of what other tests have left
    commands.run(*words, "--out", str(tmp_path / "whole"))
    killed(commands, words, tmp_path / "run", in_mid_epoch)
    if name == "cut":  # what was computed once is computed once more, to the same bits
        assert commands.run("cache", "clear").startswith("0.1 MB freed")
    commands.run("fit", "--resume", "--out", str(tmp_path / "run"))
    same(tmp_path / "whole", tmp_path / "run")
    if name == "named":
        details = json.loads((tmp_path / "run" / "run.json").read_text())["stages"][0]["details"]
        (counts,) = details["named_rows"].values()
        assert 10 < counts[0] < 100 and counts[1] == 40_000 and details["trained_parameters"] > 40_000 * 32


@pytest.mark.parametrize("moment", [in_mid_epoch, pytest.param(after_an_epoch, marks=pytest.mark.slow)], ids=lambda m: m.__name__)
@pytest.mark.parametrize("plan", ["scratch", pytest.param("two-stage", marks=pytest.mark.slow)])
def test_killed_and_resumed_images(
    plan: str, moment: Callable[[Path], bool], image: list[str], commands: Commands, tmp_path: Path
) -> None:
    """Random pictures, batch-norm statistics, and convolutions whose memory lies channels last."""
    words = ["fit", *image, "--plan", plan, "--augment", "strong", "--average", "0.2"]
    commands.run(*words, "--out", str(tmp_path / "whole"))
    killed(commands, words, tmp_path / "run", moment)
    commands.run("fit", "--resume", "--out", str(tmp_path / "run"))
    same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT], ids=lambda s: s.name)
def test_python_m_affinage(stop: signal.Signals, text: list[str], whole: Path, commands: Commands, tmp_path: Path) -> None:
    """The command as a user starts it; Ctrl-C says in one line how to go on."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "affinage", "fit", *text, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**STEPWISE),
        # a shell starts what it runs in the background with SIGINT ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    while not in_mid_epoch(out) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(stop)
    told = process.communicate(timeout=60)[1]
    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert told.splitlines()[-1] == f"affinage: stopped; continue with: affinage fit --resume --out {out}"
        assert "Traceback" not in told
    else:
        assert process.returncode == -signal.SIGKILL
    commands.run("fit", "--resume", "--out", str(out))
    same(whole, out)
