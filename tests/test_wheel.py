"""`pip install .`: what the wheel holds is all that is needed, in a folder where there is nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import tiny

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(tmp_path: Path, minilm: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path / "dist", ROOT], check=True)
    (wheel,) = (tmp_path / "dist").glob("affinage-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    rows = [("a fine film", "good"), ("a dull film", "bad"), ("warm and funny", "good"), ("cold and long", "bad")] * 3
    table = "".join(f"{text} {number},{label}\n" for number, (text, label) in enumerate(rows))
    (tmp_path / "rows.csv").write_text("text,label\n" + table)
    # -S would hide the dependencies as well: the wheel's own folder comes first instead, and the test looks that it did
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "HF_HUB_OFFLINE": "1"}

    def said(*words: str) -> str:
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=empty, env=environment, check=True, capture_output=True, text=True).stdout

    where = said("-c", "import affinage; print(affinage.__file__)").strip()
    assert Path(where).is_relative_to(tmp_path / "site")
    assert (tmp_path / "site" / "affinage" / "py.typed").exists()
    said(
        "-m", "affinage", "fit", "--model", str(minilm), "--data", str(tmp_path / "rows.csv"), "--plan", "frozen", "--out", "run"
    )
    (line,) = said("-m", "affinage", "predict", "--run", "run", "a fine film").splitlines()
    assert json.loads(line)["label"] in ("good", "bad")

    packed = {one["name"]: one for one in json.loads(said("-m", "affinage", "models", "--json")) if one["where"] == "starter"}
    assert set(packed) == {path.parent.name for path in (ROOT / "affinage" / "starters").glob("*/starter.json")}
    assert all(Path(one["path"]).is_relative_to(tmp_path / "site") for one in packed.values())
    data = tiny.pictures(tmp_path / "pictures", 12, 0, 6)
    said("-m", "affinage", "fit", "--model", "starter", "--data", str(data), "--plan", "frozen", "--out", "seen")
    assert json.loads((empty / "seen" / "run.json").read_text())["model"]["source"] == "starter-vision"
    for name in {"starter-bytes"} & set(packed):
        rows = str(tmp_path / "rows.csv")
        said("-m", "affinage", "fit", "--model", name, "--data", rows, "--plan", "frozen", "--out", "read")
