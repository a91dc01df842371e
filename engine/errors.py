"""Errors that a user can act on: each message says what happened and what to do next."""

from __future__ import annotations


class EngineError(Exception):
    """Base of every expected failure. `str(error)` is one line fit to be shown as it is."""


class ModelNotFoundError(EngineError):
    """No such model, or it is not on this disk and may not be fetched."""


class CheckpointError(EngineError):
    """A model folder is incomplete, damaged, unsafe or not GPT-2."""


class DownloadError(EngineError):
    """A download failed or was cut; what has arrived is kept for the next try."""


class BackendError(EngineError):
    """A backend is not installed, cannot do what was asked, or failed while running."""


class OutOfMemoryError(EngineError):
    """The model, or the next step, does not fit into memory."""


class QueueFullError(EngineError):
    """As many texts are being written and waiting as may be; trying again later helps."""


class PromptError(EngineError):
    """The prompt is empty, too long or not text."""


class ConfigError(EngineError):
    """An option has a value outside its range."""


class CorpusError(EngineError):
    """A text file to train on or to measure with is missing, empty or not text."""


class TrainingError(EngineError):
    """A training run cannot begin, go on or be read."""


class MeasurementError(EngineError):
    """A benchmark's result cannot be right."""


class HistoryError(EngineError):
    """The history database cannot be opened or written."""


class StorageError(EngineError):
    """A user folder or file cannot be read or written."""


class NoTokenLeftError(BackendError):
    """The options leave no token to choose from."""


class ServerError(EngineError):
    """The HTTP server cannot listen."""
