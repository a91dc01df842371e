"""The rules between a model's logits and the choice of a token, in transformers' order.

OpenAI's two penalties, which transformers does not have, follow its own, as they do in vLLM.

A rule is a pure function of the candidates and of the text so far (prompt and new tokens). One that
removes tokens drops them from the candidates, where transformers gives them a logit of -infinity.
Knows nothing of random numbers; `engine.word_rules` reads the options that name words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.config import GenerationConfig
from engine.errors import NoTokenLeftError
from engine.word_rules import Encode, Sequence, banned_sequences, biased_sequences

_SORTED_AT_ONCE = 1024  # so few tokens cost nothing to sort
_BINS_PER_NAT, _BINS = 32, 4096  # a vocabulary's logits leave some hundreds in one
_MARGIN = 1e-10  # well above what the order of a sum over a vocabulary can change


@dataclass(frozen=True)
class Candidates:
    """Tokens still in the draw: ids ascending, (n,) int64, and their logits, (n,) float64."""

    ids: NDArray[np.int64]
    logits: NDArray[np.float64]

    def keep(self, mask: NDArray[np.bool_]) -> Candidates:
        return Candidates(self.ids[mask], self.logits[mask])

    def probabilities(self) -> NDArray[np.float64]:
        """Softmax over the candidates, (n,) float64."""
        weights = np.exp(self.logits - self.logits.max())
        return np.asarray(weights / weights.sum(), np.float64)

    def places(self, token_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index of each token in `ids`, -1 where it is not a candidate."""
        if len(self.ids) == 0:
            return np.full(len(token_ids), -1, np.int64)
        if self.ids[-1] == len(self.ids) - 1:  # nothing is removed yet
            return np.where(token_ids < len(self.ids), token_ids, -1)
        places = np.minimum(np.searchsorted(self.ids, token_ids), len(self.ids) - 1)
        return np.where(self.ids[places] == token_ids, places, -1)

    def without(self, token_ids: NDArray[np.int64]) -> Candidates:
        """All but these tokens."""
        places = self.places(token_ids)
        places = places[places >= 0]
        if len(places) == 0:
            return self
        mask = np.ones(len(self.ids), np.bool_)
        mask[places] = False
        return self.keep(mask)


Apply = Callable[[Candidates, NDArray[np.int64]], Candidates]


@dataclass(frozen=True)
class Rule:
    """One rule. `apply` takes the candidates and the tokens of prompt and text so far."""

    name: str  # the option's
    apply: Apply
    reads_tokens: bool = False  # whether the text so far matters to it


def logit_bias(biases: Mapping[Sequence, float]) -> Apply:
    """Add a number to the logit of a sequence's last token where its other ones come before.

    As in transformers' SequenceBiasLogitsProcessor, numbers for one token add up, and a sequence
    of several tokens counts only in a text that is at least as long.
    """

    def apply(c: Candidates, tokens: NDArray[np.int64]) -> Candidates:
        totals: dict[int, float] = {}
        for sequence, bias in biases.items():
            if _may_complete(sequence, tokens):
                totals[sequence[-1]] = totals.get(sequence[-1], 0.0) + bias
        places = c.places(_array(totals))
        found = places >= 0
        logits = c.logits.copy()
        logits[places[found]] += np.fromiter(totals.values(), np.float64, len(totals))[found]
        return Candidates(c.ids, logits)

    return apply


def repetition_penalty(penalty: float) -> Apply:
    """Divide the positive and multiply the negative logits of tokens in the text (Keskar 2019)."""

    def apply(c: Candidates, tokens: NDArray[np.int64]) -> Candidates:
        places = c.places(_distinct(tokens))
        places = places[places >= 0]
        logits = c.logits.copy()
        there = logits[places]
        logits[places] = np.where(there < 0, there * penalty, there / penalty)
        return Candidates(c.ids, logits)

    return apply


def frequency_penalty(penalty: float, prompt_length: int) -> Apply:
    """Subtract `penalty` from a token's logit for each time that it stands in the new text.

    OpenAI's: mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, where c[j] is how
    often token j was sampled before, so the prompt does not count ("Frequency and presence
    penalties", https://platform.openai.com/docs/api-reference/parameter-details, 2023).
    """
    return _penalty_of_new(lambda counts: counts * penalty, prompt_length)


def presence_penalty(penalty: float, prompt_length: int) -> Apply:
    """Subtract `penalty` from the logits of tokens in the new text; see `frequency_penalty`."""
    return _penalty_of_new(lambda counts: np.full(len(counts), penalty), prompt_length)


def _penalty_of_new(
    amounts: Callable[[NDArray[np.int64]], NDArray[np.floating[Any]]], prompt_length: int
) -> Apply:
    """Subtract from the logits of the new text's tokens what `amounts` makes of their counts."""

    def apply(c: Candidates, tokens: NDArray[np.int64]) -> Candidates:
        counts = np.bincount(tokens[prompt_length:])
        ids = np.flatnonzero(counts)
        places = c.places(ids)
        there = places >= 0
        logits = c.logits.copy()
        logits[places[there]] -= amounts(counts[ids[there]])
        return Candidates(c.ids, logits)

    return apply


def no_repeat_ngram_size(size: int) -> Apply:
    """Remove the tokens that would end a sequence of `size` tokens that is in the text already."""

    def apply(c: Candidates, tokens: NDArray[np.int64]) -> Candidates:
        # Indices that may follow a repeat of the last size - 1 tokens, sifted from the nearest one.
        follows = np.arange(size - 1, len(tokens))
        for back in range(1, size):
            if len(follows) == 0:
                break
            follows = follows[tokens[follows - back] == tokens[-back]]
        return c.without(tokens[follows])

    return apply


def banned_words(sequences: Iterable[Sequence]) -> Apply:
    """Remove a sequence's last token where its other ones come before (NoBadWords)."""
    banned = tuple(sequences)

    def apply(c: Candidates, tokens: NDArray[np.int64]) -> Candidates:
        return c.without(_array([s[-1] for s in banned if _may_complete(s, tokens)]))

    return apply


def min_new_tokens(least: int, end_of_text: int, prompt_length: int) -> Apply:
    """Remove the end of text until `least` new tokens are written."""
    removed = _array([end_of_text])

    def apply(c: Candidates, tokens: NDArray[np.int64]) -> Candidates:
        return c.without(removed) if len(tokens) - prompt_length < least else c

    return apply


def temperature(value: float) -> Apply:
    """Divide the logits by `value`."""
    return lambda c, tokens: Candidates(c.ids, c.logits / value)


def top_k(k: int) -> Apply:
    """Keep the k largest logits, and all that tie with the k-th (as transformers does)."""

    def apply(c: Candidates, tokens: NDArray[np.int64]) -> Candidates:
        if k >= len(c.logits):
            return c
        return c.keep(c.logits >= np.partition(c.logits, -k)[-k])

    return apply


def top_p(p: float) -> Apply:
    """Keep the most probable tokens until their probabilities reach p; at least one.

    Nucleus sampling (Holtzman et al. 2019). As in transformers, walking up from the least
    probable token, those whose sum stays at or below 1 - p are removed; of equal ones the lower
    id comes first.
    """
    return lambda c, tokens: c.keep(_reaching(c.logits.max() - c.logits, c.probabilities(), p))


def min_p(share: float) -> Apply:
    """Remove tokens less probable than this share of the most probable one (Nguyen 2024)."""
    return lambda c, tokens: c.keep(np.exp(c.logits - c.logits.max()) >= share)


def typical_p(mass: float) -> Apply:
    """Keep the tokens whose surprise is nearest to the entropy until they add up to `mass`.

    Locally typical sampling (Meister et al. 2022). As in transformers, all that are as near as
    the last one stay too.
    """

    def apply(c: Candidates, tokens: NDArray[np.int64]) -> Candidates:
        shifted = c.logits - c.logits.max()
        logprobs = shifted - np.log(np.exp(shifted).sum())
        probabilities = np.exp(logprobs)
        distance = np.abs(-logprobs + (probabilities * logprobs).sum())
        nearest = _reaching(distance, probabilities, mass)
        return c.keep(distance <= distance[nearest].max())

    return apply


def build_rules(
    config: GenerationConfig,
    *,
    encode: Encode | None = None,
    end_of_text: int | None = None,
    prompt_length: int = 0,
    vocab_size: int | None = None,
) -> tuple[Rule, ...]:
    """The rules that the options switch on, in the order of transformers' `generate`.

    `encode` gives the token ids of a text, `end_of_text` the id that ends one, `prompt_length`
    the number of tokens before the first new one. Greedy and beam search have only the rules
    before temperature. Raises ConfigError for words or tokens that cannot be looked up.
    """
    config = config.resolved()
    rules: list[Rule] = []
    if config.logit_bias:
        biases = biased_sequences(config.logit_bias, encode, vocab_size)
        rules.append(Rule("logit_bias", logit_bias(biases), reads_tokens=True))
    if config.repetition_penalty != 1.0:
        penalty = repetition_penalty(config.repetition_penalty)
        rules.append(Rule("repetition_penalty", penalty, reads_tokens=True))
    if config.frequency_penalty:
        often = frequency_penalty(config.frequency_penalty, prompt_length)
        rules.append(Rule("frequency_penalty", often, reads_tokens=True))
    if config.presence_penalty:
        once = presence_penalty(config.presence_penalty, prompt_length)
        rules.append(Rule("presence_penalty", once, reads_tokens=True))
    if config.no_repeat_ngram_size:
        ngrams = no_repeat_ngram_size(config.no_repeat_ngram_size)
        rules.append(Rule("no_repeat_ngram_size", ngrams, reads_tokens=True))
    if config.banned_words:
        banned = banned_sequences(config.banned_words, encode, vocab_size, end_of_text)
        rules.append(Rule("banned_words", banned_words(banned), reads_tokens=True))
    if config.min_new_tokens and end_of_text is not None:
        least = min_new_tokens(config.min_new_tokens, end_of_text, prompt_length)
        rules.append(Rule("min_new_tokens", least, reads_tokens=True))
    return (*rules, *_warpers(config)) if config.draws else tuple(rules)


def _warpers(config: GenerationConfig) -> Iterable[Rule]:
    """The rules for drawing at random, of resolved options."""
    if config.temperature != 1.0:
        yield Rule("temperature", temperature(config.temperature))
    if config.top_k:
        yield Rule("top_k", top_k(config.top_k))
    if config.top_p is not None and config.top_p < 1.0:
        yield Rule("top_p", top_p(config.top_p))
    if config.min_p > 0.0:
        yield Rule("min_p", min_p(config.min_p))
    if config.typical_p < 1.0:
        yield Rule("typical_p", typical_p(config.typical_p))


def run_rules(
    rules: Iterable[Rule], candidates: Candidates, tokens: NDArray[np.int64]
) -> list[Candidates]:
    """The candidates before the first rule and after each one.

    Raises NoTokenLeftError, which names the rules, where they leave none. (transformers takes token
    0 there with greedy, and fails in the draw otherwise.)
    """
    stages = [candidates]
    removing: list[str] = []
    for rule in rules:
        stages.append(rule.apply(stages[-1], tokens))
        if len(stages[-1].ids) < len(stages[-2].ids):
            removing.append(rule.name)
        if len(stages[-1].ids) == 0:
            raise NoTokenLeftError(
                f"no token is left to choose from: {' and '.join(removing)} removed all "
                f"{len(candidates.ids):,}; relax or switch off one of these options"
            )
    return stages


def _array(ids: Iterable[int]) -> NDArray[np.int64]:
    return np.fromiter(ids, np.int64)


def _distinct(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ascending, each once; a table is several times as fast as sorting a long text."""
    seen = np.zeros(int(tokens.max(initial=-1)) + 1, np.bool_)
    seen[tokens] = True
    return np.flatnonzero(seen)


def _may_complete(sequence: Sequence, tokens: NDArray[np.int64]) -> bool:
    """Whether the next token could be the sequence's last; see `logit_bias` for short texts."""
    before = len(sequence) - 1
    if before == 0:
        return True
    return before < len(tokens) and tuple(tokens[-before:].tolist()) == sequence[:-1]


def _reaching(
    keys: NDArray[np.float64], probabilities: NDArray[np.float64], mass: float
) -> NDArray[np.bool_]:
    """Which are the smallest keys whose probabilities reach `mass`; at least one.

    Adds up from the largest key, of equal ones from the first: those whose sum stays at or below
    1 - mass are out. `keys` are at least 0.
    """
    everyone = np.zeros(len(keys), np.int64)
    if len(keys) <= _SORTED_AT_ONCE:
        return _split(keys, probabilities, mass, everyone, 0)[0]
    # Only those in the interval where the border lies need to be sorted.
    bins = np.minimum(keys * _BINS_PER_NAT, _BINS - 1).astype(np.int64)
    beyond = probabilities.sum() - np.cumsum(np.bincount(bins, probabilities))
    here = min(int((beyond > 1.0 - mass).sum()), len(beyond) - 1)
    kept, margin = _split(keys, probabilities, mass, bins, here, float(beyond[here]))
    if margin < _MARGIN:  # the order of the sum decides
        return _split(keys, probabilities, mass, everyone, 0)[0]
    return kept


def _split(
    keys: NDArray[np.float64],
    probabilities: NDArray[np.float64],
    mass: float,
    bins: NDArray[np.int64],
    here: int,
    beyond: float = 0.0,
) -> tuple[NDArray[np.bool_], float]:
    """`_reaching` where the border lies in bin `here`, and how far it is from lying elsewhere.

    `beyond` is the probability of all bins after it.
    """
    kept = bins < here
    undecided = np.flatnonzero(bins == here)
    order = undecided[np.argsort(-keys[undecided], kind="stable")]
    sums = beyond + np.cumsum(probabilities[order])
    if here == 0:
        sums = sums[:-1]  # the last one stays
    out = int((sums <= 1.0 - mass).sum())
    kept[order[out:]] = True
    borders = np.append(sums, beyond) - (1.0 - mass)
    return kept, float(np.abs(borders).min())
