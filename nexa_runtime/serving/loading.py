"""From settings to a model that answers: weights, contexts, engine, template.

Owns how many KV cells fit into memory and what holds where a client is silent. It never sees requests;
``cli`` calls it and hands the result to the pool.
"""

import os
import time
from pathlib import Path

import nexa_runtime
from nexa_runtime.chat.template import CHATML, ChatTemplate, TemplateSyntaxError
from nexa_runtime.config import EngineSettings, ModelSettings
from nexa_runtime.engine.embedder import EmbeddingLane
from nexa_runtime.engine.engine import Engine
from nexa_runtime.engine.fair_queue import Accounts
from nexa_runtime.engine.generation_lane import GenerationLane
from nexa_runtime.engine.kv_cache import KvCache, Reuse
from nexa_runtime.engine.runner import Runner
from nexa_runtime.engine.scheduler import MIN_PREFILL_TOKENS, Scheduler
from nexa_runtime.errors import ModelFileError
from nexa_runtime.llama import Context, ContextParams, EmbeddingContext, Model, SamplingParams
from nexa_runtime.serving.pool import Kind, LoadedModel
from nexa_runtime.telemetry import get_logger

DEMO_NAME = "demo"
DEMO_PATH = Path(nexa_runtime.__file__).parent / "data" / "nexa-demo.gguf"

_MEMORY_SHARE = 0.5
"""Part of the free memory that the KV cache may take by default."""

_MIN_CELLS = 256
_IDS_PER_SLOT = 2
_MAX_SEQUENCE_IDS = 256

_MAX_EMBEDDING_TOKENS = 2048
"""Longest input that a model which also generates embeds: its buffers grow with tokens x vocabulary."""

_log = get_logger("serving.loading")


def load_model(settings: ModelSettings, engine_settings: EngineSettings) -> LoadedModel:
    """Load the model that the settings name. Blocks. Raises ``ModelFileError``."""
    start = time.monotonic()
    is_demo = settings.model_id == DEMO_NAME
    path = DEMO_PATH if is_demo else Path(settings.model_id).expanduser()
    model = Model.load(path, gpu_layers=settings.gpu_layers)
    names = tuple(dict.fromkeys([DEMO_NAME if is_demo else path.stem, *settings.served_names]))
    try:
        loaded = _make_loaded(model, names, engine_settings)
    except BaseException:
        model.close()
        raise
    _log.info(
        "model_loaded",
        model=loaded.id,
        description=model.description,
        kinds=sorted(kind.value for kind in loaded.kinds),
        slots=loaded.slots,
        kv_cells=loaded.num_cells,
        max_sequence_tokens=loaded.max_sequence_tokens,
        threads=_num_threads(engine_settings),
        seconds=round(time.monotonic() - start, 3),
    )
    return loaded


def plan_cells(model: Model, settings: EngineSettings, *, available_bytes: int) -> int:
    """How many KV cells to make: as asked, else slots x the model's context as far as memory allows.

    ``available_bytes`` of main memory, of which the weights take their part; a GPU has its own and is asked
    by trying (``_make_context``).
    """
    if settings.ctx_size is not None:
        return settings.ctx_size
    wanted = settings.slots * model.context_tokens
    if model.is_on_gpu:
        return wanted
    free_bytes = max(available_bytes - model.size_bytes, 0)
    affordable = max(int(free_bytes * _MEMORY_SHARE) // model.kv_cell_bytes, _MIN_CELLS)
    if affordable < wanted:
        _log.warning("kv_cells_reduced", wanted=wanted, affordable=affordable)
    return min(wanted, affordable)


def available_memory_bytes() -> int:
    """Memory that this process may still take: the machine's, or its control group's if that is less."""
    available = _number_after("/proc/meminfo", "MemAvailable:")
    if available is None:
        available_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        available_bytes = available * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or one without a limit
        return available_bytes
    reclaimable = _number_after(str(group / "memory.stat"), "file") or 0
    return max(min(available_bytes, limit - used + reclaimable), 0)


def num_usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _number_after(path: str, word: str) -> int | None:
    """The number after ``word`` at the start of a line, as the kernel's tables have it."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    fields = (line.split() for line in lines)
    return next((int(field[1]) for field in fields if field[:1] == [word]), None)


def _make_loaded(model: Model, names: tuple[str, ...], settings: EngineSettings) -> LoadedModel:
    accounts = Accounts()
    context = None if model.is_encoder else _make_context(model, settings)
    max_embedding_tokens = model.context_tokens
    if context is not None:
        max_embedding_tokens = min(max_embedding_tokens, _MAX_EMBEDDING_TOKENS)
    embedding = EmbeddingLane(
        lambda: EmbeddingContext(model, max_tokens=max_embedding_tokens, num_threads=_num_threads(settings)),
        accounts,
        step_tokens=settings.step_tokens,
    )
    generation = None if context is None else _make_lane(model, context, accounts, settings)
    return LoadedModel(
        names=names,
        kinds=frozenset([Kind.EMBEDDING] if context is None else Kind),
        created=int(model.path.stat().st_mtime),
        model=model,
        context=context,
        engine=Engine(generation=generation, embedding=embedding),
        template=_make_template(model),
        sampling=_default_sampling(model),
        slots=settings.slots,
        max_sequence_tokens=0 if context is None else min(model.context_tokens, context.num_cells),
        max_embedding_tokens=max_embedding_tokens,
    )


def _make_context(model: Model, settings: EngineSettings) -> Context:
    """A context with as many cells as planned; on a GPU that has less memory, half of them, and so on."""
    num_cells = plan_cells(model, settings, available_bytes=available_memory_bytes())
    num_ids = min(_IDS_PER_SLOT * settings.slots, _MAX_SEQUENCE_IDS)
    while True:
        params = ContextParams(
            num_cells=num_cells,
            num_sequence_ids=num_ids,
            max_rows=_step_tokens(settings),
            max_outputs=num_ids,
            num_threads=_num_threads(settings),
        )
        try:
            return Context(model, params)
        except ModelFileError:
            if settings.ctx_size is not None or num_cells < 2 * _MIN_CELLS:
                raise
        _log.warning("kv_cells_halved", from_cells=num_cells)
        num_cells //= 2


def _step_tokens(settings: EngineSettings) -> int:
    """Every slot has its row in a step, and prompts their least part."""
    return max(settings.step_tokens, settings.slots + MIN_PREFILL_TOKENS)


def _num_threads(settings: EngineSettings) -> int:
    return settings.threads or num_usable_cores()


def _make_lane(
    model: Model, context: Context, accounts: Accounts, settings: EngineSettings
) -> GenerationLane:
    kv_cache = KvCache(
        num_ids=context.params.num_sequence_ids,
        num_cells=context.num_cells,
        reuse=Reuse.WHOLE if model.has_one_state else Reuse.ANY_PREFIX,
    )
    scheduler = Scheduler(
        slots=settings.slots,
        step_tokens=context.params.max_rows,
        kv_cache=kv_cache,
        accounts=accounts,
        itl_target_s=None if settings.itl_target_ms is None else settings.itl_target_ms / 1e3,
    )
    return GenerationLane(runner=Runner(context), scheduler=scheduler, vocab=model.vocab)


def _make_template(model: Model) -> ChatTemplate:
    vocab = model.vocab
    source = model.chat_template
    if source is None:
        _log.warning("no_chat_template", model=model.name, using="ChatML")
    texts = [
        vocab.special_pieces[token].decode("utf-8", "replace") if token >= 0 else ""
        for token in (vocab.bos_token, vocab.eos_token)
    ]
    try:
        return ChatTemplate(
            source or CHATML, bos_text=texts[0], eos_text=texts[1], control_texts=vocab.control_texts
        )
    except TemplateSyntaxError as error:
        raise ModelFileError(model.path, f"its chat template is not valid Jinja ({error})") from None


def _default_sampling(model: Model) -> SamplingParams:
    """llama.cpp's defaults, overridden by ``general.sampling.*`` of the model file."""
    base = SamplingParams()

    def number(key: str, default: float) -> float:
        try:
            return float(model.metadata[f"general.sampling.{key}"])
        except (KeyError, ValueError):
            return default

    return SamplingParams(
        temperature=number("temp", base.temperature),
        top_k=int(number("top_k", base.top_k)),
        top_p=number("top_p", base.top_p),
        min_p=number("min_p", base.min_p),
        repeat_penalty=number("penalty_repeat", base.repeat_penalty),
        penalty_last_n=max(int(number("penalty_last_n", base.penalty_last_n)), 0),
    )
