"""How many threads are fastest on this processor: measured once, then known.

Owns the counts worth trying, the measurement on a context that nobody uses yet, the choice, and the file
that keeps it. It has no say where the owner has set ``NEXA_THREADS``, or where a GPU computes. ``loading``
calls it.

More threads are not always faster: two on one core share what computes, and one on every core waits for
whichever the rest of the process has interrupted.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from nexa_runtime.errors import DecodeError, NexaError
from nexa_runtime.llama import Context, DecodeStatus, Model
from nexa_runtime.llama.tuning import Threads, set_threads, threads_of
from nexa_runtime.serving.machine import is_busy, num_physical_cores, num_usable_cores, processor_name
from nexa_runtime.store.files import write_atomically
from nexa_runtime.telemetry import get_logger

_BUDGET_S = 1.5
"""For all rounds; the first turn, which does not count, comes on top."""
_MAX_ROUNDS = 7
_DECODES = 3
"""Steps of one row in each turn."""
_PROMPT_ROWS = 16
"""Between a step of eight answers and one of a prompt: llama.cpp computes both with the same threads. Few, so
that a large model does not take long.
"""
_MIN_CORES_TO_SPARE_ONE = 4
_TOLERANCE = 1.05
"""So much slower than the fastest is as good; fewer threads leave more to the rest of the process."""

_log = get_logger("serving.calibration")


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds that steps took: some of one row each, and one of many rows."""

    decode_s: tuple[float, ...]
    prompt_s: float


Measure = Callable[[int], Sample]
"""Take steps with so many threads."""


class Calibrator:
    """Gives contexts their threads. ``folder``: where choices are kept.

    ``counts``: what to choose from; None: what this machine's cores suggest.
    """

    def __init__(self, folder: Path, counts: Sequence[int] | None = None) -> None:
        self._file = folder / "threads.json"
        self._counts = counts or candidates(num_usable_cores(), num_physical_cores())
        self._has_warned = False

    def tune(self, model: Model, context: Context, *, is_quiet: bool) -> None:
        """Let an empty context that nobody uses compute with the threads chosen for its model. Never raises.

        Where nothing is known they are measured, if ``is_quiet``: nothing else computes here. That blocks for
        about two seconds, or as long as one round takes. The context is empty again.
        What a busy machine says holds for this context alone: beside others the fewest threads are fastest.
        """
        if len(self._counts) == 1 or model.is_on_gpu:
            return
        try:
            self._tune(model, context, is_quiet=is_quiet)
        except Exception as error:  # noqa: BLE001 - a start does not fail for this
            _log.warning("threads_not_chosen", reason=str(error))

    def _tune(self, model: Model, context: Context, *, is_quiet: bool) -> None:
        key = self._key(model)
        choices = self._read()
        threads, how = self._known(choices, key), "known"
        if threads is None and is_quiet:
            was_busy = is_busy()
            threads, how = self._measured(context), "measured"
            if threads is not None and not was_busy:
                self._save({**choices, key: asdict(threads)})
        if threads is not None:
            set_threads(context, threads)
            _log.info("threads_chosen", model=model.name, how=how, of=list(self._counts), **asdict(threads))

    def _key(self, model: Model) -> str:
        """Changes when the choice may."""
        cores = "/".join(map(str, self._counts))
        version = metadata.version("llama-cpp-python")
        return f"{processor_name()} | {cores} | {model.description} {model.size_bytes} | {version}"

    def _measured(self, context: Context) -> Threads | None:
        before = threads_of(context)
        try:
            return choose(self._counts, _Stopwatch(context).measure)
        except NexaError as error:
            _log.warning("threads_not_measured", reason=str(error))
            set_threads(context, before)
            return None

    def _known(self, choices: Mapping[str, object], key: str) -> Threads | None:
        match choices.get(key):
            case None:
                return None
            case {"decode": int(decode), "prompt": int(prompt)} if {decode, prompt} <= set(self._counts):
                return Threads(decode, prompt)
        self._warn("it has a choice that was never there")
        return None

    def _read(self) -> dict[str, object]:
        try:
            choices = json.loads(self._file.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            self._warn(f"it cannot be read ({type(error).__name__})")
            return {}
        if isinstance(choices, dict):
            return choices
        self._warn("it is not a table of choices")
        return {}

    def _save(self, choices: Mapping[str, object]) -> None:
        """What another process chose meanwhile for another model may be lost; it is measured again then."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps(choices, indent=2).encode())
        except OSError as error:
            self._warn(f"it cannot be written ({type(error).__name__})")

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            _log.warning("threads_file_ignored", path=str(self._file), reason=reason)
        self._has_warned = True


def candidates(num_usable: int, num_physical: int) -> tuple[int, ...]:
    """Numbers of threads worth measuring, ascending: all that may run at once, one per core, one less."""
    counts = {num_usable, num_physical}
    if num_physical >= _MIN_CORES_TO_SPARE_ONE:
        counts.add(num_physical - 1)
    return tuple(sorted(counts))


def choose(counts: Sequence[int], measure: Measure) -> Threads:
    """The least numbers of threads that are about as fast as the fastest. Raises what ``measure`` raises.

    The counts take turns, so that a clock that slows down or another process slows all of them; as many
    rounds as the budget has time for, at least one.
    """
    decode_s: dict[int, list[float]] = {count: [] for count in counts}
    prompt_s: dict[int, list[float]] = {count: [] for count in counts}
    measure(counts[-1])  # pages of the weights, buffers and threads: only the first step pays for them
    for _ in rounds(_BUDGET_S, _MAX_ROUNDS):
        for count in counts:
            sample = measure(count)
            decode_s[count] += sample.decode_s
            prompt_s[count].append(sample.prompt_s)
    return Threads(_fewest_fast(decode_s), _fewest_fast(prompt_s))


def rounds(budget_s: float, max_rounds: int) -> Iterator[int]:
    """Indices of a loop that ends before a round like the last would go over its seconds; at least one."""
    start = time.monotonic()
    for index in range(max_rounds):
        round_start = time.monotonic()
        yield index
        now = time.monotonic()
        if now - start + (now - round_start) > budget_s:
            return


def _fewest_fast(times_s: Mapping[int, Sequence[float]]) -> int:
    medians = {count: statistics.median(times) for count, times in times_s.items()}
    limit_s = min(medians.values()) * _TOLERANCE
    return min(count for count, median_s in medians.items() if median_s <= limit_s)


class _Stopwatch:
    """Takes steps on a context, and empties it again."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._batch = context.make_batch()
        num_rows = min(_PROMPT_ROWS, context.params.max_rows)
        self._tokens = (np.arange(num_rows) % context.vocab_size).astype(np.int32)

    def measure(self, num_threads: int) -> Sample:
        """Raises ``NexaError`` when the context cannot compute."""
        set_threads(self._context, Threads(num_threads, num_threads))
        try:
            decode_s = tuple(self._step(1, position) for position in range(_DECODES))
            return Sample(decode_s, self._step(len(self._tokens), _DECODES))
        finally:
            self._context.remove(0)

    def _step(self, num_rows: int, position: int) -> float:
        self._batch.clear()
        self._batch.add(0, self._tokens[:num_rows], position, wants_logits=True)
        start = time.perf_counter()
        status = self._context.decode(self._batch)
        if status is not DecodeStatus.OK:
            raise DecodeError(f"llama.cpp returned {status.name.lower()}")
        return time.perf_counter() - start
