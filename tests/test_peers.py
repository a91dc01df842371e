"""The other engines' side, without any of them: protocol, conversions, installing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.checkpoint import Checkpoint
from testing.peers import environment, models
from testing.peers.gguf_file import gguf_name, is_transposed
from testing.peers.onnx_graph import BLOCK_SIZE, quantise
from testing.peers.protocol import PeerFailed, PeerProcess, RunResult
from tests.peer_support import TINY, entrant

ROOT = Path(__file__).parents[1]
FAKE = """
import sys
sys.path.insert(0, {root!r})
from testing.peers.protocol import RunResult, serve

class Fake:
    def run(self, prompts, new_tokens):
        if prompts[0][0] == 13:
            raise ValueError("first line\\nthirteen is unlucky")
        if prompts[0][0] == 14:
            sys.exit("gone")
        missing = 1 if prompts[0][0] == 15 else 0
        return RunResult(2.0, 0.5, [[ids[-1]] * (new_tokens - missing) for ids in prompts])

def load():
    print("a library greets")
    {load}
    return Fake()

serve(load)
"""


# ---- protocol -------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[list[PeerProcess]]:
    made: list[PeerProcess] = []
    yield made
    for process in made:
        process.close()


def start(made: list[PeerProcess], folder: Path, load: str = "pass") -> PeerProcess:
    script = FAKE.format(root=str(ROOT), load=load)
    command = [sys.executable, "-c", script]
    made.append(PeerProcess(command, folder, dict(os.environ), folder / "log"))
    return made[-1]


def test_a_worker_answers_again_and_again(fake: list[PeerProcess], tmp_path: Path) -> None:
    worker = start(fake, tmp_path)
    worker.wait_until_ready(30)
    for token in (7, 8):
        result = worker.run([[1, token], [2, token + 1]], 3, 30)
        assert result == RunResult(2.0, 0.5, [[token] * 3, [token + 1] * 3])
    worker.close()
    assert "a library greets" in (tmp_path / "log").read_text()


def test_a_failing_run_is_one_line_and_the_worker_lives(
    fake: list[PeerProcess], tmp_path: Path
) -> None:
    worker = start(fake, tmp_path)
    worker.wait_until_ready(30)
    with pytest.raises(PeerFailed, match="^ValueError: thirteen is unlucky$"):
        worker.run([[13]], 1, 30)
    assert worker.run([[1]], 1, 30).tokens == [[1]]


def test_too_few_tokens_are_no_result(fake: list[PeerProcess], tmp_path: Path) -> None:
    worker = start(fake, tmp_path)
    worker.wait_until_ready(30)
    with pytest.raises(PeerFailed, match=r"\[3\] tokens where 4 were asked for"):
        worker.run([[15]], 4, 30)


def test_a_dead_worker_is_reported_with_its_last_words(
    fake: list[PeerProcess], tmp_path: Path
) -> None:
    worker = start(fake, tmp_path)
    worker.wait_until_ready(30)
    with pytest.raises(PeerFailed, match="ended by itself .*gone"):
        worker.run([[14]], 1, 30)


def test_a_model_that_cannot_be_loaded_is_reported(fake: list[PeerProcess], tmp_path: Path) -> None:
    worker = start(fake, tmp_path, load="raise MemoryError('too large')")
    with pytest.raises(PeerFailed, match="MemoryError: too large"):
        worker.wait_until_ready(30)


def test_a_worker_that_hangs_is_ended(fake: list[PeerProcess], tmp_path: Path) -> None:
    worker = start(fake, tmp_path, load="import threading; threading.Event().wait()")
    with pytest.raises(PeerFailed, match="no answer within 0 s"):
        worker.wait_until_ready(0.2)


def test_a_program_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed, match="cannot be started"):
        PeerProcess([str(tmp_path / "nothing")], tmp_path, {})


# ---- conversions ----------------------------------------------------------------------------


def test_a_failed_conversion_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the interpreter of the peers is one that has none of them."""
    monkeypatch.setattr(environment, "interpreter", lambda peer: Path(sys.executable))
    monkeypatch.setattr(environment, "versions", lambda peer: {"ctranslate2": "1"})
    with pytest.raises(PeerFailed, match="converting to float32 failed: .*ctranslate2"):
        environment.converted(entrant("ctranslate2 float32"), tmp_path, "0" * 64)
    home = Path(os.environ["GPT2_WORKBENCH_HOME"])
    assert list((home / "cache" / "peers").iterdir()) == []


def test_every_tensor_has_one_gguf_name() -> None:
    names = {name: gguf_name(name) for name in TINY.tensor_shapes()}
    assert len(set(names.values())) == len(names)
    assert names["wte.weight"] == "token_embd.weight"
    assert names["wpe.weight"] == "position_embd.weight"
    assert names["ln_f.bias"] == "output_norm.bias"
    block = {
        f"blk.1.{part}.{kind}"
        for part in ("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down")
        for kind in ("weight", "bias")
    }
    assert {new for new in names.values() if new.startswith("blk.1.")} == block
    assert {names[f"h.1.{part}.weight"] for part in ("ln_1", "attn.c_proj", "mlp.c_proj")} == {
        "blk.1.attn_norm.weight",
        "blk.1.attn_output.weight",
        "blk.1.ffn_down.weight",
    }
    with pytest.raises(KeyError):
        gguf_name("h.1.attn.masked_bias")


def test_only_the_matrices_of_blocks_are_transposed() -> None:
    turned = {name for name in TINY.tensor_shapes() if is_transposed(name)}
    assert turned == {
        f"h.{i}.{part}.weight"
        for i in range(2)
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


@pytest.mark.parametrize("bits", [8, 4])
def test_onnx_blocks_give_the_weights_back(bits: int) -> None:
    size = BLOCK_SIZE[bits]
    weights = np.random.default_rng(0).standard_normal((5, 2 * size + 8)).astype(np.float32)
    packed, scales = quantise(weights, bits)
    assert packed.shape == (5, 3, size * bits // 8) and scales.shape == (5, 3)
    levels = packed.astype(np.int32)
    if bits == 4:
        levels = np.stack([levels & 15, levels >> 4], axis=3).reshape(5, 3, size)
    back = ((levels - (1 << (bits - 1))) * scales[:, :, None]).reshape(5, -1)
    assert np.all(back[:, weights.shape[1] :] == 0)
    error = np.abs(back[:, : weights.shape[1]] - weights)
    assert error.max() <= scales.max() / 2 + 1e-6


def test_the_proof_model_leaves_no_tensor_trivial(tmp_path: Path) -> None:
    models.write_proof_model(tmp_path / "model", TINY)
    for name, tensor in Checkpoint(tmp_path / "model").tensors():
        assert np.std(tensor.astype(np.float32)) > 0.05, name


# ---- installing -----------------------------------------------------------------------------

BASH = shutil.which("bash")
FAKE_PYTHON = """
case "$*" in
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    "-m pip install"*ctranslate2) [ ! -e "$SANDBOX/no-ctranslate2" ] ;;
esac
"""


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    (tmp_path / "project" / "scripts").mkdir(parents=True)
    files = ("scripts/setup_peers.sh", "requirements-peers.txt", "requirements-peers-convert.txt")
    for name in files:
        shutil.copy(ROOT / name, tmp_path / "project" / name)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name in ("cmp", "cp", "dirname", "flock", "grep", "mkdir", "rm", "bash"):
        if real := shutil.which(name):
            (bin_folder / name).symlink_to(real)
    (bin_folder / "g++").symlink_to("/bin/true")
    python = tmp_path / "project" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!{BASH}\nprintf "%s|%s\\n" "${{CMAKE_ARGS:-}}" "$*" >>"$SANDBOX/log"\n{FAKE_PYTHON}\n'
    )
    python.chmod(0o755)
    return tmp_path


def set_up(sandbox: Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the script; what it said, and its pip installs."""
    log = sandbox / "log"
    log.write_text("")
    done = subprocess.run(
        [str(BASH), "scripts/setup_peers.sh"],
        cwd=sandbox / "project",
        env={"PATH": str(sandbox / "bin"), "SANDBOX": str(sandbox)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done, [line for line in log.read_text().splitlines() if "-m pip install" in line]


needs_bash = pytest.mark.skipif(
    sys.platform == "win32" or BASH is None, reason="the set-up script is for Unix shells"
)


@needs_bash
def test_peers_are_installed_once(sandbox: Path) -> None:
    done, installs = set_up(sandbox)
    assert done.returncode == 0, done.stderr
    assert len(installs) == 7
    assert all("-c requirements-peers" in line for line in installs)
    llama = next(line for line in installs if "llama-cpp-python" in line)
    assert llama.startswith("-DGGML_NATIVE=ON ") and "--no-binary llama-cpp-python" in llama
    done, installs = set_up(sandbox)
    assert (done.returncode, installs) == (0, [])


@needs_bash
def test_a_changed_pin_installs_that_peer_again(sandbox: Path) -> None:
    set_up(sandbox)
    pins = sandbox / "project" / "requirements-peers.txt"
    text = pins.read_text()
    pins.write_text(text.replace("ctranslate2==", "ctranslate2==9."))
    _, installs = set_up(sandbox)
    assert len(installs) == 1 and installs[0].endswith(" ctranslate2")


@needs_bash
def test_a_peer_that_cannot_be_installed_is_named_and_tried_again(sandbox: Path) -> None:
    (sandbox / "no-ctranslate2").touch()
    done, installs = set_up(sandbox)
    assert done.returncode == 1
    assert "CTranslate2 could not be installed" in done.stderr
    assert len(installs) == 7
    (sandbox / "no-ctranslate2").unlink()
    done, installs = set_up(sandbox)
    assert done.returncode == 0 and len(installs) == 1


@needs_bash
def test_without_a_compiler_only_llama_is_left_out(sandbox: Path) -> None:
    (sandbox / "bin" / "g++").unlink()
    done, installs = set_up(sandbox)
    assert done.returncode == 1
    assert "no C++ compiler" in done.stderr and "llama.cpp could not be installed" in done.stderr
    assert len(installs) == 6
