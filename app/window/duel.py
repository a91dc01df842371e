"""The duel: several ways of decoding on the same prompt and seed, side by side. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.window.lanes import Lane, Lanes
from app.window.text_state import TextState
from engine.config import DECODING_METHODS, GenerationConfig
from engine.presets import BUILT_IN, Preset

FIRST_CHOICE = ("greedy", "beam", "top_k", "top_p")
_LABELS = {
    "greedy": "Greedy",
    "beam": "Beam search",
    "sampling": "Sampling",
    "top_k": "Top-k",
    "top_p": "Top-p",
}
_TIPS = {
    "greedy": "Always the most probable token.",
    "beam": "The most probable of several texts that are followed at once.",
    "sampling": "Draws from what temperature, top-k and top-p leave.",
    "top_k": "Draws from the k most probable tokens, without top-p.",
    "top_p": "Draws from the smallest set that holds the probability p, without top-k.",
}


@dataclass(frozen=True)
class Contestant:
    """A way of decoding that can be ticked: a method with the settings on the left, or a preset."""

    key: str  # unique
    label: str
    tip: str
    preset: Preset | None = None

    def config(self, base: GenerationConfig, seed: int) -> GenerationConfig:
        """How it writes; its own probabilities are recorded. ConfigError for a bad preset."""
        base = _one_text(base)
        if self.preset is not None:
            base = self.preset.apply(base)
        else:
            # Only `sampling` has both: the others are themselves, not a mixture.
            base = base.replace(
                decoding=self.key,
                top_k=None if self.key == "top_p" else base.top_k,
                top_p=None if self.key == "top_k" else base.top_p,
            )
        return base.replace(seed=seed, num_return_sequences=1, logprobs=max(base.logprobs, 1))


def contestants(presets: Sequence[Preset] = BUILT_IN) -> list[Contestant]:
    """All that can be ticked: the methods, then the presets."""
    methods = [Contestant(name, _LABELS[name], _TIPS[name]) for name in DECODING_METHODS]
    return methods + [
        Contestant(f"preset {preset.name}", preset.name, preset.description, preset)
        for preset in presets
    ]


def use(state: TextState, lane: Lane) -> None:
    """Take a lane's text to the Write tab, with the settings that wrote it."""
    logprobs = state.decoding.logprobs
    state.restore(lane.output)
    state.decoding = state.decoding.replace(logprobs=logprobs)


def summary(duel: Lanes) -> str:
    """The figures of all lanes as a table in plain text."""
    rows = [HEADINGS, *(tuple(figures(duel, lane)) for lane in duel)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    seed = next((lane.config.seed for lane in duel), None)
    return f"Prompt: {' '.join(duel.prompt.split())}\nSeed: {seed}\n\n" + "\n".join(lines) + "\n"


HEADINGS = (
    "Method",
    "Tokens",
    "Tokens/s",
    "Mean logprob",
    "Distinct-1",
    "Distinct-2",
    "Longest repeat",
    "Parts at",
    "Ended",
)


def figures(duel: Lanes, lane: Lane) -> list[str]:
    """One cell for each of `HEADINGS`."""
    parting, found = duel.parting(lane), lane.statistics
    logprob = lane.mean_logprob
    reference = lane.number == 0
    return [
        lane.label,
        str(lane.tokens),
        f"{lane.rate:.1f}" if lane.rate else "-",
        f"{logprob:.3f}" if logprob is not None else "-",
        f"{found.distinct_1:.3f}" if found.tokens else "-",
        f"{found.distinct_2:.3f}" if found.tokens else "-",
        str(found.longest_repeat.length) if found.tokens else "-",
        str(parting.token) if parting.differs and not reference else "-",
        lane.output.reason.replace("_", " ") or "-",
    ]


def _one_text(config: GenerationConfig) -> GenerationConfig:
    return config.replace(num_return_sequences=1)
