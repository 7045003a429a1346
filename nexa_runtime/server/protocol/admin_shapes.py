"""The shapes of answers to the owner of the box, for the API's document.

Owns a type per body of ``/admin``, ``/health`` and ``/readyz``; ``endpoints`` names them, a test holds real
answers to them. It never makes an answer.
"""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from nexa_runtime.engine.scheduler import SchedulerStats
from nexa_runtime.store.arrival import PullEvent
from nexa_runtime.tenancy.admission import TenantUsage

__all__ = [
    "Health", "Live", "ModelStates", "PullEvent", "Readiness", "TenantConfig", "TenantList", "UsageSums",
]  # fmt: skip


class Health(TypedDict):
    """The process answers."""

    status: Literal["ok"]


class UnreadyReason(TypedDict):
    """One reason not to send requests here."""

    code: Literal[
        "draining", "engine_stopped", "engine_hung", "model_loading", "model_unavailable",
        "limits_unavailable",
    ]  # fmt: skip
    message: str


class Readiness(TypedDict):
    """Whether requests are taken; ``reason`` is the first of ``reasons``. The last three are there once the
    default model is loaded.
    """

    status: Literal["ready", "not ready"]
    reason: str | None
    reasons: list[UnreadyReason]
    model: str
    open_requests: int
    tasks: int
    slots: NotRequired[int]
    kv_cells: NotRequired[int]
    engine: NotRequired[SchedulerStats]


class ModelState(TypedDict):
    """A model of the store, or one that is still loaded. ``id``: of its record in the store."""

    name: str
    names: list[str]
    id: str | None
    state: Literal["loaded", "draining", "loading", "failed", "stored"]
    size_bytes: int
    memory_bytes: int
    kv_cells: int
    load_s: float | None
    leases: int
    is_default: bool
    failure: str | None


class ModelStates(TypedDict):
    """All models, and the memory for them."""

    budget_bytes: int
    used_bytes: int
    models: list[ModelState]


class TenantState(TypedDict):
    """What one tenant runs, holds and has used since the start. ``cells``: of the KV cache, of which
    ``resident_cells`` only wait for a prompt that begins alike. ``generated_tokens``: with those of answers
    that are not complete.
    """

    tenant_id: str
    source: str | None
    version: str | None
    running: int
    queued: int
    cells: int
    resident_cells: int
    virtual_time: float
    usage: TenantUsage
    weight: float
    generated_tokens: int


class TenantList(TypedDict):
    """Every tenant that is known here."""

    tenants: list[TenantState]


class EngineState(TypedDict):
    """What one loaded model runs; steps and their rows since it was loaded."""

    name: str
    slots: int
    running: int
    waiting: int
    kv_cells: int
    used_cells: int
    num_steps: int
    num_decode_rows: int
    num_prefill_rows: int


class ModelMemory(TypedDict):
    """Of all models together."""

    budget_bytes: int
    used_bytes: int


class Live(TypedDict):
    """What the box does at one moment. ``tenants``: the busiest of ``num_tenants``."""

    version: str
    uptime_s: float
    is_ready: bool
    reason: str | None
    open_requests: int
    num_tenants: int
    tenants: list[TenantState]
    engines: list[EngineState]
    models: list[ModelState]
    memory: ModelMemory


class TenantConfig(TypedDict):
    """The limits in force for one tenant, a value per secret key; of keys only how many there are."""

    tenant_id: str
    source: str
    version: str
    age_s: float | None
    limits: dict[str, object]
    problems: list[str]
    unknown_keys: list[str]


class UsageCounts(TypedDict):
    """What was used. ``statuses``: requests by class, such as `2xx`."""

    requests: int
    statuses: dict[str, int]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_tokens: int


class TenantModelUsage(UsageCounts):
    """Of one tenant and model; null stands for those beyond the number that is told apart."""

    tenant_id: str | None
    model: str | None


class UsageSums(TypedDict):
    """What was used from `since` to `until`, by the time of admission in whole minutes.

    It counts since `started_at`, the start of the server. Before `complete_since` there are no single minutes
    any more: who asks for a moment between the two gets what is there from `complete_since` on.
    """

    started_at: str
    complete_since: str
    since: str
    until: str
    total: UsageCounts
    usage: list[TenantModelUsage]
