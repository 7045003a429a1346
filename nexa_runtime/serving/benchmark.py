"""How fast a loaded model is on this machine: the engine's own steps, taken by hand.

Owns the work that is measured and its numbers. There is no server, no socket and no template in them, and
nobody else may use the model meanwhile. It never loads or prints; ``cli.bench`` calls it.

Prompts are random tokens, so that none is cached by chance. Answers are sampled as where a client is silent,
and never end by themselves.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import numpy as np

from nexa_runtime.engine.generation_lane import Delta, GenerationRequest
from nexa_runtime.engine.sequence import Tokens
from nexa_runtime.errors import ModelKindError
from nexa_runtime.llama.tuning import Threads, threads_of
from nexa_runtime.serving.calibration import rounds
from nexa_runtime.serving.loaded import Kind, LoadedModel
from nexa_runtime.serving.tenants import LOCAL_TENANT, namespace_of, share_of

_PROMPT_TOKENS = 512
_SHORT_PROMPT_TOKENS = 16
_MAX_NEW_TOKENS = 1024
_MAX_RUNS = 5
_MAX_STEPS = 40
_STREAMS = (1, 4)
"""How many answers run at once when their speed is measured; as many as there are slots besides."""

_PROMPTS_S = 12.0
_STREAMS_S = 3.0
_ARRIVALS_S = 8.0
"""Seconds for each part, of which one is measured three times: together half a minute at most, unless one run
of each takes longer.
"""


@dataclass(frozen=True, slots=True)
class Output:
    """``tokens_per_s``: of all streams together."""

    num_streams: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Gaps:
    """Seconds between two tokens of a running answer: with nothing else, and while a prompt arrives."""

    alone_s: float
    median_s: float
    worst_s: float


@dataclass(frozen=True, slots=True)
class Speed:
    """Medians of several runs. ``first_token_s``: from a prompt's arrival to its first token.

    ``cached_first_token_s``: the same for a prompt that was computed before, of which so many tokens were
    cached. ``gaps``: None where no prompt arrives while an answer runs: with a single slot, or no room.
    """

    threads: Threads
    num_prompt_tokens: int
    first_token_s: float
    cached_first_token_s: float
    num_cached_tokens: int
    outputs: tuple[Output, ...]
    gaps: Gaps | None

    @property
    def prompt_tokens_per_s(self) -> float:
        """Of one prompt, its first token included."""
        return self.num_prompt_tokens / self.first_token_s


def measure_speed(loaded: LoadedModel) -> Speed:
    """Measure a model that nobody uses and no engine drives. Blocks for about half a minute.

    Raises ``ModelKindError`` for a model that only embeds, ``NexaError`` where a step fails.
    """
    return _Benchmark(loaded).run()


@dataclass(frozen=True, slots=True)
class _Step:
    elapsed_s: float
    num_decode_rows: int
    num_prefill_rows: int


class _Benchmark:
    def __init__(self, loaded: LoadedModel) -> None:
        if loaded.engine.generation is None or loaded.context is None:
            raise ModelKindError(loaded.id, Kind.COMPLETION.value)
        self._loaded = loaded
        self._threads = threads_of(loaded.context)
        self._engine, self._lane = loaded.engine, loaded.engine.generation
        self._num_prompt = min(_PROMPT_TOKENS, loaded.max_sequence_tokens // 2)
        self._num_short = min(_SHORT_PROMPT_TOKENS, self._num_prompt)
        self._keys = count(1)
        self._random = np.random.default_rng()

    def run(self) -> Speed:
        """All parts, after a prompt and an answer that only warm up."""
        with self._answers(1):
            self._step()
        self._first_token(self._prompt(max(self._num_prompt // 4, 1)))
        first_token_s, cached_s, num_cached = self._prompts()
        slots = self._loaded.slots
        streams = sorted({*(number for number in _STREAMS if number < slots), slots})
        outputs = [Output(number, self._outputs_per_s(number)) for number in streams]
        return Speed(
            self._threads,
            self._num_prompt,
            first_token_s,
            cached_s,
            num_cached,
            tuple(outputs),
            self._gaps() if slots > 1 else None,
        )

    def _prompts(self) -> tuple[float, float, int]:
        """Seconds to the first token of a new prompt and of the same again, and what was cached of that."""
        fresh_s, cached_s, num_cached = [], [], 0
        for _ in rounds(_PROMPTS_S, _MAX_RUNS):
            prompt = self._prompt(self._num_prompt)
            fresh_s.append(self._first_token(prompt)[0])
            elapsed_s, num_cached = self._first_token(prompt)
            cached_s.append(elapsed_s)
        return statistics.median(fresh_s), statistics.median(cached_s), num_cached

    def _outputs_per_s(self, num_streams: int) -> float:
        with self._answers(num_streams):
            return statistics.median(step.num_decode_rows / step.elapsed_s for step in self._steps())

    def _gaps(self) -> Gaps | None:
        """Every running answer gets one token a step, so a gap is as long as a step with a row of it."""
        arriving_s: list[float] = []
        with self._answers(1):
            alone_s = [step.elapsed_s for step in self._steps()]
            for _ in rounds(_ARRIVALS_S, _MAX_RUNS):
                self._submit(self._prompt(self._num_prompt), 1)
                gap_s = 0.0
                while self._lane.num_live > 1:
                    step = self._step()
                    gap_s += step.elapsed_s
                    if step.num_decode_rows:
                        arriving_s.append(gap_s)
                        gap_s = 0.0
        if not arriving_s:
            return None
        return Gaps(statistics.median(alone_s), statistics.median(arriving_s), max(arriving_s))

    def _first_token(self, prompt: Tokens) -> tuple[float, int]:
        """Seconds until a prompt's first token, and how many of its tokens were cached."""
        start = time.perf_counter()
        self._submit(prompt, 1)
        while self._lane.num_live:
            self._engine.step()
        elapsed_s = time.perf_counter() - start
        (end,) = self._take_deltas()
        return elapsed_s, end.num_cached_tokens

    @contextmanager
    def _answers(self, num_streams: int) -> Iterator[None]:
        """While inside, so many answers run, and their short prompts are computed."""
        room = self._loaded.num_cells // num_streams - self._num_short
        num_new = max(min(_MAX_NEW_TOKENS, self._loaded.max_sequence_tokens - self._num_short, room), 1)
        keys = [self._submit(self._prompt(self._num_short), num_new) for _ in range(num_streams)]
        while self._step().num_decode_rows < num_streams and self._lane.num_live == num_streams:
            pass
        yield
        for key in keys:
            self._engine.abort(key)
        while self._lane.num_live:
            self._step()

    def _steps(self) -> list[_Step]:
        """Steps of the answers that run, until the first of them ends."""
        num_streams, steps = self._lane.num_live, []
        for _ in rounds(_STREAMS_S, _MAX_STEPS):
            steps.append(self._step())
            if self._lane.num_live < num_streams:
                break
        return steps

    def _step(self) -> _Step:
        totals = self._lane.totals
        num_decode, num_prefill = totals.num_decode_rows, totals.num_prefill_rows
        start = time.perf_counter()
        self._engine.step()
        elapsed_s = time.perf_counter() - start
        self._take_deltas()
        return _Step(elapsed_s, totals.num_decode_rows - num_decode, totals.num_prefill_rows - num_prefill)

    def _take_deltas(self) -> Sequence[Delta]:
        deltas = [one for one in self._engine.take_news() if isinstance(one, Delta)]
        for delta in deltas:
            if delta.error is not None:
                raise delta.error
        return deltas

    def _submit(self, prompt: Tokens, num_new: int) -> int:
        """Let the engine have it at once; its key."""
        key, loaded = next(self._keys), self._loaded
        request = GenerationRequest(
            prompt,
            num_new,
            loaded.sampling,
            share_of(LOCAL_TENANT, loaded),
            namespace_of(LOCAL_TENANT, loaded),
            ignore_eos=True,
        )
        self._engine.submit(key, request)
        self._engine.take_inbox()
        return key

    def _prompt(self, num_tokens: int) -> Tokens:
        return self._random.integers(0, self._loaded.model.vocab.size, num_tokens).astype(np.int32)
