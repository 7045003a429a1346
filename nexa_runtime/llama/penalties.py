"""What tokens already seen do to the logits of those that may come next.

Owns the memory of one sequence: the penalties are numpy's, DRY is llama.cpp's, which is shown only the tokens
that it can change. It never chooses. ``sampler`` and ``chain`` call it, on the engine thread. Source:
``llama_sampler_penalties``, ``llama_sampler_dry``.
"""

from collections import Counter, deque

import numpy as np
import numpy.typing as npt

from nexa_runtime.llama.c_chain import Chain
from nexa_runtime.llama.candidates import Ids
from nexa_runtime.llama.context import Logits
from nexa_runtime.llama.dry import open_dry
from nexa_runtime.llama.sampling_params import SamplingParams, last_tokens
from nexa_runtime.llama.vocab import Tokens, Vocab

_LOWEST = np.float32(-1e30)
"""Of a token that DRY makes infinitely unlikely: differences of logits stay finite."""


class Penalties:
    """The penalties on tokens seen: repetition scales towards unlikely, the others subtract."""

    def __init__(self, params: SamplingParams, prompt: Tokens) -> None:
        self._params = params
        last_n = last_tokens(params.penalty_last_n)
        self._recent: deque[int] = deque(prompt[-last_n:].tolist(), maxlen=last_n)
        self._counts: Counter[int] = Counter(self._recent)

    def apply(self, row: Logits) -> None:
        """Change the logits of a whole row."""
        if not self._counts:
            return
        ids = np.fromiter(self._counts.keys(), dtype=np.intp, count=len(self._counts))
        counts = np.fromiter(self._counts.values(), dtype=np.float32, count=len(self._counts))
        row[ids] = self._changed(row[ids], counts)

    def changed(self, ids: Ids, logits: Logits) -> Logits:
        """The logits of some tokens, changed."""
        seen = np.fromiter(self._counts.keys(), dtype=np.intp, count=len(self._counts))
        at = np.flatnonzero(np.isin(ids, seen))
        counts = np.array([self._counts[token] for token in ids[at].tolist()], dtype=np.float32)
        logits = logits.copy()
        logits[at] = self._changed(logits[at], counts)
        return logits

    def accept(self, token: int) -> None:
        """Remember a token, and forget the oldest one where there are too many."""
        if len(self._recent) == self._recent.maxlen:
            oldest = self._recent[0]
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]
        self._recent.append(token)
        self._counts[token] += 1

    def close(self) -> None:
        """Nothing to free."""

    def _changed(self, values: Logits, counts: npt.NDArray[np.float32]) -> Logits:
        params = self._params
        repeat = np.float32(params.repeat_penalty)
        values = np.where(values <= 0, values * repeat, values / repeat)
        return values - (counts * np.float32(params.frequency_penalty) + np.float32(params.presence_penalty))


class Dry:
    """The penalty on going on with a repetition. ``close`` frees the C sampler."""

    def __init__(self, params: SamplingParams, vocab: Vocab, prompt: Tokens) -> None:
        prompt = prompt[-last_tokens(params.dry_penalty_last_n) :]
        self._chain = Chain(256)
        self._chain.add(open_dry(params, vocab, prompt))
        self._is_seen = np.zeros(vocab.size, dtype=np.bool_)
        self._is_seen[prompt] = True

    def changed(self, ids: Ids, logits: Logits) -> Logits:
        """The logits of some tokens, changed."""
        at = np.flatnonzero(self._is_seen[ids])
        if not len(at):
            return logits
        logits = logits.copy()
        _, changed = self._chain.applied(ids[at], logits[at])  # it changes no order
        logits[at] = np.maximum(changed, _LOWEST)
        return logits

    def accept(self, token: int) -> None:
        """Remember a token."""
        self._chain.accept(token)
        self._is_seen[token] = True

    def close(self) -> None:
        """Free the C objects. A second call does nothing."""
        self._chain.close()
