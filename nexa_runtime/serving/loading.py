"""From settings to a model that answers: weights, contexts, engine, template.

Owns what is made of them and what holds where a client is silent; ``sizing`` says how much of it. It never
sees requests; ``cli`` calls it and hands the result to the pool.
"""

import math
import time
from pathlib import Path

from nexa_runtime.chat.constraint import ConstraintCompiler
from nexa_runtime.chat.dialects.base import Dialect
from nexa_runtime.chat.dialects.registry import choose
from nexa_runtime.chat.pairs import PairTemplate
from nexa_runtime.chat.template import CHATML, ChatTemplate, TemplateSyntaxError
from nexa_runtime.config import EngineSettings, ModelSettings, Settings
from nexa_runtime.engine.budget import MIN_PREFILL_TOKENS
from nexa_runtime.engine.embedder import EmbeddingLane
from nexa_runtime.engine.fair_queue import Accounts
from nexa_runtime.engine.generation_lane import GenerationLane
from nexa_runtime.engine.host_cache import HostCache
from nexa_runtime.engine.kv_cache import KvCache, Reuse
from nexa_runtime.engine.model_engine import ModelEngine
from nexa_runtime.engine.runner import Runner
from nexa_runtime.engine.scheduler import Scheduler
from nexa_runtime.engine.sequence import Tokens
from nexa_runtime.errors import ConfigError, ModelFileError
from nexa_runtime.llama import (
    ATTENTION_TILE_ROWS,
    MAX_SEQUENCE_IDS,
    Context,
    ContextParams,
    EmbeddingContext,
    Model,
    SamplingParams,
    check_scores,
    kv_cell_bytes,
    max_input_tokens,
)
from nexa_runtime.llama.tuning import threads_of
from nexa_runtime.serving.calibration import Calibrator
from nexa_runtime.serving.library import Library, ModelSource
from nexa_runtime.serving.loaded import Kind, LoadedModel
from nexa_runtime.serving.machine import available_memory_bytes, free_memory_bytes, num_usable_cores
from nexa_runtime.serving.pool import ModelPool
from nexa_runtime.serving.probe import Prober, Trial
from nexa_runtime.serving.public_prefixes import read_public_prefixes
from nexa_runtime.serving.sizing import MIN_CELLS, Need, check_budget, host_cache_bytes, plan_cells
from nexa_runtime.store.catalog import Catalog, EngineOptions
from nexa_runtime.store.store import ModelStore, state_dir, store_root
from nexa_runtime.telemetry import get_logger

_BUDGET_SHARE = 0.8
"""Part of the free memory that all models together may take by default."""

_IDS_PER_SLOT = 4
_MIN_IDS = 32
"""More ids than slots, so that what was computed for one request waits for the next of its kind; they cost
next to nothing (64 of them were as fast as 8).
"""

_MAX_WARM_CELLS = 256
"""Cells of prefixes that lie idle. On a processor, attention over 1,000 of them makes a step of four or eight
answers 2 to 3 % longer; host memory gives 256 tokens back in a millisecond (0.5B shape, two cores).
"""

_EMBEDDING_STEP_TOKENS = 256
"""On a processor: each token of a batch passes over all of it, and from a few tiles on more save nothing
(MiniLM shape: 3 % more texts a second than with 512).
"""

_log = get_logger("serving.loading")


class Loader:
    """Loads models with the settings of this box. One account per tenant over all of them.

    ``calibrator``: chooses threads where the settings do not; None: every usable core.
    """

    def __init__(
        self,
        settings: ModelSettings,
        engine_settings: EngineSettings,
        store: ModelStore,
        prober: Prober,
        calibrator: Calibrator | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._prober = prober
        self._calibrator = calibrator
        self._engine_settings = engine_settings
        self._accounts = Accounts()

    def needed_bytes(self, source: ModelSource) -> int:
        """Memory that a source will take: by the catalog's hint, else as llama.cpp planned it when it was
        tried, else an estimate.
        """
        return self._need(source).total_bytes

    def has_tried(self, source: ModelSource) -> bool:
        """Whether trying it out would tell nothing new."""
        return source.record is None or self._prober.has_tried(source.digest, self._trial(source))

    def try_out(self, source: ModelSource) -> None:
        """Verify a source of the store, and try it in a process of its own, unless that was done. Blocks.

        Raises ``ModelFileError``.
        """
        if source.record is None:
            return
        if not self._store.trusted(source.record):
            sentence = "its bytes are not those that were pulled (nexa-runtime verify says which)"
            raise ModelFileError(source.paths[0], sentence)
        self._prober.check(source.paths, source.digest, self._trial(source))

    def __call__(self, source: ModelSource, free_bytes: int, *, is_quiet: bool = False) -> LoadedModel:
        """Load a source that was tried out, with ``free_bytes`` to spare. Blocks.

        ``is_quiet``: nothing else computes yet, so that its speed can be measured (``Calibrator.tune``).
        Raises ``ModelFileError``, and ``ConfigError`` where the settings do not fit the model.
        """
        start = time.monotonic()
        options, settings = _options(source), self._settings_of(source)
        gpu_layers = self._settings.gpu_layers if options.gpu_layers is None else options.gpu_layers
        model = Model.load(*source.paths, gpu_layers=gpu_layers)
        try:
            for adapter in options.lora:
                model.add_adapter(Path(adapter.path), adapter.scale)
            if options.adapters and not model.can_generate:
                raise ModelFileError(model.path, "it has adapters to choose from, and does not generate")
            for named in options.adapters:
                model.name_adapter(named.name, Path(named.path))
            need = self._need(source)
            loaded = _make_loaded(model, source, settings, self._accounts, free_bytes, need)
        except BaseException:
            model.close()
            raise
        if settings.threads is None and self._calibrator is not None and loaded.context is not None:
            self._calibrator.tune(model, loaded.context, is_quiet=is_quiet)
        _log.info(
            "model_loaded",
            model=loaded.id,
            description=model.description,
            parameters=model.num_parameters,
            kinds=sorted(kind.value for kind in loaded.kinds),
            dialect=loaded.dialect.name,
            slots=loaded.slots,
            kv_cells=loaded.num_cells,
            max_sequence_tokens=loaded.max_sequence_tokens,
            threads=_num_threads(settings, loaded.context),
            seconds=round(time.monotonic() - start, 3),
        )
        return loaded

    def interrupt(self) -> None:
        """Make a file that is being tried fail soon. Any thread; for shutdown."""
        self._prober.interrupt()

    def _settings_of(self, source: ModelSource) -> EngineSettings:
        """The settings, with what the catalog says of this model."""
        options = _options(source)
        context = source.spec.context if source.spec is not None else None
        given = {"slots": options.slots, "kv": options.kv, "ctx_size": context}
        return self._engine_settings.model_copy(
            update={name: value for name, value in given.items() if value is not None}
        )

    def _need(self, source: ModelSource) -> Need:
        num_cells = self._settings_of(source).ctx_size or source.planned_tokens
        if source.record is None:
            return Need(source.estimate_bytes, source.planned_tokens)
        if source.spec is not None and source.spec.memory_hint is not None:
            return Need(source.estimate_bytes, num_cells)
        plan = self._prober.plan(source.digest, self._trial(source))
        options = _options(source)
        names = [*(one.path for one in options.lora), *(one.path for one in options.adapters)]
        adapter_bytes = sum(path.stat().st_size for path in map(Path, names) if path.is_file())
        if plan is None:
            return Need(adapter_bytes + source.estimate_bytes, source.planned_tokens)
        return Need(adapter_bytes + plan.total_bytes, num_cells)

    def _trial(self, source: ModelSource) -> Trial:
        options, settings = _options(source), self._settings_of(source)
        params = _context_params(settings, options, settings.ctx_size or source.planned_tokens)
        return Trial(
            params,
            tuple((Path(one.path), one.scale) for one in options.lora),
            tuple((one.name, Path(one.path)) for one in options.adapters),
        )


def open_pool(settings: Settings) -> ModelPool:
    """A pool over the store, with the default model loaded if it is there and sound. Blocks.

    A default of the store that cannot be loaded counts as one that is not there yet: the pool says what to
    do. Raises ``ConfigError``, and ``ModelFileError`` for a default that is named by its path.
    """
    store = ModelStore(store_root(settings.store), state_dir(settings.store))
    catalog_file = settings.store.catalog_file
    catalog = Catalog.load(Path(catalog_file).expanduser() if catalog_file else None)
    library = Library(settings.model, settings.pool, store, catalog)
    free_bytes = free_memory_bytes(uses_gpu=settings.model.gpu_layers != 0)
    budget_bytes = settings.pool.memory_budget or int(free_bytes * _BUDGET_SHARE)
    folder = state_dir(settings.store)
    load = Loader(settings.model, settings.engine, store, Prober(folder), Calibrator(folder))
    pool = ModelPool(library, load, settings.pool, budget_bytes=budget_bytes)
    source = library.default
    if source is None:
        _log.warning("default_model_missing", reason=library.missing_reason())
        return pool
    try:
        load.try_out(source)
        if settings.pool.memory_budget is not None:
            check_budget(source.id, load.needed_bytes(source), budget_bytes)
        start = time.monotonic()
        model = load(source, budget_bytes, is_quiet=True)
        pool.adopt(source, model, load_s=time.monotonic() - start)
    except ModelFileError as error:
        if source.record is None:
            raise
        pool.reject(source, error)
    return pool


def _options(source: ModelSource) -> EngineOptions:
    return source.spec.engine if source.spec is not None else EngineOptions()


def _make_loaded(
    model: Model,
    source: ModelSource,
    settings: EngineSettings,
    accounts: Accounts,
    free_bytes: int,
    need: Need,
) -> LoadedModel:
    if model.is_reranker:
        check_scores(model)
    options = _options(source)
    cell_bytes = kv_cell_bytes(model, options.kv_type_k or "f16", options.kv_type_v or "f16")
    context = None
    if model.can_generate:
        available_bytes = min(available_memory_bytes(), free_bytes)
        num_cells = plan_cells(model, settings, cell_bytes=cell_bytes, available_bytes=available_bytes)
        context = _make_context(model, settings, options, num_cells)
    max_embedding_tokens = max_input_tokens(model)
    embedding = EmbeddingLane(
        lambda: EmbeddingContext(
            model, max_tokens=max_embedding_tokens, num_threads=_num_threads(settings, context)
        ),
        accounts,
        step_tokens=min(_embedding_step_tokens(model, settings), max_embedding_tokens),
    )
    generation = None
    if context is not None:
        host_cache = HostCache(
            max_bytes=host_cache_bytes(settings, context.num_cells * cell_bytes, available_memory_bytes()),
            cell_bytes=cell_bytes,
        )
        generation = _make_lane(model, context, accounts, settings, host_cache)
    template, tool_template, dialect = _make_chat(model, options)
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
        engine=ModelEngine(source.id, generation=generation, embedding=embedding),
        template=template,
        tool_template=tool_template,
        dialect=dialect,
        constraints=ConstraintCompiler(model.vocab),
        sampling=_default_sampling(model),
        slots=settings.slots,
        max_sequence_tokens=max_sequence_tokens,
        max_embedding_tokens=max_embedding_tokens,
        memory_bytes=need.with_cells(0 if context is None else context.num_cells, cell_bytes),
        public_prefixes=public_prefixes,
        pair_template=_make_pair_template(model),
        adapters={one.name: one.scale for one in options.adapters},
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


def _make_context(model: Model, settings: EngineSettings, options: EngineOptions, num_cells: int) -> Context:
    """A context with so many cells; on a GPU that has less memory, half of them, and so on."""
    if settings.kv == "split":
        _log.info("kv_split", sharing="none between live sequences", cells=num_cells, slots=settings.slots)
    while True:
        try:
            return Context(model, _context_params(settings, options, num_cells))
        except ModelFileError:
            if settings.ctx_size is not None or num_cells < 2 * MIN_CELLS:
                raise
        _log.warning("kv_cells_halved", from_cells=num_cells)
        num_cells //= 2


def _context_params(settings: EngineSettings, options: EngineOptions, num_cells: int) -> ContextParams:
    is_unified = settings.kv == "unified"
    num_ids = settings.slots
    if is_unified:
        num_ids = min(max(_IDS_PER_SLOT * settings.slots, _MIN_IDS) + 1, MAX_SEQUENCE_IDS)
    return ContextParams(
        num_cells=num_cells,
        num_sequence_ids=num_ids,
        max_rows=_step_tokens(settings),
        max_outputs=num_ids,
        num_threads=_num_threads(settings),
        is_unified=is_unified,
        kv_type_k=options.kv_type_k or "f16",
        kv_type_v=options.kv_type_v or "f16",
    )


def _step_tokens(settings: EngineSettings) -> int:
    """Every slot has its row in a step, and prompts their least part."""
    return max(settings.step_tokens, settings.slots + MIN_PREFILL_TOKENS)


def _embedding_step_tokens(model: Model, settings: EngineSettings) -> int:
    return settings.step_tokens if model.is_on_gpu else min(settings.step_tokens, _EMBEDDING_STEP_TOKENS)


def _kinds(model: Model) -> frozenset[Kind]:
    if model.is_reranker:
        return frozenset({Kind.RERANK})
    return frozenset({Kind.EMBEDDING} if model.is_encoder else {Kind.CHAT, Kind.COMPLETION, Kind.EMBEDDING})


def _num_threads(settings: EngineSettings, context: Context | None = None) -> int:
    """Threads for steps of many rows: those of the context, if it was made already."""
    if context is not None:
        return threads_of(context).prompt
    return settings.threads or num_usable_cores()


def _make_lane(
    model: Model, context: Context, accounts: Accounts, settings: EngineSettings, host_cache: HostCache
) -> GenerationLane:
    reuse = Reuse.ANY_PREFIX if context.params.is_unified else Reuse.OWN_PREFIX
    num_ids = context.params.num_sequence_ids
    spare_id = None
    if context.params.is_unified:
        spare_id = num_ids = num_ids - 1
    kv_cache = KvCache(
        num_ids=num_ids,
        num_cells=context.num_cells,
        reuse=Reuse.WHOLE if model.has_one_state else reuse,
    )
    scheduler = Scheduler(
        slots=settings.slots,
        step_tokens=context.params.max_rows,
        kv_cache=kv_cache,
        accounts=accounts,
        itl_target_s=None if settings.itl_target_ms is None else settings.itl_target_ms / 1e3,
        tile_rows=None if model.is_on_gpu else ATTENTION_TILE_ROWS,
        host_cache=host_cache,
        max_warm_cells=None if model.is_on_gpu else _MAX_WARM_CELLS,
    )
    return GenerationLane(runner=Runner(context, spare_id=spare_id), scheduler=scheduler, vocab=model.vocab)


def _make_chat(model: Model, options: EngineOptions) -> tuple[ChatTemplate, ChatTemplate | None, Dialect]:
    """The model's template, the one for conversations with tools if it has another, and its dialect."""
    source, tool_source = options.chat_template or model.chat_template, None
    if source is None:
        _log.warning("no_chat_template", model=model.name, using="ChatML")
        source = CHATML
    elif not options.chat_template:
        tool_source = model.tool_template
    try:
        dialect = choose(tool_source or source, model.vocab.special_texts, options.dialect)
    except ValueError as error:
        raise ModelFileError(model.path, f"its entry in the catalog is wrong ({error})") from None
    tool_template = None if tool_source is None else _make_template(model, tool_source)
    return _make_template(model, source), tool_template, dialect


def _make_template(model: Model, source: str) -> ChatTemplate:
    vocab = model.vocab
    texts = [
        vocab.special_pieces[token].decode("utf-8", "replace") if token >= 0 else ""
        for token in (vocab.bos_token, vocab.eos_token)
    ]
    try:
        return ChatTemplate(source, bos_text=texts[0], eos_text=texts[1], control_texts=vocab.control_texts)
    except TemplateSyntaxError as error:
        raise ModelFileError(model.path, f"its chat template is not valid Jinja ({error})") from None


def _make_pair_template(model: Model) -> PairTemplate | None:
    source = model.rerank_template
    return None if source is None else PairTemplate(source, control_texts=model.vocab.control_texts)


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
