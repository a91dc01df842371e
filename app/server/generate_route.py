"""POST /generate: a prompt, or several, with every option of the program."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from app.records import token_texts
from app.results import WrittenText, result_object, several_object
from app.server import texts
from app.server.context import Context
from app.server.errors import ApiError, json_response, of_engine_error
from app.server.names import check_name, served_name
from app.server.schemas import Strict, read
from app.server.sse import DONE, TextStream, sse
from engine.config import GenerationConfig
from engine.errors import EngineError
from engine.job import Job


async def generate(context: Context, model: type[Strict], request: Request) -> Response:
    """Answer one request; raises ApiError and ClientGone."""
    asked = read(model, await request.body())
    held = context.model()
    given = asked.model_dump(exclude_unset=True)
    prompt, stream = given.pop("prompt"), given.pop("stream", False)
    check_name(given.pop("model", None), held)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    config = _config(given)
    context.check_count(len(prompts) * config.num_return_sequences)
    for number, text in enumerate(prompts):
        await context.count_prompt(text, None if isinstance(prompt, str) else number)
    jobs = context.start([texts.Ask(text, config) for text in prompts])
    try:
        if stream:
            return await _streamed(context, request, jobs, isinstance(prompt, list))
        written = await texts.unless_gone(request.receive, texts.all_written(jobs))
        context.metrics.wrote([text for group in written for text in group])
        return json_response(await _answer(written, isinstance(prompt, list)))
    except BaseException:
        texts.give_up(jobs)
        raise


def _config(given: dict[str, Any]) -> GenerationConfig:
    try:
        config = GenerationConfig.from_mapping(given)
        config.check_together()
    except EngineError as error:
        raise of_engine_error(error) from error
    return config


async def _answer(written: Sequence[Sequence[WrittenText]], many: bool) -> dict[str, Any]:
    """What is sent: an object for one prompt, a list of them for a list."""
    results = [await _of_prompt(group) for group in written]
    return {"results": results} if many else results[0]


async def _of_prompt(group: Sequence[WrittenText]) -> dict[str, Any]:
    started = group[0].started
    text_of = None
    if started.config.logprobs:  # reads the tokenizer's files the first time
        text_of = await asyncio.to_thread(token_texts, started.model)
    if len(group) == 1:
        return _told(result_object(group[0], started.model, text_of), group[0])
    found = several_object(group, started.model, text_of)
    for told, text in zip(found["texts"], group, strict=True):
        _told(told, text)
    return found


def _told(result: dict[str, Any], text: WrittenText) -> dict[str, Any]:
    """Over the network a folder's name stands for its path."""
    result["model"] = served_name(text.started.model)
    result["dropped_tokens"] = text.started.dropped_tokens
    return result


async def _streamed(
    context: Context, request: Request, jobs: list[list[Job]], many: bool
) -> Response:
    flat = [job for group in jobs for job in group]
    pieces = texts.merged(flat)
    # Only now is the status known: a prompt that is refused is no stream.
    first = await texts.unless_gone(request.receive, anext(pieces))

    async def events() -> AsyncIterator[bytes]:
        gathered = texts.Gathered(jobs)
        try:
            yield _message(gathered, *first)
            async for number, piece in pieces:
                if piece.text or piece.tokens:
                    yield _message(gathered, number, piece)
                else:
                    gathered.take(number, piece)
            written = gathered.written()
            context.metrics.wrote([text for group in written for text in group])
            yield sse({"type": "result", **await _answer(written, many)})
        except ApiError as error:
            yield sse(error.body())
        yield DONE

    return TextStream(events(), jobs)


def _message(gathered: texts.Gathered, number: int, piece: texts.Piece) -> bytes:
    gathered.take(number, piece)
    prompt, sequence = gathered.place(number)
    return sse(
        {
            "type": "text",
            "prompt": prompt,
            "sequence": sequence,
            "text": piece.text,
            "token_ids": [token.token_id for token in piece.tokens],
        }
    )
