"""The upload, against a server on this machine that answers as the hub does."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub.constants
import pytest

from cass_scale.errors import CassScaleError, ConfigError
from cass_scale.release import hub
from cass_scale.verbs import export as verb
from tests.release.test_folders import export


class Hub(BaseHTTPRequestHandler):
    """Endpoints that an upload of small files meets; `seen` keeps what was sent to each."""

    there: dict[str, Any] | None = None  # the repository, if it exists
    refuse = False
    seen: list[tuple[str, bytes, dict[str, str]]]

    def do_GET(self) -> None:
        if self.there is None:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        else:
            self.answer({"id": "anna/one", "siblings": [], **self.there})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, body, dict(self.headers)))
        if self.refuse:
            self.answer({"error": "You need write access"}, 403)
        elif self.path == "/api/repos/create":
            self.answer({"url": f"{self.home}/anna/one", "name": "anna/one"})
        elif "/preupload/" in self.path:
            files = [f["path"] for f in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
            self.answer({"files": modes})
        elif "/commit/" in self.path:
            self.answer({"success": True, "commitOid": "c0ffee", "commitUrl": f"{self.home}/anna/one/commit/c0ffee"})
        else:
            self.answer({})

    @property
    def home(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]

    def answer(self, value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(text))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    kind = type("Server", (Hub,), {"seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield kind
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {"README.md": "a card", "config.json": "{}", "model.safetensors": "weights"}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def sent(kind: type[Hub], part: str) -> tuple[bytes, dict[str, str]]:
    return next((body, headers) for path, body, headers in kind.seen if part in path)


def test_all_files_arrive_in_a_private_repository(server: type[Hub], folder: Path) -> None:
    url = hub.push(folder, "anna/one", private=True, message="an encoder")
    assert url.endswith("/anna/one/commit/c0ffee")
    made, headers = sent(server, "repos/create")
    assert json.loads(made).items() >= {"name": "one", "organization": "anna", "visibility": "private"}.items()
    assert headers["authorization"] == "Bearer hf_of_the_test" and "torch" not in headers["user-agent"]
    lines = [json.loads(line) for line in sent(server, "/commit/")[0].splitlines()]
    assert lines[0]["value"]["summary"] == "an encoder"
    files = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines[1:]}
    assert files == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_verb_uploads_what_it_has_written(
    server: type[Hub], evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = export(evaluated, "to=hub", "repo=anna/one", "arm=vit", f"out={tmp_path}")
    assert found["arms"]["vit"]["url"].endswith("c0ffee")
    assert b"hf-hub:anna/one" in (tmp_path / "vit/README.md").read_bytes()
    lines = [json.loads(line) for line in sent(server, "/commit/")[0].splitlines()]
    assert {one["value"]["path"] for one in lines[1:]} == set(verb.FILES["hub"])


def test_a_public_repository_is_not_uploaded_into_by_default(server: type[Hub], folder: Path) -> None:
    server.there = {"private": False}
    with pytest.raises(ConfigError, match="anna/one is there and public: say private=false"):
        hub.push(folder, "anna/one", private=True, message="")
    assert server.seen == []
    assert hub.push(folder, "anna/one", private=False, message="m").endswith("c0ffee")


def test_what_the_hub_says_is_told(server: type[Hub], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.refuse = True
    with pytest.raises(CassScaleError, match=r"the hub refused anna/one \(You need write access\); the files are in"):
        hub.push(folder, "anna/one", private=True, message="")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(CassScaleError, match="the hub cannot be reached"):
        hub.push(folder, "anna/one", private=True, message="")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        hub.push(folder, "anna/one", private=True, message="")


def test_without_a_token_nothing_begins(evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="`hf auth login`, or set HF_TOKEN"):
        export(evaluated, "to=hub", "repo=anna/one", "arm=vit", f"out={tmp_path}")
    assert list(tmp_path.iterdir()) == []
