"""The reducer: events of jobs in, what the window shows of texts out."""

from __future__ import annotations

import math

import pytest

from app.window import intents
from app.window import state as st
from app.window.records import Level, Output, Progress
from app.window.state import AppState, GenerationStatus
from engine.config import GenerationConfig, LoadConfig
from engine.events import (
    Beams,
    Failed,
    Finished,
    Loaded,
    Prefill,
    Reread,
    Timings,
    Token,
)
from tests.state_support import Clock, model, ready, record, recorded_text, start, timings, write


def test_streaming_builds_text_spans_and_the_seed_shown() -> None:
    state = ready()
    start(state, seed=4711)
    assert state.generation is GenerationStatus.PREFILL
    assert state.last_seed == 4711
    state.apply(Prefill(2, 1, 3))
    assert state.prefill == (1, 3)
    write(state, 2, " sets", "", " on")
    assert state.generation is GenerationStatus.STREAMING
    assert state.output.full_text == "The sun sets on"
    assert state.output.spans == [(0, 5), (5, 5), (5, 8)]
    state.apply(Finished(2, "length", " sets on\ufffd", (50, 51, 52), timings(3, 0.3)))
    assert state.generation is GenerationStatus.IDLE
    assert state.output.text == " sets on\ufffd"
    assert state.output.spans[-1] == (5, 9)
    assert state.output.reason == "length"
    assert state.output.timings.total_s == 0.3


def test_live_rate_is_that_of_the_last_tokens() -> None:
    state = ready()
    start(state)
    write(state, 2, *"abcd")
    assert abs(state.live_rate - 10.0) < 1e-6
    assert len(state.series) == 3
    for index in range(4, 20):
        state.apply(Token(2, index, 1, "x", timings(index + 1, 0.4 + (index - 3) * 0.05)))
    assert abs(state.live_rate - 20.0) < 1e-6


def test_the_live_rate_of_tokens_that_come_in_bursts_is_their_mean() -> None:
    state = ready()
    start(state)
    for index in range(400):  # eight tokens every 8 ms, a microsecond apart
        at = 0.008 * (index // 8) + 1e-6 * (index % 8)
        state.apply(Token(2, index, 1, "x", timings(index + 1, at)))
    assert all(900 < rate < 1100 for rate in state.series)
    assert 10 <= len(state.series) <= 0.4 / st.SAMPLE_S


def test_weights_read_are_not_shown_until_the_rate_has_settled() -> None:
    state = ready()
    start(state)
    for decode_s, rate in ((0.001, 0.0), (0.2, 50e6)):
        at = Timings(prompt_tokens=3, new_tokens=11, decode_s=decode_s, total_s=decode_s)
        state.apply(Token(2, 10, 1, "x", at))
        assert abs(state.read_rate - rate) < 1
    at = Timings(prompt_tokens=3, new_tokens=11, decode_s=0.01, total_s=0.01)
    state.apply(Finished(2, "length", "xx", (1, 1), at))
    assert state.read_rate == 1e9  # a short text's whole is all there will be


def test_events_of_a_replaced_job_never_reach_the_view() -> None:
    state = ready()
    start(state, job=2)
    write(state, 2, " old")
    state.edit_prompt("A new prompt")
    start(state, job=3)
    assert not state.apply(Token(2, 1, 9, " stale", timings(2, 1.0)))
    assert not state.apply(Finished(2, "cancelled", " old stale", (1, 2), timings(2, 1.0)))
    assert not state.apply(Failed(2, "stale failure"))
    write(state, 3, " new")
    assert state.output.full_text == "A new prompt new"
    assert state.generation is GenerationStatus.STREAMING
    assert state.banners == []


def test_replacing_stops_the_running_job_first() -> None:
    state = ready()
    start(state)
    state.edit_prompt("Another")
    assert state.generate()
    assert [type(i) for i in state.take_intents()] == [intents.StopGeneration, intents.Generate]
    assert not state.apply(Token(2, 0, 1, "late", timings(1, 0.1)))


def test_second_enter_on_the_same_prompt_does_nothing() -> None:
    state = ready()
    assert state.generate()
    assert not state.generate()
    assert len(state.take_intents()) == 1


def test_stop_keeps_the_partial_text() -> None:
    state = ready()
    start(state)
    write(state, 2, " sets", " on")
    assert state.stop()
    assert state.stop()  # the second Esc adds nothing
    assert state.take_intents() == [intents.StopGeneration()]
    state.apply(Finished(2, "cancelled", " sets on", (50, 51), timings(2, 0.2)))
    assert state.output.full_text == "The sun sets on"
    assert state.output.reason == "cancelled"
    assert not state.running
    assert not state.stop()


def test_failure_while_streaming_keeps_the_text_and_frees_the_button() -> None:
    state = ready()
    start(state)
    write(state, 2, " sets")
    state.apply(Failed(2, "out of memory; choose int8", "OutOfMemoryError"))
    assert state.output.full_text == "The sun sets"
    assert state.output.reason == "failed"
    assert not state.running
    assert state.banners[0].kind == "OutOfMemoryError"


def test_failure_before_the_start_keeps_the_text_shown_before() -> None:
    state = ready()
    start(state)
    write(state, 2, " sets")
    state.apply(Finished(2, "length", " sets", (50,), timings(1, 0.1)))
    state.edit_prompt("\x00")
    state.generate()
    state.bind_generation(3)
    state.apply(Failed(3, "the prompt is empty", "PromptError"))
    assert state.output.full_text == "The sun sets"
    assert state.output.reason == "length"


def test_a_prompt_sent_while_the_model_loads_waits_for_it() -> None:
    state = AppState(prompt="The sun", clock=Clock())
    state.request_load()
    state.take_intents()
    state.bind_load(1)
    assert state.generate()
    assert state.generation is GenerationStatus.WAITING
    assert state.take_intents() == []
    state.apply(Loaded(1, model()))
    [intent] = state.take_intents()
    assert isinstance(intent, intents.Generate) and intent.prompt == "The sun"
    assert state.running


def test_a_waiting_prompt_can_be_given_up_or_falls_with_the_load() -> None:
    state = AppState(prompt="The sun", clock=Clock())
    state.request_load()
    state.bind_load(1)
    state.take_intents()
    state.generate()
    state.stop()
    assert not state.running
    state.generate()
    state.apply(Failed(1, "broken"))
    assert not state.running
    assert state.take_intents() == []


def test_loading_stops_the_text_under_way() -> None:
    state = ready()
    start(state)
    state.request_load(LoadConfig(model="other"))
    assert [type(i) for i in state.take_intents()] == [intents.StopGeneration, intents.LoadModel]
    state.apply(Finished(2, "cancelled", "", (), Timings()))
    assert not state.running


def test_again_draws_a_fresh_seed_even_where_one_is_fixed() -> None:
    state = ready()
    state.decoding = GenerationConfig(seed=5)
    start(state)
    assert state.again()
    *_, intent = state.take_intents()
    assert isinstance(intent, intents.Generate) and intent.config.seed is None
    assert state.decoding.seed == 5


def test_continue_makes_the_output_the_prompt_and_names_its_parent() -> None:
    state = ready()
    start(state)
    write(state, 2, " sets")
    assert not state.continue_from_here()  # not in the middle
    state.apply(Finished(2, "length", " sets", (50,), timings(1, 0.1)))
    state.output.node = 33
    version = state.prompt_version
    assert state.continue_from_here()
    [intent] = state.take_intents()
    assert isinstance(intent, intents.Generate)
    assert (intent.prompt, intent.parent) == ("The sun sets", 33)
    assert state.prompt == "The sun sets" and state.prompt_version == version + 1


def test_restore_brings_text_settings_and_seed_and_stops_what_runs() -> None:
    state = ready()
    start(state)
    config = GenerationConfig(temperature=0.3, seed=99)
    state.restore(Output(prompt="Once", text=" upon", config=config, reason="length"))
    assert state.take_intents() == [intents.StopGeneration()]
    assert not state.apply(Token(2, 0, 1, "late", timings(1, 0.1)))
    assert state.output.full_text == "Once upon"
    assert (state.prompt, state.decoding, state.last_seed) == ("Once", config, 99)


def test_reuse_seed() -> None:
    state = ready()
    state.reuse_seed()
    assert state.decoding.seed is None
    start(state, seed=12)
    state.reuse_seed()
    assert state.decoding.seed == 12


def test_overflow_counts_what_the_context_cannot_hold() -> None:
    state = ready()
    assert state.overflow == 0
    state.prompt_tokens = 15
    assert state.overflow == 0  # 15 + the first new token fill the context of 16
    state.prompt_tokens = 18
    state.decoding = GenerationConfig(max_new_tokens=4)
    assert state.overflow == 6  # 12 stay, so that 4 can follow


def test_slow_prefill_and_eta() -> None:
    state = ready()
    start(state)
    assert not state.slow_prefill()
    clock = state.clock
    assert isinstance(clock, Clock)
    clock.now += 0.31
    assert state.slow_prefill()
    progress = Progress(1, "x", "reading", 0.25, started=10.0)
    assert progress.eta(10.1) is None
    assert progress.eta(12.0) == 6.0


def test_the_same_message_is_one_banner_and_old_ones_give_way() -> None:
    state = AppState()
    state.notify(Level.ERROR, "same")
    state.notify(Level.ERROR, "same")
    assert len(state.banners) == 1
    for index in range(10):
        state.notify(Level.WARNING, f"message {index}")
    assert len(state.banners) == st.MAX_BANNERS
    assert state.banners[-1].message == "message 9"


def test_why_not_generate() -> None:
    state = AppState()
    assert "Type" in state.why_not_generate
    state.edit_prompt("x")
    assert "Load a model" in state.why_not_generate
    assert not state.generate() and not state.again() and state.take_intents() == []


def test_records_lie_beside_their_tokens() -> None:
    state = ready()
    recorded_text(state)
    output = state.output
    assert [r.token_id for r in output.records if r] == output.token_ids and output.recorded
    assert [output.token_at(at) for at in (0, 4, 5, 10, 11)] == [0, 0, 1, 2, None]


def test_a_branch_keeps_what_stands_before_it_and_changes_one_token() -> None:
    state = ready()
    recorded_text(state)
    before, config = state.output, state.output.config
    state.edit_prompt("Something else")  # the branch is of the text, not of what is typed since
    assert state.branch(1, 61)
    [intent] = state.take_intents()
    assert isinstance(intent, intents.Generate)
    assert (intent.prompt, intent.config, intent.parent) == ("The sun", config, 33)
    assert intent.config.seed == 7 and intent.written == (50, 61)
    first, second = intent.written_records
    assert first == before.records[0] and second is not None
    assert (second.token_id, second.rank, second.logprob) == (61, 1, -2.0)
    assert second.final_logprob == -1.5
    assert second.alternatives == record(51, 61, 71).alternatives
    assert state.running and state.prompt == "Something else"


def test_a_branch_to_what_a_rule_had_removed_says_that_it_could_not_be_drawn() -> None:
    state = ready()
    recorded_text(state)
    assert state.branch(0, 70)
    [intent] = state.take_intents()
    assert isinstance(intent, intents.Generate)
    [only] = intent.written_records
    assert only is not None and only.final_logprob == -math.inf and only.rank == 2


def test_an_alternative_that_no_record_knows_is_refused() -> None:
    state = ready()
    recorded_text(state)
    with pytest.raises(ValueError, match="no alternative"):
        state.branch(0, 999)
    assert state.take_intents() == []


def test_only_the_model_that_wrote_a_text_goes_on_from_its_middle() -> None:
    state = ready()
    recorded_text(state)
    state.request_load(LoadConfig(model="other"))
    state.bind_load(9)
    state.apply(Loaded(9, model("other")))
    state.take_intents()
    assert "tiny fp32" in state.why_not_branch
    assert not state.branch(0, 60) and not state.go_on_from(0) and state.take_intents() == []


def test_a_branch_while_the_text_is_still_written_stops_it_first() -> None:
    state = ready()
    start(state)
    at = timings(1, 0.1)
    state.apply(Token(2, 0, 50, " sets", at, record(50, 60)))
    assert state.branch(0, 60)
    assert [type(i) for i in state.take_intents()] == [intents.StopGeneration, intents.Generate]


def test_going_on_from_a_token_keeps_the_seed_and_takes_the_settings_of_now() -> None:
    state = ready()
    recorded_text(state)
    state.decoding = GenerationConfig(temperature=0.3, max_new_tokens=5)
    assert state.go_on_from(1)
    [intent] = state.take_intents()
    assert isinstance(intent, intents.Generate)
    assert intent.written == (50, 51) and len(intent.written_records) == 2
    assert intent.config == GenerationConfig(temperature=0.3, max_new_tokens=7, seed=7)
    assert state.go_on_from(0, fresh_seed=True)
    *_, again = state.take_intents()
    assert isinstance(again, intents.Generate) and again.config.seed is None


def test_a_branch_of_one_text_of_several_draws_that_texts_numbers() -> None:
    state = ready()
    recorded_text(state)
    state.output.sequence = 3
    state.output.config = GenerationConfig(seed=7, num_return_sequences=4)
    assert state.branch(0, 60)
    [intent] = state.take_intents()
    assert isinstance(intent, intents.Generate) and intent.sequence == 3
    assert intent.config.num_return_sequences == 1


def test_what_the_model_no_longer_sees_is_known_by_character() -> None:
    state = ready()
    start(state)
    write(state, 2, " a", " b", " c", " d")
    assert state.output.unseen == (0, 0)
    state.apply(Reread(2, 0, 5))  # 3 tokens of the prompt and 2 of the text
    assert state.output.unseen == (0, 4) and state.output.seen_tokens == (0, 2)
    state.apply(Reread(2, 4, 6))  # the first token of the text is kept
    assert state.output.unseen == (2, 6) and state.output.seen_tokens == (4, 1)
    assert state.generation is GenerationStatus.STREAMING


def test_a_stop_string_is_cut_off_with_its_tokens_part_of_the_text() -> None:
    state = ready()
    start(state)
    write(state, 2, " sets", " on END")
    state.apply(Finished(2, "stop", " sets on", (50, 51, 52), timings(3, 0.3)))
    assert state.output.text == " sets on" and state.output.spans == []
    start(state, 3)
    write(state, 3, " sets", " on END")
    state.apply(Finished(3, "stop", " sets on", (50, 51), timings(2, 0.3)))
    assert state.output.spans == [(0, 5), (5, 8)]


def test_beams_are_shown_while_they_are_sought() -> None:
    state = ready()
    start(state)
    state.apply(Beams(2, (" sets", " rises"), (-1.0, -2.0), 2, timings(2, 0.2)))
    assert state.generation is GenerationStatus.STREAMING and state.output.text == " sets"
    state.apply(Finished(2, "length", " rises", (9, 8), timings(2, 0.2), -0.5))
    assert state.output.text == " rises" and state.output.token_ids == [9, 8]
    assert not state.running


def test_the_tokens_of_the_best_beam_take_the_place_of_the_preview() -> None:
    state = ready()
    start(state)
    state.apply(Beams(2, (" sets on", " rises"), (-1.0, -2.0), 2, timings(2, 0.2)))
    version = state.output_version
    write(state, 2, " ri", "ses")
    assert state.output.text == " rises" and state.output_version > version
    state.apply(Finished(2, "length", " rises", (50, 51), timings(2, 0.2), -0.5))
    assert state.output.text == " rises" and state.output.spans == [(0, 3), (3, 6)]
