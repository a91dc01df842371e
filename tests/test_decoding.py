"""Generation as a state machine: stopping, truncation, cache reuse, timings, cancel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.config import GenerationConfig
from engine.context import fit_prompt
from engine.decoding import generate
from engine.errors import BackendError, PromptError
from engine.events import Finished, Prefill, Started, Token
from engine.generation import PREFILL_CHUNK
from engine.slots import SlotPool, common_prefix
from engine.tokenizer import Tokenizer
from tests.scripted import ScriptedBackend, model_info

GREEDY = GenerationConfig(decoding="greedy", max_new_tokens=5)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Tokenizer:
    return Tokenizer(tiny_model_dir)


def run(
    backend: ScriptedBackend, tokenizer: Tokenizer, prompt: str, config: GenerationConfig, **kw: Any
) -> list[Any]:
    return list(generate(backend, tokenizer, prompt, config, **kw))


def test_events_in_order_and_the_text_adds_up(tokenizer: Tokenizer) -> None:
    events = run(ScriptedBackend(), tokenizer, "The sun", GREEDY)
    started, *tokens, end = events
    assert isinstance(started, Started)
    assert [t.index for t in tokens] == [0, 1, 2, 3, 4]
    assert isinstance(end, Finished)
    assert end.reason == "length"
    assert end.token_ids == tuple(t.token_id for t in tokens)
    assert end.text == tokenizer.decode(end.token_ids)
    assert end.text.startswith("".join(t.text for t in tokens))
    assert end.timings.new_tokens == 5
    assert end.timings.prompt_tokens == len(tokenizer.encode("The sun"))
    assert 0 < end.timings.ttft_s <= end.timings.total_s


def test_a_seed_is_always_there_and_two_runs_draw_different_ones(tokenizer: Tokenizer) -> None:
    config = GenerationConfig(max_new_tokens=1)
    seeds = [run(ScriptedBackend(), tokenizer, "a", config)[0].config.seed for _ in range(2)]
    assert None not in seeds
    assert seeds[0] != seeds[1]
    assert run(ScriptedBackend(), tokenizer, "a", config.replace(seed=9))[0].config.seed == 9


def test_end_of_text_ends_the_text(tokenizer: Tokenizer) -> None:
    end_id = tokenizer.end_of_text
    assert end_id is not None
    plan = iter([65, 66, end_id])
    backend = ScriptedBackend(next_token=lambda held: next(plan))
    end = run(backend, tokenizer, "a", GREEDY)[-1]
    assert end.reason == "end_of_text"
    assert end.token_ids == (65, 66, end_id)
    assert end.text == tokenizer.decode([65, 66])


@pytest.mark.parametrize(
    ("context", "length"),
    [*((64, n) for n in (62, 63, 64, 65, 200)), *((1024, n) for n in (1023, 1024, 1025))],
)
def test_prompts_around_the_context(tokenizer: Tokenizer, context: int, length: int) -> None:
    """At least one token is always written, and what is dropped is said."""
    prompt = "z" * length  # "z" is a token of its own in the tiny vocabulary
    assert len(tokenizer.encode(prompt)) == length
    backend = ScriptedBackend(info=model_info(context=context))
    events = run(backend, tokenizer, prompt, GREEDY)
    started, end = events[0], events[-1]
    assert started.prompt_tokens + started.dropped_tokens == length
    if length < context:
        assert started.dropped_tokens == 0
        assert end.reason == "context"
        assert started.prompt_tokens + end.timings.new_tokens == context
    else:
        assert started.prompt_tokens == context - GREEDY.max_new_tokens
        assert end.reason == "length"


def test_at_least_half_of_the_context_is_kept() -> None:
    tokens = list(range(100))
    assert fit_prompt(tokens, 64, 1_000_000) == tokens[-32:]
    assert fit_prompt(tokens, 64, 1) == tokens[-63:]
    assert fit_prompt(tokens[:63], 64, 1000) == tokens[:63]
    assert fit_prompt([1, 2, 3], 1, 5) == [3]


@pytest.mark.parametrize("bad", ["", "\0", "\ud800"])
def test_bad_prompts(tokenizer: Tokenizer, bad: str) -> None:
    with pytest.raises(PromptError):
        run(ScriptedBackend(), tokenizer, bad, GREEDY)


def test_long_prompts_are_read_in_chunks_with_progress(tokenizer: Tokenizer) -> None:
    backend = ScriptedBackend(info=model_info(context=1000))
    events = run(backend, tokenizer, "z" * 600, GREEDY)
    done = [e.done for e in events if isinstance(e, Prefill)]
    assert done == [PREFILL_CHUNK, 2 * PREFILL_CHUNK]
    assert backend.run_tokens == 600 + 4


def test_cancel_keeps_what_was_written(tokenizer: Tokenizer) -> None:
    written: list[str] = []

    def enough() -> bool:
        return len(written) >= 3

    end = None
    config = GREEDY.replace(max_new_tokens=50)
    for event in generate(ScriptedBackend(), tokenizer, "a", config, cancelled=enough):
        if isinstance(event, Token):
            written.append(event.text)
        end = event
    assert isinstance(end, Finished)
    assert end.reason == "cancelled"
    assert len(end.token_ids) == 3


def test_a_continuation_reuses_the_cache(tokenizer: Tokenizer) -> None:
    backend = ScriptedBackend()
    pool = SlotPool(backend)
    first = run(backend, tokenizer, "zzzzzzzz", GREEDY, pool=pool)[-1]
    before = backend.run_tokens
    again = run(backend, tokenizer, "zzzzzzzz", GREEDY, pool=pool)[-1]
    assert again.token_ids == first.token_ids
    assert again.timings.cached_tokens == 7  # all but the one whose logits are needed
    assert backend.run_tokens - before == 1 + 4
    before = backend.run_tokens
    other = run(backend, tokenizer, "zzzzQ", GREEDY, pool=pool)[-1]
    assert other.timings.cached_tokens == 4
    assert backend.run_tokens - before == 1 + 4
    assert len(backend.held) == 1


def test_a_failed_pass_closes_its_slot(tokenizer: Tokenizer) -> None:
    def fail() -> None:
        raise BackendError("no")

    backend = ScriptedBackend(before_pass=fail)
    pool = SlotPool(backend)
    with pytest.raises(BackendError):
        run(backend, tokenizer, "zzzz", GREEDY, pool=pool)
    assert not backend.held
    backend.before_pass = lambda: None
    assert run(backend, tokenizer, "zzzz", GREEDY, pool=pool)[-1].reason == "length"


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([], [1]) == 0
    assert common_prefix([1, 2], [1, 2, 3]) == 2
