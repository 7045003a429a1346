"""llama.cpp's DRY sampler: slow to make, quick to copy.

For each sequence breaker llama.cpp spells out every token of the vocabulary: 80 ms for the four usual ones
and 150,000 tokens. Owns, for each vocabulary, the last few samplers made, of which every request gets a copy,
and of this one every sequence. It never applies one. ``serving`` may call ``prepare_dry`` in a worker thread,
so that the engine thread, which calls ``open_dry`` through ``penalties``, need not wait, whatever other
requests have made meanwhile. Source: ``llama_sampler_init_dry``.
"""

import ctypes
import threading
import weakref
from dataclasses import replace
from typing import Any

from nexa_runtime.llama.lib import C
from nexa_runtime.llama.sampling_params import MAX_LAST_TOKENS, SamplingParams, check, last_tokens, resolved
from nexa_runtime.llama.vocab import Tokens, Vocab

_MAX_KEPT = 8

_Key = tuple[float, float, int, int, tuple[bytes, ...]]


class _Kept:
    """The samplers of one vocabulary, the one used last at the end. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samplers: dict[_Key, Any] = {}

    def copy(self, key: _Key) -> Any:
        """A copy of what is kept under ``key``; None where nothing is."""
        with self._lock:
            sampler = self._samplers.pop(key, None)
            if sampler is None:
                return None
            self._samplers[key] = sampler
            return C.llama_sampler_clone(sampler)

    def keep(self, key: _Key, sampler: Any) -> None:
        """Own ``sampler``, and free the one that was used longest ago where there are too many."""
        with self._lock:
            dropped = self._samplers.pop(key, None)
            self._samplers[key] = sampler
            if dropped is None and len(self._samplers) > _MAX_KEPT:
                dropped = self._samplers.pop(next(iter(self._samplers)))
            C.llama_sampler_free(dropped)  # of None too

    def close(self) -> None:
        """Free all of them."""
        with self._lock:
            while self._samplers:
                C.llama_sampler_free(self._samplers.popitem()[1])


_kept: weakref.WeakKeyDictionary[Vocab, _Kept] = weakref.WeakKeyDictionary()
_kept_lock = threading.Lock()


class PreparedDry:
    """The sampler of one request, its own whatever becomes of those that are kept. Each of its sequences gets
    a copy that has seen the prompt, which is told to llama.cpp once. Any thread.
    """

    def __init__(self, vocab: Vocab, key: _Key, sampler: Any) -> None:
        self._lock = threading.Lock()
        self._vocab = weakref.ref(vocab)
        self._key = key
        self._samplers = [sampler]
        self._seen = b""
        weakref.finalize(self, _free, self._samplers)

    def fits(self, vocab: Vocab, key: _Key) -> bool:
        """Whether it is one for these settings."""
        return self._vocab() is vocab and self._key == key

    def copy(self, prompt: Tokens) -> Any:
        """A sampler that has seen the tokens of ``prompt``, the caller's own."""
        with self._lock:
            seen = prompt.tobytes()
            if len(self._samplers) == 1 or seen != self._seen:
                if len(self._samplers) == 2:
                    C.llama_sampler_free(self._samplers.pop())
                sampler = C.llama_sampler_clone(self._samplers[0])
                self._samplers.append(sampler)
                for token in prompt.tolist():
                    C.llama_sampler_accept(sampler, token)
                self._seen = seen
            return C.llama_sampler_clone(self._samplers[1])


def prepare_dry(params: SamplingParams, vocab: Vocab) -> SamplingParams:
    """Do what is slow about the DRY sampler of a request. Blocks, off the GIL; any thread.

    The settings returned hold what was made: with them, a sampler waits for nothing. Raises
    ``LlamaGuardError`` as ``Sampler`` does. Needs the model to stay open meanwhile.
    """
    check(params, vocab.size)
    used = resolved(params)
    if not used.has_dry or used.mirostat:
        return params
    return replace(params, prepared_dry=_prepared(used, vocab))


def open_dry(params: SamplingParams, vocab: Vocab, prompt: Tokens) -> Any:
    """A sampler that has seen ``prompt``, the caller's own. ``params``: resolved and checked."""
    return _prepared(params, vocab).copy(prompt)


def _prepared(params: SamplingParams, vocab: Vocab) -> PreparedDry:
    key = (
        params.dry_multiplier,
        params.dry_base,
        min(params.dry_allowed_length, MAX_LAST_TOKENS),
        last_tokens(params.dry_penalty_last_n),
        tuple(text.encode("utf-8", "surrogatepass") for text in params.dry_sequence_breakers if text),
    )
    prepared = params.prepared_dry
    if isinstance(prepared, PreparedDry) and prepared.fits(vocab, key):
        return prepared
    return PreparedDry(vocab, key, _make(vocab, key))


def _make(vocab: Vocab, key: _Key) -> Any:
    """A sampler without a memory, the caller's own."""
    with _kept_lock:
        kept = _kept.get(vocab)
        if kept is None:
            kept = _kept[vocab] = _Kept()
            weakref.finalize(vocab, kept.close)
    copy = kept.copy(key)
    if copy is not None:
        return copy
    *values, breakers = key
    texts = (ctypes.c_char_p * len(breakers))(*breakers)
    sampler = C.llama_sampler_init_dry(vocab.pointer, *values, texts, len(breakers))
    copy = C.llama_sampler_clone(sampler)
    kept.keep(key, sampler)
    return copy


def _free(samplers: list[Any]) -> None:
    while samplers:
        C.llama_sampler_free(samplers.pop())
