"""The models that are loaded, by the names they are served under.

Owns loading: weights, context, engine, template, and how many KV cells fit into memory. One model for now. It
never sees requests; ``generation`` resolves names here, ``server`` and ``cli`` start and stop it.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nexa_runtime
from nexa_runtime.chat.template import CHATML, ChatTemplate, TemplateSyntaxError
from nexa_runtime.config import EngineSettings, ModelSettings
from nexa_runtime.engine.engine import Engine
from nexa_runtime.engine.kv_cache import KvCache, Reuse
from nexa_runtime.engine.runner import Runner
from nexa_runtime.engine.scheduler import MIN_PREFILL_TOKENS, Scheduler
from nexa_runtime.errors import ModelFileError, ModelNotFoundError
from nexa_runtime.llama import Context, ContextParams, Model, SamplingParams
from nexa_runtime.telemetry import get_logger

DEMO_NAME = "demo"
DEMO_PATH = Path(nexa_runtime.__file__).parent / "data" / "nexa-demo.gguf"

_MEMORY_SHARE = 0.5
"""Part of the free memory that the KV cache may take by default."""

_MIN_CELLS = 256
_IDS_PER_SLOT = 2
_MAX_SEQUENCE_IDS = 256

_log = get_logger("serving.pool")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that answers. ``names``: all that it is served under, the id first.

    ``max_sequence_tokens``: prompt and answer of one sequence. ``sampling``: what holds where a client is
    silent.
    """

    names: tuple[str, ...]
    created: int
    model: Model
    context: Context
    engine: Engine
    template: ChatTemplate
    sampling: SamplingParams
    slots: int
    max_sequence_tokens: int

    @property
    def id(self) -> str:
        """The name in answers to requests that name none."""
        return self.names[0]

    def close(self) -> None:
        """Stop the engine and free the memory. Blocks for a step at most."""
        if self.engine.stop():
            self.context.close()
            self.model.close()
        else:
            # Freeing memory under a thread that still computes would crash, so the process's end does it.
            _log.error("engine_did_not_stop", model=self.id)


class ModelPool:
    """Resolves names to loaded models."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model

    @property
    def default(self) -> LoadedModel:
        """The model of a request that names none."""
        return self._model

    def models(self) -> Sequence[LoadedModel]:
        """All that are loaded."""
        return [self._model]

    def resolve(self, name: str | None) -> LoadedModel:
        """The model of that name; absent or empty: the default. Raises ``ModelNotFoundError``."""
        if not name or name in self._model.names:
            return self._model
        raise ModelNotFoundError(name, self._model.names)

    def stop(self) -> None:
        """Stop every engine; their sequences end with ``ShuttingDownError``."""
        self._model.engine.stop()

    def close(self) -> None:
        """Stop every engine and free the memory."""
        self._model.close()


def load_model(settings: ModelSettings, engine_settings: EngineSettings) -> LoadedModel:
    """Load the model that the settings name. Blocks. Raises ``ModelFileError``."""
    start = time.monotonic()
    is_demo = settings.model_id == DEMO_NAME
    path = DEMO_PATH if is_demo else Path(settings.model_id).expanduser()
    model = Model.load(path, gpu_layers=settings.gpu_layers)
    try:
        template = _make_template(model)
        context = _make_context(model, engine_settings)
    except BaseException:
        model.close()
        raise
    loaded = LoadedModel(
        names=tuple(dict.fromkeys([DEMO_NAME if is_demo else path.stem, *settings.served_names])),
        created=int(path.stat().st_mtime),
        model=model,
        context=context,
        engine=_make_engine(model, context, engine_settings),
        template=template,
        sampling=_default_sampling(model),
        slots=engine_settings.slots,
        max_sequence_tokens=min(model.context_tokens, context.num_cells),
    )
    _log.info(
        "model_loaded",
        model=loaded.id,
        description=model.description,
        slots=loaded.slots,
        kv_cells=context.num_cells,
        max_sequence_tokens=loaded.max_sequence_tokens,
        threads=context.params.num_threads,
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
            num_threads=settings.threads or num_usable_cores(),
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


def _make_engine(model: Model, context: Context, settings: EngineSettings) -> Engine:
    kv_cache = KvCache(
        num_ids=context.params.num_sequence_ids,
        num_cells=context.num_cells,
        reuse=Reuse.WHOLE if model.has_one_state else Reuse.ANY_PREFIX,
    )
    scheduler = Scheduler(
        slots=settings.slots,
        step_tokens=context.params.max_rows,
        kv_cache=kv_cache,
        itl_target_s=None if settings.itl_target_ms is None else settings.itl_target_ms / 1e3,
    )
    return Engine(runner=Runner(context), scheduler=scheduler, vocab=model.vocab)


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
