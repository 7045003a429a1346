"""Every metric by name: what it counts, its unit, its labels.

Owns the names; nothing is exposed that is not here, and the README's table is made of it. Names begin with
``nexa_`` and end with their unit.
"""

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What may be done with a value: rates of counters, quantiles of histograms."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """``meaning``: for whoever reads a scrape, and the README."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str


_COUNTER, _GAUGE, _HISTOGRAM = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM
_WHO = ("tenant", "model")

# Requests.
REQUESTS = Family(
    "nexa_requests_total",
    _COUNTER,
    ("tenant", "model", "endpoint", "status"),
    "requests that have ended, those too that were refused at the door; 499: the client left",
)
REFUSALS = Family(
    "nexa_refusals_total",
    _COUNTER,
    ("tenant", "reason"),
    "requests that were answered with an error, by its code (a stream that was cut is no such answer)",
)
ANSWERS = Family(
    "nexa_answers_total",
    _COUNTER,
    ("tenant", "model", "finish_reason"),
    "answers that were finished, by the reason of their first choice",
)
PROMPT_TOKENS = Family(
    "nexa_prompt_tokens_total",
    _COUNTER,
    _WHO,
    "tokens of prompts and inputs, cached ones too",
)
CACHED_TOKENS = Family(
    "nexa_cached_tokens_total",
    _COUNTER,
    _WHO,
    "tokens of prompts that were in the prefix cache",
)
COMPLETION_TOKENS = Family("nexa_completion_tokens_total", _COUNTER, _WHO, "tokens of answers")
FIRST_TOKEN = Family(
    "nexa_time_to_first_token_seconds",
    _HISTOGRAM,
    _WHO,
    "from admission to the first text of an answer",
)
QUEUE = Family("nexa_queue_seconds", _HISTOGRAM, _WHO, "how long a sequence waited for a slot")
REQUEST_TIME = Family(
    "nexa_request_seconds",
    _HISTOGRAM,
    _WHO,
    "from admission to the end of a request, however it ended",
)
INTER_TOKEN = Family(
    "nexa_inter_token_seconds",
    _HISTOGRAM,
    ("model",),
    "between two steps that brought a sequence tokens",
)
OPEN_SEQUENCES = Family(
    "nexa_open_sequences",
    _GAUGE,
    (),
    "sequences and embedding requests that are admitted and not closed",
)

# The engine.
RUNNING = Family("nexa_sequences_running", _GAUGE, _WHO, "sequences that have a slot")
WAITING = Family("nexa_sequences_waiting", _GAUGE, _WHO, "sequences that wait for a slot, paused ones too")
PAUSED = Family("nexa_sequences_paused", _GAUGE, ("model",), "sequences that wait and have KV cells")
SLOTS = Family("nexa_slots", _GAUGE, ("model",), "sequences that may run at once")
STEP_TIME = Family(
    "nexa_step_seconds", _HISTOGRAM, ("model", "lane"), "time of an engine step; lane: generation, embedding"
)
STEP_ROWS = Family(
    "nexa_step_rows",
    _HISTOGRAM,
    ("model", "lane"),
    "tokens that a step computed, without padding",
)
PHASE_TIME = Family(
    "nexa_step_phase_seconds_total",
    _COUNTER,
    ("model", "phase"),
    "what generating steps spent on it; phase: schedule, decode, sample, publish",
)
ROWS = Family(
    "nexa_rows_total", _COUNTER, ("model", "kind"), "tokens computed; kind: prefill, decode, embedding"
)
PREEMPTIONS = Family(
    "nexa_preemptions_total",
    _COUNTER,
    ("model",),
    "living sequences that lost their KV cells",
)
EVICTIONS = Family("nexa_evictions_total", _COUNTER, ("model",), "idle prefixes that lost their KV cells")
PAUSES = Family("nexa_pauses_total", _COUNTER, ("model",), "sequences that gave their slot to another")

# Memory.
CELLS = Family("nexa_kv_cells", _GAUGE, ("model",), "KV cells in all")
USED_CELLS = Family("nexa_kv_cells_used", _GAUGE, ("model",), "KV cells that hold a token")
RESIDENT_CELLS = Family(
    "nexa_kv_cells_resident",
    _GAUGE,
    ("model",),
    "KV cells that only idle prefixes hold",
)
TENANT_CELLS = Family(
    "nexa_tenant_kv_cells",
    _GAUGE,
    _WHO,
    "KV cells that a tenant holds; a shared one counts for each in part",
)
TENANT_RESIDENT_CELLS = Family(
    "nexa_tenant_kv_cells_resident",
    _GAUGE,
    _WHO,
    "KV cells of a tenant's idle prefixes",
)
HOST_CACHE = Family("nexa_host_cache_bytes", _GAUGE, ("model",), "prefixes in host memory")
MODEL_MEMORY = Family("nexa_model_memory_bytes", _GAUGE, ("model",), "memory of a loaded model")
MEMORY_BUDGET = Family("nexa_memory_budget_bytes", _GAUGE, (), "memory for all loaded models")
GPU_FREE = Family("nexa_gpu_memory_free_bytes", _GAUGE, (), "free memory of all GPUs; absent without one")
GPU_TOTAL = Family("nexa_gpu_memory_bytes", _GAUGE, (), "memory of all GPUs; absent without one")

# Operations.
INFO = Family("nexa_build_info", _GAUGE, ("version",), "always 1")
READY = Family("nexa_ready", _GAUGE, (), "1 while requests are taken, as `/readyz` says")
MODELS = Family("nexa_models_loaded", _GAUGE, (), "models in memory")
LOAD_TIME = Family("nexa_model_load_seconds", _GAUGE, ("model",), "how long the last load of a model took")
SOURCE_UP = Family(
    "nexa_limits_source_up",
    _GAUGE,
    ("source",),
    "1 if Vault or the tenants file has answered the last question; absent without either",
)
SOURCE_AGE = Family(
    "nexa_limits_source_age_seconds", _GAUGE, ("source",), "since the last answer of that source"
)
SOURCE_ERRORS = Family(
    "nexa_limits_source_errors_total", _COUNTER, ("source",), "questions without an answer"
)
BACKLOG = Family("nexa_usage_backlog_records", _GAUGE, ("sink",), "usage records that are not delivered yet")
DROPPED = Family("nexa_usage_dropped_records_total", _COUNTER, ("sink",), "usage records that were lost")
LOOP_LAG = Family(
    "nexa_event_loop_lag_seconds",
    _HISTOGRAM,
    (),
    "how late the event loop is, looked at four times a second",
)

FAMILIES = (
    REQUESTS, REFUSALS, ANSWERS, PROMPT_TOKENS, CACHED_TOKENS, COMPLETION_TOKENS, FIRST_TOKEN, QUEUE,
    REQUEST_TIME, INTER_TOKEN, OPEN_SEQUENCES,
    RUNNING, WAITING, PAUSED, SLOTS, STEP_TIME, STEP_ROWS, PHASE_TIME, ROWS, PREEMPTIONS, EVICTIONS, PAUSES,
    CELLS, USED_CELLS, RESIDENT_CELLS, TENANT_CELLS, TENANT_RESIDENT_CELLS, HOST_CACHE, MODEL_MEMORY,
    MEMORY_BUDGET, GPU_FREE, GPU_TOTAL,
    INFO, READY, MODELS, LOAD_TIME, SOURCE_UP, SOURCE_AGE, SOURCE_ERRORS, BACKLOG, DROPPED, LOOP_LAG,
)  # fmt: skip
"""In the order of a scrape."""
