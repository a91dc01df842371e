"""A window's state to test: with a model, with a text under way, with a text and its records."""

from __future__ import annotations

from app.window import intents
from app.window.state import AppState
from engine.events import (
    Finished,
    Loaded,
    ModelInfo,
    Started,
    Timings,
    Token,
)
from engine.step_record import Alternative, RuleEffect, StepRecord


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def model(name: str = "tiny", precision: str = "fp32", context: int = 16) -> ModelInfo:
    return ModelInfo(
        name, f"/m/{name}", "native", precision, 2, 1000, 2, 8, 2, context, 300, 4000, 4000, "ab",
        read_bytes=1_000_000,
    )  # fmt: skip


def timings(count: int, total_s: float) -> Timings:
    return Timings(prompt_tokens=3, new_tokens=count, ttft_s=0.1, total_s=total_s)


def ready(prompt: str = "The sun") -> AppState:
    state = AppState(prompt=prompt, clock=Clock())
    state.request_load()
    state.take_intents()
    state.bind_load(1)
    state.apply(Loaded(1, model()))
    return state


def start(state: AppState, job: int = 2, seed: int = 7) -> None:
    assert state.generate()
    [intent] = [i for i in state.take_intents() if isinstance(i, intents.Generate)]
    state.bind_generation(job)
    config = intent.config.replace(seed=seed)
    state.apply(Started(job, intent.prompt, config, model(), 3, 0))


def write(state: AppState, job: int, *texts: str) -> None:
    first = len(state.output.token_ids)
    for index, text in enumerate(texts, first):
        state.apply(Token(job, index, 50 + index, text, timings(index + 1, 0.1 * (index + 1))))


def record(token_id: int, *others: int) -> StepRecord:
    """`token_id` was the most probable token; a rule removed the last of the `others`."""
    ids = (token_id, *others)
    alternatives = tuple(
        Alternative(
            at,
            -1.0 - rank,
            None if others and at == others[-1] else -0.5 - rank,
            "top_k" if others and at == others[-1] else "",
        )
        for rank, at in enumerate(ids)
    )
    funnel = (RuleEffect("temperature", 300, 1.0), RuleEffect("top_k", 2, 0.9))
    return StepRecord(token_id, -1.0, -0.5, 0, 1.5, alternatives, funnel)


def recorded_text(state: AppState, job: int = 2) -> None:
    """Three tokens 50, 51, 52 with records, complete."""
    start(state, job)
    for index, text in enumerate((" sets", " on", " it")):
        made = record(50 + index, 60 + index, 70 + index)
        at = timings(index + 1, 0.1 * (index + 1))
        state.apply(Token(job, index, 50 + index, text, at, made))
    state.apply(Finished(job, "length", " sets on it", (50, 51, 52), timings(3, 0.3)))
    state.output.node = 33
