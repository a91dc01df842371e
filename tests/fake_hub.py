"""A Hugging Face hub of one repository on this machine, that can be told to misbehave.

It serves what huggingface_hub and engine.hub_transfer ask for: HEAD and GET of
`/{repository}/resolve/{revision}/{file}` with tags, sizes and byte ranges. Weights lie behind a
redirect to another host name, as on the real hub.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
from safetensors.numpy import save

from engine.catalog import ModelEntry, ModelFile
from engine.checkpoint import ModelConfig

WEIGHTS = "model.safetensors"
TINY = ModelConfig(layers=2, width=64, heads=4, context=64, vocab_size=2000, inner=256)
OWNER_AND_NAME = "somebody/tiny"
REVISION = "0123456789abcdef0123456789abcdef01234567"


def tiny_files(seed: int = 0) -> dict[str, bytes]:
    """The files of a small random GPT-2, weights of some 900 kB."""
    rng = np.random.default_rng(seed)
    shapes = TINY.tensor_shapes()
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    config: dict[str, Any] = {
        "model_type": "gpt2",
        "n_layer": TINY.layers,
        "n_embd": TINY.width,
        "n_head": TINY.heads,
        "n_positions": TINY.context,
        "vocab_size": TINY.vocab_size,
    }
    return {
        "config.json": json.dumps(config).encode(),
        "tokenizer_config.json": b"{}",
        "merges.txt": b"#version: 0.2\n",
        "vocab.json": b'{"a": 0}',
        "tokenizer.json": b'{"model": {}}',
        WEIGHTS: save(weights),
    }


def tiny_entry(files: dict[str, bytes], *, pinned_hash: bool = True) -> ModelEntry:
    """A catalogue entry for files of the fake hub; generation_config.json is not among them."""
    sha256 = hashlib.sha256(files[WEIGHTS]).hexdigest() if pinned_hash else ""
    return ModelEntry(
        name="tiny",
        source="hub",
        shape=TINY,
        description="for tests",
        repository=OWNER_AND_NAME,
        revision=REVISION,
        files=(
            ModelFile("config.json", 100),
            ModelFile("generation_config.json", 100, required=False),
            ModelFile("tokenizer_config.json", 2, required=False),
            ModelFile("merges.txt", 14),
            ModelFile("vocab.json", 8),
            ModelFile("tokenizer.json", 13),
            ModelFile(WEIGHTS, len(files[WEIGHTS]), sha256),
        ),
    )


@dataclass
class Request:
    """What was asked, and how many bytes of a body went out."""

    method: str
    host: str
    file: str
    range: str | None
    token: str | None
    sent: int = 0


class FakeHub:
    """`with FakeHub(files) as hub`: serves at `hub.url` until the end of the block.

    The dictionaries are keyed by file name and may be changed at any time.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.requests: list[Request] = []
        self.status: dict[tuple[str, str], int] = {}  # (method, file) -> error instead of answer
        self.cuts: dict[str, list[int]] = {}  # bytes after which each GET in turn is cut
        self.hang_after: dict[str, int] = {}  # bytes after which a GET stalls until `release`
        self.silent: set[tuple[str, str]] = set()  # (method, file) unanswered until `release`
        self.sent_instead: dict[str, bytes] = {}  # a body that is not what was announced
        self.ignores_ranges = False
        self.arrived = threading.Event()  # set at each request
        self.release = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def gets(self, file: str = WEIGHTS) -> list[Request]:
        """The requests for content of a file, redirected ones counted once."""
        return [r for r in self.requests if r.method == "GET" and r.file == file and r.sent]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _etag(name: str, content: bytes) -> str:
    if name == WEIGHTS:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._serve("HEAD")

        def do_GET(self) -> None:
            self._serve("GET")

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _serve(self, method: str) -> None:
            where, _, name = urlsplit(self.path).path.strip("/").rpartition("/")
            request = Request(
                method,
                self.headers["Host"].partition(":")[0],
                name,
                self.headers["Range"],
                self.headers["Authorization"],
            )
            hub.requests.append(request)
            hub.arrived.set()
            if (method, name) in hub.silent:
                hub.release.wait(30)
            if error := hub.status.get((method, name)):
                return self._empty(error)
            if where not in ("cdn", f"{OWNER_AND_NAME}/resolve/{REVISION}"):
                return self._empty(404, {"X-Error-Code": "RevisionNotFound"})
            if name not in hub.files:
                return self._empty(404, {"X-Error-Code": "EntryNotFound"})
            content = hub.files[name]
            tag = _etag(name, content)
            headers = {"ETag": f'"{tag}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
            if name == WEIGHTS and where != "cdn":
                headers["X-Linked-Etag"] = headers["ETag"]
                headers["X-Linked-Size"] = str(len(content))
                headers["Location"] = f"http://localhost:{hub.port}/cdn/{name}"
                return self._empty(302, headers)
            self._content(method, request, hub.sent_instead.get(name, content), headers)

        def _content(
            self, method: str, request: Request, body: bytes, headers: dict[str, str]
        ) -> None:
            start = 0
            if request.range and not hub.ignores_ranges:
                start = int(request.range.removeprefix("bytes=").removesuffix("-"))
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self.send_response(206 if "Content-Range" in headers else 200)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            if method == "HEAD":
                return
            end = len(body)
            if cuts := hub.cuts.get(request.file):
                end = min(end, start + cuts.pop(0))
            stall = hub.hang_after.get(request.file, end)
            first = max(start, min(end, stall))
            self.wfile.write(body[start:first])
            request.sent = first - start
            if first < end:
                hub.release.wait(30)
                self.wfile.write(body[first:end])
                request.sent = end - start
            if end < len(body):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_WR)

        def _empty(self, status: int, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # the client left, which is what some tests do
                self.close_connection = True

    return Handler
