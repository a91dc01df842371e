"""GET /health, /v1/models and /metrics: what the server has and how busy it is."""

from __future__ import annotations

import time
from typing import Any

from starlette.responses import Response

from app.server.context import Context
from app.server.errors import ApiError, json_response
from app.server.metrics import CONTENT_TYPE
from app.server.names import check_name, served_name
from engine import __version__
from engine.events import ModelInfo

_STARTED = int(time.time())


def health(context: Context) -> Response:
    """200 once a model is ready, 503 until then; both tell the state."""
    model = context.worker.model
    load, places = context.metrics.load(), context.worker.occupancy
    told: dict[str, Any] = {
        "status": "ready" if model else "loading",
        "model": served_name(model) if model else None,
        "version": __version__,
        "queue": {
            "active": places.active,
            "queued": places.queued,
            "slots": places.slots,
            "max_active": places.max_active,
            "max_queue": places.max_queue,
        },
        "requests": {"running": load.running, "answered": load.requests},
    }
    return json_response(told, 200 if model else 503, {"Cache-Control": "no-store"})


def models(context: Context) -> Response:
    """OpenAI's list of models: the one that is loaded."""
    model = context.worker.model
    return json_response({"object": "list", "data": [_told(model)] if model else []})


def model(context: Context, name: str) -> Response:
    """One model of that list; ApiError 404 for any other name."""
    held = context.worker.model
    if held is None:
        raise ApiError(503, "no model is loaded yet; try again soon", code="loading")
    check_name(name, held)
    return json_response(_told(held))


def metrics(context: Context) -> Response:
    """Prometheus' text format."""
    return Response(context.metrics.text(), media_type=CONTENT_TYPE)


def _told(model: ModelInfo) -> dict[str, Any]:
    return {
        "id": served_name(model),
        "object": "model",
        "created": _STARTED,
        "owned_by": "gpt2-workbench",
        "context": model.context,
        "backend": model.backend,
        "precision": model.precision,
        "parameters": model.parameters,
        "weights_hash": model.weights_hash,
    }
