"""The options that name words or tokens, as sequences of token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from engine.errors import ConfigError, PromptError

Encode = Callable[[str], list[int]]
Sequence = tuple[int, ...]  # token ids, at least one

MAX_BIAS = 1000.0  # more than any logit of GPT-2: enough to force a token or to rule it out


def biased_sequences(
    entries: Iterable[str], encode: Encode | None, vocab_size: int | None
) -> dict[Sequence, float]:
    """The sequences of `logit_bias`, TEXT=NUMBER or #ID=NUMBER; of equal ones the last counts.

    A # that is not followed by digits alone begins a text. Raises ConfigError.
    """
    biases: dict[Sequence, float] = {}
    for entry in entries:
        text, equals, number = entry.rpartition("=")
        if not equals or not text:
            raise ConfigError(f"logit_bias must be TEXT=NUMBER or #ID=NUMBER, not {_short(entry)}")
        bias = _bias(number, entry)
        digits = text[1:]
        if text[0] == "#" and digits.isascii() and digits.isdigit():
            sequence: Sequence = (_token_id(digits),)
        else:
            sequence = _encoded("logit_bias", text, encode)
        _check("logit_bias", entry, sequence, vocab_size)
        biases[sequence] = bias
    return biases


def banned_sequences(
    words: Iterable[str],
    encode: Encode | None,
    vocab_size: int | None,
    end_of_text: int | None,
) -> tuple[Sequence, ...]:
    """The sequences of `banned_words`: each word as it stands and after a space.

    Raises ConfigError, also for the end of text, which transformers passes over in silence.
    """
    found: dict[Sequence, None] = {}
    for word in words:
        for text in (word, " " + word):
            sequence = _encoded("banned_words", text, encode)
            _check("banned_words", word, sequence, vocab_size)
            if sequence == (end_of_text,):
                raise ConfigError(
                    "banned_words cannot hold the end of text; min_new_tokens puts it off"
                )
            found[sequence] = None
    return tuple(found)


def _bias(number: str, entry: str) -> float:
    try:
        bias = float(number)
    except ValueError:
        bias = float("nan")
    if not -MAX_BIAS <= bias <= MAX_BIAS:  # NaN too
        raise ConfigError(
            f"logit_bias must end in a number from {-MAX_BIAS:g} to {MAX_BIAS:g}, "
            f"not {_short(entry)}"
        )
    return bias


def _token_id(digits: str) -> int:
    return int(digits) if len(digits) < 19 else 2**63 - 1  # beyond every vocabulary


def _encoded(option: str, text: str, encode: Encode | None) -> Sequence:
    if encode is None:
        raise ConfigError(
            f"{option}: a model's tokenizer is needed to look up {_short(text)}; load a model"
        )
    try:
        sequence = tuple(encode(text))
    except PromptError as error:
        raise ConfigError(f"{option}: {error}") from error
    if not sequence:
        raise ConfigError(f"{option}: {_short(text)} is no token to the model; remove it")
    return sequence


def _check(option: str, entry: str, sequence: Sequence, vocab_size: int | None) -> None:
    if vocab_size is not None and max(sequence) >= vocab_size:
        raise ConfigError(
            f"{option}: {_short(entry)} names a token outside the model's vocabulary; ids go "
            f"from 0 to {vocab_size - 1:,}"
        )


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 40 else shown[:37] + "..."
