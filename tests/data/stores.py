"""Stores for tests of remote shards: a real HTTP server with faults on demand, and a real S3 server."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

FLIP = 100  # where a flipped byte lies in an answer


class HttpStore(ThreadingHTTPServer):
    """Serves a folder. `faults` holds, by the end of a path, what goes wrong with each request to come:

    a status, "cut", "slow", "flip", "whole" (no Range support), or "" for nothing.
    """

    daemon_threads = True

    def __init__(self, root: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.root = root
        self.faults: dict[str, Iterator[str]] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.released = threading.Event()
        self.connections: list[socket.socket] = []

    def start(self) -> HttpStore:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:  # type: ignore[override]
        self.connections.append(request)
        super().process_request(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, path: str) -> str:
        return next((next(queue, "") for end, queue in self.faults.items() if path.endswith(end)), "")

    def handle_error(self, *_: object) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms
    server: HttpStore

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        self.server.headers.append(dict(self.headers) | {"query": urlsplit(self.path).query})
        fault = self.server.fault(path)
        if fault == "slow":
            self.server.released.wait(30)
        file = self.server.root / path.removeprefix("/download/storage/v1/b/").replace("/o/", "/").lstrip("/")
        if fault.isdigit() or not file.is_file():
            self.send_error(int(fault) if fault.isdigit() else 404)
            return
        self.answer(file, "" if fault == "whole" else self.headers.get("Range", ""), fault)

    def answer(self, file: Path, wanted: str, fault: str) -> None:
        size = file.stat().st_size
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first or 0), min(int(last or size), size - 1) + 1
        if start >= size:
            self.send_error(416)
            return
        with open(file, "rb") as f:
            f.seek(start)
            body = bytearray(f.read(end - start))
        if fault == "flip":
            body[min(FLIP, len(body) - 1)] ^= 1
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
        if fault == "cut":
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing to the terminal."""


@contextlib.contextmanager
def http_store(root: Path) -> Iterator[HttpStore]:
    store = HttpStore(root).start()
    try:
        yield store
    finally:
        store.stop()


@contextlib.contextmanager
def s3_store(root: Path, key: str, secret: str) -> Iterator[str]:
    """`rclone serve s3` over TCP: folders in `root` are buckets, and requests must be signed."""
    binary = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if binary is None:
        pytest.skip("needs rclone 1.65 or later (in the extra `dev`)")
    port = free_port()
    command = [binary, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{key},{secret}", str(root)]
    environment = os.environ | {"RCLONE_CONFIG": os.devnull, "RCLONE_DIR_CACHE_TIME": "0s"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(port: int, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.02)
