"""What an answer must look like, compiled, and the masks that hold its tokens to it.

Owns llguidance: its tokenizer of a model's vocabulary, the compiled grammars, and a cache of them per tenant.
It decides nothing about sampling and reads no request. ``serving`` compiles in a worker thread and starts one
mask per sequence; the engine thread alone calls a mask. No panic of llguidance, which is no ``Exception``,
leaves this module.

Forced tokens are tokenized by ``Vocab``, never by llama.cpp directly: a long word in a forced text would
overflow the stack of many pre-tokenizers.
"""

import json
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Generic, TypeVar

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from nexa_runtime.chat.grammar import GrammarKind, GrammarSource
from nexa_runtime.chat.grammar_text import one_line, refuse, to_text
from nexa_runtime.chat.messages import Json
from nexa_runtime.chat.trial import DEADLINE_S, Outcome, limits, try_grammar
from nexa_runtime.errors import AnswerFormError, InvalidRequestError
from nexa_runtime.llama.context import Logits
from nexa_runtime.llama.mask import TokenMask
from nexa_runtime.llama.vocab import Vocab

MAX_PER_TENANT = 8
MAX_IN_ALL = 64
"""Constraints that are kept. An ordinary one takes 0.1 MB, and up to 2 MB once it was followed. The largest
that could be made took 46 MB: a lexer with all the states that it may have. So a tenant holds 370 MB at most.
"""
MAX_FORCED = 64
"""Forced tokens handed out at a time."""
REFUSAL_S = 60.0
"""How long a refusal is kept: a client that asks again and again costs one trial a minute."""
_MAX_VERDICTS_PER_TENANT = 256
_MAX_VERDICTS_IN_ALL = 4_096
"""A verdict takes less than 1 kB."""
_MAX_TRIALS = 2
"""Trials of one model at a time; more would take the processors from the engine."""
MAX_STEP_S = 0.02
"""Mean time of a step, for which all sequences wait: as long as a step of a small model."""
SLOW_STEPS = 16
"""Steps that the mean is of; the first one of a grammar may well take longer than those after it."""

_Key = tuple[GrammarKind, bool, bytes]
ValueT = TypeVar("ValueT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Whether a source can be followed. ``reason``: the sentence that says why not; None if it can."""

    reason: str | None
    ends_at: float


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
        return GrammarMask(_call(self._matcher.deep_copy), self._vocab, self)


class ConstraintCompiler:
    """The constraints of one loaded model. Thread-safe. ``clock``: in seconds, for how long refusals keep."""

    def __init__(
        self,
        vocab: Vocab,
        *,
        max_per_tenant: int = MAX_PER_TENANT,
        max_in_all: int = MAX_IN_ALL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._vocab = vocab
        self._clock = clock
        self._tokenizer: LLTokenizer | None = None
        self._tokenizer_lock = threading.Lock()
        self._trials = threading.Semaphore(_MAX_TRIALS)
        self._cache: _Cache[Constraint] = _Cache(max_per_tenant, max_in_all)
        self._verdicts: _Cache[_Verdict] = _Cache(_MAX_VERDICTS_PER_TENANT, _MAX_VERDICTS_IN_ALL)

    def cached(self, source: GrammarSource, tenant_id: str) -> Constraint | None:
        """What ``compile`` would return at once. Costs a hash of the source's text; for the event loop."""
        return self._kept(tenant_id, _key(source))

    def compile(self, source: GrammarSource, tenant_id: str) -> Constraint:
        """Blocks, for 2 s at most in a trial. Raises ``InvalidRequestError`` for what cannot be followed,
        and does so again without trying for ``REFUSAL_S``.
        """
        key = _key(source)
        constraint = self._kept(tenant_id, key)
        if constraint is None:
            constraint = self._compile_once(source, tenant_id, key)
            self._cache.put(tenant_id, key, constraint)
        return constraint

    def supports(self, schema: Mapping[str, Json], tenant_id: str) -> bool:
        """Whether JSON of this schema can be followed. Blocks as ``compile`` does; the answer is kept."""
        try:
            text = json.dumps(dict(schema))
        except (ValueError, RecursionError):
            return False
        source = GrammarSource(GrammarKind.JSON_SCHEMA, text, "schema")
        key = _key(source)
        verdict = self._verdicts.get(tenant_id, key)
        if self._kept(tenant_id, key) is not None or (verdict is not None and verdict.reason is None):
            return True
        try:
            self._compile_once(source, tenant_id, key)
        except InvalidRequestError:
            return False
        self._verdicts.put(tenant_id, key, _Verdict(None, math.inf))
        return True

    def _kept(self, tenant_id: str, key: _Key) -> Constraint | None:
        constraint = self._cache.get(tenant_id, key)
        return None if constraint is None or constraint.is_spent else constraint

    def _compile_once(self, source: GrammarSource, tenant_id: str, key: _Key) -> Constraint:
        """Compile, unless it was refused a short while ago."""
        verdict = self._verdicts.get(tenant_id, key)
        if verdict is not None and verdict.reason is not None and self._clock() < verdict.ends_at:
            raise InvalidRequestError(verdict.reason, param=source.param)
        try:
            return self._compile(source)
        except InvalidRequestError as error:
            self._verdicts.put(tenant_id, key, _Verdict(str(error), self._clock() + REFUSAL_S))
            raise

    def _compile(self, source: GrammarSource) -> Constraint:
        try:
            return _call(self._compiled, source)
        except AnswerFormError:
            refuse(source, "it is too complex")

    def _compiled(self, source: GrammarSource) -> Constraint:
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
    """A ``TokenMask`` that follows a grammar.

    All sequences of all tenants wait while it works, so it measures itself: its sequence ends when a step,
    from one accepted token to the next, takes too long on average. ``clock``: processor time of the thread in
    seconds, so that nobody's answer ends because others keep the processors busy.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocab: Vocab,
        constraint: Constraint,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._matcher = matcher
        self._constraint = constraint
        self._size = vocab.size
        self._eog_tokens = vocab.eog_tokens
        self._clock = clock
        self._step_s = 0.0
        """What the step has taken so far."""
        self._steps: deque[float] = deque(maxlen=SLOW_STEPS)
        self._is_complete = self._ask(matcher.is_stopped)

    def allows(self, token: int) -> bool:
        if self._is_complete:
            return token in self._eog_tokens
        is_allowed = self._ask(self._matcher.validate_tokens, [token]) == 1
        self._check()
        return is_allowed

    def apply(self, row: Logits) -> None:
        bits = self._ask(self._matcher.compute_bitmask)
        self._check()
        allowed = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=self._size, bitorder="little")
        if not allowed.any():
            raise AnswerFormError("the constraint on its answer allows no token")
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
            forced = self._ask(self._matcher.compute_ff_tokens)[:MAX_FORCED]
            self._check()
            if forced:
                self._consume(forced)
        self._end_step()
        return forced

    @property
    def is_complete(self) -> bool:
        return self._is_complete

    def _consume(self, tokens: list[int]) -> None:
        is_consumed = self._ask(self._matcher.consume_tokens, tokens)
        self._check()
        if not is_consumed:
            raise AnswerFormError("the constraint on its answer does not allow its next token")
        self._is_complete = self._ask(self._matcher.is_stopped)

    def _ask(self, function: Callable[..., ResultT], *arguments: object) -> ResultT:
        """Call the matcher, and take the time."""
        started = self._clock()
        try:
            return _call(function, *arguments)
        except AnswerFormError:
            self._constraint.is_spent = True
            raise
        finally:
            self._step_s += self._clock() - started

    def _end_step(self) -> None:
        self._steps.append(self._step_s)
        self._step_s = 0.0
        is_slow = len(self._steps) == SLOW_STEPS and sum(self._steps) > SLOW_STEPS * MAX_STEP_S
        if is_slow and not self._is_complete:
            raise AnswerFormError("the form of its answer takes too long to follow")

    def _check(self) -> None:
        if _call(self._matcher.is_error):
            self._constraint.is_spent = True
            reason = _reason(self._matcher)
            raise AnswerFormError(f"the constraint on its answer cannot be followed any further ({reason})")


class _Cache(Generic[ValueT]):
    """Least recently used values go first: within a tenant that has too many, else the tenant that has the
    most loses one.
    """

    def __init__(self, max_per_tenant: int, max_in_all: int) -> None:
        self._max_per_tenant = max_per_tenant
        self._max_in_all = max_in_all
        self._lock = threading.Lock()
        self._tenants: dict[str, OrderedDict[_Key, ValueT]] = {}

    def get(self, tenant_id: str, key: _Key) -> ValueT | None:
        with self._lock:
            entries = self._tenants.get(tenant_id)
            if entries is None or key not in entries:
                return None
            entries.move_to_end(key)
            return entries[key]

    def put(self, tenant_id: str, key: _Key, value: ValueT) -> None:
        with self._lock:
            entries = self._tenants.setdefault(tenant_id, OrderedDict())
            entries[key] = value
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


def _key(source: GrammarSource) -> _Key:
    digest = blake2b(source.text.encode("utf-8", "surrogatepass"), digest_size=32).digest()
    return (source.kind, source.is_strict, digest)


def _call(function: Callable[..., ResultT], *arguments: object) -> ResultT:
    """Call into llguidance. Raises ``AnswerFormError`` where it panics."""
    try:
        return function(*arguments)
    except BaseException as error:
        # The class is no ``Exception``, and has no module to import it from.
        if type(error).__name__ != "PanicException":
            raise
        raise AnswerFormError("the constraint on its answer is too complex") from None


def _allowed(matcher: LLMatcher, size: int) -> list[int]:
    bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    allowed: list[int] = np.flatnonzero(np.unpackbits(bits, count=size, bitorder="little")).tolist()
    return allowed


def _reason(matcher: LLMatcher) -> str:
    """Why a matcher is in its error state, in a few words."""
    reason = _call(matcher.get_error)
    if reason.startswith("panic"):
        return "it is too complex"
    if reason.startswith("NoExtension"):
        return "nothing fits it"
    return one_line(reason)
