"""Models from a hub, over HTTP: the commit that a branch means is what is loaded and recorded, and a pooling that stands there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from affinage import hub

from . import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/encoder"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(address, folder) of a hub that holds one encoder, which reads the first token, under main and v1."""
    folder = tiny.bert(tmp_path / "encoder")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            place, body = "", None
            if path.startswith(f"/{NAME}/resolve/"):
                place, _, name = path.removeprefix(f"/{NAME}/resolve/").partition("/")
                body = (folder / name).read_bytes() if (folder / name).is_file() else None
            elif path.startswith(f"/api/models/{NAME}/revision/"):
                place, body = path.rsplit("/", 1)[1], json.dumps({"id": NAME, "sha": COMMIT, "siblings": []}).encode()
            elif path.startswith(f"/api/models/{NAME}/tree/"):
                place, body = COMMIT, b"[]"
            known = place in ("main", "v1", COMMIT)
            self.send_response(200 if known and body is not None else 404)
            if known:
                self.send_header("X-Repo-Commit", COMMIT)
            if not known or body is None:
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RevisionNotFound" if place else "RepoNotFound")
                body = b""
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


def fit(address: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`affinage fit` in a process of its own, as its library reads the hub's address when it is imported; no address: offline."""
    data = tiny.table(home / "rows.csv", tiny.splits()["train"])
    environment = {**os.environ, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": str(int(not address))}
    environment |= {"HF_ENDPOINT": address} if address else {}
    command = [sys.executable, "-m", "affinage", "fit", "--data", str(data), "--plan", "frozen", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_commit_is_what_is_recorded(served: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = served
    made = fit(address, tmp_path, "--model", NAME, "--revision", "v1", "--out", str(tmp_path / "run"))
    assert made.returncode == 0, made.stderr
    model = json.loads((tmp_path / "run" / "run.json").read_text())["model"]
    assert model["source"] == NAME and model["revision"] == COMMIT and model["pooling"] == "first"
    shutil.rmtree(folder)  # what was fetched is enough
    again = fit("", tmp_path, "--model", NAME, "--revision", "v1", "--out", str(tmp_path / "again"))
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again" / "run.json").read_text())["model"] == model
    same = ("--model", NAME, "--revision", "v1", "--out", str(tmp_path / "run"), "--resume")  # the branch, not its commit
    assert fit("", tmp_path, *same).returncode == 0
    other = fit("", tmp_path, *same, "--revision", "0" * 40)
    assert other.returncode == 2 and f"began with revision {COMMIT}, not 0000" in other.stderr


def test_what_a_hub_does_not_have(served: tuple[str, Path], tmp_path: Path) -> None:
    for words in (("--model", NAME, "--revision", "v9"), ("--model", "someone/other")):
        made = fit(served[0], tmp_path, *words, "--out", str(tmp_path / "run"))
        assert made.returncode == 2 and made.stderr.count("\n") == 1 and words[-1] in made.stderr, made.stderr
        assert not (tmp_path / "run").exists()


def test_a_folder_is_no_repository(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert hub.pinned(str(tmp_path), None) is None and hub.pinned(tmp_path, "v1") == "v1"
    assert hub.file(tmp_path, "config.json", None) is None
    assert hub.pinned("no-one/has-this-model", "main") == "main"
