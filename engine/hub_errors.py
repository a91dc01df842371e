"""What goes wrong with a download, in one line that says what to do next."""

from __future__ import annotations

import errno

from engine import hub_cache
from engine.errors import DownloadError
from engine.hub_transfer import endpoint


def explain(error: Exception, name: str) -> DownloadError:
    """What went wrong with a download, in one line with what to do."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    host = endpoint()
    again = f"run: python main.py models download {name}, which goes on where it stopped"
    if isinstance(error, DownloadError):
        return error
    if isinstance(error, OfflineModeIsEnabled):
        return offline_error(name)
    if isinstance(error, HfHubHTTPError):
        return DownloadError(_explain_status(error.response.status_code, name, host, again))
    if isinstance(error, httpx.TimeoutException):
        return DownloadError(f"{host} does not answer; check the connection, then {again}")
    if isinstance(error, httpx.ProxyError):
        return DownloadError(f"the proxy refused the connection ({error}); check HTTPS_PROXY")
    if isinstance(error, httpx.ConnectError):
        return DownloadError(
            f"no connection to {host} ({_first_line(error)}); check the network, then {again}"
        )
    if isinstance(error, httpx.TransportError):
        return DownloadError(f"the connection to {host} was cut; {again}")
    if isinstance(error, httpx.InvalidURL | httpx.HTTPError | ValueError):
        return DownloadError(f"{host} cannot be used ({_first_line(error)}); check HF_ENDPOINT")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DownloadError(
            f"the disk of {hub_cache.hub_cache()} is full; free some space, then {again}"
        )
    if isinstance(error, OSError):
        return DownloadError(
            f"cannot write to {hub_cache.hub_cache()} ({error.strerror or error}); check its "
            "permissions or set HF_HOME"
        )
    return DownloadError(f"unexpected {type(error).__name__}: {_first_line(error)}; {again}")


def offline_error(name: str) -> DownloadError:
    """The error for a download while HF_HUB_OFFLINE is set."""
    return DownloadError(
        f"{name} cannot be downloaded while HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set; unset "
        "it and try again"
    )


def _explain_status(status: int, name: str, host: str, again: str) -> str:
    if status in (401, 403):
        return f"{host} refuses access to {name} ({status}); check HF_TOKEN, or unset it"
    if status == 407:
        return "the proxy wants a login (407); put it into HTTPS_PROXY"
    if status in (404, 410):
        return f"{host} has no such file for {name} ({status}); check HF_ENDPOINT"
    if status == 429:
        return f"{host} wants fewer requests (429); wait a few minutes, then {again}"
    return f"{host} has a problem of its own ({status}); later {again}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
