"""The machinery of the benchmarks: the table says what the file says and no more, a stopped run goes on."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as `python benchmarks/x.py` has it
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return loaded("table", monkeypatch)


@pytest.fixture
def arms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return loaded("arms", monkeypatch)


def line(arm: str, seed: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    made = {
        "suite": "text-few",
        "variant": "default",
        "data": "sst2",
        "labels": 8,
        "arm": arm,
        "seed": seed,
        "accuracy": accuracy,
    }
    made |= {"training": {"cpu_seconds": 10.0 * (seed + 1)}, "fingerprint": f"rows{seed}", "model": "m", "threads": 1, "cpu": "c"}
    return made | {"versions": {"torch": "2", "transformers": "5"}, "precision": "fp32", "commit": "abc"} | changes


def made_up() -> list[dict[str, Any]]:
    return [
        *(line("two-stage", seed, a) for seed, a in enumerate((0.80, 0.82, 0.84))),
        *(line("full", seed, a) for seed, a in enumerate((0.79, 0.79, 0.79))),
        line("frozen", 0, 0.75),
        line("two-stage", 0, 0.90, data="trec6", labels=0),
    ]


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if row.startswith("|")]


def test_table_by_hand(table: ModuleType) -> None:
    found = rows(table.rendered(made_up()))
    # 0.80, 0.82, 0.84: sd 0.02, t(2) = 4.303, half of the interval 4.303 x 0.02 / sqrt(3) = 0.0497
    assert found[0] == ["data", "labels a class", "frozen", "two-stage", "full"]
    assert found[2] == ["sst2", "8", "75.0 (1)", "82.0 ± 5.0 (3)", "79.0 ± 0.0 (3)"]
    assert found[3] == ["trec6", "all", "–", "90.0 (1)", "–"]
    # differences 0.01, 0.03, 0.05: as wide; of eight sign patterns two reach the sum
    assert found[6] == ["sst2", "8", "+3.0 [-2.0, +8.0]", "0.250", "3"]
    assert found[7] == ["trec6", "all", "–", "–", "0"]
    assert found[10] == ["sst2", "8", "10.0 (1)", "20.0 (3)", "20.0 (3)"]
    assert found[11] == ["trec6", "all", "–", "10.0 (1)", "–"]


def test_pairs_are_the_seeds_that_both_have(table: ModuleType) -> None:
    lines = [line("two-stage", 0, 0.9), line("two-stage", 1, 0.5), line("full", 0, 0.8), line("full", 2, 0.1)]
    assert "| sst2 | 8 | +10.0 | – | 1 |" in table.rendered(lines)


def test_a_pair_on_other_rows_is_refused(table: ModuleType) -> None:
    with pytest.raises(ValueError, match="different rows"):
        table.rendered([line("two-stage", 0, 0.9), line("full", 0, 0.8, fingerprint="else")])


def test_a_cell_that_stands_twice_is_refused(table: ModuleType) -> None:
    with pytest.raises(ValueError, match="stands twice"):
        table.rendered([line("full", 0, 0.8), line("full", 0, 0.9)])


def test_variants_are_paired_with_the_default(table: ModuleType) -> None:
    lines = [line("full", s, 0.8) for s in range(2)] + [line("full", s, 0.9, variant="fast") for s in range(2)]
    lines += [line("full", 0, 0.3, variant="fast", labels=64)]
    found = rows(table.variants(lines))
    assert found[2] == ["sst2", "8", "fast", "full", "90.0 ± 0.0 (2)", "+10.0 [+10.0, +10.0]", "0.500", "2"]
    assert found[3] == ["sst2", "64", "fast", "full", "30.0 (1)", "–", "–", "0"]


def test_a_page_is_filled_between_its_marks(table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / "r.jsonl", tmp_path / "README.md"
    lines = [*made_up(), line("full", 9, 0.0, suite="search"), line("full", 8, 0.0, variant="other")]
    file.write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"suite": "text-f')  # a run is still writing
    page.write_text("above\n<!-- results -->\nold\n<!-- /results -->\nbelow\n")
    for _ in range(2):  # twice is as once
        assert table.main([str(file), "--page", str(page)]) == 0
    text = page.read_text()
    assert text == f"above\n<!-- results -->\n\n{table.rendered(made_up())}\n\n<!-- /results -->\nbelow\n"
    page.write_text("no marks")
    assert table.main([str(file), "--page", str(page)]) == 2
    assert "<!-- results -->" in capsys.readouterr().err


def test_the_brief_table_has_one_cell_an_arm(table: ModuleType, tmp_path: Path) -> None:
    file, drawn = tmp_path / "r.jsonl", tmp_path / "r.svg"
    file.write_text("".join(json.dumps(x) + "\n" for x in made_up()))
    found = rows(table.brief(made_up()))
    whole = rows(table.rendered(made_up()))
    assert len(found[0]) == 2 + sum(arm in whole[0] for arm in table.ARMS) + 1
    for short, long in zip(found[2:], whole[2:], strict=False):
        for cell, other in zip(short[2:-1], long[2:], strict=True):
            assert cell.split(", ")[0] == other.split(" (")[0]
    for _ in range(2):
        assert table.main([str(file), "--picture", str(drawn)]) == 0
        drawn.rename(tmp_path / f"{len(list(tmp_path.iterdir()))}.svg")
    first, second = sorted(tmp_path.glob("*.svg"))
    assert first.read_bytes() == second.read_bytes()  # the same numbers, the same file


def test_no_file_gives_no_numbers(table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main([str(tmp_path / "none.jsonl")]) == 0
    assert capsys.readouterr().out == "No results yet.\n"


def test_seeds_are_outermost(arms: ModuleType) -> None:
    found = arms.cells("text-few", "default", 2, [], arms.ARMS, [])
    assert len(found) == len(set(found)) == 2 * 8 * 5
    assert [cell.seed for cell in found] == [0] * 40 + [1] * 40
    assert {cell.seed for cell in arms.cells("search", "default", 2, [], ["full"], [])} == {1000, 1001}


def test_a_line_cut_by_a_kill_is_dropped_and_measured_again(arms: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    arms.append(file, line("full", 0, 0.5))
    with file.open("a") as end:
        end.write('{"suite": "te')
    assert [arms.Cell.of(x) for x in arms.lines(file)] == [arms.Cell("text-few", "default", "sst2", 8, "full", 0)]
    arms.append(file, line("full", 1, 0.5))
    assert [x["seed"] for x in arms.lines(file)] == [0, 1]


@pytest.mark.parametrize(
    "words",
    [
        ["--set", "epochs=3"],
        ["--set", "seed=3", "--variant", "v"],
        ["--only", "sst3"],
        ["--suite", "images", "--only", "sst2"],
        ["--arms", "ful"],
    ],
    ids=" ".join,
)
def test_slips_end_before_anything_runs(arms: ModuleType, words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        arms.parsed(words)


def test_own_split_is_fixed_stratified_and_apart(arms: ModuleType, shared_data: Path) -> None:
    first, again = (arms.splits("customer_reviews", shared_data) for _ in range(2))
    assert first == again
    train, test = first["train"], first["test"]
    assert abs(len(train) - 0.75 * 3771) <= 1 and abs(len(test) - arms.MOST_TESTED) <= 1
    share = [np.mean([row["label"] == "pos" for row in part]) for part in (train, test)]
    assert share[0] == pytest.approx(share[1], abs=0.002)


def test_a_search_reads_no_test_row(arms: ModuleType, shared_data: Path) -> None:
    plain, search = arms.splits("trec6", shared_data), arms.splits("trec6", shared_data, search=True)
    assert abs(len(search["train"]) - 0.75 * len(plain["train"])) <= 3
    assert abs(len(search["test"]) - arms.MOST_TESTED) <= 6  # a rounding a class
    held = Counter(row["text"] for part in search.values() for row in part)
    assert held <= Counter(row["text"] for row in plain["train"])


def test_trainer_takes_the_rows_as_its_own_collator_wants_them(arms: ModuleType, minilm: Path) -> None:
    import torch
    import transformers

    from affinage import tasks
    from affinage.types import Split

    task = tasks.find("text-classification", "text")
    model, tokenizer = task.load(minilm, ["a", "b"], fresh=False, revision=None)
    texts = ["a good film", "no"]
    made = arms.examples(task, Split(texts, np.asarray([1, 0]), ["0", "1"]), tokenizer, model)
    batch = transformers.DataCollatorWithPadding(tokenizer)(made)
    ours = task.encode(texts, tokenizer, model).batch(np.arange(2))
    assert batch["labels"].tolist() == [1, 0]
    assert all(torch.equal(batch[name], ours[name]) for name in ours)


def test_work_of_a_pass_is_that_of_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import BertConfig, BertModel

    frozen_text = loaded("frozen_text", monkeypatch)
    config = BertConfig(vocab_size=10, hidden_size=16, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2)
    model = BertModel(config, add_pooling_layer=False).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 7, dtype=torch.long))
    assert frozen_text.flop(config, [7]) == counter.get_total_flops()
    minilm = SimpleNamespace(hidden_size=384, intermediate_size=1536, num_hidden_layers=6)
    assert frozen_text.flop(minilm, [27]) / 27 == pytest.approx(21.5e6, rel=0.01)


# ------------------------------------------------------------------------------------------------------------- starters
def test_cells_of_the_starters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds outermost, each starter on its own sets; the table takes a line as one of arms.py."""
    found = loaded("starters", monkeypatch)
    cells = found.cells(["starter-bytes"], 2, ["sms_spam", "cifar10"], ["scratch", "two-stage"], [10])
    assert [(c.suite, c.data, c.labels, c.arm, c.seed) for c in cells] == [
        ("starter-bytes", "sms_spam", 10, arm, seed) for seed in (0, 1) for arm in ("scratch", "two-stage")
    ]
    assert len(found.cells(list(found.SETS), 6, [], found.ARMS, found.LABELS)) == 6 * 2 * (3 * 4 + 3 * 5)  # n-grams: of text
    with pytest.raises(SystemExit, match="2"):
        found.main(["--starters", "starter-of-nothing"])


def test_a_longer_scratch_is_the_plan_scratch_for_four_times_as_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = loaded("starters", monkeypatch)
    seen: list[tuple[str, dict[str, Any]]] = []

    def ours(cell: Any, rows: Any, model: Any, settings: dict[str, Any], out: Path) -> dict[str, Any]:
        seen.append((cell.arm, settings))
        return {}

    monkeypatch.setattr(found.arms, "ours", ours)
    rows = {"train": [{"text": str(i), "label": str(i % 2)} for i in range(400)]}
    for arm in found.ARMS[:4]:
        found.measured(found.arms.Cell("starter-bytes", "default", "sms_spam", 100, arm, 0), rows, tmp_path)
    assert seen == [("scratch", {}), ("frozen", {}), ("two-stage", {}), ("scratch", {"epochs": 40})]


def test_the_control_sees_the_rows_that_a_fit_sees(monkeypatch: pytest.MonkeyPatch, minilm: Path, tmp_path: Path) -> None:
    """Runs of characters tell the classes apart, on as many rows as were asked for."""
    found = loaded("starters", monkeypatch)
    rows = [{"text": f"{'GET' if i % 2 else 'POST'} /{i:03d}", "label": str(i % 2)} for i in range(80)]
    cell = found.arms.Cell(str(minilm), "default", "sms_spam", 10, found.GRAMS, 0)
    line = found.measured(cell, {"train": rows[:60], "test": rows[60:]}, tmp_path)
    assert (line["accuracy"], line["n_train"], line["n_test"]) == (1.0, 20, 20)


def test_rows_of_the_starters_sets(monkeypatch: pytest.MonkeyPatch, shared_data: Path) -> None:
    found = loaded("starters", monkeypatch)
    (source,) = (one for one in found.SETS["starter-bytes"] if one.name == "sms_spam")
    first, again = (found.splits(source, shared_data) for _ in range(2))
    assert first == again and set(first["train"][0]) == {"text", "label"}
    share = [np.mean([row["label"] == "spam" for row in part]) for part in first.values()]
    assert share[0] == pytest.approx(share[1], abs=0.005) and len(first["test"]) <= found.MOST_TESTED


def test_detection_goes_on_and_its_table_says_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    """Finished cells are not measured again; a cell that is missing is a dash."""
    detection = loaded("detection", monkeypatch)
    asked: list[tuple[Any, ...]] = []

    def measured(told: Any, table: Any, pictures: int, arm: str, seed: int) -> dict[str, Any]:
        asked.append((pictures, arm, seed))
        return {"map50": 0.25 + seed / 4, "cpu_seconds": 1.0}

    for name, answer in (("measured", measured), ("rows", lambda data: {}), ("digest", lambda model: "x")):
        monkeypatch.setattr(detection, name, answer)
    out = tmp_path / "detection.jsonl"
    words = ["--out", str(out), "--base", "b", "--pictures", "20,80", "--arms", "heads,full", "--seeds"]
    assert detection.main([*words, "1"]) == 0 and len(asked) == 4
    assert detection.main([*words, "2"]) == 0 and len(asked) == 8 and asked[4] == (20, "heads", 1)
    capsys.readouterr()
    assert detection.main(["--out", str(out), "--table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[2]
        == "| x | bccd | 20 | 300 | – | – | 0.375 ± 1.588 (0.250 to 0.500, 2 seeds) | – | 0.375 ± 1.588 (0.250 to 0.500, 2 seeds) |"
        and len(lines) == 4
    )
    words[words.index("heads,full")] = "two-stage,full"
    assert detection.main([*words[:-1], "--set", "raccoon", "--first", "1", "--seeds", "2"]) == 0 and len(asked) == 16
    assert "x, raccoon, 20 pictures: two-stage - full +0.0 points" in detection.shown(out)


def test_a_pair_with_the_trainer_needs_both_sides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trainer, path = loaded("trainer", monkeypatch), tmp_path / "t.jsonl"
    for seed, side, seconds, score in ((0, "affinage", 2.0, 0.2), (0, "trainer", 9.0, 0.3), (1, "affinage", 1.0, 0.9)):
        found = {
            "task": "speech",
            "arm": "head",
            "seed": seed,
            "side": side,
            "weights": "w",
            "cpu_seconds": seconds,
            "score": score,
        }
        with path.open("a") as file:
            file.write(json.dumps(found) + "\n")
    rows = trainer.table(path).splitlines()[2:]
    assert rows == ["| speech (wer) | w | head | 10 | 2.0 | 9.0 | 4.5 | 0.200 | 0.300 | 1 |"]
    with pytest.raises(SystemExit):
        trainer.main(["--arms", "hed"])


def test_a_pair_with_the_trainer_has_the_rows_of_either_benchmark(monkeypatch: pytest.MonkeyPatch, shared_data: Path) -> None:
    trainer = loaded("trainer", monkeypatch)
    asked = argparse.Namespace(arm="top-1", seed=0, data=shared_data)
    for task, train, test in (("speech", 450, 50), ("boxes", 205, 72)):
        rows = trainer.settings(argparse.Namespace(**vars(asked), task=task))["data"]
        assert (len(rows["train"]), len(rows["test"])) == (train, test)


def test_read_sentences_are_parted_by_name(monkeypatch: pytest.MonkeyPatch, shared_data: Path, tmp_path: Path) -> None:
    reader, path = loaded("reader", monkeypatch), tmp_path / "r.jsonl"
    rows = reader.splits(shared_data / "ljtext_reader")
    assert len(rows["train"]) == 111 and len(rows["test"]) == reader.HELD
    names = [Path(row["audio"]).name for row in (*rows["train"], *rows["test"])]
    assert names == sorted(names) and len(set(names)) == 141
    for seed, cer in enumerate((0.5, 0.7)):
        found = {"weights": "ab", "arm": "full", "seed": seed, "epochs": 3, "cer": cer, "wer": 1.0, "cpu_seconds": 10.0 + seed}
        with path.open("a") as file:
            file.write(json.dumps(found) + "\n")
        found |= {"set": "yesno", "recordings": 10, "arm": "two-stage", "cer": cer - 0.1}
        with path.open("a") as file:
            file.write(json.dumps(found) + "\n")
            file.write(json.dumps(found | {"arm": "scratch", "cer": 0.5}) + "\n")
    told = [line for line in reader.table(path).splitlines()[2:] if line]
    assert (
        told[0] == "| ab | ljtext_reader | all | full | 3 | 60.0 | 100.0 | 10 | 2 |"
        and "| ab | yesno | 10 | two-stage | 3 | 50.0 |" in told[1]
    )
    assert "ab, yesno 10, cer: two-stage - scratch +0.0 [" in told[3] and len(told) == 5
    yes = reader.splits(shared_data / "yesno")
    assert len(yes["train"]) == len(yes["test"]) == 10
    own = reader.splits(shared_data / "an4_tiny")
    assert (len(own["train"]), len(own["test"])) == (30, 10)


def test_gpu_pairs_are_counted_by_the_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And lines from before there was a device are the CPU's."""
    engine, path = loaded("engine", monkeypatch), tmp_path / "e.jsonl"
    for device, side, cpu, clock in (
        (None, "affinage", 1.0, 9.0), (None, "trainer", 4.0, 9.0), ("H", "affinage", 9.0, 1.0), ("H", "trainer", 9.0, 3.0),
    ):  # fmt: skip
        found = {"data": "sst2", "rows": 9, "arm": "full", "seed": 0, "threads": 1, "side": side, "accuracy": 0.5}
        found |= {"cpu_seconds": cpu, "seconds": clock, **({"device": device} if device else {})}
        with path.open("a") as file:
            file.write(json.dumps(found) + "\n")
    assert [row.split(" | ")[1:7:5] for row in engine.table(path).splitlines()[2:]] == [["1 of cpu", "4.0"], ["H", "3.0"]]


def test_no_times_are_told_of_sides_that_ran_beside_each_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine, path = loaded("engine", monkeypatch), tmp_path / "e.jsonl"
    for side, accuracy in (("affinage", 0.5), ("trainer", 0.25)):
        found = {"data": "sst2", "rows": 9, "device": "H", "arm": "full", "seed": 0, "threads": 1, "side": side}
        found |= {"accuracy": accuracy, "cpu_seconds": 1.0, "seconds": 1.0, "at_once": 2}
        with path.open("a") as file:
            file.write(json.dumps(found) + "\n")
    assert "| full | 3 | – | – | – | 0.500 | 0.250 | 1 |" in engine.table(path)


def test_the_trainers_side_may_be_of_another_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Accuracies are compared where both were tested on the same rows, times where both ran alone."""
    engine = loaded("engine", monkeypatch)
    line = {
        "data": "sst2",
        "rows": 9,
        "arm": "full",
        "seed": 0,
        "threads": 1,
        "accuracy": 0.5,
        "cpu_seconds": 2.0,
        "seconds": 2.0,
    }
    for name, more in (
        ("mine", {"device": "cpu", "side": "affinage", "tested": 2000}),
        ("slow", {"device": "cpu", "side": "trainer", "cpu_seconds": 8.0}),
        ("card", {"device": "H", "side": "trainer", "tested": 2000, "at_once": 9, "accuracy": 0.25}),
    ):
        (tmp_path / name).write_text(json.dumps({**line, **more}) + "\n")
    rows = [engine.table(tmp_path / "mine", tmp_path / other).splitlines()[2:] for other in ("slow", "card")]
    assert rows == [
        ["| sst2, 9 | 1 of cpu | full | 3 | 2.0 | 8.0 | 4.0 | – | – | 1 |  |"],
        ["| sst2, 9 | 1 of cpu | full | 3 | – | – | – | 0.500 | 0.250 | 1 |  |"],
    ]


def test_an_arm_is_held_against_the_trainer_that_did_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine, path = loaded("engine", monkeypatch), tmp_path / "e.jsonl"
    for arm, side, cpu in (("everything", "affinage", 2.0), ("full", "affinage", 1.0), ("full", "trainer", 4.0)):
        found = {
            "data": "sst2",
            "rows": 9,
            "arm": arm,
            "seed": 0,
            "threads": 1,
            "side": side,
            "accuracy": 0.5,
            "cpu_seconds": cpu,
        }
        with path.open("a") as file:
            file.write(json.dumps(found) + "\n")
    rows = [row.split(" | ") for row in engine.table(path).splitlines()[2:]]
    assert [(row[2], row[6]) for row in rows] == [("full", "4.0"), ("everything", "2.0")]


def test_rows_told_right_make_the_interval_for_other_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three seeds that differ on the same row of ten: every seed says the same, and yet ten other rows may not."""
    engine, path = loaded("engine", monkeypatch), tmp_path / "e.jsonl"
    right = np.ones((2, 10), dtype=bool)
    right[1, 4] = False
    for seed in range(3):
        for side, mine in zip(("affinage", "trainer"), right, strict=True):
            line = {"data": "sst2", "rows": 10, "arm": "full", "seed": seed, "threads": 1, "side": side, "cpu_seconds": 1.0}
            line |= {"accuracy": float(mine.mean()), "n_test": 10, "hits": engine.packed(mine)}
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            assert np.array_equal(engine.told_right(line), mine)
    said = engine.table(path).splitlines()[-1]
    assert said.endswith("+10.0 points [+10.0, +10.0] (3 pairs); for other test rows, too: [-9.6, +29.6]"), said


def test_large_networks_are_counted_by_what_has_to_be_multiplied(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A BERT of base size takes 22.3 GFLOP for 128 tokens; layers that learn take three passes, frozen ones one, or one in all."""
    import torch
    import transformers

    throughput, path = loaded("throughput", monkeypatch), tmp_path / "t.jsonl"
    config = transformers.BertConfig()

    def passes(network: str, arm: str, side: str, config: Any) -> float:
        told = argparse.Namespace(network=network, arm=arm, side=side, epochs=6, rows=1)
        return throughput.work(told, config) / 1e9

    assert passes("bert", "full", "trainer", config) == pytest.approx(18 * 22.35, rel=1e-3)
    assert passes("vit", "full", "trainer", transformers.ViTConfig()) == pytest.approx(
        18 * 35.1, rel=5e-3
    )  # 17.6 GMAC, its paper's
    assert passes("bert", "top-2", "trainer", config) == pytest.approx(6 * (4 / 3) * 22.35, rel=1e-3)
    assert passes("bert", "cached", "affinage", config) == pytest.approx((1 + 5 / 6 + 3) * 22.35, rel=1e-3)
    for arm, side, rate in (("top-2", "affinage", 40), ("cached", "affinage", 90), ("top-2", "trainer", 10)):
        found = {"network": "bert", "device": "H", "arm": arm, "side": side, "examples_a_second": rate, "utilisation": 0.5}
        with path.open("a") as file:
            file.write(json.dumps(found) + "\n")
    rows = throughput.table(path).splitlines()[2:]
    assert rows[0].endswith("| 40 (50 %) | – | – | 10 (50 %) | – | 4.0 |") and rows[1].endswith(
        "| 90 (50 %) | – | – | 10 (50 %) | – | 9.0 |"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert throughput.main(["--out", str(tmp_path / "none.jsonl")]) == 0 and not (tmp_path / "none.jsonl").exists()
    assert "needs a GPU" in capsys.readouterr().err


def test_folds_score_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    search = loaded("search", monkeypatch)
    rows = {"train": [{"x": i, "label": i % 2} for i in range(30)], "test": [{"x": i, "label": i % 2} for i in range(30, 40)]}
    folds = [search.folded(rows, 4, seed) for seed in range(1000, 1004)]
    assert sorted(row["x"] for fold in folds for row in fold["test"]) == list(range(40))
    assert all(len(fold["train"]) == 30 and len(fold["test"]) == 10 for fold in folds)
    assert [row["x"] for row in search.folded(rows, 4, 1004)["test"]] != [row["x"] for row in folds[0]["test"]]


def test_speakers_that_the_base_never_heard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base's speakers and those that are adapted to do not overlap; a finished cell is not run again, another base is refused."""
    speech = loaded("speech", monkeypatch)
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent / "examples" / "pretrain"))
    spec = importlib.util.spec_from_file_location("pretrain_speech", BENCHMARKS.parent / "examples" / "pretrain" / "speech.py")
    assert spec and spec.loader
    base = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(base)
    rows, speakers = base.rows(shared_data / "fsdd")
    assert len(rows) == 2000 and not set(speakers) & set(speech.SPEAKERS)
    for speaker in speech.SPEAKERS:
        found = speech.splits(shared_data / "fsdd", speaker)
        assert (len(found["train"]), len(found["test"])) == (450, 50)
        assert not {row["audio"] for part in found.values() for row in part} & {row["audio"] for row in rows}
    ran: list[tuple[Any, ...]] = []

    def measured(cell: dict[str, Any], data: Path, folder: Path) -> dict[str, Any]:
        ran.append(tuple(cell.values()))
        return {"wer": 0.25 if cell["arm"] == "none" else 0.5, "cer": 0.1, "n": 50, "wer_known_words": 0.1, "cpu_seconds": 1.0}

    monkeypatch.setattr(speech, "measured", measured)
    monkeypatch.setattr(speech, "digest", lambda folder: "abc")
    words = ["--base", str(tmp_path), "--out", str(tmp_path / "a.jsonl"), "--seeds", "2"]
    assert speech.main(words) == 0 and len(ran) == 2 + 2 * 24 == len(set(ran))
    assert "none       WER  0.250  sd 0.000  with the ten words  0.100  cells 2" in capsys.readouterr().out
    assert speech.main(words) == 0 and len(ran) == 50
    monkeypatch.setattr(speech, "digest", lambda folder: "other")
    assert speech.main(words) == 2 and "of another base" in capsys.readouterr().err


def test_a_search_of_the_rates_of_sound_sees_no_test_row(monkeypatch: pytest.MonkeyPatch, shared_data: Path) -> None:
    speech = loaded("speech", monkeypatch)
    found = speech.splits(shared_data / "fsdd", "theo")
    train, test = ({row["audio"] for row in speech.held_out(found, 3)[name]} for name in ("train", "test"))
    assert (len(train), len(test)) == (350, 100) and not train & test
    assert train | test == {row["audio"] for row in found["train"]}
    assert speech.settings("learning_rate=1e-3,unfreeze=everything") == {"learning_rate": 1e-3, "unfreeze": "everything"}
    assert speech.settings("") == {}


def test_the_table_of_the_starters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = loaded("starters", monkeypatch)
    changes = {"suite": "starter-bytes", "data": "sms_spam", "labels": 10}
    scores = {"scratch": (0.70, 0.72), "frozen": (0.80, 0.84), "two-stage": (0.81,)}
    lines = [line(arm, seed, a, **changes) for arm, found_ in scores.items() for seed, a in enumerate(found_)]
    file, page = tmp_path / "results.jsonl", tmp_path / "page.md"
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    page.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    assert found.main(["--table", "--out", str(file), "--page", str(page)]) == 0
    said = capsys.readouterr().out
    assert "| starter-bytes | sms_spam | 10 | 71.0 ± 12.7 (2) | 82.0 ± 25.4 (2) | 81.0 (1) | – |" in said
    assert "+11.0 [-1.7, +23.7] (2) | +11.0 (1) | – (0) |" in said
    written = page.read_text()
    assert said.strip() in written and "old" not in written and written.endswith("after\n")
    assert found.main(["--table", "--out", str(tmp_path / "none")]) == 0 and "No results yet." in capsys.readouterr().out
