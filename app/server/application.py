"""`create_app`: the HTTP server of a running worker, as an ASGI application."""

from __future__ import annotations

import logging
import weakref
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from app.server import info_routes, openapi
from app.server.completion_schema import completion_request
from app.server.completions_route import complete
from app.server.context import Context
from app.server.errors import ApiError, ClientGone
from app.server.generate_route import generate
from app.server.guards import guarded
from app.server.metrics import Metrics
from app.server.pages import page
from app.server.schemas import generate_request
from app.server.settings import ServerSettings
from engine import __version__
from engine.job import Job
from engine.worker import Worker

log = logging.getLogger(__name__)

CLIENT_GONE = 499  # nginx's number; nobody sees it but the counters


def create_app(
    worker: Worker,
    settings: ServerSettings,
    metrics: Metrics | None = None,
    jobs: weakref.WeakSet[Job] | None = None,
) -> Any:
    """The application of a worker that somebody else starts, loads and closes.

    `jobs` gets the texts of all requests. Who cancels them has these answered with 503 at once.

    Raises ConfigError for settings that contradict each other.
    """
    settings.check_together()
    context = Context(
        worker,
        settings,
        metrics or Metrics(lambda: worker.occupancy),
        weakref.WeakSet() if jobs is None else jobs,
    )
    app = FastAPI(
        title="GPT-2 Workbench",
        version=__version__,
        description="Texts continued by GPT-2. What it writes is unfiltered and made up.",
        docs_url=None,
        redoc_url=None,
    )
    _add_error_handlers(app)
    _add_routes(app, context)
    return guarded(app, settings, context.metrics)


def _add_error_handlers(app: FastAPI) -> None:
    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if headers.get("Allow") == "GET":
            headers["Allow"] = "GET, HEAD"  # see guards.HeadAsGet
        path = request.url.path[:200]
        said = {
            404: f"there is no {path} here; see /docs",
            405: f"{path} takes {headers.get('Allow', 'another method')} only; see /docs",
        }
        message = said.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, headers=headers).response()

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("unexpected error in %s", request.url.path, exc_info=error)
        return ApiError(500, "unexpected error; the server's log has the details").response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(ClientGone, gone)
    app.add_exception_handler(ClientDisconnect, gone)  # in the middle of its body
    app.add_exception_handler(Exception, unexpected)


def _add_routes(app: FastAPI, context: Context) -> None:
    settings = context.settings
    _add_text_routes(app, context)

    errors = openapi.errors(settings, body=True)

    @app.get("/", include_in_schema=False)
    async def try_it() -> Response:
        return page("page.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return page("docs.html")

    @app.get(
        "/health",
        summary="Whether a model is ready",
        responses=openapi.answers(settings, openapi.Health)
        | {503: {"model": openapi.Health, "description": "Not yet."}},
        response_class=Response,
    )
    async def health() -> Response:
        return info_routes.health(context)

    @app.get(
        "/v1/models",
        summary="The loaded model",
        responses=openapi.answers(settings, openapi.ModelList),
        response_class=Response,
    )
    async def models() -> Response:
        return info_routes.models(context)

    @app.get(
        "/v1/models/{name:path}",
        summary="The loaded model by name",
        responses=openapi.answers(settings, openapi.Model)
        | {status: errors[status] for status in (404, 503)},
        response_class=Response,
    )
    async def model(name: str) -> Response:
        return info_routes.model(context, name)

    @app.get(
        "/metrics",
        summary="Counters for Prometheus",
        responses=openapi.errors(settings),
        response_class=PlainTextResponse,
    )
    async def metrics() -> Response:
        return info_routes.metrics(context)


def _add_text_routes(app: FastAPI, context: Context) -> None:
    settings = context.settings
    completion_model = completion_request(settings)
    generate_model = generate_request(settings)
    openapi.complete_document(app, [generate_model, completion_model], settings)

    @app.post(
        "/generate",
        summary="Continue a prompt, with every option of the program",
        responses=openapi.answers(
            settings, openapi.Text | openapi.Texts | openapi.Results, body=True
        ),
        openapi_extra=openapi.body_of(
            generate_model, {"prompt": "Once upon a time", "max_length": 100}
        ),
        response_class=Response,
    )
    async def generate_(request: Request) -> Response:
        return await generate(context, generate_model, request)

    @app.post(
        "/v1/completions",
        summary="OpenAI's completions",
        responses=openapi.answers(settings, openapi.CompletionAnswer, body=True),
        openapi_extra=openapi.body_of(
            completion_model, {"prompt": "Once upon a time", "max_tokens": 50}
        ),
        response_class=Response,
    )
    async def completions(request: Request) -> Response:
        return await complete(context, completion_model, request)
