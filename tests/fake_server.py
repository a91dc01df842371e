"""A server that speaks the program's HTTP interface and makes up its texts, faults included.

    python tests/fake_server.py [FAULT]     # prints its port

Only the standard library, in a process of its own, so that its memory can be looked at. The text
is a function of the request. Faults begin after the 64th text, when the solo texts are done:
`wrong-byte` changes a byte of every 20th text, `leak` keeps 2 MB for each, `busy` answers every
5th with 503, `crash` every 5th with 500, `cut` breaks off every 5th answer.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HONEST = 64  # texts before a fault shows
LEAKED = 2_000_000


def text_of(body: dict[str, Any], tokens: int) -> list[str]:
    asked = [body[name] for name in ("prompt", "seed", "top_p")]
    asked += [tokens, body.get("temperature", 0.0)]
    digest = hashlib.sha256(repr(asked).encode()).hexdigest()
    return [f" {digest[i % 32 : i % 32 + 4]}\u00e9" for i in range(tokens)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fault = ""
    count = itertools.count(1)
    kept: list[bytes] = []

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/health":
            self._json({"status": "ready"})
        elif self.path == "/v1/models":
            self._json({"object": "list", "data": [{"id": "fake", "object": "model"}]})
        else:
            self._json({"error": {"message": "no such page"}}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = next(self.count)
        fault = self.fault if number > HONEST else ""
        if fault == "leak":
            self.kept.append(bytes([number % 256]) * LEAKED)
        if number % 5 == 0 and fault == "busy":
            return self._json({"error": {"message": "full"}}, 503, {"Retry-After": "0"})
        if number % 5 == 0 and fault == "crash":
            return self._json({"error": {"message": "oops"}}, 500)
        tokens = body.get("max_new_tokens") or body["max_tokens"]
        pieces = text_of(body, tokens)
        if number % 20 == 0 and fault == "wrong-byte":
            pieces[-1] = pieces[-1][:-2] + "#" + pieces[-1][-1]
        cut = number % 5 == 0 and fault == "cut"
        time.sleep(0.005)
        if body.get("stream"):
            self._stream(pieces, cut)
        elif cut:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"text"')
            self.close_connection = True
        elif self.path == "/generate":
            ids = list(range(tokens))
            self._json({"text": "".join(pieces), "token_ids": ids, "seed": body["seed"]})
        else:
            choice = {"index": 0, "text": "".join(pieces), "finish_reason": "length"}
            self._json({"choices": [choice], "usage": {"completion_tokens": tokens}})

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, pieces: list[str], cut: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b": a comment\r\n\r\n")
        for piece in pieces[: len(pieces) // 2 if cut else None]:
            self._event({"choices": [{"index": 0, "text": piece, "finish_reason": None}]})
        if not cut:
            self._event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
            self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, value: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")


def main() -> None:
    Handler.fault = sys.argv[1] if len(sys.argv) > 1 else ""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
