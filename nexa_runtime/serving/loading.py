"""From settings to a model that answers: weights, contexts, engine, template.

Owns how many KV cells fit into memory and what holds where a client is silent. It never sees requests;
``cli`` calls it and hands the result to the pool.
"""

import math
import os
import time
from pathlib import Path

from nexa_runtime.chat.template import CHATML, ChatTemplate, TemplateSyntaxError
from nexa_runtime.config import EngineSettings, ModelSettings, Settings
from nexa_runtime.engine.budget import MIN_PREFILL_TOKENS
from nexa_runtime.engine.embedder import EmbeddingLane
from nexa_runtime.engine.fair_queue import Accounts
from nexa_runtime.engine.generation_lane import GenerationLane
from nexa_runtime.engine.kv_cache import KvCache, Reuse
from nexa_runtime.engine.model_engine import ModelEngine
from nexa_runtime.engine.runner import Runner
from nexa_runtime.engine.scheduler import Scheduler
from nexa_runtime.engine.sequence import Tokens
from nexa_runtime.errors import ConfigError, ModelFileError
from nexa_runtime.llama import (
    MAX_SEQUENCE_IDS,
    Context,
    ContextParams,
    EmbeddingContext,
    Model,
    SamplingParams,
)
from nexa_runtime.serving.library import Library, ModelSource
from nexa_runtime.serving.loaded import Kind, LoadedModel
from nexa_runtime.serving.pool import ModelPool
from nexa_runtime.serving.probe import Prober
from nexa_runtime.serving.public_prefixes import read_public_prefixes
from nexa_runtime.store.catalog import Catalog, EngineOptions
from nexa_runtime.store.store import ModelStore, state_dir, store_root
from nexa_runtime.telemetry import get_logger

_MEMORY_SHARE = 0.5
"""Part of the free memory that the KV cache may take by default."""

_BUDGET_SHARE = 0.8
"""Part of the free memory that all models together may take by default."""

_MIN_CELLS = 256
_IDS_PER_SLOT = 2

_MAX_EMBEDDING_TOKENS = 2048
"""Longest input that a model which also generates embeds: its buffers grow with tokens x vocabulary."""

_log = get_logger("serving.loading")


class Loader:
    """Loads models with the settings of this box. One account per tenant over all of them."""

    def __init__(
        self, settings: ModelSettings, engine_settings: EngineSettings, store: ModelStore, prober: Prober
    ) -> None:
        self._settings = settings
        self._store = store
        self._prober = prober
        self._engine_settings = engine_settings
        self._accounts = Accounts()

    def __call__(self, source: ModelSource, free_bytes: int) -> LoadedModel:
        """Load a source with ``free_bytes`` to spare. Blocks.

        Raises ``ModelFileError``, and ``ConfigError`` where the settings do not fit the model.
        """
        start = time.monotonic()
        if source.record is not None:
            if not self._store.trusted(source.record):
                sentence = "its bytes are not those that were pulled (nexa-runtime verify says which)"
                raise ModelFileError(source.paths[0], sentence)
            self._prober.check(source.paths, source.record.files[0].sha256)
        options = _options(source)
        if options.lora:
            raise ConfigError(f"The catalog gives {source.id} LoRA adapters; they are not supported yet.")
        given = {
            "slots": options.slots,
            "kv": options.kv,
            "ctx_size": source.spec.context if source.spec is not None else None,
        }
        settings = self._engine_settings.model_copy(
            update={name: value for name, value in given.items() if value is not None}
        )
        gpu_layers = self._settings.gpu_layers if options.gpu_layers is None else options.gpu_layers
        model = Model.load(*source.paths, gpu_layers=gpu_layers)
        try:
            loaded = _make_loaded(model, source, settings, self._accounts, free_bytes)
        except BaseException:
            model.close()
            raise
        _log.info(
            "model_loaded",
            model=loaded.id,
            description=model.description,
            parameters=model.num_parameters,
            kinds=sorted(kind.value for kind in loaded.kinds),
            slots=loaded.slots,
            kv_cells=loaded.num_cells,
            max_sequence_tokens=loaded.max_sequence_tokens,
            threads=_num_threads(settings),
            seconds=round(time.monotonic() - start, 3),
        )
        return loaded

    def interrupt(self) -> None:
        """Make a file that is being tried fail soon. Any thread; for shutdown."""
        self._prober.interrupt()


def open_pool(settings: Settings) -> ModelPool:
    """A pool over the store, with the default model loaded if it is there. Blocks.

    Raises ``ModelFileError`` and ``ConfigError``.
    """
    store = ModelStore(store_root(settings.store), state_dir(settings.store))
    catalog_file = settings.store.catalog_file
    catalog = Catalog.load(Path(catalog_file).expanduser() if catalog_file else None)
    library = Library(settings.model, settings.pool, store, catalog)
    budget_bytes = settings.pool.memory_budget or int(available_memory_bytes() * _BUDGET_SHARE)
    load = Loader(settings.model, settings.engine, store, Prober(state_dir(settings.store)))
    pool = ModelPool(library, load, settings.pool, budget_bytes=budget_bytes)
    source = library.default
    if source is not None:
        pool.adopt(source, load(source, budget_bytes))
    else:
        _log.warning("default_model_missing", reason=library.missing_reason())
    return pool


def _options(source: ModelSource) -> EngineOptions:
    return source.spec.engine if source.spec is not None else EngineOptions()


def plan_cells(model: Model, settings: EngineSettings, *, available_bytes: int) -> int:
    """How many KV cells to make: as asked, else slots x the model's context as far as memory allows.

    Raises ``ConfigError`` when as many as asked do not fit.

    ``available_bytes`` of main memory, of which the weights take their part; a GPU has its own and is asked
    by trying (``_make_context``).
    """
    if settings.ctx_size is not None:
        needed_bytes = settings.ctx_size * model.kv_cell_bytes
        if needed_bytes > available_bytes and not model.is_on_gpu:
            needed, free = (f"{size / 2**30:.1f} GiB" for size in (needed_bytes, available_bytes))
            sentence = f"NEXA_CTX_SIZE is {settings.ctx_size}: that takes {needed}, and {free} are free."
            raise ConfigError(sentence)
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


def _make_loaded(
    model: Model, source: ModelSource, settings: EngineSettings, accounts: Accounts, free_bytes: int
) -> LoadedModel:
    if model.is_encoder and model.is_reranker:
        raise ModelFileError(model.path, "it is a reranker, and those are not served yet")
    context = None if model.is_encoder else _make_context(model, settings, free_bytes, _options(source))
    max_embedding_tokens = model.context_tokens
    if context is not None:
        max_embedding_tokens = min(max_embedding_tokens, _MAX_EMBEDDING_TOKENS)
    embedding = EmbeddingLane(
        lambda: EmbeddingContext(model, max_tokens=max_embedding_tokens, num_threads=_num_threads(settings)),
        accounts,
        step_tokens=min(settings.step_tokens, max_embedding_tokens),
    )
    generation = None if context is None else _make_lane(model, context, accounts, settings)
    template = _make_template(model, _options(source).chat_template)
    public_prefixes = _public_prefixes(model, context, template, settings)
    max_sequence_tokens = 0
    if context is not None:
        shared = context.num_sequence_cells - sum(map(len, public_prefixes))
        max_sequence_tokens = min(model.context_tokens, shared)
    return LoadedModel(
        names=source.names,
        kinds=_kinds(model),
        created=source.created,
        model=model,
        context=context,
        engine=ModelEngine(generation=generation, embedding=embedding),
        template=template,
        sampling=_default_sampling(model),
        slots=settings.slots,
        max_sequence_tokens=max_sequence_tokens,
        max_embedding_tokens=max_embedding_tokens,
        public_prefixes=public_prefixes,
    )


def _public_prefixes(
    model: Model, context: Context | None, template: ChatTemplate, settings: EngineSettings
) -> tuple[Tokens, ...]:
    if settings.public_prefixes_file is None:
        return ()
    if context is None or not context.params.is_unified or model.has_one_state:
        raise ConfigError("NEXA_PUBLIC_PREFIXES_FILE needs a model that generates and a unified KV cache.")
    path = Path(settings.public_prefixes_file).expanduser()
    prefixes = read_public_prefixes(path, template, model.vocab)
    num_tokens = sum(map(len, prefixes))
    if max(map(len, prefixes), default=0) >= model.context_tokens or num_tokens > context.num_cells // 2:
        raise ConfigError(f"NEXA_PUBLIC_PREFIXES_FILE has {num_tokens} tokens, too many for this KV cache.")
    return prefixes


def _make_context(model: Model, settings: EngineSettings, free_bytes: int, options: EngineOptions) -> Context:
    """A context with as many cells as planned; on a GPU that has less memory, half of them, and so on."""
    num_cells = plan_cells(model, settings, available_bytes=min(available_memory_bytes(), free_bytes))
    is_unified = settings.kv == "unified"
    num_ids = min(_IDS_PER_SLOT * settings.slots, MAX_SEQUENCE_IDS) if is_unified else settings.slots
    if not is_unified:
        _log.info("kv_split", sharing="none between live sequences", cells_per_slot=num_cells // num_ids)
    while True:
        params = ContextParams(
            num_cells=num_cells,
            num_sequence_ids=num_ids,
            max_rows=_step_tokens(settings),
            max_outputs=num_ids,
            num_threads=_num_threads(settings),
            is_unified=is_unified,
            kv_type_k=options.kv_type_k or "f16",
            kv_type_v=options.kv_type_v or "f16",
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


def _kinds(model: Model) -> frozenset[Kind]:
    kinds = set(Kind)
    if model.is_encoder:
        kinds -= {Kind.CHAT, Kind.COMPLETION}
    if model.is_reranker:
        kinds -= {Kind.EMBEDDING}
    return frozenset(kinds)


def _num_threads(settings: EngineSettings) -> int:
    return settings.threads or num_usable_cores()


def _make_lane(
    model: Model, context: Context, accounts: Accounts, settings: EngineSettings
) -> GenerationLane:
    reuse = Reuse.ANY_PREFIX if context.params.is_unified else Reuse.OWN_PREFIX
    kv_cache = KvCache(
        num_ids=context.params.num_sequence_ids,
        num_cells=context.num_cells,
        reuse=Reuse.WHOLE if model.has_one_state else reuse,
    )
    scheduler = Scheduler(
        slots=settings.slots,
        step_tokens=context.params.max_rows,
        kv_cache=kv_cache,
        accounts=accounts,
        itl_target_s=None if settings.itl_target_ms is None else settings.itl_target_ms / 1e3,
    )
    return GenerationLane(runner=Runner(context), scheduler=scheduler, vocab=model.vocab)


def _make_template(model: Model, override: str | None) -> ChatTemplate:
    vocab = model.vocab
    source = override or model.chat_template
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
    """llama.cpp's defaults, overridden by ``general.sampling.*`` of the file, where that makes sense."""
    base = SamplingParams()

    def number(key: str, default: float, low: float, high: float) -> float:
        text = model.metadata.get(f"general.sampling.{key}")
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if low <= value <= high:
            return value
        _log.warning("sampling_metadata_ignored", key=key, value=text[:50])
        return default

    last_n = int(number("penalty_last_n", base.penalty_last_n, -1, model.context_tokens))
    return SamplingParams(
        temperature=number("temp", base.temperature, 0, 10),
        top_k=int(number("top_k", base.top_k, -1, model.vocab.size)),
        top_p=number("top_p", base.top_p, 0, 1),
        min_p=number("min_p", base.min_p, 0, 1),
        repeat_penalty=number("penalty_repeat", base.repeat_penalty, 0.01, 10),
        penalty_last_n=model.context_tokens if last_n < 0 else last_n,
    )
