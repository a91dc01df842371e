"""POST /v1/completions, as OpenAI defines it: the body as options, the texts as choices."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from app.results import WrittenText
from app.server import texts
from app.server.completion_schema import DEFAULT_TOKENS, extensions
from app.server.context import Context
from app.server.errors import ApiError, json_response, of_engine_error
from app.server.logprobs import END_OF_TEXT, Logprobs, joined, of_prompt
from app.server.names import check_name, served_name
from app.server.schemas import Strict, read
from app.server.sse import DONE, TextStream, sse
from engine.config import MAX_SEED, GenerationConfig
from engine.errors import EngineError
from engine.events import Finished, ModelInfo, Scored, Token
from engine.job import Job
from engine.request import Prompt

_REASONS = {"end_of_text": "stop", "stop": "stop"}  # all else is OpenAI's length
_LEAST_TEMPERATURE = GenerationConfig.options()["temperature"].minimum or 0.0


@dataclass
class Completion:
    """One request: what is asked of the engine, and what the answer needs to know."""

    given: Any  # the validated body
    model: ModelInfo
    prompts: list[Prompt]
    config: GenerationConfig  # num_return_sequences is how many are written for a prompt
    id: str
    created: int

    @property
    def n(self) -> int:
        """Choices for each prompt."""
        return self.given.n or 1

    @property
    def alternatives(self) -> int | None:
        """Most probable tokens to name for each token; None where no logprobs are wanted."""
        found: int | None = self.given.logprobs
        return found

    @property
    def scores(self) -> bool:
        """Whether the prompts' own log-probabilities are wanted."""
        return bool(self.given.echo) and (self.given.logprobs is not None or not self.new_tokens)

    @property
    def new_tokens(self) -> int:
        """Most new tokens of a text; 0: the prompts are only scored."""
        return DEFAULT_TOKENS if self.given.max_tokens is None else int(self.given.max_tokens)

    def choices_of(self, group: Sequence[Any]) -> list[Any]:
        """Of what belongs to a prompt's texts what belongs to its choices: greedy writes the same
        text every time, so it is written once."""
        return list(group) * self.n if len(group) == 1 else list(group)

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        options = self.given.stream_options
        return options is not None and bool(options.include_usage)

    def head(self) -> dict[str, Any]:
        """What begins every answer and every message of a stream."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": served_name(self.model),
            "system_fingerprint": self.model.weights_hash[:16],
        }

    def message(self, choice: dict[str, Any]) -> bytes:
        """A stream's message; where the usage is asked for, its field is there and null."""
        usage = {"usage": None} if self.with_usage else {}
        return sse({**self.head(), "choices": [choice], **usage})


async def complete(context: Context, model: type[Strict], request: Request) -> Response:
    """Answer one request; raises ApiError and ClientGone."""
    completion = await _understood(context, read(model, await request.body()))
    prompts = completion.prompts if completion.new_tokens else []
    jobs = context.start([texts.Ask(prompt, completion.config) for prompt in prompts])
    scorings: list[Job] = []
    try:
        if completion.scores:
            scorings = context.score(completion.prompts, completion.alternatives or 0)
        scored = await texts.unless_gone(request.receive, texts.all_scored(scorings))
        if not completion.new_tokens:
            return _only_scored(context, completion, scored)
        if completion.given.stream:
            return await _streamed(context, request, completion, jobs, scored)
        written = await texts.unless_gone(request.receive, texts.all_written(jobs))
        context.metrics.wrote([text for group in written for text in group])
        return json_response(_answer(context, completion, written, scored))
    except BaseException:
        texts.give_up([*jobs, scorings])
        raise


async def _understood(context: Context, given: Any) -> Completion:
    model = context.model()
    check_name(given.model, model)
    _check_unsupported(given)
    prompts = _prompts(given.prompt, context.worker.end_of_text)
    config = _config(given)
    completion = Completion(
        given, model, prompts, config, f"cmpl-{secrets.token_hex(12)}", int(time.time())
    )
    context.check_count(
        len(prompts) * max(completion.n, config.num_return_sequences),
        len(prompts) if completion.scores else 0,
    )
    for number, prompt in enumerate(prompts):
        tokens = await context.count_prompt(prompt, number if len(prompts) > 1 else None)
        wanted = completion.new_tokens
        if config.context_policy == "stop" and tokens + wanted > model.context:
            raise ApiError(
                400,
                f"this model's context is {model.context} tokens, but {tokens + wanted} are asked "
                f"for: {tokens} in the prompt and {wanted} new ones; reduce either",
                code="context_length_exceeded",
                param="prompt",
            )
    return completion


def _check_unsupported(given: Any) -> None:
    n, best_of = given.n or 1, given.best_of
    if best_of is not None and best_of < n:
        raise ApiError(400, f"best_of is {best_of}, less than n, which is {n}", param="best_of")
    if best_of is not None and best_of > n and given.stream:
        raise ApiError(400, "best_of cannot be streamed; leave out one of them", param="best_of")
    if given.max_tokens == 0 and not given.echo:
        raise ApiError(400, "max_tokens can only be 0 with echo", param="max_tokens")
    if given.suffix is not None:
        why = "GPT-2 cannot write a text between two others; leave it out"
        raise ApiError(400, f"suffix: {why}", param="suffix")
    if given.stream_options is not None and not given.stream:
        raise ApiError(400, "stream_options need stream", param="stream_options")


def _prompts(prompt: str | list[Any] | None, end_of_text: int | None) -> list[Prompt]:
    """`end_of_text`: the token after which a text begins; not every model has one."""
    if prompt is None:
        return [END_OF_TEXT if end_of_text is None else (end_of_text,)]
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [tuple(prompt)]
    return [one if isinstance(one, str) else tuple(one) for one in prompt]


def _config(given: Any) -> GenerationConfig:
    """The options that OpenAI's fields mean. Unlike here, its top_k is off by default."""
    temperature = 1.0 if given.temperature is None else given.temperature
    greedy = temperature == 0
    stop = given.stop or []
    best_of = given.best_of or given.n or 1
    recorded = given.logprobs is not None or best_of > (given.n or 1)
    values: dict[str, Any] = {
        "decoding": "greedy" if greedy else "sampling",
        "max_new_tokens": DEFAULT_TOKENS if given.max_tokens is None else given.max_tokens or 1,
        "temperature": max(temperature, _LEAST_TEMPERATURE),
        "top_p": 1.0 if given.top_p is None else given.top_p,
        "top_k": 0,
        "num_return_sequences": 1 if greedy else best_of,
        "frequency_penalty": given.frequency_penalty or 0.0,
        "presence_penalty": given.presence_penalty or 0.0,
        "stop": [stop] if isinstance(stop, str) else stop,
        "logit_bias": [f"#{token}={bias}" for token, bias in (given.logit_bias or {}).items()],
        "seed": None if given.seed is None else given.seed % (MAX_SEED + 1),
        "logprobs": max(given.logprobs or 0, int(recorded)),
    }
    values |= {n: getattr(given, n) for n in extensions() if n in given.model_fields_set}
    try:
        config = GenerationConfig.from_mapping(values)
        config.check_together()
    except EngineError as error:
        raise of_engine_error(error) from error
    return config


def _answer(
    context: Context,
    completion: Completion,
    written: Sequence[Sequence[WrittenText]],
    scored: Sequence[Scored],
) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    for group, before in zip_longest(written, _told_of(context, completion, scored)):
        for text in completion.choices_of(_best(group, completion.n)):
            choices.append(_choice(context, completion, len(choices), text, before))
    return {**completion.head(), "choices": choices, "usage": _usage(written)}


def _best(group: Sequence[WrittenText], n: int) -> Sequence[WrittenText]:
    """The n with the highest mean log-probability of a token; of equal ones the first."""
    return sorted(group, key=_mean_logprob, reverse=True)[:n] if n < len(group) else group


def _mean_logprob(text: WrittenText) -> float:
    logprobs = [record.logprob for record in text.records if record is not None]
    return sum(logprobs) / len(logprobs)


def _choice(
    context: Context,
    completion: Completion,
    index: int,
    text: WrittenText,
    before: dict[str, Any] | None,
) -> dict[str, Any]:
    """`before`: the logprobs of the prompt, where they are told."""
    prompt = text.started.prompt if completion.given.echo else ""
    logprobs = None
    if completion.alternatives is not None:
        told = Logprobs(context.token_bytes, completion.alternatives, len(prompt))
        for token_id, record in zip(text.end.token_ids, text.records, strict=True):
            told.add(token_id, record)
        logprobs = told.up_to(len(text.end.text) + _beyond(text.end, before))
        if before is not None:
            logprobs = joined(before, logprobs)
    return {
        "index": index,
        "text": prompt + text.end.text,
        "logprobs": logprobs,
        "finish_reason": _reason(text.end),
        "seed": text.started.config.seed,
    }


def _told_of(
    context: Context, completion: Completion, scored: Sequence[Scored]
) -> list[dict[str, Any]]:
    """The logprobs of the prompts."""
    if completion.alternatives is None:
        return []
    return [of_prompt(context.token_bytes, completion.alternatives, one) for one in scored]


def _beyond(end: Finished | None, before: dict[str, Any] | None) -> int:
    """1 where the end of the text is told as a token: beside the prompt's logprobs, so that
    programs which count tokens find every one."""
    return int(before is not None and end is not None and end.reason == "end_of_text")


def _only_scored(context: Context, completion: Completion, scored: Sequence[Scored]) -> Response:
    told = _told_of(context, completion, scored)
    choices: list[dict[str, Any]] = [
        {
            "index": number * completion.n + again,
            "text": one.prompt,
            "logprobs": logprobs,
            "finish_reason": "length",
            "seed": None,
        }
        for number, (one, logprobs) in enumerate(zip_longest(scored, told))
        for again in range(completion.n)
    ]
    tokens = sum(len(one.token_ids) for one in scored)
    usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
    if not completion.given.stream:
        return json_response({**completion.head(), "choices": choices, "usage": usage})

    async def events() -> AsyncIterator[bytes]:
        for choice in choices:
            yield completion.message(choice)
        if completion.with_usage:
            yield sse({**completion.head(), "choices": [], "usage": usage})
        yield DONE

    return TextStream(events(), [])


def _reason(end: Finished) -> str:
    return _REASONS.get(end.reason, "length")


def _usage(written: Sequence[Sequence[WrittenText]]) -> dict[str, int]:
    prompt = sum(group[0].started.prompt_tokens for group in written)
    new = sum(len(text.end.token_ids) for group in written for text in group)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


async def _streamed(
    context: Context,
    request: Request,
    completion: Completion,
    jobs: list[list[Job]],
    scored: Sequence[Scored],
) -> Response:
    pieces = texts.merged([job for group in jobs for job in group])
    # Only now is the status known: a prompt that is refused is no stream.
    first = await texts.unless_gone(request.receive, anext(pieces))

    async def events() -> AsyncIterator[bytes]:
        stream = _Stream(context, completion, jobs, scored)
        try:
            for message in stream.messages(*first):
                yield message
            async for number, piece in pieces:
                for message in stream.messages(number, piece):
                    yield message
            written = stream.gathered.written()
            context.metrics.wrote([text for group in written for text in group])
            if completion.with_usage:
                yield sse({**completion.head(), "choices": [], "usage": _usage(written)})
        except ApiError as error:
            yield sse(error.body())
        yield DONE

    return TextStream(events(), jobs)


class _Stream:
    """The messages of a stream, from the pieces of its texts."""

    def __init__(
        self,
        context: Context,
        completion: Completion,
        jobs: list[list[Job]],
        scored: Sequence[Scored],
    ) -> None:
        self._before = _told_of(context, completion, scored)
        self.gathered = texts.Gathered(jobs)
        self._completion, self._context = completion, context
        count = sum(map(len, jobs))
        self._lengths = [0] * count
        self._logprobs: list[Logprobs | None] = [None] * count
        self._begun = [False] * count

    def messages(self, number: int, piece: texts.Piece) -> list[bytes]:
        """One for each choice that the piece belongs to; none where it holds nothing to tell."""
        self.gathered.take(number, piece)
        text = piece.text
        before = self._before[self.gathered.place(number)[0]] if self._before else None
        first = not self._begun[number] and piece.started is not None
        if first and piece.started is not None:
            self._begun[number] = True
            prompt = piece.started.prompt if self._completion.given.echo else ""
            if self._completion.alternatives is not None:
                self._logprobs[number] = Logprobs(
                    self._context.token_bytes, self._completion.alternatives, len(prompt)
                )
            text = prompt + text
        logprobs = self._told(number, piece.tokens, len(piece.text) + _beyond(piece.end, before))
        if first and before is not None and logprobs is not None:
            logprobs = joined(before, logprobs)
        if not (text or piece.end or (logprobs and logprobs["tokens"])):
            return []
        choice = {
            "text": text,
            "logprobs": logprobs,
            "finish_reason": _reason(piece.end) if piece.end else None,
        }
        return [
            self._completion.message({"index": index, **choice}) for index in self._indices(number)
        ]

    def _told(self, number: int, tokens: list[Token], length: int) -> dict[str, Any] | None:
        logprobs = self._logprobs[number]
        if logprobs is None:
            return None
        for token in tokens:
            logprobs.add(token.token_id, token.record)
        self._lengths[number] += length
        return logprobs.up_to(self._lengths[number])

    def _indices(self, number: int) -> list[int]:
        """The choices of a text: one, or all of its prompt; see Completion.choices_of."""
        if self._completion.config.num_return_sequences == self._completion.n:
            return [number]
        return list(range(number * self._completion.n, (number + 1) * self._completion.n))
