"""The peers' Python environments: which are there, what is in them, and conversion in them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from engine import paths
from testing.peers.catalog import OURS, PEERS, Entrant, Peer
from testing.peers.protocol import PeerFailed, PeerProcess

ROOT = Path(__file__).resolve().parents[2]
PEERS_VENV = ROOT / ".venv-peers"
CONVERTERS_VENV = PEERS_VENV / "convert"
CONVERTER_PACKAGES = ("optimum-intel", "nncf", "openvino", "transformers", "torch")
_ASK_VERSIONS = """
import importlib.metadata as m, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def python_of(venv: Path) -> Path:
    return venv / "bin" / "python"


@cache
def versions_in(python: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of distributions; those that are missing are left out."""
    if not python.exists():
        return {}
    done = subprocess.run(
        [str(python), "-c", _ASK_VERSIONS, *names], capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def interpreter(peer: Peer) -> Path:
    return Path(sys.executable) if peer.name == OURS else python_of(PEERS_VENV)


def versions(peer: Peer) -> dict[str, str]:
    """Raises PeerFailed where the peer is not installed."""
    found = versions_in(interpreter(peer), peer.packages)
    if peer.packages[0] not in found:
        raise PeerFailed(f"{peer.packages[0]} is not installed; run `make peers` and see its end")
    return found


def worker_environment(threads: int) -> dict[str, str]:
    """Threads fixed for every pool; the network left alone."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return {
        **os.environ,
        **dict.fromkeys(names, str(threads)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def converted(entrant: Entrant, folder: Path, digest: str) -> Path:
    """The model in the entrant's format, from the cache or made now; PeerFailed if that fails.

    Kept by the weights' hash, the converter's source and its packages' versions.
    """
    if not entrant.conversion:
        return folder
    peer = PEERS[entrant.engine]
    python, known = interpreter(peer), versions(peer)
    if peer.converts_apart:
        python = python_of(CONVERTERS_VENV)
        known = versions_in(python, CONVERTER_PACKAGES)
        if CONVERTER_PACKAGES[0] not in known:
            raise PeerFailed(f"{CONVERTER_PACKAGES[0]} is not installed; run `make peers`")
    key = json.dumps([digest, known, entrant.conversion, _source_of(peer)], sort_keys=True)
    name = f"{peer.name}-{entrant.conversion}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    target = paths.cache_dir() / "peers" / name
    if target.exists():
        return target
    temporary = target.with_name(f"{name}.tmp{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        _convert(python, peer, folder, entrant.conversion, temporary)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _source_of(peer: Peer) -> str:
    """A change of the converter makes what it wrote before stale."""
    helpers = {"onnxruntime": ["onnx_graph.py"], "llama.cpp": ["gguf_file.py"]}
    digest = hashlib.sha256()
    for name in [f"{peer.module}.py", *helpers.get(peer.name, [])]:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


def _convert(python: Path, peer: Peer, folder: Path, conversion: str, target: Path) -> None:
    specification = {
        "module": peer.module,
        "folder": str(folder),
        "conversion": conversion,
        "target": str(target),
    }
    done = subprocess.run(
        [str(python), "-m", "testing.peers.convert", json.dumps(specification)],
        cwd=ROOT,
        env=worker_environment(os.cpu_count() or 1),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        lines = done.stdout.strip().splitlines() or ["no message"]
        raise PeerFailed(f"converting to {conversion} failed: {lines[-1][:300]}")


def start(entrant: Entrant, folder: Path, digest: str, threads: int, log: Path) -> PeerProcess:
    """Convert if needed and start the worker; it is still loading when this returns."""
    peer = PEERS[entrant.engine]
    versions(peer)
    specification = {
        "module": peer.module,
        "folder": str(folder),
        "converted": str(converted(entrant, folder, digest)),
        "variant": entrant.variant,
        "threads": threads,
    }
    command = [str(interpreter(peer)), "-m", "testing.peers.worker", json.dumps(specification)]
    return PeerProcess(command, ROOT, worker_environment(threads), log)
