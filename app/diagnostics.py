"""What a bug report needs: versions, hardware, folders, the last errors. No texts, no secrets.

Each part is found on its own; one that cannot be is replaced by the reason, so that this works
when the rest of the program does not. Changes nothing on the disk beyond the user folders.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import engine
from app import logs
from app.settings import parse_settings, settings_path
from engine import machine, paths
from engine.backends import available

PACKAGES = (
    *("torch", "transformers", "optimum", "tokenizers", "safetensors", "huggingface_hub"),
    *("onnx", "onnxruntime", "onnxscript", "jax", "jaxlib"),
    *("openvino", "optimum-intel", "nncf"),
    *("numpy", "numba", "llvmlite", "imgui", "glfw", "PyOpenGL", "PyOpenGL-accelerate"),
    *("psutil", "platformdirs", "rich"),
    *("fastapi", "starlette", "uvicorn", "pydantic", "sse-starlette", "prometheus-client", "ray"),
)
VARIABLES = (
    *(paths.HOME_VARIABLE, "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LANG", "LC_ALL"),
    *("DISPLAY", "WAYLAND_DISPLAY", "XDG_SESSION_TYPE", "LIBGL_ALWAYS_SOFTWARE"),
)
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # only whether they are set is told
MAX_ERRORS = 20
_TITLES = {"cpu": "CPU", "opengl": "OpenGL"}

_LOG_TAIL_BYTES = 256_000
_LINE_WIDTH = 400
_RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ([A-Z]+) ")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{6,}")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_BEARER = re.compile(r"(?i)(bearer\s+)[^\s\"']+")


def collect(gl: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Section to its facts, JSON-ready. `gl`: what the window knows of its OpenGL."""
    parts: dict[str, Callable[[], Any]] = {
        "program": _program,
        "system": _system,
        "cpu": _cpu,
        "memory": _memory,
        "packages": _packages,
        "backends": _backends,
        "folders": _folders,
        "settings": _settings,
        "set aside": _set_aside,
        "environment": _environment,
        "last errors": _last_errors,
        "last crash": _last_crash,
    }
    found = {name: _guarded(part) for name, part in parts.items()}
    if gl is not None:
        found["opengl"] = dict(gl)
    cleaned = _cleaned(found)
    assert isinstance(cleaned, dict)
    return cleaned


def report(gl: Mapping[str, str] | None = None) -> str:
    """`collect` as text for a person to read and to paste into a bug report."""
    lines = []
    for section, facts in collect(gl).items():
        lines.append(_TITLES.get(section, section.capitalize()))
        if isinstance(facts, dict):
            width = max((len(name) for name in facts), default=0)
            lines += [f"  {name:{width}}  {_shown(value)}" for name, value in facts.items()]
        elif isinstance(facts, list):
            lines += [f"  {fact}" for fact in facts] or ["  none"]
        else:
            lines.append(f"  {_shown(facts)}")
        lines.append("")
    return "\n".join(lines).rstrip()


def redact(text: str) -> str:
    """The text without access tokens and passwords, the home folder shown as `~`."""
    for name in SECRETS:
        if secret := os.environ.get(name, "").strip():
            text = text.replace(secret, "***")
    text = _TOKEN.sub("***", text)
    text = _CREDENTIALS.sub("***", text)
    text = _BEARER.sub(r"\1***", text)
    home = os.path.expanduser("~")
    if len(home) > 1:
        text = re.sub(re.escape(home) + r"(?![^\s/\\\"':;,)\]])", "~", text)
    return text


def _program() -> dict[str, Any]:
    return {
        "version": engine.__version__,
        "place": str(Path(engine.__file__).parents[1]),
        "embedded model": "present" if paths.verse_dir().is_dir() else "missing",
    }


def _system() -> dict[str, Any]:
    return {
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "executable": sys.executable,
        "os": platform.platform(),
        "distribution": _guarded(_distribution),
        "sqlite": sqlite3.sqlite_version,
    }


def _distribution() -> str:
    if not sys.platform.startswith("linux"):
        return "-"
    return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")


def _cpu() -> dict[str, Any]:
    return {**machine.cpu(), "native engine": _guarded(_native_path)}


def _native_path() -> str:
    from engine.native.cpu import cpu_path

    return cpu_path().title


def _memory() -> dict[str, Any]:
    import psutil

    from engine.memory import available_bytes, human_bytes, resident_bytes

    return {
        "total": human_bytes(psutil.virtual_memory().total),
        "free for a model": human_bytes(available_bytes()),
        "swap": human_bytes(psutil.swap_memory().total),
        "this process": human_bytes(resident_bytes()),
    }


def _packages() -> dict[str, str]:
    return machine.package_versions(PACKAGES)


def _backends() -> dict[str, str]:
    found = {}
    for spec in available():
        lacking = spec.missing
        found[spec.name] = spec.remedy(lacking) if lacking else spec.abilities
    return found


def _folders() -> dict[str, Any]:
    def free(folder: Path) -> str:
        from engine.memory import human_bytes

        return f"{folder}, {human_bytes(shutil.disk_usage(folder).free)} free"

    return {
        "config": _guarded(lambda: free(paths.config_dir())),
        "data": _guarded(lambda: free(paths.data_dir())),
        "cache": _guarded(lambda: free(paths.cache_dir())),
        "state": _guarded(lambda: free(paths.state_dir())),
        "history": _guarded(lambda: _size(paths.data_dir() / "history.sqlite")),
        "log": _guarded(lambda: _size(logs.log_path())),
    }


def _size(path: Path) -> str:
    return f"{path}, {path.stat().st_size:,} bytes" if path.exists() else f"{path}, not there yet"


def _settings() -> dict[str, Any]:
    path = settings_path()
    facts: dict[str, Any] = {"file": _size(path)}
    if path.exists():
        settings, refused = parse_settings(path.read_bytes())
        facts |= settings.as_dict()
        facts["refused"] = "; ".join(refused) or "nothing"
    return facts


def _set_aside() -> list[str]:
    """Damaged files that earlier starts have renamed."""
    folders = (paths.config_dir(), paths.data_dir())
    return sorted(str(path) for folder in folders for path in folder.glob("*.corrupt-*"))


def _environment() -> dict[str, str]:
    told = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return told | {name: "set, not shown" for name in SECRETS if os.environ.get(name)}


def _last_errors() -> list[str]:
    """The last warnings and errors of the log, oldest first, each on one line."""
    path = logs.log_path()
    records: list[list[str]] = []
    for file in (path.with_name(path.name + ".1"), path):
        for line in _tail(file, _LOG_TAIL_BYTES):
            if start := _RECORD.match(line):
                records.append([start[1], line])
            elif records and line.strip():
                records[-1].append(line)
    found = [r for r in records if r[0] in ("WARNING", "ERROR", "CRITICAL")][-MAX_ERRORS:]
    # Of a traceback the last line says what it was.
    lines = (r[1] if len(r) == 2 else f"{r[1]} | {r[-1].strip()}" for r in found)
    return [line if len(line) <= _LINE_WIDTH else line[:_LINE_WIDTH] + "..." for line in lines]


def _last_crash() -> list[str]:
    return _tail(paths.state_dir() / logs.CRASH_NAME, 4_000)


def _tail(path: Path, size: int) -> list[str]:
    """The whole lines among the file's last `size` bytes."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - size)
        file.seek(start)
        lines = file.read().decode("utf-8", "replace").splitlines()
    return lines[1:] if start else lines


def _guarded(part: Callable[[], Any]) -> Any:
    try:
        return part()
    except Exception as error:
        return f"unavailable: {type(error).__name__}: {error}"


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {str(name): _cleaned(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cleaned(inner) for inner in value]
    return value


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    return "auto" if value is None else str(value)
