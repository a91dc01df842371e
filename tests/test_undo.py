"""Undo, redo and editing in place, as pure state."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from app.window import intents, timeline
from app.window.records import Output
from app.window.state import AppState
from app.window.text_buffer import Change
from engine.config import GenerationConfig
from engine.events import Failed, Finished, Loaded, Started, Timings, Token
from tests.state_support import Clock, model, recorded_text


def ready(prompt: str = "The sun") -> AppState:
    state = AppState(prompt=prompt, clock=Clock())
    state.request_load()
    state.bind_load(1)
    state.apply(Loaded(1, model()))
    state.take_intents()
    return state


def begin(state: AppState, job: int) -> None:
    """The worker takes up what was asked for last."""
    *_, intent = [i for i in state.take_intents() if isinstance(i, intents.Generate)]
    state.bind_generation(job)
    config = intent.config.replace(seed=intent.config.seed or 7)
    state.apply(Started(job, intent.prompt, config, model(), 3, 0))
    for index, token_id in enumerate(intent.written):
        state.apply(Token(job, index, token_id, f" w{token_id}", Timings()))


def say(state: AppState, job: int, text: str) -> None:
    index = len(state.output.token_ids)
    state.apply(Token(job, index, 50 + index, text, Timings(new_tokens=index + 1)))


def end(state: AppState, job: int, reason: str = "length") -> None:
    output = state.output
    state.apply(Finished(job, reason, output.text, tuple(output.token_ids), Timings()))


def write(state: AppState, job: int, text: str = " sets") -> None:
    assert state.generate()
    begin(state, job)
    say(state, job, text)
    end(state, job)


def shown(state: AppState) -> tuple[str, str]:
    return state.prompt, state.output.text


def test_steps_are_taken_back_in_the_order_in_which_they_came() -> None:
    state = ready("")
    state.edit_prompt("The", 1)
    state.edit_prompt("The sun", 1)  # one step of the editor
    write(state, 2)
    state.edit_prompt("The sun!", 2)
    seen = []
    while state.undo():
        seen.append(shown(state))
    assert seen == [("The sun", " sets"), ("The sun", ""), ("", "")]
    while state.redo():
        seen.append(shown(state))
    assert seen[3:] == [("The sun", ""), ("The sun", " sets"), ("The sun!", " sets")]
    assert not state.timeline.can_redo


def test_typing_on_both_sides_of_a_text_is_not_one_step() -> None:
    state = ready("The sun")
    state.edit_prompt("The sun ", 5)
    write(state, 2)
    state.edit_prompt("The sun i", 5)  # the editor may join what the state must not
    assert state.undo() and shown(state) == ("The sun ", " sets")
    assert state.undo() and shown(state) == ("The sun ", "")
    assert state.undo() and shown(state) == ("The sun", "")


def test_typing_after_undo_forgets_what_was_undone_and_is_a_step_of_its_own() -> None:
    state = ready("")
    state.edit_prompt("a", 1)
    state.edit_prompt("ab", 2)
    state.undo()
    state.edit_prompt("ac", 1)
    assert not state.redo()
    assert state.undo() and state.prompt == "a"


def test_the_caret_goes_where_the_change_was() -> None:
    state = ready("one two three")
    state.edit_prompt("one 2 three", 1)
    version = state.prompt_version
    state.undo()
    assert (state.prompt, state.prompt_caret) == ("one two three", 7)
    state.redo()
    assert (state.prompt, state.prompt_caret) == ("one 2 three", 5)
    assert state.prompt_version == version + 2


def test_continuing_is_one_step_with_the_prompt_that_it_changed() -> None:
    state = ready()
    write(state, 2)
    assert state.continue_from_here()
    begin(state, 3)
    say(state, 3, " again")
    end(state, 3)
    assert shown(state) == ("The sun sets", " again")
    assert state.undo() and shown(state) == ("The sun", " sets")
    assert state.redo() and shown(state) == ("The sun sets", " again")


def test_a_branch_is_taken_back_with_its_records() -> None:
    state = ready()
    recorded_text(state)
    before = state.output
    assert state.branch(1, 61)
    begin(state, 3)
    say(state, 3, " else")
    end(state, 3)
    branch = state.output
    assert branch.text == " w50 w61 else"
    assert state.undo()
    assert state.output is before and state.output.recorded and state.output.node == 33
    assert state.redo() and state.output is branch


def test_undo_of_a_text_under_way_stops_it_and_redo_brings_back_what_it_had_written() -> None:
    state = ready()
    write(state, 2)
    assert state.again()
    begin(state, 3)
    say(state, 3, " and")
    assert state.undo()
    assert [type(i) for i in state.take_intents()] == [intents.StopGeneration]
    assert not state.running and shown(state) == ("The sun", " sets")
    # What the worker still says before it has stopped belongs to the text that was left.
    state.apply(Token(3, 1, 51, " on", Timings()))
    state.apply(Finished(3, "cancelled", " and on", (50, 51), Timings()))
    assert shown(state) == ("The sun", " sets")
    assert state.redo() and shown(state) == ("The sun", " and on")
    assert state.output.reason == "cancelled" and state.output.token_ids == [50, 51]


def test_redo_before_the_stopped_text_has_ended_shows_its_end_too() -> None:
    state = ready()
    assert state.generate()
    begin(state, 2)
    say(state, 2, " sets")
    state.undo()
    state.redo()
    state.apply(Token(2, 1, 51, " on", Timings()))
    state.apply(Finished(2, "cancelled", " sets on", (50, 51), Timings()))
    assert state.output.text == " sets on" and not state.running


def test_undo_of_a_request_that_has_shown_nothing_only_gives_it_up() -> None:
    state = ready()
    write(state, 2)
    assert state.again()
    state.take_intents()
    state.bind_generation(3)
    assert state.undo()
    assert shown(state) == ("The sun", " sets") and not state.running
    state.apply(Started(3, "The sun", GenerationConfig(seed=1), model(), 3, 0))
    assert shown(state) == ("The sun", " sets")
    assert state.undo() and shown(state) == ("The sun", "")


def test_undo_of_a_continuation_that_has_not_begun_brings_the_prompt_back() -> None:
    state = ready()
    write(state, 2)
    assert state.continue_from_here() and state.prompt == "The sun sets"
    assert state.undo()
    assert shown(state) == ("The sun", " sets") and not state.running


def test_a_continuation_that_fails_can_be_taken_back() -> None:
    state = ready()
    write(state, 2)
    state.continue_from_here()
    state.take_intents()
    state.bind_generation(3)
    state.apply(Failed(3, "out of memory; take int8"))
    assert shown(state) == ("The sun sets", " sets")
    assert state.undo() and shown(state) == ("The sun", " sets")


def test_redo_stops_what_runs() -> None:
    state = ready()
    write(state, 2)
    state.undo()
    assert state.generate()
    begin(state, 3)
    assert not state.redo()  # a new text has taken the place of the undone one
    assert state.running
    state.undo()
    assert state.timeline.can_redo


def test_a_restored_text_is_one_step() -> None:
    state = ready()
    write(state, 2)
    state.restore(Output(prompt="Once", text=" upon", reason="length"))
    assert state.undo() and shown(state) == ("The sun", " sets")
    assert state.redo() and shown(state) == ("Once", " upon")


def test_nothing_to_undo() -> None:
    state = ready()
    assert not state.undo() and not state.redo()
    assert not state.timeline.can_undo


# Editing in place


def test_an_edited_text_is_a_step_and_goes_to_the_history() -> None:
    state = ready()
    write(state, 2)
    before = state.output
    before.node = 12
    assert state.begin_edit() and state.editing == " sets"
    state.editing = " rises"
    assert state.finish_edit() and state.editing is None
    assert state.output.full_text == "The sun rises" and state.output.reason == "edited"
    [kept] = state.take_intents()
    assert isinstance(kept, intents.KeepText) and kept.output is state.output
    assert kept.output.branch_point == 12  # until it has a node of its own
    assert state.undo() and state.output is before
    assert state.redo() and state.output.text == " rises"


def test_an_edit_that_changes_nothing_is_no_step() -> None:
    state = ready()
    write(state, 2)
    before = state.output
    state.begin_edit()
    assert not state.finish_edit()
    assert state.output is before and state.take_intents() == []


def test_an_edit_given_up_comes_back_with_redo() -> None:
    state = ready()
    write(state, 2)
    state.begin_edit()
    state.editing = " rises"
    assert state.give_up_edit() and state.editing is None
    assert shown(state) == ("The sun", " sets") and state.take_intents() == []
    assert state.redo() and shown(state) == ("The sun", " rises")


def test_continuing_goes_on_from_the_edited_text_also_while_it_is_edited() -> None:
    state = ready()
    write(state, 2)
    state.output.node = 12
    state.begin_edit()
    state.editing = " rises"
    assert state.continue_from_here()
    kept, generate = state.take_intents()
    assert isinstance(kept, intents.KeepText) and isinstance(generate, intents.Generate)
    assert (generate.prompt, generate.parent) == ("The sun rises", 12)
    kept.output.node = 40
    assert state.output.branch_point == 40


def test_whatever_replaces_a_text_being_edited_keeps_what_was_typed() -> None:
    for replace in (
        lambda state: state.generate(),
        lambda state: state.again(),
        lambda state: state.restore(Output(prompt="Once", text=" upon")),
    ):
        state = ready()
        write(state, 2)
        state.begin_edit()
        state.editing = " rises"
        replace(state)
        kept = [i for i in state.take_intents() if isinstance(i, intents.KeepText)]
        assert [i.output.full_text for i in kept] == ["The sun rises"]
        assert state.editing is None


def test_undo_while_editing_takes_the_edit_back() -> None:
    state = ready()
    write(state, 2)
    state.begin_edit()
    state.editing = " rises"
    assert state.undo() and shown(state) == ("The sun", " sets")
    assert state.redo() and shown(state) == ("The sun", " rises")


def test_a_text_under_way_cannot_be_edited() -> None:
    state = ready()
    assert not state.begin_edit()  # there is none
    state.generate()
    begin(state, 2)
    say(state, 2, " sets")
    assert not state.begin_edit()


# The pieces


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.text("ab\n", max_size=12), st.text("ab\n", max_size=12))
def test_a_difference_makes_one_text_the_other_and_back(old: str, new: str) -> None:
    change = timeline.difference(old, new)
    assert timeline.done(old, change) == new and timeline.undone(new, change) == old
    if old == new:
        assert change == Change(len(old), "", "")
    else:
        assert change.removed[:1] != change.inserted[:1]


def test_many_and_large_steps_are_forgotten_from_the_oldest_on() -> None:
    kept = timeline.Timeline()
    output = Output()
    for number in range(timeline.MAX_STEPS + 5):
        kept.push(timeline.Step(Change(0, "", str(number)), output, output))
    steps = 0
    while kept.undo():
        steps += 1
    assert steps == timeline.MAX_STEPS
    large = timeline.Step(Change(0, "", "x" * timeline.MAX_WEIGHT), output, output)
    kept.push(timeline.Step(Change(0, "", "y"), output, output))
    kept.push(large)
    assert kept.undo() is large and kept.undo() is None


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["type", "join", "write", "on", "edit", "undo", "redo"])))
def test_undo_and_redo_walk_over_every_state_in_between(actions: list[str]) -> None:
    """Against a list of all that was shown, and a place in it."""
    state = ready("a")
    states, at, job, step = [shown(state)], 0, 10, 0
    open_typing = False
    for number, action in enumerate(actions):
        if action == "undo":
            assert state.undo() == (at > 0)
            at = max(0, at - 1)
            open_typing = False
        elif action == "redo":
            assert state.redo() == (at < len(states) - 1)
            at = min(len(states) - 1, at + 1)
            open_typing = False
        else:
            job += 1
            joined = action == "join" and open_typing
            if action in ("type", "join"):
                step += not joined
                state.edit_prompt(state.prompt + str(number % 10), step)
            elif action == "write":
                write(state, job, f" t{number}")
            elif action == "on":
                if not state.continue_from_here():
                    continue
                begin(state, job)
                end(state, job)
            elif not state.begin_edit():
                continue
            else:
                state.editing = f" e{number}"
                state.finish_edit()
            open_typing = action in ("type", "join")
            at = at if joined else at + 1
            states[at:] = [shown(state)]
        assert shown(state) == states[at]
