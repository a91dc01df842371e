"""The OpenAPI document: requests from the strict models, answers as they are sent.

The routes read bodies themselves (schemas.read), so that what is wrong is told in one line; here
FastAPI's document gets what that hides from it.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, Field

from app.server.schemas import Strict
from app.server.settings import ServerSettings

_REF = "#/components/schemas/{model}"
_WHY = {
    400: "The request cannot be answered; the message says why.",
    401: "The API key is missing or wrong.",
    403: "The Host or Origin header is not allowed.",
    404: "There is no such model here.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    503: "No model is loaded yet, or too many texts wait; Retry-After says when to try again.",
}
_POST = (400, 404, 408, 413, 415, 503)

Reason = Literal["length", "end_of_text", "stop", "time", "context"]


class Error(BaseModel):
    """What went wrong."""

    message: str = Field(description="One line: what happened and what to do.")
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every error has this shape, which is OpenAI's."""

    error: Error


class TextTimings(BaseModel):
    """Seconds, and the tokens they were spent on."""

    load_s: float
    prefill_s: float
    ttft_s: float = Field(description="From the request to the first token.")
    decode_s: float
    total_s: float
    tokens_per_s: float
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int


class Text(BaseModel):
    """One text."""

    prompt: str
    text: str = Field(description="What was written, without the prompt.")
    token_ids: list[int]
    finish_reason: Reason
    seed: int = Field(description="The same request with it gives the same text.")
    model: str
    weights_hash: str
    backend: str
    precision: str
    threads: int
    timings: TextTimings
    dropped_tokens: int = Field(
        description="Of the prompt's beginning, which did not fit into the model's context."
    )
    sequence: int = Field(0, description="Which of several texts of one prompt.")
    score: float | None = Field(None, description="Of a beam.")
    records: list[Any] | None = Field(None, description="Of each token, with logprobs.")


class TotalTimings(BaseModel):
    """Of several texts together."""

    new_tokens: int
    total_s: float
    tokens_per_s: float


class Texts(BaseModel):
    """Several texts of one prompt."""

    prompt: str
    seed: int
    finish_reason: Reason
    texts: list[Text]
    timings: TotalTimings


class Results(BaseModel):
    """A list of prompts gives a list, in the same order."""

    results: list[Text | Texts]


class ChoiceLogprobs(BaseModel):
    """One entry a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class Choice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length"]
    seed: int | None = Field(description="Null where nothing was to be written.")


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionAnswer(BaseModel):
    """As OpenAI defines it."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage


class Model(BaseModel):
    """A model, with more than OpenAI tells."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context: int = Field(description="Tokens.")
    backend: str
    precision: str
    parameters: int
    weights_hash: str


class ModelList(BaseModel):
    """The loaded model, or none."""

    object: Literal["list"]
    data: list[Model]


class Queue(BaseModel):
    """Texts now, and how many there may be."""

    active: int
    queued: int
    slots: int = Field(description="Key-value caches in use.")
    max_active: int
    max_queue: int | None


class RequestCounts(BaseModel):
    """Requests of any kind."""

    running: int
    answered: int


class Health(BaseModel):
    """The server's state."""

    status: Literal["ready", "loading"]
    model: str | None
    version: str
    queue: Queue
    requests: RequestCounts


def errors(settings: ServerSettings, *, body: bool = False) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for what may go wrong."""
    statuses = [403, *(_POST if body else ()), *([401] if settings.api_key is not None else ())]
    return {status: {"model": ErrorAnswer, "description": _WHY[status]} for status in statuses}


def answers(
    settings: ServerSettings, model: Any, *, body: bool = False, about: str = "Done."
) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` of a route that answers with `model`."""
    ok: dict[str, Any] = {"model": model, "description": about}
    if body:
        stream = {"description": "With `stream`: messages of JSON, then [DONE]."}
        ok["content"] = {"text/event-stream": {"schema": stream}}
    return {200: ok, **errors(settings, body=body)}


def body_of(model: type[Strict], example: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's `openapi_extra` of a route that reads `model`."""
    content = {"schema": {"$ref": _REF.format(model=model.__name__)}, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def complete_document(app: FastAPI, models: list[type[Strict]], settings: ServerSettings) -> None:
    """Have `app.openapi()` hold the models of the bodies and the key."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)  # FastAPI's, for bodies that it reads
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        for model in models:
            schema = model.model_json_schema(ref_template=_REF)
            schemas |= schema.pop("$defs", {})
            schemas[model.__name__] = schema
        if settings.api_key is not None:
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
