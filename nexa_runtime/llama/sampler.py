"""Choosing the next token of one sequence from its logits.

Owns what a sequence remembers between its tokens: those that weigh on the next one, those that a constraint
has forced but that wait for their log-probabilities, and how many are out. Numpy preselects the few tokens
that can still win, llama.cpp's chain (top-k → top-p → min-p → temperature → distribution) decides among them:
exact, and twenty times cheaper than a chain over the whole vocabulary, which only rarer settings take. It
never sees text. The engine thread calls it.

Order as in llama.cpp's ``common_sampler``: bias → penalties → top-k → top-p → min-p → temperature → draw.
A constraint is asked about the token drawn, and rules the others out only if it refuses that one: the draw
after that makes the distribution the one of the allowed tokens. Source: ``common_sampler_sample``.
"""

import math
from collections import deque

import numpy as np

from nexa_runtime.errors import DecodeError
from nexa_runtime.llama.c_chain import Chain
from nexa_runtime.llama.candidates import Preselection, RowLogprobs, best_id
from nexa_runtime.llama.chain import FullChain, make_short_chain
from nexa_runtime.llama.context import Logits
from nexa_runtime.llama.mask import TokenMask
from nexa_runtime.llama.penalties import Penalties
from nexa_runtime.llama.sampling_params import (
    Choice,
    SamplingParams,
    TokenLogprobs,
    check,
    resolved,
)
from nexa_runtime.llama.vocab import Tokens, Vocab


def sample_greedy(logits: Logits) -> list[int] | None:
    """The largest logit of each row; of equal ones the first, as in ``llama_sampler_init_greedy``.

    None where one of them is no finite number: each row is to be looked at then (``Sampler.sample``).
    """
    best: list[int] = logits.argmax(axis=1).tolist()
    is_sound = all(math.isfinite(logits.item(row, token)) for row, token in enumerate(best))
    return best if is_sound else None


class Sampler:
    """The sampler of one sequence. ``close`` frees the C chain; a second call does nothing."""

    def __init__(
        self, params: SamplingParams, vocab: Vocab, prompt: Tokens, mask: TokenMask | None = None
    ) -> None:
        """``prompt``, int32 of shape (n,): its last tokens count for penalties. ``mask`` is this sequence's
        own.

        Raises ``LlamaGuardError`` for settings that llama.cpp or the vocabulary cannot take.
        """
        check(params, vocab.size)
        self.params = params = resolved(params)
        self._mask = mask
        self._bias_ids = np.array([token for token, _ in params.logit_bias], dtype=np.intp)
        self._bias = np.array([bias for _, bias in params.logit_bias], dtype=np.float32)
        self._banned = np.array(sorted(params.banned), dtype=np.intp)
        self._ends = np.array(sorted(params.end_tokens), dtype=np.intp)
        self._num_out = 0
        self._held: deque[int] = deque()
        """Tokens accepted by the mask that have yet to be given out, each with its own row."""
        self._top_k = params.top_k if 0 < params.top_k < vocab.size else 0
        self._preselection = Preselection(params, self._top_k)
        self._penalties: Penalties | None = None
        self._chain: Chain | None = None
        self._full_chain: FullChain | None = None
        if params.needs_full_chain:
            self._full_chain = FullChain(params, vocab, prompt)
        else:
            if params.has_penalties:
                self._penalties = Penalties(params, prompt)
            if not params.is_greedy:
                self._chain = make_short_chain(params, self._top_k)
        self._is_best_raw = params.is_greedy and not (
            params.needs_full_chain or params.has_penalties or params.logit_bias or params.banned
        )
        """Whether, of the tokens that may come, the one with the largest raw logit is chosen."""

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the next choice is the largest raw logit and nothing else, and wants no account of it.

        Once true, it stays so: ``sample`` need not be called again.
        """
        return (
            self._is_best_raw
            and self._mask is None
            and self.params.num_logprobs is None
            and not self._hides_ends
        )

    def sample(self, row: Logits) -> Choice:
        """Choose a token, or several, from one row of logits, shape (vocabulary,), which is changed in place.

        What is chosen is accepted too. With log-probabilities wanted, each call gives one token: of those
        that a constraint forces, each waits for the row that tells its own.

        Raises ``DecodeError`` when no token has a finite logit, or the constraint leaves none.
        """
        if self.params.num_logprobs is None:
            return self._given_out(self._next(row))
        logprobs = RowLogprobs(row, self.params.num_logprobs)
        if not self._held:
            self._held.extend(self._next(row))
        token = self._held.popleft()
        return self._given_out((token,), logprobs.of(token))

    def close(self) -> None:
        """Free the C chain."""
        for chain in (self._chain, self._full_chain):
            if chain is not None:
                chain.close()

    @property
    def _hides_ends(self) -> bool:
        return self._num_out < self.params.min_tokens and len(self._ends) > 0

    def _given_out(self, tokens: tuple[int, ...], logprobs: TokenLogprobs | None = None) -> Choice:
        self._num_out += len(tokens)
        memory = self._full_chain or self._penalties
        if memory is not None:
            for token in tokens:
                memory.accept(token)
        is_last = self._mask is not None and not self._held and self._mask.is_complete
        return Choice(tokens, is_last, logprobs)

    def _next(self, row: Logits) -> tuple[int, ...]:
        """A token drawn and accepted by the mask, and those that this one forces."""
        if len(self._bias_ids):
            np.add.at(row, self._bias_ids, self._bias)
        if len(self._banned):
            row[self._banned] = -np.inf
        if self._penalties is not None:
            self._penalties.apply(row)
        ends = None
        if self._hides_ends:
            ends = row[self._ends]
            row[self._ends] = -np.inf
        mask = self._mask
        if mask is None:
            return (self._draw(row),)
        token = self._draw(row) if row.max() != -np.inf else None
        if token is None or not mask.allows(token):
            token = self._draw_allowed(row, mask, ends)
        return (token, *mask.accept(token))

    def _draw_allowed(self, row: Logits, mask: TokenMask, ends: Logits | None) -> int:
        """Draw among what the mask allows: the tokens hidden, whose logits are ``ends``, if no others."""
        mask.apply(row)
        if ends is not None and row.max() == -np.inf:
            row[self._ends] = ends
            mask.apply(row)
        if row.max() == -np.inf:
            raise DecodeError("the constraint leaves no token to choose")
        return self._draw(row, is_masked=True)

    def _draw(self, row: Logits, *, is_masked: bool = False) -> int:
        if self._full_chain is not None:
            return self._full_chain.choose(row)
        if self._chain is None:
            return best_id(row)
        ids = self._preselection.ids(row, is_masked=is_masked)
        return self._chain.choose(ids, row[ids])
