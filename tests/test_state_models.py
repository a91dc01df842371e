"""The reducer: models that are loaded and downloaded, and what the memory lets them reach."""

from __future__ import annotations

from dataclasses import replace

from app.window import intents
from app.window.records import Level
from app.window.state import AppState, ModelStatus
from engine.config import LoadConfig
from engine.events import (
    Bandwidth,
    Cancelled,
    Downloaded,
    Failed,
    Finished,
    Loaded,
    Loading,
    Timings,
)
from tests.state_support import Clock, model, ready, start


def test_load_shows_stage_and_fraction_then_the_model() -> None:
    state = AppState(clock=Clock())
    assert state.model_status is ModelStatus.NONE
    state.request_load(LoadConfig(model="tiny", precision="int8"))
    assert state.take_intents() == [intents.LoadModel(LoadConfig(model="tiny", precision="int8"))]
    state.bind_load(1)
    state.apply(Loading(1, "tiny", "reading weights", 0.4))
    assert state.model_status is ModelStatus.LOADING
    assert state.load is not None and (state.load.stage, state.load.fraction) == (
        "reading weights",
        0.4,
    )
    state.apply(Loaded(1, model(precision="int8")))
    assert state.model_status is ModelStatus.READY
    assert state.selection_is_loaded


def test_failed_load_keeps_the_old_model_and_shows_a_banner() -> None:
    state = ready()
    state.request_load(LoadConfig(model="/nowhere"))
    state.bind_load(5)
    state.apply(Failed(5, "no config.json in /nowhere; give a GPT-2 folder", "CheckpointError"))
    assert state.model == model()
    assert state.model_status is ModelStatus.READY
    assert not state.selection_is_loaded
    [banner] = state.banners
    assert (banner.level, banner.kind) == (Level.ERROR, "CheckpointError")
    state.dismiss(banner.id)
    assert state.banners == []


def test_failed_first_load_is_a_status_of_its_own() -> None:
    state = AppState(prompt="x", clock=Clock())
    state.request_load()
    state.bind_load(1)
    state.apply(Failed(1, "broken", detail="Traceback"))
    assert state.model_status is ModelStatus.FAILED
    assert state.banners[0].detail == "Traceback"
    assert not state.can_generate and "Load a model" in state.why_not_generate


def test_second_load_replaces_the_first() -> None:
    state = ready()
    state.request_load(LoadConfig(model="a"))
    state.bind_load(8)
    state.request_load(LoadConfig(model="b"))
    assert [type(i) for i in state.take_intents()] == [
        intents.LoadModel,
        intents.CancelLoad,
        intents.LoadModel,
    ]
    state.bind_load(9)
    assert not state.apply(Loading(8, "a", "reading", 0.9))
    assert not state.apply(Cancelled(8))
    assert state.load is not None and state.load.model == "b"
    state.apply(Loaded(9, model("b")))
    assert state.model == model("b")


def test_a_load_whose_cancel_came_too_late_is_the_model_in_memory() -> None:
    state = ready()
    state.request_load(LoadConfig(model="a"))
    state.bind_load(8)
    state.request_load(LoadConfig(model="bad"))
    state.bind_load(9)
    state.apply(Loaded(8, model("a")))
    assert state.model_status is ModelStatus.LOADING
    state.apply(Failed(9, "broken"))
    assert state.model == model("a")


def test_cancelled_load_keeps_the_model_without_a_banner() -> None:
    state = ready()
    state.request_load(LoadConfig(model="big"))
    state.bind_load(4)
    state.take_intents()
    state.cancel_load()
    state.cancel_load()
    assert state.take_intents() == [intents.CancelLoad()]
    state.apply(Cancelled(4))
    assert (state.model_status, state.banners) == (ModelStatus.READY, [])


def test_download_progress_end_and_cancel() -> None:
    state = ready()
    state.request_download("gpt2")
    state.request_download("gpt2")
    assert state.take_intents() == [intents.DownloadModel("gpt2")]
    state.bind_download("gpt2", 6)
    state.apply(Loading(6, "gpt2", "downloading", 0.5))
    assert state.downloads["gpt2"].fraction == 0.5
    assert state.model_status is ModelStatus.READY  # a download is no load
    state.cancel_download("gpt2")
    assert state.take_intents() == [intents.CancelDownload("gpt2")]
    state.apply(Cancelled(6))
    assert state.downloads == {} and state.models_changed == 1 and state.banners == []
    state.request_download("gpt2")
    state.bind_download("gpt2", 7)
    state.apply(Downloaded(7, "gpt2"))
    assert state.downloads == {} and state.banners[0].level is Level.INFO


def write_whole(state: AppState, job: int, tokens_per_s: float = 1000.0) -> None:
    """A text of eleven tokens at that speed."""
    start(state, job)
    at = Timings(prompt_tokens=3, new_tokens=11, decode_s=10 / tokens_per_s, total_s=1.0)
    state.apply(Finished(job, "length", " x", (1,), at))


def measure(state: AppState, job: int, bytes_per_s: float) -> None:
    assert state.wants_bandwidth
    state.bind_bandwidth(job)
    assert not state.wants_bandwidth
    assert state.apply(Bandwidth(job, model(), bytes_per_s))


def test_the_ceiling_is_wanted_after_the_first_text_and_then_known() -> None:
    state = ready()
    assert not state.wants_bandwidth and state.read_rate == 0
    start(state, 2)
    assert not state.wants_bandwidth
    state.apply(Finished(2, "cancelled", "", (), Timings()))
    assert not state.wants_bandwidth  # one token tells no speed
    write_whole(state, 3)
    assert state.read_rate == 1e9 and state.of_ceiling is None
    measure(state, 4, 4e9)
    assert state.of_ceiling == 0.25
    write_whole(state, 5, 2000)
    assert state.of_ceiling == 0.5 and not state.wants_bandwidth
    assert not state.apply(Bandwidth(4, model(), 1e9))  # late news of a job that is over


def test_a_text_above_the_ceiling_has_it_measured_again_after_the_next() -> None:
    state = ready()
    write_whole(state, 2)
    measure(state, 3, 0.5e9)
    assert state.ceiling.doubted and not state.wants_bandwidth
    write_whole(state, 4, 400)  # below what was measured, which is no longer believed
    measure(state, 5, 2e9)
    assert not state.ceiling.doubted and state.of_ceiling == 0.2
    write_whole(state, 6, 3000)
    assert state.ceiling.doubted
    measure(state, 7, 1e9)  # slower still: only the fastest reading says what the memory can do
    assert state.ceiling.bytes_per_s == 2e9 and state.ceiling.doubted


def test_a_measurement_given_up_comes_after_the_next_text_and_a_failed_one_never() -> None:
    state = ready()
    write_whole(state, 2)
    state.bind_bandwidth(3)
    state.apply(Cancelled(3))
    assert not state.wants_bandwidth
    write_whole(state, 4)
    assert state.wants_bandwidth
    state.bind_bandwidth(5)
    state.apply(Failed(5, "no room"))
    assert state.banners == [] and state.ceiling.problem == "no room"
    write_whole(state, 6)
    assert not state.wants_bandwidth


def test_another_model_has_a_ceiling_of_its_own() -> None:
    state = ready()
    write_whole(state, 2)
    state.bind_bandwidth(3)
    state.request_load(LoadConfig(model="other"))
    state.bind_load(4)
    state.apply(Loaded(4, model("other")))
    assert not state.apply(Bandwidth(3, model(), 4e9))
    assert state.ceiling.bytes_per_s == 0
    assert not state.wants_bandwidth  # the text shown is the other model's
    state.ceiling.bytes_per_s = 4e9
    assert state.of_ceiling is None


def test_what_a_selection_leaves_open_is_compared_as_it_would_be_loaded() -> None:
    state = ready()
    assert model().precision == "fp32"
    state.selection = LoadConfig(model="tiny")  # means native int8
    assert not state.selection_is_loaded
    state.selection = LoadConfig(model="tiny", precision="fp32")
    assert state.selection_is_loaded
    state.selection = LoadConfig(model="tiny", backend="torch")  # means torch fp32
    assert not state.selection_is_loaded
    state.apply(Loaded(9, model("verse")))
    state.selection = LoadConfig(model="verse")
    assert state.selection_is_loaded


def test_a_backend_s_own_option_that_was_changed_is_not_loaded() -> None:
    state = ready()
    plain = LoadConfig(model="tiny", backend="torch")
    state.request_load(plain)
    state.bind_load(9)
    state.apply(Loaded(9, replace(model(), backend="torch")))
    assert state.selection_is_loaded
    state.selection = plain.replace(attention="eager")
    assert not state.selection_is_loaded
