"""Branches through the whole program but the drawing: state, session, worker, engine, history."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.window.background import Background
from app.window.past import Past
from app.window.records import Output
from app.window.session import Session
from app.window.state import AppState
from engine.config import GenerationConfig, LoadConfig
from engine.history import HistoryStore, open_history
from engine.recorder import HistoryRecorder
from engine.worker import Worker

CONFIG = GenerationConfig(max_new_tokens=12, top_k=20, seed=3, logprobs=5)


class Program:
    """A window without a window; `settle` ticks until a condition holds."""

    def __init__(self, store: HistoryStore) -> None:
        self.woken = threading.Event()
        self.background = Background(self.woken.set)
        self.recorder = HistoryRecorder(store, flush_s=0.01)
        self.worker = Worker(observers=[self.recorder.observe], wake=self.woken.set)
        self.worker.start()
        self.store = store
        self.state = AppState(prompt="a b c", decoding=CONFIG)
        self.session = Session(self.state, self.worker, self.background, recorder=self.recorder)
        self.past = Past(store, self.background, self.session.report)

    def settle(self, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while True:
            self.session.tick()
            if holds():
                return
            assert time.monotonic() < deadline and self.state.banners == [], self.state.banners
            self.woken.wait(0.01)
            self.woken.clear()

    def written(self) -> Output:
        """The text that was asked for last, complete and in the history."""
        self.settle(lambda: not self.state.running and self.state.output.node is not None)
        assert self.recorder.flush()
        return self.state.output

    def close(self) -> None:
        self.worker.close()
        self.recorder.close()
        self.background.close()


@pytest.fixture
def program(tiny_model_dir: Path) -> Iterator[Program]:
    with open_history() as store:
        program = Program(store)
        program.state.request_load(LoadConfig(model=str(tiny_model_dir), threads=1))
        program.settle(lambda: program.state.model is not None)
        assert program.state.generate()
        yield program
        program.close()


def alternative(output: Output, index: int) -> int:
    record = output.record(index)
    assert record is not None
    return next(a.token_id for a in record.alternatives if a.token_id != record.token_id)


def test_going_on_from_a_token_writes_what_was_written_there(program: Program) -> None:
    whole = program.written()
    assert len(whole.token_ids) == 12
    assert program.state.go_on_from(4)
    again = program.written()
    assert again is not whole and len(again.token_ids) == 5 + 12
    assert again.token_ids[:12] == whole.token_ids and again.text.startswith(whole.text)
    for mine, before in zip(again.records, whole.records, strict=False):
        assert mine is not None and before is not None and mine.rank == before.rank
        assert mine.logprob == pytest.approx(before.logprob, abs=1e-9)


def test_a_branch_is_a_sibling_and_one_from_the_history_is_the_same(program: Program) -> None:
    whole = program.written()
    other = alternative(whole, 6)
    assert program.state.branch(6, other)
    branch = program.written()
    assert branch.token_ids[:7] == [*whole.token_ids[:6], other] and len(branch.token_ids) == 12
    changed = branch.record(6)
    assert changed is not None and changed.token_id == other and changed.rank > 0
    store = program.store
    assert branch.node is not None and whole.node is not None
    assert store.get(branch.node).parent == store.get(whole.node).parent

    assert program.state.undo() and program.state.output is whole
    program.past.select(store.get(whole.node))
    program.settle(lambda: program.past.selected_output() is not None)
    restored = program.past.selected_output()
    assert restored is not None and restored.records == whole.records
    program.state.restore(restored)
    program.settle(lambda: restored.spans == whole.spans)
    assert program.state.branch(6, other)
    again = program.written()
    assert again.token_ids == branch.token_ids and again.recorded


def test_an_edited_text_goes_on_from_its_own_node(program: Program) -> None:
    whole = program.written()
    assert program.state.begin_edit()
    program.state.editing = " x y"
    assert program.state.continue_from_here()
    continued = program.written()
    assert continued.prompt == "a b c x y"
    assert continued.node is not None and whole.node is not None
    path = program.store.path_to_root(continued.node)
    assert [(node.kind, node.text) for node in path] == [
        ("prompt", "a b c"),
        ("edit", " x y"),
        ("generation", continued.text),
    ]
    assert program.state.undo() and program.state.undo() and program.state.output is whole
