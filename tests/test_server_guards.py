"""Who may ask: hosts, origins, the key; what may be sent, how much and how slowly."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app.server.runner import ServerRunner
from app.server.settings import ServerSettings
from engine.errors import ConfigError, ServerError
from engine.worker import Worker
from tests.server_support import WAIT_S, client, loaded, running

ASK = {"prompt": "The sun", "max_new_tokens": 2}
KEY = "a-key-of-more-than-sixteen-characters"
CORS = "access-control-allow-origin"


@pytest.fixture(scope="module")
def worker(tiny_model_dir: Path) -> Iterator[Worker]:
    with loaded(tiny_model_dir) as worker:
        yield worker


@pytest.fixture(scope="module")
def runner(worker: Worker) -> Iterator[ServerRunner]:
    """A server whose patience is short."""
    limits = {"header_timeout": 1.0, "body_timeout": 1.0, "write_timeout": 1.0}
    with running(worker, **limits, max_tokens=1_000_000, max_body_bytes=100_000) as runner:
        yield runner


@pytest.fixture(scope="module")
def http(runner: ServerRunner) -> Iterator[httpx.Client]:
    with client(runner) as http:
        yield http


def port(runner: ServerRunner) -> int:
    return int(str(runner.address).rpartition(":")[2])


def connected(runner: ServerRunner, receive_buffer: int | None = None) -> socket.socket:
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(WAIT_S)
    sock.connect(("127.0.0.1", port(runner)))
    return sock


def until_closed(sock: socket.socket) -> bytes:
    """What comes until the server closes; a reset is a close too."""
    data = b""
    try:
        while chunk := sock.recv(65536):
            data += chunk
    except ConnectionError:
        pass
    return data


def eventually(true: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
def test_the_servers_own_names_are_taken(
    http: httpx.Client, runner: ServerRunner, host: str
) -> None:
    for name in (host, f"{host}:{port(runner)}"):
        assert http.get("/v1/models", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost.",
        "localhost@evil.example",
        "xlocalhost",
        "[::2]",
        "0.0.0.0",
        "localhost:1:2",
    ],
)
def test_foreign_and_look_alike_hosts_are_refused(http: httpx.Client, host: str) -> None:
    for path in ("/", "/health", "/v1/models"):
        answer = http.get(path, headers={"Host": host})
        assert answer.status_code in (400, 403), host
    assert http.post("/generate", json=ASK, headers={"Host": host}).status_code in (400, 403)


def test_no_host_at_all_is_refused(runner: ServerRunner) -> None:
    for request in (
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    ):
        with connected(runner) as sock:
            sock.sendall(request)
            assert until_closed(sock).split()[1] in (b"400", b"403")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "x"])
def test_other_pages_may_not_post(http: httpx.Client, origin: str) -> None:
    answer = http.post("/generate", json=ASK, headers={"Origin": origin})
    assert answer.status_code == 403
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    preflight = http.options("/generate", headers=asked)
    assert preflight.status_code == 403
    for told in (answer, preflight, http.get("/health", headers={"Origin": origin})):
        assert not [name for name in told.headers if name.startswith("access-control")]


def test_the_own_page_may_post(http: httpx.Client, runner: ServerRunner) -> None:
    headers = {"Origin": str(runner.address), "Host": f"localhost:{port(runner)}"}
    assert http.post("/generate", json=ASK, headers=headers).status_code == 200


def test_a_configured_origin_gets_cors_headers_and_no_other_does(worker: Worker) -> None:
    page = "http://localhost:3000"
    with (
        running(worker, allowed_origins=(page.upper() + "/",), api_key=KEY) as runner,
        client(runner) as http,
    ):
        asked = {"Origin": page, "Access-Control-Request-Method": "POST"}
        preflight = http.options("/generate", headers=asked)
        assert preflight.status_code == 200 and preflight.headers[CORS] == page
        headers = {"Origin": page, "Authorization": f"Bearer {KEY}"}
        answer = http.post("/generate", json=ASK, headers=headers)
        assert answer.status_code == 200 and answer.headers[CORS] == page
        headers["Origin"] = "http://localhost:3001"
        answer = http.post("/generate", json=ASK, headers=headers)
        assert answer.status_code == 403 and CORS not in answer.headers


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"]
)
def test_a_body_must_say_that_it_is_json(http: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    for path in ("/generate", "/v1/completions"):
        answer = http.post(path, content=json.dumps(ASK).encode(), headers=headers)
        assert answer.status_code == 415
    kind = "Application/JSON; charset=utf-8"
    answer = http.post("/generate", content=json.dumps(ASK), headers={"Content-Type": kind})
    assert answer.status_code == 200


def test_the_key_is_needed_for_all_but_what_tells_nothing(worker: Worker) -> None:
    with running(worker, api_key=KEY) as runner, client(runner) as http:
        for given in (None, "", "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}"):
            headers = {} if given is None else {"Authorization": given}
            refused = http.post("/v1/completions", json={"prompt": "a"}, headers=headers)
            assert refused.status_code == 401, given
            assert refused.json()["error"]["code"] == "invalid_api_key"
            for path in ("/v1/models", "/metrics", "/nothing"):
                assert http.get(path, headers=headers).status_code == 401
        headers = {"Authorization": f"bearer {KEY}"}
        assert http.post("/generate", json=ASK, headers=headers).status_code == 200
        for path in ("/health", "/", "/docs", "/openapi.json"):
            assert http.get(path).status_code == 200
        assert KEY not in repr(runner.settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_a_network_is_not_served_without_a_good_key(worker: Worker, host: str) -> None:
    for key in (None, "short"):
        with pytest.raises(ConfigError, match="network"):
            ServerRunner(worker, ServerSettings(host=host, api_key=key))
    ServerSettings(host=host, api_key=KEY).check_together()


def test_an_address_of_another_machine_is_one_clear_line(worker: Worker) -> None:
    runner = ServerRunner(worker, ServerSettings(host="192.0.2.1", port=0, api_key=KEY))
    with pytest.raises(ServerError, match="192.0.2.1"):
        runner.start()
    assert runner.error and "\n" not in runner.error


def test_head_is_get_without_the_content(http: httpx.Client) -> None:
    for path in ("/", "/docs", "/health", "/v1/models", "/metrics", "/openapi.json"):
        head, get = http.head(path), http.get(path)
        assert (head.status_code, get.status_code, head.content) == (200, 200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
        if path != "/metrics":  # its numbers grow
            assert head.headers["content-length"] == str(len(get.content))
    assert http.head("/nothing").status_code == 404
    assert http.head("/health", headers={"Host": "evil.example"}).status_code == 403
    for method, path, allowed in (("HEAD", "/generate", "POST"), ("PUT", "/health", "GET, HEAD")):
        refused = http.request(method, path)
        assert (refused.status_code, refused.headers["allow"]) == (405, allowed)
    assert "GET, HEAD" in http.put("/health").json()["error"]["message"]
    assert http.get("/health").status_code == 200, "the connection goes on behind them"


def test_a_body_that_is_too_large_is_refused_at_once(
    http: httpx.Client, runner: ServerRunner
) -> None:
    head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connected(runner) as sock:
        sock.sendall(f"{head}Content-Length: 10000000000\r\n\r\n".encode())
        assert sock.recv(65536).split()[1] == b"413"

    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 10_000

    answer = http.post("/generate", content=pieces(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert http.post("/generate", json=ASK).status_code == 200


def test_the_rest_of_a_refused_body_is_not_awaited_for_ever(runner: ServerRunner) -> None:
    head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connected(runner) as sock:
        sock.sendall(f"{head}Content-Length: 10000000000\r\n\r\n".encode())
        assert until_closed(sock).split()[1] == b"413"


def test_a_header_without_end_costs_no_memory(runner: ServerRunner, http: httpx.Client) -> None:
    before = psutil.Process().memory_info().rss
    sent = 0
    with connected(runner) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
        try:
            while sent < 100_000_000:
                sent += sock.send(b"x" * 65536)
        except OSError:  # closed, as it should be
            pass
    assert sent < 100_000_000
    assert psutil.Process().memory_info().rss - before < 50_000_000
    assert http.get("/health").status_code == 200


def test_half_a_header_is_closed(runner: ServerRunner, http: httpx.Client) -> None:
    with connected(runner) as nothing, connected(runner) as line, connected(runner) as header:
        line.sendall(b"POST /gen")
        header.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
        assert http.post("/generate", json=ASK).status_code == 200, "others are served meanwhile"
        for sock in (nothing, line, header):
            assert until_closed(sock) == b""


def test_half_a_body_is_a_timeout(runner: ServerRunner, http: httpx.Client) -> None:
    head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connected(runner) as sock:
        sock.sendall(f'{head}Content-Length: 100\r\n\r\n{{"prompt":'.encode())
        assert http.post("/generate", json=ASK).status_code == 200
        assert until_closed(sock).split()[1] == b"408"


def test_who_leaves_in_the_middle_of_a_body_is_no_error(
    runner: ServerRunner, http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connected(runner) as sock:
        sock.sendall(f'{head}Content-Length: 100\r\n\r\n{{"prompt":'.encode())
        eventually(lambda: runner.load().running > 0, "the request is not seen")
    eventually(
        lambda: 'route="/generate",status="499"' in http.get("/metrics").text,
        "the client's leaving is not counted",
    )
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_who_does_not_read_is_cut_off_and_the_text_given_up(
    runner: ServerRunner, http: httpx.Client
) -> None:
    body = json.dumps(
        {
            "prompt": "The sun",
            "max_tokens": 1_000_000,
            "min_new_tokens": 1_000_000,
            "context_policy": "reset",
            "logprobs": 50,
            "stream": True,
        }
    )
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connected(runner, receive_buffer=4096) as sock:
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert sock.recv(1024).split()[1] == b"200"
        assert http.post("/generate", json=ASK).status_code == 200
        eventually(
            lambda: http.get("/health").json()["queue"]["active"] == 0,
            "the text of a client that does not read goes on",
        )
        assert threading.active_count() < 50


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_model_is_never_a_path(http: httpx.Client, tmp_path: Path, tiny_model_dir: Path) -> None:
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    link.symlink_to(tiny_model_dir)
    told = set()
    for name in (
        str(fifo),
        str(link),
        str(tmp_path / "nothing"),
        str(tiny_model_dir),
        "/dev/zero",
        "../../etc/passwd",
        "/etc/passwd",
        "/etc/passwd-that-is-not-there",
        "a\0b",
        "verse/../verse",
        "~/.ssh",
        "",
    ):
        asked: list[tuple[str, dict[str, Any]]] = [
            ("/generate", {**ASK, "model": name}),
            ("/v1/completions", {"prompt": "a", "model": name}),
        ]
        for path, body in asked:
            answer = http.post(path, json=body)
            assert answer.status_code == 404
            message = answer.json()["error"]["message"]
            told.add(message.replace(repr(name), "NAME").replace(repr(name[:57]) + "...", "NAME"))
    assert len(told) == 1, "what is said does not depend on what lies on the disk"
    for path in ("/etc/passwd", "%2e%2e%2fetc%2fpasswd", "a%00b"):
        assert http.get(f"/v1/models/{path}").status_code == 404
