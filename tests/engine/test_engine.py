"""The engine on the bundled model: every way a sequence can end, and that neighbours change nothing."""

import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest

from nexa_runtime.engine.engine import Engine
from nexa_runtime.engine.fair_queue import Accounts
from nexa_runtime.engine.generation_lane import Delta, GenerationLane, GenerationRequest
from nexa_runtime.engine.host_cache import HostCache
from nexa_runtime.engine.kv_cache import MIN_SHARED_TOKENS, KvCache
from nexa_runtime.engine.model_engine import ModelEngine, News
from nexa_runtime.engine.runner import Runner
from nexa_runtime.engine.scheduler import Scheduler
from nexa_runtime.engine.sequence import FinishReason, TenantShare, Tokens
from nexa_runtime.errors import DecodeError, LlamaGuardError, ShuttingDownError
from nexa_runtime.llama import Batch, Context, ContextParams, DecodeStatus, Model, SamplingParams
from nexa_runtime.llama.context import ATTENTION_TILE_ROWS, Logits
from nexa_runtime.lora import NO_ADAPTERS, AdapterSet
from tests.support import NEAR_TIE, assert_same_or_near_tie, books_agree, wait_until

GREEDY = SamplingParams(temperature=0.0)
SHARE = TenantShare("demo")


QUESTIONS = [
    "What is the capital of France?", "¿Cuál es la capital de España?", "Qual é a capital de Portugal?",
    "Hello!", "What is 12 + 7?", "Who are you?", "What day comes after Monday?", "Repeat after me: blue sky",
    "How many days does April have?", "Give me a JSON object with name Ana and age 30", "What is 5 + 5?",
    "How do I start the server?",
]  # fmt: skip


class FaultyContext(Context):
    """A context whose next decodes return what ``faults`` say: the seam where failures are injected."""

    def __init__(self, model: Model, params: ContextParams) -> None:
        super().__init__(model, params)
        self.faults: list[DecodeStatus | Exception] = []
        self.first_rows: list[Logits] = []
        """The first row of logits of each step."""
        self.num_outputs: list[int] = []
        """Of each step, those of padding too."""

    def decode(self, batch: Batch) -> DecodeStatus:
        self.num_outputs.append(batch.num_outputs)
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, Exception):
                raise fault
            return fault
        return super().decode(batch)

    def logits(self, num_outputs: int) -> Logits:
        rows = super().logits(num_outputs)
        self.first_rows.append(rows[0].copy())
        return rows


class Harness:
    """An engine whose deltas are kept, run step by step or by its thread."""

    def __init__(
        self,
        model: Model,
        *,
        slots: int = 4,
        step_tokens: int = 128,
        num_cells: int = 4096,
        host_bytes: int = 0,
        max_warm_cells: int | None = None,
        tile_rows: int | None = ATTENTION_TILE_ROWS,
    ) -> None:
        self.model = model
        ids = 2 * slots
        self.context = FaultyContext(model, ContextParams(num_cells, ids + 1, step_tokens, ids + 1, 2))
        self.runner = Runner(self.context, spare_id=ids)
        cache = KvCache(num_ids=ids, num_cells=self.context.num_cells)
        self.scheduler = Scheduler(
            slots=slots,
            step_tokens=step_tokens,
            kv_cache=cache,
            accounts=Accounts(),
            tile_rows=tile_rows,
            host_cache=HostCache(max_bytes=host_bytes, cell_bytes=model.kv_cell_bytes),
            max_warm_cells=max_warm_cells,
        )
        self.lane = GenerationLane(runner=self.runner, scheduler=self.scheduler, vocab=model.vocab)
        self.engine = ModelEngine("test", generation=self.lane, embedding=None)
        self.thread = Engine(self.publish)
        self._keys = count(1)
        self.deltas: list[Delta] = []
        self.num_calls = 0

    def start(self) -> None:
        self.thread.start()
        self.thread.attach(self.engine)

    def step(self) -> bool:
        is_busy = self.engine.step()
        if news := self.engine.take_news():
            self.publish(news)
        return is_busy

    def publish(self, news: list[News]) -> None:
        self.deltas += [item for item in news if isinstance(item, Delta)]
        self.num_calls += 1

    def prompt(self, question: str) -> Tokens:
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        return self.model.vocab.tokenize(text, parse_special=True)

    def submit(
        self,
        question: str,
        *,
        max_new: int = 64,
        sampling: SamplingParams = GREEDY,
        stops: tuple[str, ...] = (),
        ignore_eos: bool = False,
        namespace: str = "demo",
        adapters: AdapterSet = NO_ADAPTERS,
        share: TenantShare = SHARE,
    ) -> int:
        key = next(self._keys)
        prompt = self.prompt(question)
        request = GenerationRequest(
            prompt, max_new, sampling, share, namespace, adapters, stops=stops, ignore_eos=ignore_eos
        )
        self.engine.submit(key, request)
        return key

    def run(self) -> None:
        while self.step():
            self.scheduler.check_integrity()

    def text(self, key: int) -> str:
        return "".join(delta.text for delta in self.deltas if delta.key == key)

    def end(self, key: int) -> Delta:
        (end,) = [delta for delta in self.deltas if delta.key == key and delta.finish_reason is not None]
        assert [delta for delta in self.deltas if delta.key == key][-1] is end
        return end

    def check_idle(self) -> None:
        self.step()
        stats = self.scheduler.stats()
        assert (stats.num_running, stats.num_waiting) == (0, 0)
        assert books_agree(self.engine)
        assert not self.lane.num_live

    def close(self) -> None:
        assert self.engine.stop()
        assert self.thread.stop()
        self.context.close()


@pytest.fixture
def make(model: Model) -> Iterator[Callable[..., Harness]]:
    made: list[Harness] = []

    def build(**sizes: Any) -> Harness:
        made.append(Harness(model, **sizes))
        return made[-1]

    yield build
    for harness in made:
        harness.close()


@pytest.fixture
def harness(make: Callable[..., Harness]) -> Harness:
    return make()


def test_an_answer_ends_by_itself(harness: Harness) -> None:
    key = harness.submit("What is the capital of France?")
    harness.run()
    assert harness.text(key) == "The capital of France is Paris."
    assert harness.end(key).finish_reason is FinishReason.STOP
    harness.check_idle()


def test_a_stop_string_ends_it_and_is_not_shown(harness: Harness) -> None:
    key = harness.submit("What is the capital of France?", stops=("France",))
    harness.run()
    assert harness.text(key) == "The capital of "
    assert harness.end(key).finish_reason is FinishReason.STOP
    harness.check_idle()


def test_the_cap_ends_it(harness: Harness) -> None:
    key = harness.submit("Hello", max_new=3, ignore_eos=True)
    harness.run()
    end = harness.end(key)
    assert (end.finish_reason, end.num_new_tokens) == (FinishReason.LENGTH, 3)
    harness.check_idle()


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_an_abort_ends_it_before_the_next_step(harness: Harness, steps: int) -> None:
    key = harness.submit("Hello", max_new=500, ignore_eos=True)
    for _ in range(steps):
        harness.step()
    harness.engine.abort(key)
    harness.step()
    end = harness.end(key)
    assert end.finish_reason is FinishReason.ABORT
    assert end.num_new_tokens <= steps
    harness.check_idle()


def test_ignore_eos_never_chooses_an_end_token(harness: Harness) -> None:
    banned = SamplingParams(temperature=0.0, banned=harness.model.vocab.eog_tokens)
    key = harness.submit("Hello", max_new=200, ignore_eos=True, sampling=banned)
    harness.run()
    assert harness.end(key).num_new_tokens == 200
    assert harness.text(key)


def test_sampling_that_does_not_fit_the_vocabulary_fails_that_sequence_only(harness: Harness) -> None:
    bad = harness.submit("Hello", sampling=SamplingParams(logit_bias=((10**6, 1.0),)))
    good = harness.submit("What is the capital of France?")
    harness.run()
    assert isinstance(harness.end(bad).error, LlamaGuardError)
    assert harness.text(good) == "The capital of France is Paris."
    harness.check_idle()


@pytest.mark.parametrize(
    "status", [DecodeStatus.INVALID_BATCH, DecodeStatus.ALLOCATION_FAILED, DecodeStatus.COMPUTE_FAILED]
)
def test_a_failed_step_ends_only_the_sequence_at_fault(harness: Harness, status: DecodeStatus) -> None:
    keys = [harness.submit("What is the capital of France?") for _ in range(3)]
    harness.step()
    # The shared step fails, then the first sequence alone; the other two are computed.
    harness.context.faults = [status, status]
    harness.run()
    ends = [harness.end(key) for key in keys]
    assert [end.finish_reason for end in ends] == [FinishReason.ERROR, FinishReason.STOP, FinishReason.STOP]
    assert isinstance(ends[0].error, DecodeError)
    assert [harness.text(key) for key in keys[1:]] == ["The capital of France is Paris."] * 2
    harness.check_idle()


def test_a_full_pool_ends_nothing(harness: Harness) -> None:
    keys = [harness.submit(question) for question in QUESTIONS[:3]]
    harness.step()
    harness.context.faults = [DecodeStatus.NO_KV_SLOT] * 3
    harness.run()
    assert harness.scheduler.stats().num_preemptions > 0
    for question, key in zip(QUESTIONS, keys, strict=False):
        assert harness.end(key).finish_reason is FinishReason.STOP
        again = harness.submit(question)
        harness.run()
        assert harness.text(again) == harness.text(key)
    harness.check_idle()


def test_kv_that_a_failure_took_is_computed_again(harness: Harness) -> None:
    key = harness.submit(QUESTIONS[0])
    for _ in range(3):
        harness.step()
    before = harness.text(key)
    sequence = harness.lane._live[key].sequence
    assert sequence.sequence_id is not None
    harness.context.remove(sequence.sequence_id)
    harness.context.faults = [DecodeStatus.COMPUTE_FAILED]
    harness.run()
    again = harness.submit(QUESTIONS[0])
    harness.run()
    assert harness.text(key) == harness.text(again)
    assert harness.text(key).startswith(before)
    harness.check_idle()


def test_an_aborted_step_is_a_shutdown(harness: Harness) -> None:
    key = harness.submit("Hello")
    harness.context.faults = [DecodeStatus.ABORTED]
    harness.run()
    assert isinstance(harness.end(key).error, ShuttingDownError)


SYSTEM = "You are a kind helper. " * 60


def test_requests_with_one_system_prompt_compute_it_once(make: Callable[..., Harness]) -> None:
    harness = make(slots=8, step_tokens=128, num_cells=16_384)
    prompts = [SYSTEM + question for question in QUESTIONS[:8]]
    lengths = [len(harness.prompt(prompt)) for prompt in prompts]
    shared = len(harness.model.vocab.tokenize(SYSTEM, parse_special=True))
    assert shared > 300
    keys = [harness.submit(prompt, max_new=4) for prompt in prompts]
    harness.run()
    cached = [harness.end(key).num_cached_tokens for key in keys]
    assert sum(count > shared - MIN_SHARED_TOKENS for count in cached) == 7
    assert harness.lane.totals.num_prefill_rows == sum(lengths) - sum(cached)
    harness.check_idle()


def test_a_later_turn_takes_over_what_the_earlier_ones_left(harness: Harness) -> None:
    first = harness.submit(QUESTIONS[0])
    harness.run()
    history = f"{QUESTIONS[0]}<|im_end|>\n<|im_start|>assistant\n{harness.text(first)}<|im_end|>\n"
    second = harness.submit(f"{history}<|im_start|>user\n{QUESTIONS[1]}")
    harness.run()
    assert harness.end(first).num_cached_tokens == 0
    assert harness.end(second).num_cached_tokens >= len(harness.prompt(QUESTIONS[0]))
    assert harness.scheduler.stats().num_resident_ids == 1
    harness.check_idle()


def test_a_repeated_prompt_is_cached_but_for_its_last_token_and_gives_the_same_answer(
    harness: Harness,
) -> None:
    keys = []
    for _ in range(2):
        keys.append(harness.submit(QUESTIONS[0]))
        harness.run()
    assert harness.end(keys[1]).num_cached_tokens == len(harness.prompt(QUESTIONS[0])) - 1
    assert harness.text(keys[0]) == harness.text(keys[1])
    harness.check_idle()


def test_namespaces_never_share(harness: Harness) -> None:
    for namespace in ("a", "b"):
        key = harness.submit(QUESTIONS[0], namespace=namespace)
        harness.run()
        assert harness.end(key).num_cached_tokens == 0


def test_a_pool_too_small_for_its_load_ends_nothing_and_changes_nothing(
    make: Callable[..., Harness], model: Model
) -> None:
    small = make(slots=8, step_tokens=128, num_cells=512)
    questions = [f"{question} {'Please. ' * (index % 4)}" for index, question in enumerate(QUESTIONS * 3)][
        :32
    ]
    keys = [
        small.submit(question, max_new=120, ignore_eos=index % 2 == 0)
        for index, question in enumerate(questions)
    ]
    small.run()
    assert small.scheduler.stats().num_preemptions > 0
    for index, (question, key) in enumerate(zip(questions, keys, strict=True)):
        assert small.end(key).finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
        alone = make(slots=1)
        only = alone.submit(question, max_new=120, ignore_eos=index % 2 == 0)
        alone.run()
        assert_same_or_near_tie(model, alone.prompt(question), small.text(key), alone.text(only))
    small.check_idle()


def test_a_bug_in_a_step_ends_its_sequences_and_not_the_engine(harness: Harness) -> None:
    harness.start()
    harness.context.faults = [RuntimeError("a bug")]
    bad = harness.submit("Hello")
    assert wait_until(lambda: any(delta.finish_reason for delta in harness.deltas))
    assert isinstance(harness.end(bad).error, DecodeError)
    good = harness.submit("What is the capital of France?")
    assert wait_until(lambda: any(delta.key == good and delta.finish_reason for delta in harness.deltas))
    assert harness.text(good) == "The capital of France is Paris."


def test_shutdown_ends_everything_and_leaves_no_thread(harness: Harness) -> None:
    harness.start()
    keys = [harness.submit("Hello", max_new=1000, ignore_eos=True) for _ in range(6)]
    assert wait_until(lambda: len(harness.deltas) > 5)
    assert harness.engine.stop()
    for key in keys:
        assert isinstance(harness.end(key).error, ShuttingDownError)
    assert harness.runner.num_cells() == 0
    assert not harness.engine.is_alive
    with pytest.raises(ShuttingDownError):
        harness.submit("Hello")


def test_one_hand_over_per_step(harness: Harness) -> None:
    for _ in range(4):
        harness.submit("What is the capital of France?")
    steps = 0
    while harness.step():
        steps += 1
    assert harness.num_calls <= steps


def test_a_seed_gives_the_same_text_whoever_is_beside_it(make: Callable[..., Harness]) -> None:
    seeded = SamplingParams(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=7)

    def run(num_neighbours: int) -> tuple[str, list[Logits]]:
        harness = make()
        key = harness.submit("Tell me about the sea.", sampling=seeded, max_new=12, ignore_eos=True)
        for index in range(num_neighbours):
            harness.submit(f"What is {index} + 3?", sampling=SamplingParams(temperature=1.5))
        harness.run()
        return harness.text(key), harness.context.first_rows[:12]

    alone, rows = run(0)
    assert run(0)[0] == alone
    beside, rows_beside = run(3)
    if beside == alone:
        return
    # The random stream is its own: the texts may part only where rounding in the kernels shifted a near-tie,
    # and until then the logits are the same but for that rounding.
    gaps = [float(np.abs(left - right).max()) for left, right in zip(rows, rows_beside, strict=True)]
    parted = next(index for index, gap in enumerate(gaps) if gap > NEAR_TIE)
    assert parted > 0
    assert max(gaps[:parted]) < NEAR_TIE


def test_batched_answers_equal_those_given_alone(make: Callable[..., Harness], model: Model) -> None:
    together = make(slots=8, step_tokens=64)
    keys = [together.submit(question) for question in QUESTIONS]
    together.run()
    assert together.lane.totals.max_sequences > 1
    for question, key in zip(QUESTIONS, keys, strict=True):
        alone = make(slots=1)
        only = alone.submit(question)
        alone.run()
        assert_same_or_near_tie(model, alone.prompt(question), together.text(key), alone.text(only))
    together.check_idle()


def always_padded(harness: Harness) -> Harness:
    """Where a step of answers can be filled up, it is, as if that had been faster."""
    for num_answers in (5, 6, 7):
        for _ in range(8):
            is_padded = harness.scheduler._padding.rows(num_answers) > 0
            harness.scheduler._padding.observe(num_answers, 0.5 if is_padded else 1.0, is_padded=is_padded)
    return harness


def is_spare_id_empty(harness: Harness) -> bool:
    return harness.context.num_cached(harness.context.params.num_sequence_ids - 1) == 0


@pytest.mark.parametrize("num_answers", [5, 6, 7])
def test_padding_changes_no_answer_and_leaves_no_cell(
    make: Callable[..., Harness], model: Model, num_answers: int
) -> None:
    padded, plain = always_padded(make(slots=8)), make(slots=8, tile_rows=None)
    texts = []
    for harness in (padded, plain):
        keys = [harness.submit(question, max_new=6, ignore_eos=True) for question in QUESTIONS[:num_answers]]
        while harness.step():
            harness.scheduler.check_integrity()
            assert is_spare_id_empty(harness)
        texts.append([harness.text(key) for key in keys])
        harness.check_idle()
    # The prompts share a step of their own.
    assert padded.context.num_outputs == [num_answers, 8, 8, 8, 8, 8]
    assert plain.context.num_outputs == [num_answers] * 6
    for question, *both in zip(QUESTIONS, *texts, strict=False):
        assert_same_or_near_tie(model, padded.prompt(question), *both)


def run_until_padded(harness: Harness) -> list[int]:
    """Seven requests, up to a step of seven answers that is filled up; their keys."""
    keys = [harness.submit("What is the capital of France?") for _ in range(7)]
    while 8 not in harness.context.num_outputs:
        harness.step()
    harness.context.num_outputs.clear()
    return keys


def test_a_failed_step_with_padding_ends_only_the_sequence_at_fault(make: Callable[..., Harness]) -> None:
    harness = always_padded(make(slots=8))
    keys = run_until_padded(harness)
    harness.context.faults = [DecodeStatus.COMPUTE_FAILED] * 2
    harness.step()
    # Alone they are not filled up.
    assert harness.context.num_outputs == [8] + [1] * 7
    harness.run()
    reasons = [harness.end(key).finish_reason for key in keys]
    assert reasons == [FinishReason.ERROR, *[FinishReason.STOP] * 6]
    harness.check_idle()


def test_a_step_that_finds_no_room_for_its_padding_is_taken_without(make: Callable[..., Harness]) -> None:
    harness = always_padded(make(slots=8))
    keys = run_until_padded(harness)
    harness.context.faults = [DecodeStatus.NO_KV_SLOT]
    harness.step()
    assert harness.context.num_outputs == [8, 7]
    harness.run()
    assert harness.scheduler.stats().num_preemptions == 0
    assert [harness.text(key) for key in keys] == ["The capital of France is Paris."] * 7
    harness.check_idle()


def test_a_step_with_padding_that_is_aborted_leaves_nothing(make: Callable[..., Harness]) -> None:
    harness = always_padded(make(slots=8))
    keys = run_until_padded(harness)
    harness.engine.interrupt()
    harness.step()
    assert harness.context.num_outputs == [8]
    assert all(isinstance(harness.end(key).error, ShuttingDownError) for key in keys)
    assert is_spare_id_empty(harness)
    harness.check_idle()


def test_padding_and_host_memory_share_an_id_in_turn(make: Callable[..., Harness], model: Model) -> None:
    harness = always_padded(make(slots=8, host_bytes=10**8, max_warm_cells=0))
    first = harness.submit(SYSTEM + QUESTIONS[0], max_new=20, ignore_eos=True)
    harness.run()
    for question in QUESTIONS[1:7]:
        harness.submit(question, max_new=40, ignore_eos=True)
    for _ in range(4):
        harness.step()
    assert harness.scheduler.stats().num_host_bytes > 0
    again = harness.submit(SYSTEM + QUESTIONS[0], max_new=20, ignore_eos=True)
    harness.step()
    while not harness.lane._live[again].sequence.is_decoding:
        harness.step()
    harness.context.num_outputs.clear()
    harness.run()
    assert 8 in harness.context.num_outputs
    assert harness.end(again).num_cached_tokens >= 256
    assert_same_or_near_tie(
        model, harness.prompt(SYSTEM + QUESTIONS[0]), harness.text(first), harness.text(again)
    )
    harness.check_idle()


def test_aborts_at_random_moments_leak_nothing(harness: Harness) -> None:
    harness.start()
    random = np.random.default_rng(5)
    keys = []
    for _ in range(60):
        keys.append(
            harness.submit("Tell me a long story.", max_new=int(random.integers(1, 80)), ignore_eos=True)
        )
        if random.random() < 0.7:
            harness.engine.abort(int(random.choice(keys)))
        time.sleep(float(random.random()) * 2e-3)
    assert wait_until(lambda: len([delta for delta in harness.deltas if delta.finish_reason]) == len(keys))
    assert harness.engine.stop()
    assert books_agree(harness.engine)
    assert harness.runner.num_cells() == 0


def test_a_request_that_cannot_be_opened_ends_alone(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = harness.submit(QUESTIONS[0])
    harness.step()
    monkeypatch.setattr(harness.runner, "open", lambda *_: 1 / 0)
    bad = harness.submit("Hello")
    harness.run()
    assert isinstance(harness.end(bad).error, DecodeError)
    assert harness.end(good).finish_reason is FinishReason.STOP
    harness.check_idle()
