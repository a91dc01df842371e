"""The sockets a server listens on, opened before anything else starts."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import sys

from app.server.settings import LOOPBACK
from engine.errors import ServerError

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

BACKLOG = 2048  # connections that the system keeps until they are taken
_OTHER_FILES = 128  # of the process, beside connections
_TRIES = 20  # to find a port that is free in both families


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets of one port: for localhost 127.0.0.1 and, where there is IPv6, ::1.

    Raises ServerError, one line, where the port is taken or the address not of this machine.
    """
    if host.lower() != LOOPBACK:
        return [_socket(host, port)]
    for attempt in range(_TRIES):
        first = _socket("127.0.0.1", port)
        try:
            return [first, _socket("::1", first.getsockname()[1])]
        except ServerError as error:
            taken = isinstance(error.__cause__, OSError) and (
                error.__cause__.errno == errno.EADDRINUSE
            )
            if not taken:  # no IPv6 here
                return [first]
            first.close()
            if port or attempt == _TRIES - 1:
                raise
    raise AssertionError("unreachable")


def address_of(host: str, sockets: list[socket.socket]) -> str:
    """Where a client finds it."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{sockets[0].getsockname()[1]}"


def room_for(connections: int) -> int:
    """How many connections can be open beside the process's other files: so many, or fewer.

    Raises the process's limit on open files as far as that takes and the system lets it. macOS
    begins with 256.
    """
    if resource is None:  # Windows counts no files
        return connections
    needed = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < needed:
        with contextlib.suppress(ValueError, OSError):
            wanted = needed if hard == unlimited else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return connections if soft == unlimited else max(1, min(connections, soft - _OTHER_FILES))


def _socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if _is_ipv6(host) else socket.AF_INET
    try:
        # asyncio turns off Nagle's algorithm only for sockets that say their protocol.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise ServerError(f"{host} cannot be listened on: {error.strerror}") from error
    try:
        if sys.platform != "win32":  # there it would let two servers share the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ServerError(_why(host, port, error)) from error
    return sock


def _why(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken by another program; choose another one with --port"
    if error.errno == errno.EACCES:
        return f"port {port} needs the administrator's rights; choose one above 1023 with --port"
    return f"{host}:{port} cannot be listened on ({error.strerror or error}); check --host"


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False
