"""What the experiments' records say, in sentences that their numbers support.

Each function answers one question. A sentence gives the figure and its 95% interval and claims a
difference only where that leaves no doubt (see evidence.py), so another run may say the
opposite. A measurement that is missing is said to be missing. Knows no file and no format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from engine.config import EMBEDDED
from testing.lab import Record, Row
from testing.lab.models import parameters
from testing.results.evidence import (
    FEW,
    Estimate,
    Group,
    bend,
    median,
    per_token,
    power,
    ratio,
    spread,
)

Records = Mapping[str, Record]

GREEDY, SAMPLED = "optimisations", "combined_optimisations"
HTTP, DECODING = "python_benchmark", "decoder_methods"
QUANTISED = (  # variant, what it is compared with
    ("dynamic int8, head only", "transformers"),
    ("dynamic int8, complete", "transformers"),
    ("native int8", "native fp32"),
    ("native int4", "native fp32"),
    ("onnx int8", "onnx fp32"),
    ("onnx int4", "onnx fp32"),
    ("openvino int8", "openvino fp32"),
    ("openvino int4", "openvino fp32"),
)
COMPILED = (
    ("torch fp32, torch.compile", "torch fp32"),
    ("torch bf16 + torch.compile", "torch bf16"),
)
GROWING = ("transformers", "native fp32", "native int8")  # each asked how it grows with size
BEND = 0.1  # a line may bend so much and is still called one
DISTILLED, ORIGINAL = "distilgpt2", "gpt2"


def per_new_token(row: Row) -> list[float]:
    """Seconds a new token, of each trial."""
    return [t["seconds"] / t["tokens"] for t in row.trials if t.get("tokens") and "seconds" in t]


def quantisation(records: Records) -> list[str]:
    return _pairs(records, QUANTISED) + _losses(records)


def compilation(records: Records) -> list[str]:
    said = _pairs(records, COMPILED)
    for record, model in _models(records, (GREEDY,)):
        for variant, base in COMPILED:
            loads = [
                row.facts.get("load_s")
                for name in (variant, base)
                if (row := _row(record, model, name)) is not None and not row.missing
            ]
            if len(loads) == 2 and all(isinstance(s, (int, float)) for s in loads):
                said.append(
                    f"Loading {variant} on {_shown(record, model)} took {loads[0]:.1f} s, without "
                    f"torch.compile {loads[1]:.1f} s (measured once)."
                )
    return said


def _pairs(records: Records, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """One line on all, then a sentence for each variant beside its base."""
    verdicts: list[tuple[str, str]] = []
    sentences = []
    for record, model in _models(records, (GREEDY, SAMPLED)):
        how = "greedy" if record.experiment == GREEDY else "sampling"
        for variant, base in pairs:
            rows = _row(record, model, variant), _row(record, model, base)
            where = f"{_shown(record, model)}, {how}"
            if rows[0] is None or rows[1] is None:
                continue
            if why := rows[0].missing or rows[1].missing:
                sentences.append(f"{where}: {variant} could not be compared ({why}).")
                continue
            groups = per_new_token(rows[0]), per_new_token(rows[1])
            if not all(groups):
                continue
            found = ratio(*groups)
            verdict = verdict_of(found)
            verdicts.append((verdict, f"{variant} ({where})"))
            sentences.append(
                f"{where}: {variant} takes {found.text()} times what {base} takes per token: "
                f"{verdict}."
            )
    return [_in_all(verdicts), *sentences] if verdicts else sentences


def verdict_of(found: Estimate) -> str:
    """Of a ratio of times."""
    if found.trials < FEW:
        return "too few trials to tell"
    if found.below(1.0):
        return "faster"
    return "slower" if found.above(1.0) else "no difference that these trials can tell"


def _in_all(verdicts: Sequence[tuple[str, str]]) -> str:
    """`Yes: in all 8 comparisons ...`"""
    names = {"faster": [], "slower": []}  # type: dict[str, list[str]]
    for verdict, what in verdicts:
        names.setdefault(verdict, []).append(what)
    faster, slower, total = len(names["faster"]), len(names["slower"]), len(verdicts)
    if faster == total:
        return f"Yes: it is faster in all {total} comparisons."
    if slower == total:
        return f"No: it is slower in all {total} comparisons."
    if not faster and not slower:
        return (
            f"Nothing can be told: in none of {total} comparisons is the difference beyond doubt."
        )
    if not faster:
        return f"No: it is faster in none of {total} comparisons, and slower in {slower}."
    rest = total - faster - slower
    if not slower:
        return (
            f"Yes, where it can be told: of {total} comparisons it is faster in {faster}, slower "
            f"in none, and {rest} cannot be told."
        )
    told = f"It depends: of {total} comparisons it is faster in {faster}, slower in {slower}"
    told += f", and {rest} cannot be told" if rest else ""
    return f"{told}. Slower: {'; '.join(names['slower'])}."


def _losses(records: Records) -> list[str]:
    """What arithmetic costs in quality, each measured once over the same texts."""
    record = records.get(GREEDY)
    rows = [r for r in record.rows.values() if "judged" in r.labels] if record else []
    worst: dict[str, list[str]] = {}
    for row in rows:
        rise, same = row.median("perplexity_rise"), row.median("top1_agreement")
        name = str(row.labels["arithmetic"])
        if rise is not None and same is not None and "int" in name:
            worst.setdefault(str(row.labels["judged"]), []).append(
                f"{name} {rise * 100:+.2f}% and {same * 100:.1f}%"
            )
    return [
        f"What it costs on {judged}'s texts, as rise of the perplexity and share of places where "
        f"the most probable token is that of fp32: {'; '.join(told)}."
        for judged, told in worst.items()
    ]


def growth(records: Records) -> list[str]:
    """Time per token against parameters."""
    said = []
    for how, record in [(n, records[n]) for n in (GREEDY, DECODING) if n in records]:
        for name, rows in _by_what(record, how).items():
            sized = sorted(
                (count, _shown(record, str(r.labels["model"])), per_new_token(r))
                for r in rows
                if (count := parameters(str(r.labels["model"]))) and per_new_token(r)
            )
            sized = [
                one
                for place, one in enumerate(sized)
                if one[0] not in [other[0] for other in sized[:place]]
            ]
            if len(sized) < 2:
                continue
            found = power([s[0] for s in sized], [s[2] for s in sized])
            first, last = sized[0], sized[-1]
            times = ratio(last[2], first[2])
            if found.below(1.0):
                verdict = "less than in proportion"
            elif found.above(1.0):
                verdict = "more than in proportion"
            elif found.trials < FEW:
                verdict = "too few trials to tell"
            else:
                verdict = "in proportion, as far as these trials can tell"
            said.append(
                f"{name}: from {first[1]} to {last[1]}, {last[0] / first[0]:.1f} times the "
                f"parameters, a token takes {times.text()} times as long; over "
                f"{len(sized)} sizes time grows as parameters to the power {found.text()}: "
                f"{verdict}."
            )
    return said


def _by_what(record: Record, how: str) -> dict[str, list[Row]]:
    """The rows of each configuration, or decoding method, that is asked how it grows.

    Without the embedded model, which by default is held in another precision than the others.
    """
    label = "configuration" if how == GREEDY else "method"
    found: dict[str, list[Row]] = {}
    for row in record.rows.values():
        name = str(row.labels.get(label, ""))
        if (
            not name
            or row.missing
            or row.labels["model"] == EMBEDDED
            or (how == GREEDY and name not in GROWING)
        ):
            continue
        found.setdefault(name if how == GREEDY else f"decoding by {name}", []).append(row)
    return found


def length(records: Records) -> list[str]:
    """Seconds of a request against the tokens that it writes."""
    said = []
    for model, lengths in _requests(records).items():
        tokens = [float(np.mean([t for t, _ in pairs])) for pairs in lengths.values()]
        groups = [[s for _, s in pairs] for pairs in lengths.values()]
        if len(tokens) < 3:
            continue
        step, fit = per_token(tokens, groups)
        bent = bend(tokens, groups)
        if bent.trials < FEW:
            verdict = "too few trials to tell"
        elif bent.above(1.0):
            verdict = "later tokens cost more"
        elif bent.below(1.0):
            verdict = "later tokens cost less"
        elif bent.above(1 - BEND) and bent.below(1 + BEND):
            verdict = f"linear, to within {BEND:.0%}"
        else:
            verdict = "these trials cannot tell it from a line"
        said.append(
            f"{model}: from {tokens[0]:.0f} to {tokens[-1]:.0f} new tokens a further one takes "
            f"{_milli(step).text(2, ' ms')}; a straight line explains {fit * 100:.2f}% of what "
            f"separates the medians. A token of the last stretch takes {bent.text()} times one "
            f"of the first: {verdict}."
        )
    return said


def _milli(found: Estimate) -> Estimate:
    return Estimate(found.value * 1e3, found.low * 1e3, found.high * 1e3, found.trials)


def _requests(records: Records) -> dict[str, dict[int, list[tuple[float, float]]]]:
    """By model and length the (new tokens, seconds) of all requests, lengths ascending."""
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    record = records.get(HTTP)
    rows = [r for r in record.rows.values() if "max_length" in r.labels] if record else []
    for row in sorted(rows, key=lambda r: int(r.labels["max_length"])):
        pairs = [(t["new_tokens"], t["seconds"]) for t in row.trials if "seconds" in t]
        if pairs:
            by_length = found.setdefault(row.model, {})
            by_length.setdefault(int(row.labels["max_length"]), []).extend(pairs)
    return found


def prompts(records: Records) -> list[str]:
    """Whether some prompts take longer than others, beyond their length and noise.

    Each time is divided by what the straight line through all requests gives for as many tokens,
    because a longer prompt leaves fewer of them to write.
    """
    said = []
    record = records.get(HTTP)
    for model, lengths in _requests(records).items():
        assert record is not None
        x, y = np.asarray([pair for pairs in lengths.values() for pair in pairs]).T
        slope, offset = np.polyfit(x, y, 1) if len(set(x)) > 1 else (0.0, float(np.median(y)))
        strata: dict[int, dict[str, Group]] = {}
        for row in record.rows.values():
            if row.model == model and "max_length" in row.labels:
                strata.setdefault(int(row.labels["max_length"]), {})[str(row.labels["prompt"])] = [
                    t["seconds"] / (offset + slope * t["new_tokens"])
                    for t in row.trials
                    if "seconds" in t
                ]
        names = list(next(iter(strata.values())))
        whole = [s for s in strata.values() if list(s) == names and all(s.values())]
        if len(names) < 2 or not whole:
            continue
        found = spread([list(s.values()) for s in whole])
        if found.trials < FEW:
            verdict = "too few trials to tell"
        elif found.probability < 0.05:
            verdict = f"it matters beyond noise, by {(found.value - 1) * 100:.1f}%"
        else:
            verdict = "no difference beyond noise"
        said.append(
            f"{model}: of {len(names)} prompts the slowest takes {found.value:.3f} times as long "
            f"as the fastest for as many tokens; where trials are dealt to the prompts at random, "
            f"95 of 100 times up to {found.by_chance:.3f} (p = {found.probability:.3f}): "
            f"{verdict}."
        )
    return said


def distillation(records: Records) -> list[str]:
    """The distilled model beside the one it was distilled from."""
    said: list[str] = []
    record = records.get(DECODING)
    if record is None:
        return said
    for name, rows in _by_what(record, DECODING).items():
        of = {str(r.labels["model"]): r for r in rows}
        if DISTILLED not in of or ORIGINAL not in of:
            continue
        small, large = of[DISTILLED], of[ORIGINAL]
        if not per_new_token(small) or not per_new_token(large):
            continue
        found = ratio(per_new_token(small), per_new_token(large))
        said.append(
            f"{small.model} takes {found.text()} times what {large.model} takes per token, "
            f"{name}: {verdict_of(found)}."
        )
        if all(r.median("perplexity") is not None for r in (small, large)):
            told = [
                f"{r.model} {median([t['perplexity'] for t in r.trials]).text(1)}"
                for r in (small, large)
            ]
            said.append(f"Perplexity of its own texts, {name}: {', '.join(told)}.")
    counts = parameters(DISTILLED), parameters(ORIGINAL)
    if said and all(counts):
        share = counts[0] / counts[1] * 100  # type: ignore[operator]
        said.append(f"It has {share:.0f}% of the parameters and half of the blocks.")
        if any(r.facts.get("weights") == "random" for r in record.rows.values()):
            said.append(
                "What it loses in quality is not told here: with random weights both write noise."
            )
    return said


QUESTIONS: dict[str, Callable[[Records], list[str]]] = {
    "Does quantisation pay?": quantisation,
    "Does torch.compile pay?": compilation,
    "Does a larger model cost in proportion?": growth,
    "How linear is time in length?": length,
    "Does the prompt matter beyond noise?": prompts,
    "What does distillation buy?": distillation,
}


def _models(records: Records, experiments: Sequence[str]) -> list[tuple[Record, str]]:
    return [
        (records[name], model)
        for name in experiments
        if name in records
        for model in dict.fromkeys(
            str(r.labels["model"])
            for r in records[name].rows.values()
            if "configuration" in r.labels
        )
    ]


def _row(record: Record, model: str, configuration: str) -> Row | None:
    return next(iter(record.matching(model=model, configuration=configuration)), None)


def _shown(record: Record, model: str) -> str:
    """The model's name, marked where its weights are random."""
    return next((r.model for r in record.matching(model=model)), model)
