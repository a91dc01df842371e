"""The rules between a model's logits and the choice of a token, in transformers' order.

A rule is a pure function of the candidates and of the text so far (prompt and new tokens). One that
removes tokens drops them from the candidates, where transformers gives them a logit of -infinity.
Knows nothing of random numbers; `engine.word_rules` reads the options that name words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.config import GenerationConfig
from engine.errors import BackendError
from engine.word_rules import Encode, Sequence, banned_sequences, biased_sequences

_SORTED_AT_ONCE = 1024  # so few tokens cost nothing to sort
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

    def apply(c: Candidates, tokens: NDArray[np.int64]) -> Candidates:
        probabilities = c.probabilities()
        near = _nearest(c.logits.max() - c.logits, probabilities, p)
        kept, margin = _nucleus(probabilities, near, p)
        if margin < _MARGIN and len(near) < len(c.ids):
            # The order of the sum decides: add up from the least probable token after all.
            kept, _ = _nucleus(probabilities, np.arange(len(c.ids)), p)
        return Candidates(c.ids[kept], c.logits[kept])

    return apply


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
        near = _nearest(distance, probabilities, mass)
        near = near[np.argsort(distance[near], kind="stable")]
        last = int((np.cumsum(probabilities[near]) < mass).sum())
        return c.keep(distance <= distance[near[min(last, len(near) - 1)]])

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

    Raises BackendError, which names the rules, where they leave none. (transformers takes token
    0 there with greedy, and fails in the draw otherwise.)
    """
    stages = [candidates]
    removing: list[str] = []
    for rule in rules:
        stages.append(rule.apply(stages[-1], tokens))
        if len(stages[-1].ids) < len(stages[-2].ids):
            removing.append(rule.name)
        if len(stages[-1].ids) == 0:
            raise BackendError(
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


def _nearest(
    keys: NDArray[np.float64], weights: NDArray[np.float64], mass: float
) -> NDArray[np.int64]:
    """Indices, ascending, of the smallest keys: enough for their weights to exceed `mass`.

    What is left out need not be sorted. `keys` are at least 0.
    """
    bound = 2.0
    while len(keys) > _SORTED_AT_ONCE:
        near = np.flatnonzero(keys <= bound)
        if len(near) == len(keys) or weights[near].sum() > mass + _MARGIN:
            return near
        bound *= 2.0
    return np.arange(len(keys))


def _nucleus(
    probabilities: NDArray[np.float64], near: NDArray[np.int64], p: float
) -> tuple[NDArray[np.int64], float]:
    """Indices of the nucleus, ascending, and how far its border is from being drawn elsewhere.

    Tokens that are not in `near` are known to be outside.
    """
    order = near[np.argsort(probabilities[near], kind="stable")]
    sums = np.cumsum(probabilities[order])
    if len(near) < len(probabilities):
        sums += probabilities.sum() - sums[-1]
    removed = int((sums[:-1] <= 1.0 - p).sum())  # the last one stays
    margin = float(np.abs(sums[:-1] - (1.0 - p)).min(initial=1.0))
    return np.sort(order[removed:]), margin
