"""What POST /v1/completions takes: OpenAI's fields, and the program's own options beside them.

https://platform.openai.com/docs/api-reference/completions, read in 2025. Options that OpenAI has
under the same or another name are OpenAI's; the others (top_k, repetition_penalty, ...) can be
given too, as clients do through `extra_body`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema, create_model

from app.server.schemas import Strict, number, option_field
from app.server.settings import ServerSettings
from engine.config import MAX_SEED, GenerationConfig

DEFAULT_TOKENS = 16
_BIAS = 100.0
# What OpenAI says in its own way, and what has no meaning here.
_OURS = {
    "max_new_tokens",
    "max_length",
    "num_return_sequences",
    "decoding",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "logit_bias",
    "logprobs",
    "presence_penalty",
    "frequency_penalty",
}

_TOKEN_ID: Any = number(int, 0, 2**31 - 1)
_NO_SUFFIX: Any = Annotated[Any, WithJsonSchema({"type": "null"})]  # the route says why


class StreamOptions(Strict):
    """How a stream is sent."""

    include_usage: bool | None = Field(
        None, description="Send the usage in a last message without choices."
    )
    include_obfuscation: bool | None = Field(None, description="Taken and ignored.")


def extensions() -> list[str]:
    """The program's options that a completion can be asked for beside OpenAI's."""
    return [
        name
        for name, option in GenerationConfig.options().items()
        if name not in _OURS and option.methods != ("beam",)
    ]


def completion_request(settings: ServerSettings) -> type[Strict]:
    """The model of a body."""
    texts = settings.max_texts
    some = Field(min_length=1, max_length=texts)
    tokens = Annotated[list[_TOKEN_ID], Field(min_length=1, max_length=settings.max_prompt_tokens)]
    text = Annotated[str, Field(min_length=1)]
    word = Annotated[str, Field(min_length=1, max_length=settings.max_word_chars)]
    words = Annotated[list[word], Field(max_length=settings.max_stop)]
    bias = Annotated[float, Field(ge=-_BIAS, le=_BIAS)]
    biases = Annotated[
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], bias],
        Field(max_length=settings.max_words),
    ]

    def bounded(kind: Any, low: float, high: float, default: Any, about: str) -> tuple[Any, Any]:
        return number(kind, low, high) | None, Field(default, description=about)

    most_logprobs = GenerationConfig.options()["logprobs"].maximum or 0
    fields: dict[str, Any] = {
        "model": (str | None, Field(None, description="A name that /v1/models lists.")),
        "prompt": (
            text | Annotated[list[text], some] | tokens | Annotated[list[tokens], some] | None,
            Field(
                None,
                description="A text, a list of texts, the ids of a text's tokens, or a list of "
                "such lists. Several are written in parallel. Without one a text is begun.",
            ),
        ),
        "max_tokens": bounded(
            int, 0, settings.max_tokens, DEFAULT_TOKENS, "New tokens at most; 0 only with echo."
        ),
        "temperature": bounded(float, 0, 2, 1.0, "0 takes the most probable token each time."),
        "top_p": bounded(float, 0, 1, 1.0, "Nucleus sampling."),
        "n": bounded(int, 1, texts, 1, "Texts for each prompt."),
        "best_of": bounded(
            int, 1, texts, None, "Write so many and return the n most probable, by token."
        ),
        "logprobs": bounded(
            int, 0, most_logprobs, None, "Log-probabilities of so many most probable tokens."
        ),
        "echo": (bool | None, Field(False, description="Begin the text with the prompt.")),
        "stop": (word | words | None, Field(None, description="The text ends before these.")),
        "seed": bounded(
            int, -MAX_SEED - 1, MAX_SEED, None, "The same seed gives the same text again."
        ),
        "logit_bias": (
            biases | None,
            Field(None, description="Token ids, as strings, and what is added to their logits."),
        ),
        "presence_penalty": bounded(
            float, -2, 2, 0.0, "Subtracted from the logits of all tokens of the new text."
        ),
        "frequency_penalty": bounded(
            float, -2, 2, 0.0, "Subtracted for each time that a token stands in the new text."
        ),
        "suffix": (_NO_SUFFIX, Field(None, description="GPT-2 writes no text between two others.")),
        "stream": (bool | None, Field(False, description="Send server-sent events.")),
        "stream_options": (StreamOptions | None, Field(None)),
        "user": (str | None, Field(None, description="Taken and ignored.")),
    }
    declared = GenerationConfig.options()
    for name in extensions():
        most = settings.max_words if name == "banned_words" else None
        fields[name] = option_field(declared[name], most, settings.max_word_chars)
    return create_model("CompletionRequest", __base__=Strict, **fields)
