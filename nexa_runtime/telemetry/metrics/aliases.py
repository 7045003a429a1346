"""The same values under the names of llama-server and vLLM, for dashboards that know those.

Owns which of their metrics mean the same as ours. Nothing is counted for them: each is read from what is
there. Labels that we have and they lack are summed up; llama-server's have none at all, here they have the
model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nexa_runtime.telemetry.metrics import catalogue as ours
from nexa_runtime.telemetry.metrics.catalogue import Family, Kind
from nexa_runtime.telemetry.metrics.reading import Histograms, Reading, Values

_BY_MODEL = ("model",)
_LLAMA = ("model",)
_VLLM = ("model_name",)


@dataclass(frozen=True, slots=True)
class Alias:
    """``family``: the name that it has elsewhere; its ``meaning`` is written in our names."""

    family: Family
    read: Callable[[Reading], Values | Histograms]


def _same(name: str, labels: tuple[str, ...], family: Family) -> Alias:
    """By model, all other labels added up."""
    meaning = f"`{family.name}`"
    if family.kind is Kind.HISTOGRAM:
        return Alias(
            Family(name, family.kind, labels, meaning),
            lambda reading: reading.histogram_sums(family, _BY_MODEL),
        )
    return Alias(Family(name, family.kind, labels, meaning), lambda reading: reading.sums(family, _BY_MODEL))


def _minus(left: Values, right: Values) -> Values:
    return {labels: value - right.get(labels, 0) for labels, value in left.items()}


def _ratio(part: Values, whole: Mapping[tuple[str, ...], float]) -> Values:
    return {labels: value / (whole[labels] or 1) for labels, value in part.items()}


def _computed_prompt_tokens(reading: Reading) -> Values:
    prompt, cached = ours.PROMPT_TOKENS, ours.CACHED_TOKENS
    return _minus(reading.sums(prompt, _BY_MODEL), reading.sums(cached, _BY_MODEL))


def _decodes(reading: Reading) -> Values:
    steps = reading.histogram_sums(ours.STEP_TIME, ("model", "lane"))
    return {(model,): each.num_observed for (model, lane), each in steps.items() if lane == "generation"}


def _used_part(reading: Reading) -> Values:
    return _ratio(reading.sums(ours.USED_CELLS, _BY_MODEL), reading.sums(ours.CELLS, _BY_MODEL))


def _needed_part(reading: Reading) -> Values:
    used = reading.sums(ours.USED_CELLS, _BY_MODEL)
    needed = _minus(used, reading.sums(ours.RESIDENT_CELLS, _BY_MODEL))
    return _ratio(needed, reading.sums(ours.CELLS, _BY_MODEL))


ALIASES = (
    Alias(
        Family(
            "llamacpp:prompt_tokens_total", Kind.COUNTER, _LLAMA,
            f"`{ours.PROMPT_TOKENS.name}` without `{ours.CACHED_TOKENS.name}`",
        ),
        _computed_prompt_tokens,
    ),
    _same("llamacpp:tokens_predicted_total", _LLAMA, ours.COMPLETION_TOKENS),
    _same("llamacpp:requests_processing", _LLAMA, ours.RUNNING),
    _same("llamacpp:requests_deferred", _LLAMA, ours.WAITING),
    Alias(
        Family(
            "llamacpp:n_decode_total", Kind.COUNTER, _LLAMA,
            f"generating steps that `{ours.STEP_TIME.name}` has counted",
        ),
        _decodes,
    ),
    _same("llamacpp:kv_cache_tokens", _LLAMA, ours.USED_CELLS),
    Alias(
        Family(
            "llamacpp:kv_cache_usage_ratio", Kind.GAUGE, _LLAMA,
            f"`{ours.USED_CELLS.name}` as a part of `{ours.CELLS.name}`",
        ),
        _used_part,
    ),
    _same("vllm:num_requests_running", _VLLM, ours.RUNNING),
    _same("vllm:num_requests_waiting", _VLLM, ours.WAITING),
    Alias(
        Family(
            "vllm:kv_cache_usage_perc", Kind.GAUGE, _VLLM,
            f"`{ours.USED_CELLS.name}` without `{ours.RESIDENT_CELLS.name}`,"
            f" as a part of `{ours.CELLS.name}`",
        ),
        _needed_part,
    ),
    _same("vllm:num_preemptions_total", _VLLM, ours.PREEMPTIONS),
    _same("vllm:prompt_tokens_total", _VLLM, ours.PROMPT_TOKENS),
    _same("vllm:generation_tokens_total", _VLLM, ours.COMPLETION_TOKENS),
    _same("vllm:prefix_cache_queries_total", _VLLM, ours.PROMPT_TOKENS),
    _same("vllm:prefix_cache_hits_total", _VLLM, ours.CACHED_TOKENS),
    Alias(
        Family(
            "vllm:request_success_total", Kind.COUNTER, (*_VLLM, "finished_reason"), f"`{ours.ANSWERS.name}`",
        ),
        lambda reading: reading.sums(ours.ANSWERS, ("model", "finish_reason")),
    ),
    _same("vllm:time_to_first_token_seconds", _VLLM, ours.FIRST_TOKEN),
    _same("vllm:inter_token_latency_seconds", _VLLM, ours.INTER_TOKEN),
    _same("vllm:request_queue_time_seconds", _VLLM, ours.QUEUE),
    _same("vllm:e2e_request_latency_seconds", _VLLM, ours.REQUEST_TIME),
)  # fmt: skip
