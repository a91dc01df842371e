"""Strict pydantic models made from declared options, and how a body is read by them.

Options stay declared once, in engine/config.py: type, range and help of a field are those of its
option, narrowed by what the server's settings allow. Nothing is converted: "5" is no number.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from app.server.errors import ApiError
from app.server.settings import ServerSettings
from engine.config import GenerationConfig
from engine.options import Option


class Strict(BaseModel):
    """Base of what clients send: exact types, no unknown fields, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def _whole(value: Any) -> Any:
    """5.0 as 5: to JSON it is the same number. Nothing else is converted."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def number(kind: type, least: float | None, most: float | None) -> Any:
    """A bounded int or float."""
    bounds = Field(
        ge=None if least is None else kind(least), le=None if most is None else kind(most)
    )
    # In this order the bounds are in the JSON schema, too.
    return (
        Annotated[int, bounds, BeforeValidator(_whole)] if kind is int else Annotated[kind, bounds]
    )


def limits(settings: ServerSettings) -> dict[str, int]:
    """How far the server lets an option go, where that is less than its declaration says: of a
    number the largest value, of a list the most entries."""
    return {
        "max_new_tokens": settings.max_tokens,
        "num_return_sequences": settings.max_texts,
        "stop": settings.max_stop,
        "banned_words": settings.max_words,
        "logit_bias": settings.max_words,
    }


def option_field(option: Option, most: int | None, word_chars: int) -> tuple[Any, Any]:
    """An option as pydantic's `create_model` takes a field: annotation and default."""
    about: dict[str, Any] = {"description": option.help, "title": option.label}
    kind: Any = option.kind
    if option.kind is tuple:
        word = Annotated[str, Field(min_length=1, max_length=word_chars)]
        kind = Annotated[list[word], Field(max_length=most)]
    elif option.choices:
        kind = Literal[option.choices]
        if {"true", "false"} <= set(option.choices):
            kind = kind | bool
    elif option.kind in (int, float):
        top = option.maximum if most is None else min(most, option.maximum or most)
        kind = number(option.kind, option.minimum, top)
    default = list(option.default) if option.kind is tuple else option.default
    return (kind | None if option.optional else kind), Field(default, **about)


def generation_fields(settings: ServerSettings) -> dict[str, tuple[Any, Any]]:
    """A field for every option of GenerationConfig."""
    narrowed = limits(settings)
    return {
        name: option_field(option, narrowed.get(name), settings.max_word_chars)
        for name, option in GenerationConfig.options().items()
    }


def generate_request(settings: ServerSettings) -> type[Strict]:
    """What POST /generate takes."""
    prompt = Annotated[str, Field(min_length=1)]
    several = Annotated[
        list[prompt],
        Field(min_length=1, max_length=settings.max_texts),
    ]
    fields: dict[str, Any] = {
        "prompt": (
            prompt | several,
            Field(
                description="The beginning of the text, or a list of them, which are written in "
                "parallel.",
                examples=["Once upon a time"],
            ),
        ),
        "model": (
            str | None,
            Field(None, description="A name that /v1/models lists; by default the loaded model."),
        ),
        "stream": (
            bool,
            Field(False, description="Send the text as server-sent events while it is written."),
        ),
        **generation_fields(settings),
    }
    return create_model("GenerateRequest", __base__=Strict, **fields)


def read(model: type[Strict], body: bytes) -> Strict:
    """The body as the model; ApiError 400 that names the first thing that is wrong with it."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        first = found[0]
        if first["type"] == "json_invalid":
            raise ApiError(400, f"the body cannot be read: {first['msg']}") from None
        if not first["loc"]:
            raise ApiError(400, "the body must be a JSON object with a prompt") from None
        param = str(first["loc"][0])
        said = dict.fromkeys(e["msg"] for e in found if e["loc"][:1] == first["loc"][:1])
        why = " or ".join(list(said)[:3])
        raise ApiError(400, f"{_shown(param)}: {why}", param=_shown(param)) from None


def _shown(name: str) -> str:
    return name if len(name) <= 60 else name[:57] + "..."
