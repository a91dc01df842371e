"""The state with several texts at once: those of one request, and those of a duel."""

from __future__ import annotations

from app.window.intents import Generate, RunDuel, StopDuel, StopGeneration
from app.window.records import Output
from app.window.state import AppState
from engine.config import GenerationConfig
from engine.events import Cancelled, Finished, Loaded, Started, Timings, Token
from tests.window.fakes import tiny_model


def ready(prompt: str = "The sun") -> AppState:
    state = AppState(prompt=prompt)
    state.request_load()
    state.take_intents()
    state.bind_load(1)
    state.apply(Loaded(1, tiny_model()))
    return state


SEVERAL = GenerationConfig(seed=5, num_return_sequences=2)


def begun_side_by_side(config: GenerationConfig = SEVERAL) -> AppState:
    """Two texts of one request under way, by jobs 11 and 12."""
    state = ready()
    state.decoding = config
    assert state.generate()
    state.take_intents()
    state.bind_generation(11, 12)
    for job in (11, 12):
        state.apply(Started(job, "The sun", config, tiny_model(), 2, 0, sequence=job - 11))
    return state


def test_several_texts_run_until_the_last_has_ended() -> None:
    state = begun_side_by_side()
    for job in (11, 12):
        state.apply(Token(job, 0, 5, f" by {job}", Timings(new_tokens=1)))
    assert [lane.text for lane in state.lanes] == [" by 11", " by 12"]
    assert state.output.text == " by 11"
    state.apply(Finished(11, "end_of_text", " by 11", (5,), Timings(new_tokens=1)))
    assert state.running
    assert state.stop() and state.take_intents() == [StopGeneration()]
    state.apply(Finished(12, "cancelled", " by 12", (5,), Timings(new_tokens=1)))
    assert not state.running


def test_one_of_several_is_kept_and_the_others_are_stopped() -> None:
    state = begun_side_by_side()
    state.apply(Token(12, 0, 6, " second", Timings(new_tokens=1)))
    state.apply(Finished(12, "length", " second", (6,), Timings(new_tokens=1)))
    state.keep(state.lanes.lanes[1])
    assert state.output.text == " second" and not state.running and not state.lanes.lanes
    assert state.take_intents() == [StopGeneration()]
    assert not state.apply(Token(11, 0, 5, " late", Timings(new_tokens=1)))
    assert state.output.text == " second"


def test_another_request_takes_the_lanes_away_from_the_jobs_before() -> None:
    state = begun_side_by_side()
    assert state.again()
    assert [type(intent) for intent in state.take_intents()] == [StopGeneration, Generate]
    assert len(state.lanes) == 2 and not state.apply(Token(12, 0, 6, " late", Timings()))
    state.decoding = GenerationConfig()
    state.bind_generation(21, 22)
    state.again()
    assert not state.lanes.lanes  # one text needs none
    state.bind_generation(31)
    assert not state.apply(Token(21, 0, 6, " late", Timings()))


def test_a_text_of_the_history_takes_the_place_of_several() -> None:
    state = begun_side_by_side()
    state.restore(Output(prompt="Old", text=" text"))
    assert not state.lanes.lanes and not state.running


def test_a_duel_runs_beside_the_text_and_stops_by_itself() -> None:
    state = ready("")
    wanted = [("Greedy", GenerationConfig(decoding="greedy")), ("Top-k", GenerationConfig())]
    assert not state.start_duel(wanted) and state.why_not_duel == "Type a beginning first."
    state.set_prompt("The sun")
    assert state.start_duel(wanted)
    assert state.take_intents() == [RunDuel("The sun", tuple(config for _, config in wanted))]
    state.duel.bind([7, 8])
    state.apply(Started(8, "The sun", wanted[1][1], tiny_model(), 2, 0))
    state.apply(Token(8, 0, 5, " sets", Timings(new_tokens=1)))
    assert [lane.text for lane in state.duel] == ["", " sets"]
    assert not state.running and not state.output.text
    assert state.stop_duel() and state.stop_duel()
    assert state.take_intents() == [StopDuel()]  # once
    state.apply(Cancelled(7))
    state.apply(Finished(8, "cancelled", " sets", (5,), Timings(new_tokens=1)))
    assert not state.duel.running and not state.stop_duel()


def test_a_new_duel_or_a_load_stops_the_one_before() -> None:
    state = ready()
    wanted = [("Greedy", GenerationConfig(decoding="greedy"))]
    state.start_duel(wanted)
    state.duel.bind([7])
    state.start_duel(wanted)
    assert not state.apply(Token(7, 0, 5, " late", Timings()))
    state.take_intents()
    state.request_load()
    assert StopDuel() in state.take_intents()
    assert state.why_not_duel == "The model is being loaded." and not state.start_duel(wanted)


def test_options_that_contradict_each_other_are_refused_before_they_are_tried() -> None:
    state = ready()
    state.decoding = GenerationConfig(decoding="greedy", num_return_sequences=2)
    assert "greedy writes the same text" in state.why_not_generate
    assert not state.generate() and not state.take_intents()
    assert not state.why_not_duel  # each of its texts is one
