"""The values that the engine's parts hand to each other.

Owns ``Sequence`` (the token history of one generation and its state), ``TenantShare`` and the step's plan and
result. Pure: no llama, no threads, no clock. The scheduler changes sequences; the runner only reads them.

There is no prefill phase and no decode phase: a sequence has tokens *known* (prompt and sampled ones) and
tokens *computed* (in the KV cache), and each step lets some of the computed catch up with the known. A
constraint may say which tokens must follow a sampled one: these are known at once, and computed together.
"""

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from nexa_runtime.lora import NO_ADAPTERS, AdapterSet

Tokens = npt.NDArray[np.int32]

MAX_DECODE_ROWS = 32
"""Tokens of an answer that may wait to be computed for it to count as decoding: what a constraint forced."""


class SequenceState(Enum):
    """Where a sequence stands. One that waits and has KV is *paused*."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(Enum):
    """Why a sequence ended. STOP: an end token or stop string. LENGTH: its cap."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class TenantShare:
    """All that the engine knows of a tenant.

    ``weight``: its part of the token work. ``guaranteed_slots``: always reclaimable from others.
    ``max_slots``: None for all. ``cache_floor_cells``: tokens of its prefixes that
    others may not evict, from cells or from host memory.
    """

    tenant_id: str
    weight: float = 1.0
    guaranteed_slots: int = 1
    max_slots: int | None = None
    cache_floor_cells: int = 0


class Sequence:
    """One generation: its tokens, how many are computed, and what ends it.

    ``prompt``: int32 of shape (n,), n ≥ 1. ``max_new_tokens`` ≥ 1. ``end_tokens`` finish it with STOP.
    ``adapters``: what it is computed with. ``cache_namespace``: sequences of different namespaces never see
    each other's KV, nor do those of different adapters. ``is_public``: all namespaces may share its prompt
    once it has ended. A larger ``priority`` goes first within the tenant.
    ``queue_timeout_s``: how long it may wait for its first slot; None: for ever.
    """

    __slots__ = (
        "_tokens",
        "adapters",
        "arrival",
        "cache_namespace",
        "end_tokens",
        "finish_reason",
        "is_public",
        "key",
        "max_new_tokens",
        "num_cached",
        "num_charged",
        "num_computed",
        "num_known",
        "num_prompt",
        "priority",
        "queue_timeout_s",
        "queued_at",
        "sequence_id",
        "share",
        "started_at",
        "state",
    )

    def __init__(
        self,
        key: int,
        prompt: Tokens,
        *,
        max_new_tokens: int,
        share: TenantShare,
        cache_namespace: str,
        adapters: AdapterSet = NO_ADAPTERS,
        end_tokens: frozenset[int] = frozenset(),
        priority: int = 0,
        is_public: bool = False,
        queue_timeout_s: float | None = None,
    ) -> None:
        if not len(prompt) or max_new_tokens < 1:
            raise ValueError("a sequence needs a prompt and room for one token")
        self.key = key
        self.share = share
        self.adapters = adapters
        self.cache_namespace = f"{cache_namespace} {adapters}" if adapters else cache_namespace
        self.end_tokens = end_tokens
        self.priority = priority
        self.is_public = is_public
        self.queue_timeout_s = queue_timeout_s
        self.max_new_tokens = max_new_tokens
        self.num_prompt = len(prompt)
        self.num_known = len(prompt)
        self.num_computed = 0
        self.num_cached = 0
        """Prompt tokens whose KV was there when it was first scheduled."""
        self.num_charged = 0
        """Tokens paid for: work that is done again after a preemption costs nothing."""
        self.state = SequenceState.WAITING
        self.finish_reason: FinishReason | None = None
        self.sequence_id: int | None = None
        """llama.cpp's id once it is computed on; its KV holds ``num_computed`` tokens."""
        self.arrival = 0
        """Order of arrival, set by the fair queue."""
        self.queued_at = 0.0
        self.started_at: float | None = None
        """When it was given a slot, in the scheduler's seconds; None while it waits."""
        self._tokens = np.empty(len(prompt) + min(max_new_tokens, 256), dtype=np.int32)
        self._tokens[: len(prompt)] = prompt

    @property
    def num_new(self) -> int:
        """Tokens sampled so far, an end token included."""
        return self.num_known - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Known tokens that are not computed yet; at least one while the sequence lives."""
        return self.num_known - self.num_computed

    @property
    def max_cells(self) -> int:
        """KV cells that it can ever need: the last token sampled is never computed."""
        return self.num_prompt + self.max_new_tokens - 1

    @property
    def is_decoding(self) -> bool:
        """Whether its prompt is computed, and of its answer all but the newest tokens are."""
        return self.num_prompt <= self.num_computed and self.num_pending <= MAX_DECODE_ROWS

    def tokens(self, start: int, count: int) -> Tokens:
        """A view of known tokens, shape (count,)."""
        return self._tokens[start : start + count]

    def append(self, token: int) -> None:
        """Add a sampled token."""
        if self.num_known == len(self._tokens):
            grown = np.empty(self.num_known + max(256, self.num_known // 2), dtype=np.int32)
            grown[: self.num_known] = self._tokens
            self._tokens = grown
        self._tokens[self.num_known] = token
        self.num_known += 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens ``start … start+count-1`` of one sequence, to be computed in one step.

    ``wants_token``: they are the last known ones, so a next token is sampled.
    """

    sequence: Sequence
    start: int
    count: int
    wants_token: bool
    is_decode: bool


@dataclass(frozen=True, slots=True)
class CopyPrefix:
    """Let ``target_id``, which is empty, share the first ``num_tokens`` positions of ``source_id``."""

    source_id: int
    target_id: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """Keep only the first ``num_tokens`` positions of ``sequence_id``."""

    sequence_id: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Offload:
    """Keep ``num_tokens`` positions of ``sequence_id`` from ``start`` on in host memory, as ``block``."""

    sequence_id: int
    block: int
    start: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Reload:
    """Let the positions of ``sequence_id`` from ``start`` on be the first ``num_tokens`` of ``block``."""

    block: int
    sequence_id: int
    start: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Free ``block`` in host memory."""

    block: int


KvOperation = CopyPrefix | Truncate | Offload | Reload | Forget


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step does: first the ``operations`` on the KV cache in their order, then the ``chunks``, whose
    sequences all have the same adapters. ``num_padding``: rows behind them that are nobody's, each with an
    output, which nobody reads (``padding``).
    """

    chunks: tuple[Chunk, ...]
    operations: tuple[KvOperation, ...]
    num_padding: int = 0
    num_rows: int = field(init=False)
    """Tokens computed, without padding."""
    num_decode_rows: int = field(init=False)
    """Rows that continue an answer."""

    def __post_init__(self) -> None:
        """Count once what is asked for again and again."""
        object.__setattr__(self, "num_rows", sum([chunk.count for chunk in self.chunks]))
        num_decode_rows = sum([chunk.count for chunk in self.chunks if chunk.is_decode])
        object.__setattr__(self, "num_decode_rows", num_decode_rows)

    @property
    def is_mixed(self) -> bool:
        """Whether prompts and answers share the step."""
        return 0 < self.num_decode_rows < self.num_rows


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a plan. ``tokens``: sequence key → the token sampled, and those that must follow it.
    ``failed``: key → why it cannot go on.

    ``elapsed_s``: time of the step, in seconds. ``is_pool_full``: llama.cpp found no room for the rows;
    nothing was computed. ``lost``: keys of sequences whose KV cannot be trusted any more; they are computed
    again. ``complete``: keys of sequences that nothing may follow. ``unreadable``: blocks of host memory that
    could not be taken back. ``sample_s``: the part of the time that sampling took.
    """

    elapsed_s: float
    tokens: dict[int, tuple[int, ...]]
    failed: dict[int, Exception]
    is_pool_full: bool = False
    lost: frozenset[int] = frozenset()
    complete: frozenset[int] = frozenset()
    unreadable: frozenset[int] = frozenset()
    sample_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Advance:
    """What a step did to one sequence: tokens to show, which an end token is not, an end, or both."""

    sequence: Sequence
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    error: Exception | None = None
