"""ONNX Runtime: the model exported once (engine.onnx), its cache written in place.

Keys and values of all texts that run together lie in one buffer, which is bound as past and as
present: ONNX Runtime adds the new tokens to it and copies nothing. When other texts run together
than before, their rows are gathered into a new buffer, once. A fork shares its row until one of
the two goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engine.backends.base import Logits, Progress, model_info
from engine.backends.cached import CachedBackend
from engine.checkpoint import ModelConfig, read_config
from engine.errors import BackendError, CheckpointError, ConfigError, OutOfMemoryError
from engine.events import ModelInfo
from engine.onnx.folder import MODEL, Manifest, is_export, read_manifest, verify
from engine.threads import default_threads
from engine.waiting import wait_for

_PARTS = ("key", "value")


class _Buffer:
    """Keys and values of `count` texts; rows are shared by forks, and free without an owner."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values  # (2 * layers, count, heads, context, head width)
        self.owners = [0] * values.shape[1]
        self.bindings: dict[tuple[int, int], Any] = {}  # by first row and number of rows


@dataclass
class _Cache:
    """One text's place: a row of a buffer, of which the first `length` tokens are its own."""

    buffer: _Buffer | None = None
    row: int = 0
    length: int = 0


class OnnxBackend(CachedBackend[_Cache]):
    """See engine.backends.base.Backend.

    Texts that get one token each run together, and so do prompts of one length; what the operator
    cannot run together (several tokens after a text) runs one by one.
    """

    def __init__(self, session: Any, info: ModelInfo, head_width: int) -> None:
        super().__init__(info)
        self._session = session
        self._row_shape = (info.heads, info.context, head_width)
        self._spare: _Buffer | None = None  # beams gather at every step: two buffers take turns

    def _new_cache(self) -> _Cache:
        return _Cache()

    def _copy(self, cache: _Cache) -> _Cache:
        if cache.buffer is not None:
            cache.buffer.owners[cache.row] += 1
        return _Cache(cache.buffer, cache.row, cache.length)

    def _length_of(self, cache: _Cache) -> int:
        return cache.length

    def _shorten(self, cache: _Cache, length: int) -> None:
        cache.length = length

    def close(self, slot: int) -> None:
        self._release(self._caches[slot])
        super().close(slot)

    def _run(
        self, caches: Sequence[_Cache], tokens: Sequence[Sequence[int]], all_positions: bool
    ) -> list[Logits]:
        groups: dict[tuple[int, int], list[int]] = {}
        for i, (cache, ids) in enumerate(zip(caches, tokens, strict=True)):
            together = len(ids) == 1 or cache.length == 0
            groups.setdefault((len(ids), -1 if together else i), []).append(i)
        found: dict[int, Logits] = {}
        for group in groups.values():
            group.sort(key=lambda i: (id(caches[i].buffer), caches[i].row))
            logits = self._run_group(
                [caches[i] for i in group], [tokens[i] for i in group], all_positions
            )
            if len(groups) == 1 and not all_positions and group == sorted(group):
                return [logits.reshape(len(group), -1)]
            found |= zip(group, logits, strict=True)
        return [found[i] for i in range(len(caches))]

    def _run_group(
        self, caches: list[_Cache], tokens: list[Sequence[int]], all_positions: bool
    ) -> Logits:
        """(texts, n, vocab_size) logits of texts that get as many tokens each."""
        try:
            ids = np.array(tokens, np.int64)
            count, new = ids.shape
            binding = self._binding(caches)
            lengths = np.array([cache.length + new - 1 for cache in caches], np.int32)
            rows = np.arange(count * new) if all_positions else np.arange(1, count + 1) * new - 1
            logits = np.empty((len(rows), self.info.vocab_size), np.float32)
            # These are referred to, not copied, until the run is over.
            binding.bind_cpu_input("input_ids", ids)
            binding.bind_cpu_input("lengths", lengths)
            binding.bind_cpu_input("rows", rows)
            _bind(binding.bind_output, "logits", logits)
            self._session.run_with_iobinding(binding)
        except _FAILURES as error:
            raise _translated(error) from error
        for cache in caches:
            cache.length += new
        return logits.reshape(count, -1, self.info.vocab_size)

    def _binding(self, caches: list[_Cache]) -> Any:
        """The cache's side of a run, made once for each range of rows."""
        buffer, first = caches[0].buffer, caches[0].row
        in_place = buffer is not None and all(
            cache.buffer is buffer and cache.row == first + i and buffer.owners[cache.row] == 1
            for i, cache in enumerate(caches)
        )
        if not in_place:
            buffer, first = self._gathered(caches), 0
        assert buffer is not None
        place = first, len(caches)
        if place not in buffer.bindings:
            binding = buffer.bindings[place] = self._session.io_binding()
            for i, values in enumerate(buffer.values[:, first : first + len(caches)]):
                name = f"{i // 2}.{_PARTS[i % 2]}"
                _bind(binding.bind_input, f"past.{name}", values)
                _bind(binding.bind_output, f"present.{name}", values)
        return buffer.bindings[place]

    def _gathered(self, caches: list[_Cache]) -> _Buffer:
        """Move the caches into a buffer of their own, in this order."""
        shape = (2 * self.info.layers, len(caches), *self._row_shape)
        if self._spare is not None and self._spare.values.shape == shape:
            buffer, self._spare = self._spare, None
        else:
            # Memory that is not written to is not taken, so the room to grow costs nothing yet.
            buffer = _Buffer(np.empty(shape, np.float32))
        for row, cache in enumerate(caches):
            if cache.buffer is not None:
                used = cache.buffer.values[:, cache.row, :, : cache.length]
                buffer.values[:, row, :, : cache.length] = used
        for row, cache in enumerate(caches):
            self._release(cache)
            cache.buffer, cache.row = buffer, row
            buffer.owners[row] = 1
        return buffer

    def _release(self, cache: _Cache) -> None:
        buffer = cache.buffer
        if buffer is not None:
            buffer.owners[cache.row] -= 1
            cache.buffer = None
            if not any(buffer.owners) and len(buffer.owners) > 1:
                self._spare = buffer

    def shutdown(self) -> None:
        self._caches.clear()
        self._spare = None
        del self._session


def _bind(bind: Any, name: str, values: NDArray[np.float32]) -> None:
    bind(name, "cpu", 0, np.float32, values.shape, values.ctypes.data)


def _failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: classes of its own without a common base."""
    found = vars(ort.capi.onnxruntime_pybind11_state).values()
    own = [kind for kind in found if isinstance(kind, type) and issubclass(kind, Exception)]
    return (MemoryError, RuntimeError, ValueError, *own)


_FAILURES = _failures()


def _translated(error: Exception) -> Exception:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "alloc" in text.lower():
        return OutOfMemoryError(
            "out of memory while running the model; close other programs, or load a smaller "
            "model or int8"
        )
    return BackendError(f"ONNX Runtime failed: {text[:200] or type(error).__name__}")


def load(
    folder: Path, *, name: str, precision: str, threads: int, progress: Progress
) -> OnnxBackend:
    """Load a model folder or an exported one; see engine.backends.base.BackendFactory."""
    config = read_config(folder)
    exported, manifest = _export_of(folder, precision, progress)
    threads = threads or default_threads()
    session = _session(exported, threads, progress)
    head_width = _checked(session, exported, config)
    info = model_info(
        name,
        folder,
        config,
        backend="onnx",
        precision=precision,
        threads=threads,
        weight_bytes=manifest.weight_bytes,
        weights_hash=manifest.weights_hash,
        read_bytes=manifest.read_bytes,
        detail=f"onnxruntime {ort.__version__}",
    )
    return OnnxBackend(session, info, head_width)


def _export_of(folder: Path, precision: str, progress: Progress) -> tuple[Path, Manifest]:
    """The folder with the graph, verified: the given one, or an export of it in the cache."""
    if not is_export(folder):
        from engine.onnx.export import cached_export

        folder = cached_export(folder, precision, lambda s, f: progress(s, 0.05 + 0.75 * f))
        return folder, read_manifest(folder)
    manifest = read_manifest(folder)
    if manifest.precision != precision:
        raise ConfigError(
            f"{folder} was exported in {manifest.precision}, not in {precision}; leave the "
            "precision out, or export the model again"
        )
    verify(folder, manifest, lambda f: progress("checking the export", 0.05 + 0.75 * f))
    return folder, manifest


def _session(folder: Path, threads: int, progress: Progress) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised, too
    # A thread waits actively for about as long as waking it takes. ONNX Runtime's own 1 ms and
    # more wins nothing on an idle machine, and where others compute it halves the speed.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "20")
    try:
        return wait_for(
            lambda: ort.InferenceSession(
                str(folder / MODEL), options, providers=["CPUExecutionProvider"]
            ),
            lambda: progress("starting ONNX Runtime", 0.8),
            give_up=lambda: options.set_load_cancellation_flag(True),
        )
    except MemoryError as error:
        raise _translated(error) from error
    except _FAILURES as error:
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder / MODEL} cannot be run: {text}") from error


def _checked(session: Any, folder: Path, config: ModelConfig) -> int:
    """The width of a head in the graph; CheckpointError where it is not config.json's model."""
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value.shape for value in session.get_outputs()}
    names = [f"{i}.{part}" for i in range(config.layers) for part in _PARTS]
    expected = {"input_ids", "lengths", "rows", *(f"past.{name}" for name in names)}
    produced = {"logits", *(f"present.{name}" for name in names)}
    if inputs.keys() == expected and outputs.keys() == produced:
        _, heads, _, width = inputs["past.0.key"].shape
        fits = heads == config.heads and isinstance(width, int) and width >= config.head_width
        if fits and outputs["logits"][-1] == config.vocab_size:
            return int(width)
    raise CheckpointError(
        f"{folder / MODEL} is not an export of the model in config.json; export it again"
    )
