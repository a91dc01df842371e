"""The name under which the loaded model is offered, and which names a request may give.

A name from the network is only ever compared with known names: nothing here looks at a path, so
the answer to a path is the same whether or not there is a file.
"""

from __future__ import annotations

import re

from app.server.errors import ApiError
from engine import catalog
from engine.events import ModelInfo

_SHOWN = 60


def served_name(model: ModelInfo) -> str:
    """A catalogue's name as it is, of a folder its last part: paths are nobody's business."""
    return re.split(r"[/\\]", model.name.rstrip("/\\"))[-1] or model.name


def check_name(given: str | None, model: ModelInfo) -> None:
    """ApiError 404 for another name than the loaded model's."""
    served = served_name(model)
    if given is None or given == served:
        return
    with_owner = re.fullmatch(r"[\w-]+/[\w.-]+", given) and any(
        given.lower() == entry.repository and entry.name == model.name
        for entry in catalog.HUB_MODELS
    )
    if with_owner:
        return
    shown = repr(given) if len(given) <= _SHOWN else repr(given[: _SHOWN - 3]) + "..."
    raise ApiError(
        404,
        f"the model {shown} is not served here; this server has {served!r}",
        code="model_not_found",
        param="model",
    )
