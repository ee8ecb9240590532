"""The command line: what it passes on, what it prints, and one line with the right exit code for whatever goes wrong."""

from __future__ import annotations

import errno
import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

import affinage
from affinage import cli, config
from affinage.errors import AffinageError
from affinage.types import Finding

FIT = ["fit", "--model", "m", "--data", "d"]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for affinage.run and the screen, which need torch: keeps what they were told; `error` is raised by all."""
    kept: dict[str, Any] = {"error": None, "findings": [], "scores": {"accuracy": 0.75, "accuracy_interval": [0.5, 0.9]}}

    def say(name: str, answer: Any) -> Any:
        def call(*args: Any, **words: Any) -> Any:
            if kept["error"] is not None:
                raise kept["error"]
            kept[name] = (args, words)
            return answer(args) if callable(answer) else answer

        return call

    kept["task"] = SimpleNamespace(kind="text")
    loaded = SimpleNamespace(
        task=kept["task"],
        path=Path("runs/x"),
        metrics={"accuracy": 0.5},
        predict=say("predict", lambda args: [{"label": "a", "score": 1.0, "scores": {"a": 1.0}} for _ in args[0]]),
        evaluate=say("evaluate", lambda args: kept["scores"]),
    )
    run = ModuleType("affinage.run")
    run.fit, run.load = say("fit", lambda args: loaded), say("load", lambda args: loaded)  # type: ignore[attr-defined]
    run.plan_of = say("plan_of", {"plan": "two-stage", "stages": [{"name": "head", "rates": (("head", 1e-3),)}]})  # type: ignore[attr-defined]
    run.check_data = say("check_data", lambda args: kept["findings"])  # type: ignore[attr-defined]
    screen = ModuleType("affinage.report.screen")
    screen.show = say("show", None)  # type: ignore[attr-defined]
    report = ModuleType("affinage.report")
    report.screen = screen  # type: ignore[attr-defined]
    for module in (run, report, screen):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(affinage, "run", run, raising=False)
    return kept


def test_every_setting_is_an_option_and_none_more() -> None:
    command = typer.main.get_command(cli.app).commands["fit"]  # type: ignore[attr-defined]
    options = {parameter.name for parameter in command.params} - {"help", "config", "dry_run", "as_json"}
    assert options == set(config.Settings.model_fields)


def test_help_names_every_plan() -> None:
    from affinage.plans import NAMES

    command = typer.main.get_command(cli.app).commands["fit"]  # type: ignore[attr-defined]
    text = next(str(parameter.help) for parameter in command.params if parameter.name == "plan")
    assert all(name in text for name in NAMES)


def test_show_model_prints_its_addresses(minilm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "--model", str(minilm)]) == 0
    _, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["stem", *(f"blocks.{k}" for k in range(6)), "head"]
    # a BERT layer of width D has 12 D^2 + 13 D parameters (feed-forward 4 D)
    assert int(rows[1][1].replace(",", "")) == 12 * 384**2 + 13 * 384


def test_only_what_was_given_is_passed_on(told: dict[str, Any]) -> None:
    assert cli.main([*FIT, "--epochs", "2", "--learning-rate", "1e-4", "--overwrite"]) == 0
    want = {"model": "m", "data": "d", "epochs": 2, "learning_rate": 1e-4, "overwrite": True, "out": Path("runs/d-m")}
    assert told["fit"] == ((), want)
    assert told["show"] == ((Path("runs/x"),), {})


def test_fit_as_json(told: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*FIT, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": "runs/x", "metrics": {"accuracy": 0.5}}
    assert told["fit"][1]["quiet"] is True and "show" not in told


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_dry_run_prints_the_plan_and_fits_nothing(
    told: dict[str, Any], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    import yaml

    assert cli.main([*FIT, "--dry-run", *words]) == 0
    want = {"plan": "two-stage", "stages": [{"name": "head", "rates": [["head", 1e-3]]}]}
    assert yaml.safe_load(capsys.readouterr().out) == want  # JSON is YAML too
    assert "fit" not in told


def test_evaluate(told: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "--run", "r", "--data", "d", "--text-column", "t"]) == 0
    assert told["evaluate"] == (("d",), {"split": None, "text_column": "t"})
    assert capsys.readouterr().out.split() == ["accuracy", "0.75", "[0.5,", "0.9]"]
    assert cli.main(["evaluate", "--run", "r", "--data", "d", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told["scores"]


def test_predict_text_from_words_files_and_lines(
    told: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "lines.txt").write_text("one\n\ntwo\r\n", encoding="utf8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("three\nfour"))
    assert cli.main(["predict", "--run", "r", "good film", str(tmp_path / "lines.txt"), str(tmp_path), "-"]) == 0
    assert told["predict"][0][0] == ["good film", "one", "two", str(tmp_path), "three", "four"]  # a folder's name is only text
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 6 and lines[1] == {"input": "one", "label": "a", "score": 1.0, "scores": {"a": 1.0}}


def test_predict_images_from_files_folders_and_lines(
    told: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told["task"].kind = "image"
    deep = tmp_path / "images" / "deep"
    deep.mkdir(parents=True)
    for name in ("b.PNG", "a.jpg", "notes.md"):
        (deep / name).touch()
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{deep / 'b.PNG'}\n"))
    assert cli.main(["predict", "--run", "r", str(tmp_path), str(deep / "a.jpg"), "-"]) == 0
    assert told["predict"][0][0] == [deep / "a.jpg", deep / "b.PNG", deep / "a.jpg", deep / "b.PNG"]
    capsys.readouterr()
    assert cli.main(["predict", "--run", "r", str(tmp_path / "none.png")]) == 2
    assert "no image at" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_a_text_and_said_to_be(told: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """A request for /robots.txt is a text to one who classifies requests."""
    assert cli.main(["predict", "--run", "r", "reviews.txt", "one word.txt and more", "fine."]) == 0
    assert told["predict"][0][0] == ["reviews.txt", "one word.txt and more", "fine."]
    assert capsys.readouterr().err == "affinage: no file reviews.txt: taken as a text\n"


def test_predict_a_text_that_looks_like_an_option(told: dict[str, Any]) -> None:
    assert cli.main(["predict", "--run", "r", "--", "--debug"]) == 0
    assert told["predict"][0][0] == ["--debug"]


@pytest.mark.parametrize("kind", ["text", "image"])
def test_predict_nothing(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    told["task"].kind = kind
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert cli.main(["predict", "--run", "r", "-"]) == 2
    assert capsys.readouterr().err.startswith("affinage: nothing to predict")


LEAK = Finding("duplicate-across-splits", "leak", "1 row of test is in train too", (("train", "a", "test", "b"),))
WARNING = Finding("imbalance", "warning", "the largest class has 90 % of the rows")


@pytest.mark.parametrize(("findings", "code"), [([], 0), ([WARNING], 0), ([WARNING, LEAK], 1)])
def test_check(
    told: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path, findings: list[Finding], code: int
) -> None:
    import csv

    told["findings"] = findings
    out = tmp_path / "findings.csv"
    assert cli.main(["check", "--data", "d", "--out", str(out)]) == code
    shown = capsys.readouterr().out
    assert all(finding.message in shown for finding in findings)
    with out.open(encoding="utf8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == [finding.kind for finding in findings]
    assert not findings or rows[-1]["other_id"] == ("b" if LEAK in findings else "")
    assert cli.main(["check", "--data", "d", "--json"]) == code
    assert [row["severity"] for row in json.loads(capsys.readouterr().out)] == [finding.severity for finding in findings]


def full(number: int) -> OSError:
    return OSError(number, "full", "runs/x/model.safetensors")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (AffinageError("bad\n thing"), 2, "affinage: bad thing"),
        (KeyboardInterrupt(), 130, "affinage: stopped; continue with: affinage fit --resume --out runs/d-m"),
        (MemoryError(), 2, "affinage: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 2, "affinage: out of memory"),
        (full(errno.ENOSPC), 2, "affinage: no space left on the disk for runs/x/model.safetensors"),
        (ValueError("one\ntwo"), 1, "affinage: ValueError: one two (run again with --debug"),
        (PermissionError(errno.EACCES, "denied", "x"), 1, "affinage: PermissionError: "),
    ],
)
def test_whatever_goes_wrong_is_one_line(
    told: dict[str, Any], capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    told["error"] = error
    assert cli.main(FIT) == code
    err = capsys.readouterr().err
    assert err.startswith(said) and err.count("\n") == 1


def test_other_commands_stop_without_advice(told: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    told["error"] = KeyboardInterrupt()
    assert cli.main(["evaluate", "--run", "r", "--data", "d"]) == 130
    assert capsys.readouterr().err == "affinage: stopped\n"


@pytest.mark.parametrize("words", [["--debug", *FIT], [FIT[0], "--debug", *FIT[1:]], [*FIT, "--debug"]])
def test_debug_anywhere_shows_the_traceback(told: dict[str, Any], capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    told["error"] = ValueError("deep down")
    assert cli.main(words) == 1
    assert "Traceback" in (err := capsys.readouterr().err) and "ValueError: deep down" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "--modle", "x"], "'--model'"),
        (["fit", "--learning-rte=3"], "'--learning-rate'"),
        (["fti"], "'fit'"),
        (["fit", "--model"], "requires an argument"),
        (["evaluate", "--run", "r"], "--data"),
        (["predict", "--run", "r"], "INPUT"),
        ([], "a command is missing (see: affinage --help)"),
        (["cache"], "a command is missing (see: affinage cache --help)"),
        (["fit"], "no model given"),
        (["fit", "--model", "m"], "no data given"),
        (["fit", "--resume"], "no out given"),
        ([*FIT, "--epochs", "many"], "epochs is 'many'; expected a whole number"),
        ([*FIT, "--config", "none.yaml"], "cannot read settings file none.yaml"),
        (["show"], "one of --run DIR and --model MODEL"),
        (["show", "--run", "nowhere"], "no run at nowhere"),
    ],
)
def test_bad_words_are_one_line_and_code_2(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("affinage: ") and said in err and err.count("\n") == 1


def test_show_opens_the_report(told: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda page: opened.append(page) or True)
    (tmp_path / "run.json").write_text("{}", encoding="utf8")
    assert cli.main(["show", "--run", str(tmp_path), "--open"]) == 2 and not opened
    (tmp_path / "report.html").touch()
    assert cli.main(["show", "--run", str(tmp_path), "--open"]) == 0
    assert opened == [(tmp_path / "report.html").resolve().as_uri()]
    assert told["show"] == ((tmp_path,), {})


def test_without_a_browser_the_place_of_the_report_is_told(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("webbrowser.open", lambda page: False)
    for name in ("run.json", "report.html"):
        (tmp_path / name).touch()
    assert cli.main(["show", "--run", str(tmp_path), "--open"]) == 2
    assert f"no browser found; open {tmp_path / 'report.html'} yourself" in capsys.readouterr().err


def test_findings_that_cannot_be_written(told: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--data", "d", "--out", str(tmp_path / "none" / "f.csv")]) == 2
    assert "cannot write" in (err := capsys.readouterr().err) and "No such file or directory" in err and err.count("\n") == 1


@pytest.mark.parametrize("words", [["--help"], ["fit", "-h"], ["predict", "--help"], ["--version"]])
def test_help_and_version_succeed(words: list[str]) -> None:
    assert CliRunner().invoke(cli.app, words).exit_code == 0


def test_the_public_names_survive_their_modules(told: dict[str, Any]) -> None:
    # fit.py and check.py are modules too; importing one must not put it in the function's place
    for name in ("fit", "check"):
        setattr(affinage, name, ModuleType(f"affinage.{name}"))  # what Python's import does
        assert not isinstance(getattr(affinage, name), ModuleType)
    affinage.fit(model="m", data="d")
    assert told["fit"] == ((), {"model": "m", "data": "d"})
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        affinage.train  # noqa: B018
