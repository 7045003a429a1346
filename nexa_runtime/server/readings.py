"""Where the values of the engine, the memory and the sources of limits come from, at a scrape.

Owns which number of which room a metric is. Everything is read on the event loop, as it stands there; of the
engine thread's numbers some may be half a second older. Nothing here waits, and nothing asks a disk.
``metrics`` calls it.
"""

from collections.abc import Sequence

from nexa_runtime.engine.embedder import EmbeddingLane
from nexa_runtime.engine.generation_lane import GenerationLane
from nexa_runtime.engine.step_meter import StepMeter
from nexa_runtime.serving.loaded import LoadedModel
from nexa_runtime.serving.pool import ModelPool
from nexa_runtime.telemetry.metrics import catalogue
from nexa_runtime.telemetry.metrics.labels import TenantLabels
from nexa_runtime.telemetry.metrics.reading import Reading
from nexa_runtime.tenancy.source_health import SourceHealth
from nexa_runtime.usage import Sink


def read_pool(reading: Reading, pool: ModelPool, tenants: TenantLabels) -> None:
    """Every loaded model, and what they have together."""
    models = pool.models()
    reading.add(catalogue.MODELS, len(models))
    reading.add(catalogue.MEMORY_BUDGET, pool.budget_bytes)
    for model in models:
        reading.add(catalogue.MODEL_MEMORY, model.memory_bytes, model.id)
        if (load_s := pool.load_s(model)) is not None:
            reading.add(catalogue.LOAD_TIME, load_s, model.id)
        if (generation := model.engine.generation) is not None:
            _read_scheduler(reading, model)
            _read_tenants(reading, model, tenants)
            _read_steps(reading, model.id, generation)
        if (embedding := model.engine.embedding) is not None:
            _read_batches(reading, model.id, embedding)


def read_source(reading: Reading, health: SourceHealth | None) -> None:
    """Where limits come from, if they come from anywhere."""
    if health is None:
        return
    reading.add(catalogue.SOURCE_UP, health.is_up, health.name)
    reading.add(catalogue.SOURCE_ERRORS, health.num_errors, health.name)
    if health.age_s is not None:
        reading.add(catalogue.SOURCE_AGE, health.age_s, health.name)


def read_sinks(reading: Reading, sinks: Sequence[Sink]) -> None:
    """Whoever keeps usage records."""
    for sink in sinks:
        reading.add(catalogue.BACKLOG, sink.backlog, sink.name)
        reading.add(catalogue.DROPPED, sink.dropped, sink.name)


def _read_scheduler(reading: Reading, model: LoadedModel) -> None:
    stats = model.engine.stats
    reading.add(catalogue.SLOTS, model.slots, model.id)
    reading.add(catalogue.CELLS, model.num_cells, model.id)
    reading.add(catalogue.PAUSED, stats.num_paused, model.id)
    reading.add(catalogue.USED_CELLS, stats.num_used_cells, model.id)
    reading.add(catalogue.RESIDENT_CELLS, stats.num_resident_cells, model.id)
    reading.add(catalogue.HOST_CACHE, stats.num_host_bytes, model.id)
    reading.add(catalogue.PREEMPTIONS, stats.num_preemptions, model.id)
    reading.add(catalogue.EVICTIONS, stats.num_evictions, model.id)
    reading.add(catalogue.PAUSES, stats.num_pauses, model.id)


def _read_tenants(reading: Reading, model: LoadedModel, tenants: TenantLabels) -> None:
    for tenant_id, counts in model.engine.tenant_counts.items():
        tenant = tenants.label(tenant_id)
        reading.add(catalogue.RUNNING, counts.num_running, tenant, model.id)
        reading.add(catalogue.WAITING, counts.num_waiting, tenant, model.id)
        reading.add(catalogue.TENANT_CELLS, counts.num_cells, tenant, model.id)
        reading.add(catalogue.TENANT_RESIDENT_CELLS, counts.num_resident_cells, tenant, model.id)


def _read_steps(reading: Reading, model_id: str, lane: GenerationLane) -> None:
    meter, totals = lane.meter, lane.totals
    _read_meter(reading, model_id, "generation", meter)
    reading.add_histogram(catalogue.INTER_TOKEN, meter.gap, model_id)
    reading.add(catalogue.PHASE_TIME, meter.schedule_s, model_id, "schedule")
    reading.add(catalogue.PHASE_TIME, meter.decode_s, model_id, "decode")
    reading.add(catalogue.PHASE_TIME, meter.sample_s, model_id, "sample")
    reading.add(catalogue.PHASE_TIME, meter.publish_s, model_id, "publish")
    reading.add(catalogue.ROWS, totals.num_prefill_rows, model_id, "prefill")
    reading.add(catalogue.ROWS, totals.num_decode_rows, model_id, "decode")


def _read_batches(reading: Reading, model_id: str, lane: EmbeddingLane) -> None:
    _read_meter(reading, model_id, "embedding", lane.meter)
    reading.add(catalogue.ROWS, lane.meter.rows.total, model_id, "embedding")


def _read_meter(reading: Reading, model_id: str, lane: str, meter: StepMeter) -> None:
    reading.add_histogram(catalogue.STEP_TIME, meter.step, model_id, lane)
    reading.add_histogram(catalogue.STEP_ROWS, meter.rows, model_id, lane)
