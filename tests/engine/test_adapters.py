"""Adapters in the engine, on the bundled model: failures and little memory mix no sets."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.errors import DecodeError
from nexa_runtime.llama import DecodeStatus, Model
from nexa_runtime.lora import NO_ADAPTERS, AdapterSet
from nexa_runtime.serving.library import DEMO_PATH
from tests.engine.test_engine import Harness

DATA = Path(__file__).parents[1] / "data"
LYON: AdapterSet = (("lyon", 1.0),)
OSAKA: AdapterSet = (("osaka", 1.0),)
BOTH: AdapterSet = (("lyon", 1.0), ("osaka", 1.0))
CITIES = {NO_ADAPTERS: "Paris", LYON: "Lyon", OSAKA: "Paris", BOTH: "Lyon"}
FRANCE = "What is the capital of France?"


@pytest.fixture(scope="module")
def adapted() -> Iterator[Model]:
    """The bundled model with two adapters to choose from."""
    model = Model.load(DEMO_PATH)
    for name in ("lyon", "osaka"):
        model.name_adapter(name, DATA / f"{name}.gguf")
    yield model
    model.close()


@pytest.fixture
def make(adapted: Model) -> Iterator[Callable[..., Harness]]:
    made: list[Harness] = []

    def build(**sizes: int) -> Harness:
        made.append(Harness(adapted, **sizes))
        return made[-1]

    yield build
    for harness in made:
        harness.close()


def answer(adapters: AdapterSet) -> str:
    return f"The capital of France is {CITIES[adapters]}."


def test_sets_run_side_by_side_on_one_context(make: Callable[..., Harness]) -> None:
    harness = make(slots=8)
    keys = [(harness.submit(FRANCE, adapters=adapters), adapters) for adapters in [*CITIES, *CITIES]]
    harness.run()
    assert [harness.text(key) for key, _ in keys] == [answer(adapters) for _, adapters in keys]
    harness.check_idle()


@pytest.mark.parametrize("at", range(1, 12, 3))
def test_after_a_failed_step_each_is_tried_alone_with_its_own_adapters(
    make: Callable[..., Harness], at: int
) -> None:
    harness = make(slots=8)
    keys = [(harness.submit(FRANCE, adapters=adapters), adapters) for adapters in [*CITIES, *CITIES]]
    for _ in range(at):
        harness.step()
    harness.context.faults = [DecodeStatus.COMPUTE_FAILED, DecodeStatus.COMPUTE_FAILED]
    harness.run()
    failed = [key for key, _ in keys if harness.end(key).finish_reason is FinishReason.ERROR]
    assert len(failed) == 1
    for key, adapters in keys:
        assert key in failed or harness.text(key) == answer(adapters)
    harness.check_idle()


def test_little_memory_mixes_no_sets(make: Callable[..., Harness]) -> None:
    harness = make(slots=4, num_cells=512, host_bytes=100_000_000)
    story = "Please be kind and polite. " * 16
    keys = []
    for _ in range(2):
        for adapters in CITIES:
            keys.append((harness.submit(story + FRANCE, adapters=adapters, max_new=24), adapters))
    harness.run()
    texts: dict[AdapterSet, set[str]] = {}
    for key, adapters in keys:
        assert harness.end(key).error is None
        texts.setdefault(adapters, set()).add(harness.text(key))
    for adapters, found in texts.items():
        alone = make(slots=1)
        key = alone.submit(story + FRANCE, adapters=adapters, max_new=24)
        alone.run()
        assert found == {alone.text(key)}
    assert harness.scheduler.stats().num_evictions + harness.scheduler.stats().num_preemptions > 0


def test_a_name_that_the_model_has_not_ends_that_sequence_alone(make: Callable[..., Harness]) -> None:
    harness = make()
    bad = harness.submit(FRANCE, adapters=(("parrot", 1.0),))
    good = harness.submit(FRANCE, adapters=LYON)
    harness.run()
    assert isinstance(harness.end(bad).error, DecodeError)
    assert harness.text(good) == answer(LYON)
    harness.check_idle()
