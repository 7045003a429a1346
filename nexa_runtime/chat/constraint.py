"""What an answer must look like, compiled, and the masks that hold its tokens to it.

Owns llguidance: its tokenizer of a model's vocabulary, the compiled grammars, and a cache of them per tenant.
It decides nothing about sampling and reads no request. ``serving`` compiles in a worker thread and starts one
mask per sequence; the engine thread alone calls a mask.

Forced tokens are tokenized by ``Vocab``, never by llama.cpp directly: a long word in a forced text would
overflow the stack of many pre-tokenizers.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from nexa_runtime.chat.grammar import GrammarKind, GrammarSource
from nexa_runtime.chat.grammar_text import one_line, refuse, to_text
from nexa_runtime.chat.trial import DEADLINE_S, Outcome, limits, try_grammar
from nexa_runtime.errors import DecodeError
from nexa_runtime.llama.context import Logits
from nexa_runtime.llama.mask import TokenMask
from nexa_runtime.llama.vocab import Vocab

MAX_PER_TENANT = 32
MAX_IN_ALL = 512
MAX_FORCED = 64
"""Forced tokens handed out at a time."""
_MAX_TRIALS = 2
"""Trials of one model at a time; more would take the processors from the engine."""

_Key = tuple[GrammarKind, bool, bytes]


class Constraint:
    """A compiled source; any number of sequences at once may be held to it."""

    def __init__(self, matcher: LLMatcher, vocab: Vocab) -> None:
        self._matcher = matcher
        self._vocab = vocab
        self.is_spent = False
        """Whether a mask of it failed. All masks share one lexer: once that has too many states, every other
        mask fails too, and the source has to be compiled anew.
        """

    def start(self) -> TokenMask:
        """A fresh mask for one sequence. Thread-safe; microseconds."""
        return GrammarMask(self._matcher.deep_copy(), self._vocab, self)


class ConstraintCompiler:
    """The constraints of one loaded model. Thread-safe."""

    def __init__(
        self, vocab: Vocab, *, max_per_tenant: int = MAX_PER_TENANT, max_in_all: int = MAX_IN_ALL
    ) -> None:
        self._vocab = vocab
        self._tokenizer: LLTokenizer | None = None
        self._tokenizer_lock = threading.Lock()
        self._trials = threading.Semaphore(_MAX_TRIALS)
        self._cache = _Cache(max_per_tenant, max_in_all)

    def compile(self, source: GrammarSource, tenant_id: str) -> Constraint:
        """Blocks, for 3 s at most in a trial. Raises ``InvalidRequestError`` for what cannot be followed."""
        digest = blake2b(source.text.encode("utf-8", "surrogatepass"), digest_size=32).digest()
        key = (source.kind, source.is_strict, digest)
        constraint = self._cache.get(tenant_id, key)
        if constraint is None or constraint.is_spent:
            constraint = self._compile(source)
            self._cache.put(tenant_id, key, constraint)
        return constraint

    def _compile(self, source: GrammarSource) -> Constraint:
        grammar = to_text(source)
        if not grammar.is_plain:
            self._try(grammar.text, source)
        matcher = LLMatcher(self._get_tokenizer(), grammar.text, log_level=0, limits=limits())
        if not matcher.is_error():
            # The first mask shows whether anything fits at all.
            allowed = _allowed(matcher, self._vocab.size)
            if not matcher.is_error() and all(int(token) in self._vocab.eog_tokens for token in allowed):
                refuse(source, "no answer fits it but an empty one")
        if matcher.is_error():
            refuse(source, _reason(matcher))
        return Constraint(matcher, self._vocab)

    def _try(self, text: str, source: GrammarSource) -> None:
        with self._trials:
            outcome = try_grammar(text)
        if outcome is Outcome.TOO_LONG:
            refuse(source, f"it takes longer than {DEADLINE_S:g} seconds to compile")
        if outcome is Outcome.DIED:
            refuse(source, "it is too large or nested too deeply to compile")

    def _get_tokenizer(self) -> LLTokenizer:
        with self._tokenizer_lock:
            if self._tokenizer is None:
                self._tokenizer = _make_tokenizer(self._vocab)
            return self._tokenizer


class GrammarMask:
    """A ``TokenMask`` that follows a grammar."""

    def __init__(self, matcher: LLMatcher, vocab: Vocab, constraint: Constraint) -> None:
        self._matcher = matcher
        self._constraint = constraint
        self._size = vocab.size
        self._eog_tokens = vocab.eog_tokens
        self._is_complete = matcher.is_stopped()

    def allows(self, token: int) -> bool:
        if self._is_complete:
            return token in self._eog_tokens
        is_allowed = self._matcher.validate_tokens([token]) == 1
        self._check()
        return is_allowed

    def apply(self, row: Logits) -> None:
        bits = self._matcher.compute_bitmask()
        self._check()
        allowed = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=self._size, bitorder="little")
        if not allowed.any():
            raise DecodeError("the constraint on its answer allows no token")
        np.copyto(row, -np.inf, where=allowed == 0)

    def accept(self, token: int) -> Sequence[int]:
        if self._is_complete:
            return ()
        self._consume([token])
        if token in self._eog_tokens:
            self._is_complete = True
            return ()
        forced: list[int] = []
        if not self._is_complete:
            forced = self._matcher.compute_ff_tokens()[:MAX_FORCED]
            self._check()
            if forced:
                self._consume(forced)
        return forced

    @property
    def is_complete(self) -> bool:
        return self._is_complete

    def _consume(self, tokens: list[int]) -> None:
        is_consumed = self._matcher.consume_tokens(tokens)
        self._check()
        if not is_consumed:
            raise DecodeError("the constraint on its answer does not allow its next token")
        self._is_complete = self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            self._constraint.is_spent = True
            reason = _reason(self._matcher)
            raise DecodeError(f"the constraint on its answer cannot be followed any further ({reason})")


class _Cache:
    """Least recently used constraints go first: within a tenant that has too many, else the tenant that has
    the most loses one.
    """

    def __init__(self, max_per_tenant: int, max_in_all: int) -> None:
        self._max_per_tenant = max_per_tenant
        self._max_in_all = max_in_all
        self._lock = threading.Lock()
        self._tenants: dict[str, OrderedDict[_Key, Constraint]] = {}

    def get(self, tenant_id: str, key: _Key) -> Constraint | None:
        with self._lock:
            entries = self._tenants.get(tenant_id)
            if entries is None or key not in entries:
                return None
            entries.move_to_end(key)
            return entries[key]

    def put(self, tenant_id: str, key: _Key, constraint: Constraint) -> None:
        with self._lock:
            entries = self._tenants.setdefault(tenant_id, OrderedDict())
            entries[key] = constraint
            entries.move_to_end(key)
            if len(entries) > self._max_per_tenant:
                entries.popitem(last=False)
            if sum(map(len, self._tenants.values())) > self._max_in_all:
                most = max(self._tenants, key=lambda one: len(self._tenants[one]))
                self._tenants[most].popitem(last=False)
                if not self._tenants[most]:
                    del self._tenants[most]


class _Tokens:
    """A vocabulary as ``TokenizerWrapper`` wants it. Special tokens are written with 0xff in front."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self.eos_token_id = vocab.eos_token
        self.bos_token_id = None
        self.special_token_ids = sorted(vocab.marker_tokens)
        self.tokens = [
            b"\xff" + piece if token in vocab.marker_tokens else piece
            for token, piece in enumerate(vocab.special_pieces)
        ]
        # Some tokenizers put a space before a text; behind these tokens they put none.
        self._lead: list[int] = []
        letter = vocab.tokenize("a", parse_special=False)
        if b"".join(vocab.pieces[token] for token in letter) != b"a":
            self._lead = vocab.tokenize("\x02", parse_special=False).tolist()

    def __call__(self, data: bytes) -> list[int]:
        text = data.decode("utf-8")
        if self._lead:
            tokens = list(map(int, self._vocab.tokenize("\x02" + text, parse_special=False)))
            if tokens[: len(self._lead)] == self._lead:
                return tokens[len(self._lead) :]
        return list(map(int, self._vocab.tokenize(text, parse_special=False)))


def _make_tokenizer(vocab: Vocab) -> LLTokenizer:
    """Takes about a second for 150,000 tokens."""
    return LLTokenizer(
        TokenizerWrapper(_Tokens(vocab)), n_vocab=vocab.size, eos_token=sorted(vocab.eog_tokens)
    )


def _allowed(matcher: LLMatcher, size: int) -> list[int]:
    bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    allowed: list[int] = np.flatnonzero(np.unpackbits(bits, count=size, bitorder="little")).tolist()
    return allowed


def _reason(matcher: LLMatcher) -> str:
    """Why a matcher is in its error state, in a few words."""
    reason = matcher.get_error()
    if reason.startswith("panic"):
        return "it is too complex"
    if reason.startswith("NoExtension"):
        return "nothing fits it"
    return one_line(reason)
