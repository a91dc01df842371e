"""The log file: rotating, in the user's state folder, shared by all running copies.

It holds warnings, errors and what the program did, never prompts or texts. A log that cannot be
written is no reason to stop: the program then runs without one.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import sys
import threading
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import IO

from engine import paths
from engine.errors import StorageError

LOG_NAME = "workbench.log"
CRASH_NAME = "crash.log"
MAX_BYTES = 1_000_000
BACKUPS = 3
FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"

_OWN = ("engine", "app")
_VERBOSE = "workbench-verbose"
_crash_file: IO[str] | None = None

log = logging.getLogger(__name__)


def configure(verbose: bool = False) -> Path | None:
    """Begin logging; returns the log file, or None if there can be none. May be called again.

    With `verbose` everything goes to standard error as well. Exceptions that nothing catches, on
    any thread, are logged before they take their usual course, and so are crashes of the
    interpreter itself.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _SharedLog) or handler.get_name() == _VERBOSE:
            root.removeHandler(handler)
            handler.close()
    for name in _OWN:
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)
    if verbose:
        stream = logging.StreamHandler()
        stream.set_name(_VERBOSE)
        stream.setFormatter(logging.Formatter(FORMAT))
        root.addHandler(stream)
    path = _log_to_file(root)
    if path is not None:
        logging.captureWarnings(True)
        _log_crashes(path.with_name(CRASH_NAME))
    _log_uncaught()
    return path


def log_path() -> Path:
    """The current log file; StorageError as `paths.state_dir`."""
    return paths.state_dir() / LOG_NAME


class _SharedLog(RotatingFileHandler):
    """A rotating file that several running copies may write to."""

    def doRollover(self) -> None:
        # On Windows a file that another copy has open cannot be renamed: the log grows until
        # the other one has closed it.
        with contextlib.suppress(OSError):
            super().doRollover()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written cannot be flushed either
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: a full disk must not flood the terminal."""


def _log_to_file(root: logging.Logger) -> Path | None:
    try:
        path = log_path()
        handler = _SharedLog(
            path, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8", errors="replace"
        )
    except (OSError, StorageError) as error:
        root.addHandler(logging.NullHandler())  # else Python prints warnings to the terminal
        log.warning("there is no log file: %s", error)
        return None
    handler.setFormatter(logging.Formatter(FORMAT))
    root.addHandler(handler)
    return path


def _log_crashes(path: Path) -> None:
    """Let the interpreter write its last words, the Python stack of a segmentation fault."""
    global _crash_file
    if _crash_file is not None:
        return
    with contextlib.suppress(OSError):
        mode = "w" if path.exists() and path.stat().st_size > MAX_BYTES else "a"
        _crash_file = path.open(mode, encoding="utf-8")  # open as long as the program runs
        faulthandler.enable(_crash_file)


def _log_uncaught() -> None:
    if getattr(sys.excepthook, "workbench", False):
        return
    before, thread_before = sys.excepthook, threading.excepthook
    unraisable_before = sys.unraisablehook

    def uncaught(
        kind: type[BaseException], value: BaseException, trace: TracebackType | None
    ) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            log.critical("an unexpected error ended the program", exc_info=(kind, value, trace))
        before(kind, value, trace)

    def uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
        value = args.exc_value
        if value is not None:
            name = args.thread.name if args.thread else "?"
            log.critical(
                "an unexpected error ended the thread %s",
                name,
                exc_info=(args.exc_type, value, args.exc_traceback),
            )
        thread_before(args)

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        value = args.exc_value
        if value is not None:  # in a callback from C, such as the window's
            log.error(
                "an error was ignored: %s",
                args.err_msg or "exception in a callback",
                exc_info=(args.exc_type, value, args.exc_traceback),
            )
        unraisable_before(args)

    uncaught.workbench = True  # type: ignore[attr-defined]
    sys.excepthook = uncaught
    threading.excepthook = uncaught_in_thread
    sys.unraisablehook = unraisable
