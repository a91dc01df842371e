"""Text to token ids and back, read straight from a model folder by the `tokenizers` library.

GPT-2's tokens are pieces of bytes, so one character may span several tokens: `StreamDecoder`
holds incomplete characters back instead of showing replacement marks.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError, PromptError

_LONG_CHARS = 2000  # from here on what `encode` gains beside the batch no longer counts
_HALF_A_PAIR = "the text holds half of a surrogate pair, which is no character; remove it"


@cache
def _byte_of_symbol() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes (Radford et al. 2019, `bytes_to_unicode`), inverted."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in kept}
    rest = [b for b in range(256) if b not in set(kept)]
    table |= {chr(0x100 + i): b for i, b in enumerate(rest)}
    return table


class Tokenizer:
    """A byte-level BPE. Safe to use from any thread."""

    def __init__(self, folder: Path, end_of_text: int | None = None) -> None:
        """Raises CheckpointError where the folder's tokenizer is missing or damaged."""
        self._inner = _open(folder)
        self.vocab_size: int = self._inner.get_vocab_size(with_added_tokens=True)
        self.end_of_text = end_of_text
        if end_of_text is None:
            self.end_of_text = self._inner.token_to_id("<|endoftext|>")
        # Added tokens are written as they are, not in GPT-2's stand-ins for bytes.
        self._bytes = {  # of tokens that were asked for, and of those
            token_id: b"" if token.special else token.content.encode()
            for token_id, token in self._inner.get_added_tokens_decoder().items()
        }
        if self.end_of_text is not None:
            self._bytes[self.end_of_text] = b""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; PromptError where it is not valid Unicode."""
        if len(text) > _LONG_CHARS:  # in a batch no other thread has to wait for it
            return self.encode_batch([text])[0]
        try:
            return list(self._inner.encode(text, add_special_tokens=False).ids)
        except (UnicodeEncodeError, TypeError) as error:
            raise PromptError(_HALF_A_PAIR) from error

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode` of each text, on all cores."""
        try:
            found = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise PromptError(_HALF_A_PAIR) from error
        return [encoded.ids for encoded in found]

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides how a text is encoded."""
        whole = f"{self.end_of_text}\n{self._inner.to_str()}"
        return hashlib.sha256(whole.encode()).hexdigest()

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; nothing for special ones and ids beyond the vocabulary."""
        known = self._bytes.get(token_id)
        if known is not None:
            return known
        symbol = self._inner.id_to_token(token_id)
        if symbol is None:
            return b""
        table = _byte_of_symbol()
        if all(c in table for c in symbol):
            spelt = bytes(table[c] for c in symbol)
        else:
            spelt = str(symbol).encode()
        self._bytes[token_id] = spelt
        return spelt

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of the ids; bytes that form no character become U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", "replace")


class StreamDecoder:
    """Decodes a stream of ids; the pieces put together equal `Tokenizer.decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Text that is complete now; empty while a character is still missing bytes."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left: U+FFFD for a character that never became complete, else nothing."""
        return self._decoder.decode(b"", True)


def _open(folder: Path) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers import Tokenizer as Inner
    from tokenizers.models import BPE

    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Inner.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            return tokenizer
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            vocab, merges = BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
            return ByteLevelBPETokenizer(vocab, merges)._tokenizer
    except Exception as error:  # the library raises plain Exception for damaged files
        raise CheckpointError(
            f"the tokenizer in {folder} is damaged ({error}); fetch the model again"
        ) from error
    raise CheckpointError(
        f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt"
    )


def check_ids(token_ids: Sequence[int], vocab_size: int) -> None:
    """PromptError where a model with `vocab_size` embeddings cannot read these ids of a text."""
    if not token_ids:
        raise PromptError("the model's tokenizer finds no tokens in the text; type another one")
    if max(token_ids) >= vocab_size:
        raise PromptError(
            f"the text holds token {max(token_ids)}, but the model knows only {vocab_size}: its "
            "tokenizer does not fit its weights; change the text, or fetch the model again"
        )


def read_prompt(tokenizer: Tokenizer, prompt: str | Sequence[int]) -> tuple[list[int], str]:
    """The tokens of a prompt, and its text; errors as of `clean_prompt`."""
    if isinstance(prompt, str):
        return tokenizer.encode(clean_prompt(prompt)), prompt
    return list(prompt), tokenizer.decode(prompt)


def clean_prompt(text: str) -> str:
    """The prompt, or PromptError where it is empty or not plain Unicode text."""
    if not text:
        raise PromptError("the prompt is empty; type a beginning for the model to continue")
    if "\0" in text:
        raise PromptError("the prompt holds a NUL character, which is no text; remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise PromptError(
            "the prompt holds half of a surrogate pair, which is no character; remove it"
        ) from None
    return text
