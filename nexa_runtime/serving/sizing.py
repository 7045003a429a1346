"""How much memory a model takes, and how many KV cells it gets.

Owns the arithmetic, and the sentences for what does not fit. It asks nothing of the machine and loads
nothing; ``loading`` does.
"""

from dataclasses import dataclass

from nexa_runtime.config import EngineSettings
from nexa_runtime.errors import ConfigError
from nexa_runtime.llama import Model
from nexa_runtime.telemetry import get_logger

MIN_CELLS = 256
_MEMORY_SHARE = 0.5
"""Part of the free memory that the KV cache may take by default."""

_HOST_CACHE_SHARE = 0.1
"""Part of the free memory that prefixes without cells may take by default."""

_log = get_logger("serving.sizing")


@dataclass(frozen=True, slots=True)
class Need:
    """Memory that a model takes with so many KV cells."""

    total_bytes: int
    num_cells: int

    def with_cells(self, num_cells: int, cell_bytes: int) -> int:
        """Memory where it has as many cells; not less for fewer, for they are counted roughly."""
        return self.total_bytes + max(num_cells - self.num_cells, 0) * cell_bytes


def check_budget(name: str, needed_bytes: int, budget_bytes: int) -> None:
    """Raise ``ConfigError`` where the default model does not fit into the budget."""
    if needed_bytes > budget_bytes:
        needed, budget = (f"{size / 2**20:.0f} MiB" for size in (needed_bytes, budget_bytes))
        sentence = f"NEXA_MEMORY_BUDGET is {budget}, and the default model {name} needs {needed}."
        raise ConfigError(sentence)


def plan_cells(model: Model, settings: EngineSettings, *, cell_bytes: int, available_bytes: int) -> int:
    """How many KV cells to make: as asked, else slots x the model's context as far as memory allows.

    Raises ``ConfigError`` when as many as asked do not fit.

    ``available_bytes`` of main memory, of which the weights take their part; a GPU has its own and is asked
    by trying (``loading``).
    """
    if settings.ctx_size is not None:
        needed_bytes = settings.ctx_size * cell_bytes
        if needed_bytes > available_bytes and not model.is_on_gpu:
            needed, free = (f"{size / 2**30:.1f} GiB" for size in (needed_bytes, available_bytes))
            sentence = f"NEXA_CTX_SIZE is {settings.ctx_size}: that takes {needed}, and {free} are free."
            raise ConfigError(sentence)
        return settings.ctx_size
    wanted = settings.slots * model.context_tokens
    if model.is_on_gpu:
        return wanted
    free_bytes = max(available_bytes - model.size_bytes, 0)
    affordable = max(int(free_bytes * _MEMORY_SHARE) // cell_bytes, MIN_CELLS)
    if affordable < wanted:
        _log.warning("kv_cells_reduced", wanted=wanted, affordable=affordable)
    return min(wanted, affordable)


def host_cache_bytes(settings: EngineSettings, kv_bytes: int, available_bytes: int) -> int:
    """Memory for prefixes that lose their cells: as asked, else as the KV cache, where that much is free."""
    if settings.host_cache is not None:
        return settings.host_cache
    return min(kv_bytes, int(available_bytes * _HOST_CACHE_SHARE))
