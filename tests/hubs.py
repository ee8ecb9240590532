"""A hub of one data set, over HTTP, as huggingface_hub and datasets ask for it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/things"


@contextlib.contextmanager
def serving(folder: Path, cache: Path) -> Iterator[dict[str, str]]:
    """Serve the folder as the data set `NAME`; yields the environment in which a process asks this hub and no other."""

    def told(path: Path) -> dict[str, Any]:
        name = str(path.relative_to(folder))
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "0", "size": 0}
        oid = hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
        return {"type": "file", "path": name, "size": path.stat().st_size, "oid": oid}

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, api, files = self.path.split("?")[0], f"/api/datasets/{NAME}", f"/datasets/{NAME}/resolve/"
            if path.startswith(f"{api}/tree/"):
                base = folder / path.removeprefix(f"{api}/tree/").partition("/")[2]
                if base.is_dir():
                    self._send(json.dumps([told(one) for one in sorted(base.iterdir())]).encode())
                    return
            elif path.startswith(files):
                wanted = folder / path.removeprefix(files).partition("/")[2]
                if wanted.is_file():
                    self._send(wanted.read_bytes())
                    return
            elif path.startswith(api):
                names = [{"rfilename": str(one.relative_to(folder))} for one in sorted(folder.rglob("*")) if one.is_file()]
                about = {"id": NAME, "sha": COMMIT, "private": False, "gated": False, "disabled": False, "tags": []}
                self._send(json.dumps({**about, "downloads": 0, "likes": 0, "siblings": names}).encode())
                return
            self._send(b"", 404)

        do_HEAD = do_GET

        def _send(self, body: bytes, code: int = 200) -> None:
            self.send_response(code)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(body)))
            if code == 200:
                self.send_header("ETag", f'"{hashlib.sha1(body, usedforsecurity=False).hexdigest()}"')
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        env = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
        yield env | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    finally:
        server.shutdown()
        server.server_close()
