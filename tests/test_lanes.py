"""Texts side by side as data: every event reaches its own lane only, and partings are found."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.window.lanes import Lane, Lanes, LaneStatus
from engine.config import GenerationConfig
from engine.events import (
    Beams,
    Cancelled,
    Failed,
    Finished,
    Prefill,
    Started,
    Timings,
    Token,
)
from engine.step_record import StepRecord
from engine.text_statistics import measure
from tests.window.fakes import tiny_model

CONFIG = GenerationConfig(seed=7)
TIMINGS = Timings(new_tokens=5, decode_s=0.5, total_s=1.0)


def lanes_of(count: int, first_job: int = 1) -> Lanes:
    lanes = Lanes()
    lanes.begin("The sun", [(str(i + 1), CONFIG) for i in range(count)])
    lanes.bind(range(first_job, first_job + count))
    return lanes


def start(lanes: Lanes, lane: Lane) -> None:
    assert lane.job is not None
    lanes.apply(Started(lane.job, "The sun", CONFIG, tiny_model(), 2, 0, sequence=lane.number))


def record(token: int, logprob: float) -> StepRecord:
    return StepRecord(token, logprob, logprob, 0, 1.0, (), ())


def write(lanes: Lanes, lane: Lane, tokens: Sequence[int], texts: Sequence[str] = ()) -> None:
    assert lane.job is not None
    first = len(lane.output.token_ids)
    for i, token in enumerate(tokens):
        text = texts[i] if texts else f" w{token}"
        lanes.apply(Token(lane.job, first + i, token, text, TIMINGS))


def finish(lanes: Lanes, lane: Lane, reason: str = "length") -> None:
    assert lane.job is not None
    output = lane.output
    lanes.apply(Finished(lane.job, reason, output.text, tuple(output.token_ids), TIMINGS))


def test_lanes_stream_side_by_side_each_its_own() -> None:
    lanes = lanes_of(2)
    one, two = lanes
    assert lanes.running and one.status is LaneStatus.WAITING
    start(lanes, one)
    start(lanes, two)
    lanes.apply(Prefill(2, 1, 2))
    assert (one.prefill, two.prefill) == (None, (1, 2))
    write(lanes, two, [5, 6])
    write(lanes, one, [5])
    assert (one.text, two.text) == (" w5", " w5 w6")
    assert (one.tokens, two.tokens, two.prefill) == (1, 2, None)
    assert two.rate == pytest.approx(8.0)
    finish(lanes, one, "end_of_text")
    assert lanes.running and one.ended and one.output.reason == "end_of_text"
    finish(lanes, two)
    assert not lanes.running


def test_events_of_replaced_jobs_change_nothing() -> None:
    lanes = lanes_of(2)
    lanes.begin("Another", [("1", CONFIG), ("2", CONFIG)])
    stray = Token(1, 0, 5, "late", TIMINGS)
    assert not lanes.apply(stray)  # not bound yet
    lanes.bind([8, 9])
    assert not lanes.apply(stray)
    assert [lane.text for lane in lanes] == ["", ""]


def test_given_up_lanes_take_nothing_more_and_keep_their_text() -> None:
    lanes = lanes_of(2)
    start(lanes, lanes.lanes[0])
    write(lanes, lanes.lanes[0], [5])
    lanes.give_up()
    assert not lanes.running
    assert [lane.output.reason for lane in lanes] == ["cancelled", "cancelled"]
    assert not lanes.apply(Token(1, 1, 6, "more", TIMINGS))
    assert lanes.lanes[0].text == " w5"


def test_one_lane_fails_or_is_cancelled_alone() -> None:
    lanes = lanes_of(3)
    for lane in lanes:
        start(lanes, lane)
    lanes.apply(Failed(2, "no room", "OutOfMemoryError"))
    lanes.apply(Cancelled(3))
    one, two, three = lanes
    assert (two.status, two.message, two.output.reason) == (LaneStatus.FAILED, "no room", "failed")
    assert (three.status, three.output.reason) == (LaneStatus.DONE, "cancelled")
    assert one.status is LaneStatus.PREFILL and lanes.running


def test_beam_search_shows_its_best_text_until_the_result() -> None:
    lanes = lanes_of(2)
    best, second = lanes
    start(lanes, best)
    start(lanes, second)
    lanes.apply(Beams(1, (" a b", " a c"), (-1.0, -2.0), 2, TIMINGS))
    version = best.version
    assert (best.text, best.tokens) == (" a b", 2)
    lanes.apply(Beams(1, (" a c", " a b"), (-1.0, -2.0), 3, TIMINGS))
    assert best.text == " a c" and best.version > version
    lanes.apply(Finished(1, "length", " a c d", (1, 3, 4), TIMINGS, score=-0.5))
    lanes.apply(Finished(2, "length", " a b d", (1, 2, 4), TIMINGS, score=-0.7))
    assert (best.text, best.tokens, best.score) == (" a c d", 3, -0.5)
    assert (second.text, second.score, lanes.running) == (" a b d", -0.7, False)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_the_mean_logprob_comes_from_the_records_or_from_the_score(penalty: float) -> None:
    config = CONFIG.replace(length_penalty=penalty)
    lane = Lane(0, "beam", config)
    assert lane.mean_logprob is None
    total, length = -6.0, 4
    score = total / length**penalty
    lane.apply(Finished(0, "length", "abcd", (1, 2, 3, 4), TIMINGS, score=score))
    assert lane.mean_logprob == pytest.approx(total / length)
    recorded = Lane(1, "greedy", config)
    for i, logprob in enumerate((-1.0, -2.0)):
        recorded.apply(Token(0, i, 5, "x", TIMINGS, record(5, logprob)))
    assert recorded.mean_logprob == pytest.approx(-1.5)


def test_the_parting_is_the_first_token_that_differs() -> None:
    lanes = lanes_of(3)
    one, two, three = lanes
    for lane in lanes:
        start(lanes, lane)
    write(lanes, one, [1, 2, 3], [" a", " b", " c"])
    write(lanes, two, [1, 2], [" a", " b"])
    parting = lanes.parting(two)
    assert (parting.token, parting.differs) == (2, False)
    write(lanes, two, [9], [" zz"])
    write(lanes, three, [8], [" y"])
    parting = lanes.parting(two)
    assert (parting.token, parting.start, parting.end, parting.differs) == (2, 4, 7, True)
    parting = lanes.parting(three)
    assert (parting.token, parting.start, parting.end, parting.differs) == (0, 0, 2, True)
    parting = lanes.parting(one)  # the third leaves it at once
    assert (parting.token, parting.differs) == (0, True)


def test_one_text_shorter_than_the_other_has_not_parted_from_it() -> None:
    lanes = lanes_of(2)
    for lane in lanes:
        start(lanes, lane)
        write(lanes, lane, [1] * (2 + lane.number))
        finish(lanes, lane, "cancelled")
    parting = lanes.parting(lanes.lanes[1])
    assert (parting.token, parting.differs) == (2, False)


def test_a_token_that_is_half_a_character_is_marked_with_the_whole_one() -> None:
    lanes = lanes_of(2)
    for lane, halves in zip(lanes, (["", "ä"], ["", "ö"]), strict=True):
        start(lanes, lane)
        write(lanes, lane, [1, 2], ["x", "y"])
        write(lanes, lane, [30 + lane.number, 40 + lane.number], halves)
    parting = lanes.parting(lanes.lanes[1])
    assert (parting.token, parting.start, parting.end) == (2, 2, 3)


@pytest.mark.parametrize("first_streams", [True, False])
def test_a_beam_is_marked_by_the_characters_of_the_tokens_in_common(first_streams: bool) -> None:
    lanes = lanes_of(2)
    one, beam = lanes
    start(lanes, one)
    start(lanes, beam)
    if first_streams:
        write(lanes, one, [1, 2, 3], [" the", " th", "ick"])
        finish(lanes, one)
    else:
        lanes.apply(Finished(1, "length", " the thick", (1, 2, 3), TIMINGS))
    lanes.apply(Finished(2, "length", " the thin end", (1, 2, 4, 5), TIMINGS, score=-1.0))
    parting = lanes.parting(beam)
    assert parting.token == 2 and parting.differs
    text = beam.text[parting.start : parting.end]
    assert text == ("in" if first_streams else "n")  # without characters: as far as they agree


TOKENS = st.lists(st.integers(0, 2), max_size=12)


@given(TOKENS, TOKENS, st.randoms(use_true_random=False))
@settings(derandomize=True, max_examples=150, deadline=None)
def test_comparing_while_it_streams_is_comparing_at_the_end(
    first: list[int],
    second: list[int],
    random: object,
) -> None:
    lanes = lanes_of(2)
    left = [list(first), list(second)]
    while any(left):
        which = random.randrange(2)  # type: ignore[attr-defined]
        if left[which]:
            write(lanes, lanes.lanes[which], [left[which].pop(0)])
            lanes.parting(lanes.lanes[1])
    shorter = min(len(first), len(second))
    same = next((i for i in range(shorter) if first[i] != second[i]), shorter)
    parting = lanes.parting(lanes.lanes[1])
    assert (parting.token, parting.differs) == (same, same < shorter)
    assert lanes.lanes[1].text[: parting.start] == lanes.lanes[0].text[: parting.start]


def test_statistics_are_wanted_now_and_then_and_at_the_end() -> None:
    lanes = lanes_of(1)
    (lane,) = lanes
    start(lanes, lane)
    assert not lane.wants_statistics(0.0)
    write(lanes, lane, [1, 2, 1, 2])
    assert lane.wants_statistics(10.0)
    lane.take_statistics(measure(lane.take_ids(10.0)))
    assert lane.statistics.distinct_1 == 0.5 and lane.statistics.longest_repeat.length == 2
    write(lanes, lane, [3])
    assert not lane.wants_statistics(10.1)
    assert lane.wants_statistics(12.0)
    finish(lanes, lane)
    assert lane.wants_statistics(10.1)
    lane.take_ids(10.1)
    assert not lane.wants_statistics(99.0)


def test_jobs_of_another_number_are_those_of_a_replaced_request() -> None:
    lanes = Lanes()
    lanes.begin("x", [("1", CONFIG)])
    lanes.bind([1, 2])
    assert not lanes.apply(Token(1, 0, 5, "x", TIMINGS))


def test_one_text_needs_no_lanes_and_several_are_numbered() -> None:
    lanes = Lanes()
    lanes.begin_texts("x", CONFIG)
    assert not lanes.lanes
    lanes.begin_texts("x", CONFIG.replace(num_return_sequences=3))
    assert [lane.label for lane in lanes] == ["Text 1", "Text 2", "Text 3"]
