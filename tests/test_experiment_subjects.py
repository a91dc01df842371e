"""What the experiments run: models, texts, the transformers baseline, and what is made of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import tests.native_support  # noqa: F401  (shares compiled code)
from engine import paths
from engine.backends.base import Backend
from engine.config import GenerationConfig
from engine.errors import EngineError, ModelNotFoundError
from engine.quality import log_softmax
from engine.tokenizer import Tokenizer
from testing.lab import Record
from testing.lab.configurations import (
    BASELINE,
    PROMPT,
    Configuration,
    configurations,
    plan,
    thread_counts,
)
from testing.lab.models import TINY, Model, find_model
from testing.lab.optimisations import compared
from testing.lab.subjects import Held, Judged, OnBackend, OnTransformers, generate_options
from testing.lab.writing import Work, perplexity, write

GREEDY = GenerationConfig(decoding="greedy", max_new_tokens=12, min_new_tokens=12)
WORK = Work(PROMPT, GREEDY, judged=True)


@pytest.fixture(scope="module")
def verse() -> Model:
    return find_model("verse")


@pytest.fixture(scope="module")
def held(verse: Model) -> Held:
    backend: Backend = OnBackend(verse, "native", "fp32", 1).load()
    return Held(verse, backend, Tokenizer(verse.folder, verse.shape.end_of_text))


def test_models_on_this_disk_are_real_and_the_others_random(verse: Model) -> None:
    assert not verse.random and verse.folder == paths.verse_dir() and verse.judged_by == "verse"
    tiny = find_model(TINY)
    assert tiny.random and tiny.weights == "random" and tiny.judged_by == "verse"
    assert tiny.shape.layers == 2
    with pytest.raises(ModelNotFoundError):
        find_model("no such model")


def test_transformers_own_generate_writes_what_the_program_writes(verse: Model) -> None:
    samples = set()
    for subject in (
        OnTransformers(verse, 1),
        OnTransformers(verse, 1, attention="sdpa"),
        OnBackend(verse, "torch", "fp32", 1),
    ):
        with subject.open() as loaded:
            figures = loaded.run(WORK, 0)
            samples.add(figures["sample"])
            assert figures["tokens"] == 12 and loaded.facts["parameters"] > 1e6
    assert len(samples) == 1


def test_dynamic_quantisation_by_itself_reaches_the_head_alone(verse: Model) -> None:
    weights, rises = {}, {}
    for quantised in ("none", "head", "complete"):
        with OnTransformers(verse, 1, quantised=quantised).open() as loaded:
            weights[quantised] = loaded.facts["weights_mb"]
            found = loaded.run(Judged(("The sea, the sea, the open sea,",)), 0)
            rises[quantised] = found["kl_to_fp32"]
    shape = verse.shape
    head = shape.vocab_size * shape.width / 1e6
    # The head is tied to the embedding, which stays in fp32: the int8 head comes on top.
    assert weights["head"] - weights["none"] == pytest.approx(head, rel=0.05)
    assert weights["complete"] < 0.5 * weights["none"]
    assert rises["none"] < 1e-6 < min(rises["head"], rises["complete"])


def test_several_texts_at_once_are_those_written_alone(held: Held) -> None:
    sampling = GenerationConfig(max_new_tokens=10, min_new_tokens=10)
    work = Work(PROMPT, sampling, texts=3)
    together = [end.token_ids for _, end in write(held.backend, held.tokenizer, work.requests(5))]
    alone = [
        write(held.backend, held.tokenizer, [request])[0][1].token_ids
        for request in work.requests(5)
    ]
    assert together == alone and len(set(together)) == 3
    again = write(held.backend, held.tokenizer, work.requests(6))
    assert [end.token_ids for _, end in again] != together


@pytest.mark.parametrize("decoding", ["beam", "greedy"])
def test_a_text_is_written_by_every_method(held: Held, decoding: str) -> None:
    config = GenerationConfig(decoding=decoding, max_new_tokens=8, min_new_tokens=8)
    ((_, end),) = write(held.backend, held.tokenizer, Work(PROMPT, config).requests(0))
    assert len(end.token_ids) == 8 and end.timings.ttft_s > 0


def test_perplexity_is_that_of_the_written_tokens(held: Held) -> None:
    prompt, written = held.tokenizer.encode(PROMPT), held.tokenizer.encode(" the sea and the sky")
    nats = 0.0
    for i, token in enumerate(written):
        slot = held.backend.open()
        logits = held.backend.extend([slot], [[*prompt, *written[:i]]])
        held.backend.close(slot)
        nats -= float(log_softmax(np.asarray(logits))[0, token])
    expected = math.exp(nats / len(written))
    assert perplexity(held.backend, prompt, written) == pytest.approx(expected, rel=1e-3)


def test_of_random_weights_no_quality_is_told() -> None:
    with OnBackend(find_model(TINY), "native", "fp32", 1).open() as loaded:
        figures = loaded.run(WORK, 0)
    assert set(figures) == {"seconds", "tokens", "tokens_per_s", "ttft_s"}
    assert loaded.facts["weights"] == "random"


def test_a_model_that_is_not_compiled_is_missing_and_says_why(
    verse: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.backends.torch_compile.has_compiler", lambda: False)
    subject = OnBackend(verse, "torch", "fp32", 1, (("compile", True),))
    with pytest.raises(EngineError, match=r"^not compiled: no C\+\+ compiler"), subject.open():
        pass


def test_options_are_put_into_transformers_words() -> None:
    sampling = GenerationConfig(temperature=0.7, max_new_tokens=9)
    found = generate_options(Work("x", sampling), 5)
    wanted = {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.95}
    assert wanted.items() <= found.items() and found["max_new_tokens"] == 9
    assert generate_options(WORK, 5)["do_sample"] is False
    assert generate_options(WORK, 5)["min_new_tokens"] == 12
    beam = GenerationConfig(decoding="beam", num_beams=3)
    assert generate_options(Work("x", beam), None)["num_beams"] == 3


def test_thread_counts_double_up_to_all() -> None:
    assert [thread_counts(n) for n in (1, 2, 6)] == [[1], [1, 2], [1, 2, 4, 6]]


@pytest.mark.parametrize("threads", [1, 2, 6])
def test_every_configuration_is_there_once(threads: int) -> None:
    found = configurations(threads)
    names = [one.name for one in found]
    assert len(set(names)) == len(names) and names[0] == BASELINE
    assert {f"native {p}" for p in ("fp32", "bf16", "int8", "int4")} <= set(names)
    assert any("requests, a thread each" in name for name in names) == (threads > 1)
    assert 5 <= sum(one.quick for one in found) < len(found)
    made = plan([find_model("verse"), find_model(TINY)], found, GREEDY, {"verse": Judged(("x",))})
    assert len({m.key for m in made}) == len(made)
    speeds = [m for m in made if "configuration" in m.labels]
    judged = {m.labels["arithmetic"] for m in made if "judged" in m.labels}
    assert len(speeds) == 2 * len(found) and judged == {one.arithmetic for one in found}


def test_speed_and_quality_are_put_together(tmp_path: Path) -> None:
    record = Record("x", tmp_path / "x.json", {"threads": 2})
    for name, rate in ((BASELINE, 10.0), ("fast", 25.0)):
        labels = {"model": "m", "configuration": name, "arithmetic": name}
        record.row(name, labels).trials = [{"tokens_per_s": rate}]
    judged = record.row("q", {"judged": "verse", "arithmetic": "fast"})
    judged.trials = [{"kl_to_fp32": 0.5, "perplexity_rise": 0.1, "top1_agreement": 0.9}]
    record.row("gone", {"model": "m", "configuration": "gone", "arithmetic": "gone"}).missing = "?"
    base, fast, gone = compared(record)["m"]
    assert base.facts["speed_up"] == 1.0 and fast.facts["speed_up"] == 2.5
    assert fast.median("kl_to_fp32") == 0.5 and base.median("kl_to_fp32") is None
    assert gone.median("speed_up") is None
    assert isinstance(configurations(2)[0], Configuration)
