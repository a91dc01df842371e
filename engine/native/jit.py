"""Numba with its cache where it belongs: one folder for each version of this engine.

Numba invalidates a cached function when its own file changes, but not when a function it calls
does, so the folder is named by a hash of all the engine's sources, Numba's version and the CPU
path. Importing this module imports Numba.
"""

# mypy: disallow-untyped-calls=False
# (Numba's own classes have no annotations.)

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import numba
import numba.core.config
from numba.core import codegen, compiler, compiler_machinery, typed_passes, untyped_passes
from numba.core import errors as numba_errors

from engine import paths
from engine.errors import BackendError, StorageError
from engine.native.cpu import cpu_path, features

config: Any = numba.core.config
_compile: Any = numba.njit
log = logging.getLogger(__name__)

_PATIENCE_S = 120.0  # for another process that compiles
_KEPT = 6  # cache folders: this version, its other CPU paths, and some before it


def _version_key() -> str:
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    parts = (numba.__version__, cpu_path().key, str(config.CPU_NAME), *sorted(features()))
    digest.update(",".join(parts).encode())
    return digest.hexdigest()[:16]


def _use_cache_folder() -> bool:
    """Point Numba at the cache folder; False where no folder can be written."""
    try:
        # NUMBA_CACHE_DIR is respected: tests share compiled code through it.
        root = Path(config.CACHE_DIR) if config.CACHE_DIR else paths.cache_dir()
        root /= "native-jit"  # a folder of its own, because old ones in it are deleted
        folder = root / _version_key()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise StorageError(f"{folder} is not writable")
    except (OSError, StorageError) as error:
        log.warning("compiled code cannot be kept: %s", error)
        return False
    config.CACHE_DIR = str(folder)
    with contextlib.suppress(OSError):
        os.utime(folder)
        _remove_old(root)
    return True


def _remove_old(root: Path) -> None:
    folders = sorted(root.iterdir(), key=lambda f: f.stat().st_mtime, reverse=True)
    for folder in folders[_KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)


CACHED = _use_cache_folder()


class _WithoutEnvironments:
    """A code generator that keeps no Python environment for a function Python never calls."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def set_env(self, name: str, environment: Any) -> None:
        """Nothing: the function's code is not in memory by itself."""


class _LinkedOnly(codegen.JITCodeLibrary):
    """Code that others link in: neither optimised nor turned into machine code on its own.

    Numba does both for every function, and again in each caller.
    """

    @property
    def codegen(self) -> Any:
        return _WithoutEnvironments(super().codegen)

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        return 0  # as for a function without a wrapper for Python


@compiler_machinery.register_pass(mutates_CFG=False, analysis_only=True)
class _MakeLinkedOnly(compiler_machinery.AnalysisPass):
    _name = "make_linked_only"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        made = _LinkedOnly(state.targetctx.codegen(), state.func_id.func_qualname)
        made.enable_object_caching()
        state["library"] = made  # a dictionary with attributes
        return False


# Numba's passes for closures, array expressions and inlined overloads. No helper has any, and
# looking for them in all of them takes half a second.
_NEEDLESS = (
    untyped_passes.InlineClosureLikes,
    typed_passes.InlineOverloads,
    typed_passes.NopythonRewrites,
)


class _HelperCompiler(compiler.CompilerBase):
    def define_pipelines(self) -> list[Any]:
        passes = compiler.DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.passes = [(made, text) for made, text in passes.passes if made not in _NEEDLESS]
        passes.add_pass_after(_MakeLinkedOnly, typed_passes.NopythonTypeInference)
        passes.finalize()
        return [passes]


def compile_for(function: Any, signature: tuple[Any, ...]) -> None:
    """Compile an `njit` function for the types of its arguments, or fetch it from disk.

    To be called before any thread calls the function: a thread that fails to keep the code would
    leave the others at a barrier. Numba neither locks nor checks what it keeps, so processes take
    turns here, and what cannot be read, or is not what was asked for, is dropped and made anew.
    """
    with _turn():
        for last_try in (False, True):
            try:
                function.compile(signature)
            except numba_errors.NumbaError:
                raise
            except Exception as error:  # from reading or writing the file: the code may be there
                log.warning("compiled code could not be read or kept: %s", error)
            if signature in function.overloads:
                return
            if last_try:
                raise BackendError(
                    "the native engine could not be compiled; delete the folder "
                    f"{config.CACHE_DIR} and start again, or take the backend torch"
                )
            with contextlib.suppress(OSError):
                function._cache.flush()


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """Wait until no other process compiles, but not for ever."""
    if not CACHED:
        yield
        return
    lock = filelock.FileLock(Path(str(config.CACHE_DIR)) / "lock", timeout=_PATIENCE_S)
    held = False
    try:
        lock.acquire()
        held = True
    except (filelock.Timeout, OSError) as error:
        log.warning("compiling without a lock: %s", error)
    try:
        yield
    finally:
        if held:
            lock.release()


_COMMON: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


def njit(function: Callable[..., Any]) -> Any:
    """Compile without the GIL, kept on disk where that is possible."""
    return _compile(cache=CACHED, **_COMMON)(function)


def helper(function: Callable[..., Any]) -> Any:
    """As `njit` for what only compiled code calls: linked into its callers, and only there.

    There is no machine code to call from Python: trying to would crash.
    """
    return _compile(no_cpython_wrapper=True, pipeline_class=_HelperCompiler, **_COMMON)(function)
