"""Prefixes in host memory: what is kept, for whom, and that answers are the same with it."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from nexa_runtime.engine.host_cache import BLOCK_TOKENS, MAX_BLOCKS, HostCache
from nexa_runtime.engine.kv_cache import Holding
from nexa_runtime.engine.sequence import Forget, Offload, Reload, Sequence, SequenceState, TenantShare
from nexa_runtime.llama import Model
from tests.engine.test_engine import Harness

B = BLOCK_TOKENS


def make(tokens: list[int], tenant: str = "demo", weight: float = 1.0, floor: int = 0) -> Sequence:
    prompt = np.array(tokens, dtype=np.int32)
    share = TenantShare(tenant, weight=weight, cache_floor_cells=floor)
    return Sequence(1, prompt, max_new_tokens=8, share=share, cache_namespace=tenant)


def keep(
    cache: HostCache, tokens: list[int], tenant: str = "demo", weight: float = 1.0, floor: int = 0
) -> list[object]:
    """Offload a resident of these tokens."""
    sequence = make(tokens, tenant, weight, floor)
    sequence.num_computed, sequence.state = len(tokens), SequenceState.FINISHED
    operations = cache.offload(Holding(3, sequence, np.arange(len(tokens), dtype=np.int32), len(tokens), 0))
    cache.check_integrity()
    return list(operations)


def cached(cache: HostCache, tokens: list[int], tenant: str = "demo") -> int:
    """Tokens of a prompt that are there; one more has to be computed."""
    return cache.match(make([*tokens, 0], tenant)).num_tokens


def test_what_prefixes_share_is_kept_once() -> None:
    cache = HostCache(max_bytes=100_000, cell_bytes=10)
    system = list(range(1, 2 * B + 51))
    assert keep(cache, [*system, 7, 8]) == [
        Offload(3, 1, 0, B), Offload(3, 2, B, B), Offload(3, 3, 2 * B, 52),
    ]  # fmt: skip
    assert keep(cache, [*system, 9]) == [Offload(3, 4, 2 * B, 51)]
    assert keep(cache, [*system, 9]) == []
    assert keep(cache, system) == []
    assert cache.num_bytes == 10 * (2 * B + 52 + 51)
    assert cached(cache, [*system, 9, 1]) == 2 * B + 51
    assert cached(cache, [*system[:-20], 5]) == 2 * B + 30
    assert cached(cache, [0, *system]) == 0


def test_a_longer_end_replaces_a_shorter_one() -> None:
    cache = HostCache(max_bytes=100_000, cell_bytes=10)
    turns = list(range(1, B + 200))
    keep(cache, turns[:40])
    assert keep(cache, turns[:90]) == [Forget(1), Offload(3, 2, 0, 90)]
    assert keep(cache, turns) == [Forget(2), Offload(3, 3, 0, B), Offload(3, 4, B, 199)]


def test_a_prompt_is_never_there_to_its_last_token() -> None:
    cache = HostCache(max_bytes=100_000, cell_bytes=10)
    keep(cache, list(range(1, B + 1)))
    assert cache.match(make(list(range(1, B + 1)))).num_tokens == B - 1
    assert cache.match(make([1])).num_tokens == 0


def test_reloading_begins_where_the_sequence_stands() -> None:
    cache = HostCache(max_bytes=100_000, cell_bytes=10)
    tokens = list(range(1, 2 * B + 60))
    keep(cache, tokens)
    sequence = make([*tokens, 1])
    sequence.sequence_id, sequence.num_computed = 7, B
    match = cache.match(sequence)
    assert cache.reload(sequence, match, match.num_tokens) == [Reload(2, 7, B, B), Reload(3, 7, 2 * B, 59)]
    assert cache.reload(sequence, match, B + 10) == [Reload(2, 7, B, 10)]
    assert cache.reload(sequence, match, B) == []


def test_other_tenants_see_nothing() -> None:
    cache = HostCache(max_bytes=100_000, cell_bytes=10)
    tokens = list(range(1, B + 40))
    keep(cache, tokens, "a")
    assert (cached(cache, tokens, "a"), cached(cache, tokens, "b")) == (B + 39, 0)
    keep(cache, tokens, "b")
    assert cache.tenant_bytes() == {"a": 10 * (B + 39), "b": 10 * (B + 39)}


def test_who_has_most_for_its_weight_gives_way_oldest_first() -> None:
    cache = HostCache(max_bytes=10 * 1000, cell_bytes=10)
    for tenant, begins, weight in (("a", (1, 2, 3, 4), 1.0), ("b", (5, 6), 1.0), ("c", (7, 8), 4.0)):
        for begin in begins:
            keep(cache, [begin] * 120, tenant, weight)
    cached(cache, [1] * 120, "a")  # used again
    operations = keep(cache, [9] * 100, "b")
    assert operations[0] == Forget(2)
    assert [cached(cache, [begin] * 120, "a") for begin in (1, 2, 3, 4)] == [120, 0, 120, 120]
    cache.update_share(TenantShare("a", weight=4.0))
    assert keep(cache, [10] * 100, "c")[0] == Forget(5)


def test_who_has_most_does_not_push_others_out() -> None:
    cache = HostCache(max_bytes=10 * 4 * B, cell_bytes=10)
    keep(cache, [1] * 200, "small")
    keep(cache, list(range(1, 8 * B)), "big")
    assert cached(cache, [1] * 200, "small") == 200
    assert cache.tenant_bytes()["big"] == 10 * 3 * B


def test_the_bounds_hold_and_a_prefix_keeps_its_beginning() -> None:
    cache = HostCache(max_bytes=10 * 2 * B, cell_bytes=10)
    tokens = list(range(1, 5 * B))
    assert [one for one in keep(cache, tokens) if isinstance(one, Offload)] == [
        Offload(3, 1, 0, B), Offload(3, 2, B, B),
    ]  # fmt: skip
    assert cached(cache, tokens) == 2 * B
    many = HostCache(max_bytes=10**9, cell_bytes=1)
    for begin in range(MAX_BLOCKS + 5):
        keep(many, [begin] * 20)
    assert many.num_bytes == 20 * MAX_BLOCKS
    assert keep(many, [1, 2, 3]) == []  # too short to be worth one
    assert not HostCache(max_bytes=0, cell_bytes=10).is_on


def test_a_namespace_of_which_nothing_is_left_is_forgotten() -> None:
    cache = HostCache(max_bytes=10 * 1000, cell_bytes=10)
    for number in range(50):
        keep(cache, [number] * 400, f"tenant-{number}")
    assert set(cache._roots) == set(cache.tenant_bytes())
    keep(cache, [1, 2, 3], "short")
    for block in list(cache._blocks):
        cache.drop(block)
    assert not cache._roots


def test_an_unreadable_block_takes_what_hangs_on_it_along() -> None:
    cache = HostCache(max_bytes=100_000, cell_bytes=10)
    tokens = list(range(1, 3 * B))
    keep(cache, tokens)
    assert cache.drop(2) == [Forget(3), Forget(2)]
    assert cache.drop(2) == []
    assert cached(cache, tokens) == B
    cache.check_integrity()
    deep = HostCache(max_bytes=10**9, cell_bytes=1)
    keep(deep, list(range(1, MAX_BLOCKS * B + 1)))
    assert len(deep.drop(1)) == MAX_BLOCKS
    assert not deep.num_bytes


@pytest.fixture
def harness(model: Model) -> Iterator[Callable[..., Harness]]:
    made: list[Harness] = []

    def make_one(**options: int) -> Harness:
        made.append(Harness(model, **options))
        return made[-1]

    yield make_one
    for one in made:
        one.close()


LONG = "Answer shortly. " * 40
FLOOD = "Say something else, please. " * 40


def answers(harness: Harness) -> list[tuple[str, int]]:
    """One conversation's answers and cached tokens, while others fill the cache between its turns."""
    seen = []
    for turn in range(3):
        key = harness.submit(LONG + "And now? " * turn, max_new=12, ignore_eos=True)
        harness.run()
        seen.append((harness.text(key), harness.end(key).num_cached_tokens))
        for index in range(3):
            harness.submit(f"{index} {FLOOD}", max_new=2, namespace=f"other{turn}{index}")
        harness.run()
    harness.check_idle()
    return seen


@pytest.mark.parametrize(("floor", "expected"), [(2 * B, 2 * B), (B, B)])
def test_others_take_nothing_below_a_floor(floor: int, expected: int) -> None:
    cache = HostCache(max_bytes=10 * 8 * B, cell_bytes=10)
    mine = list(range(1, 2 * B + 1))
    keep(cache, mine, "idle", floor=floor)
    for begin in range(10_000, 200_000, 10_000):
        keep(cache, list(range(begin, begin + B)), "busy", weight=8)
    assert cached(cache, mine, "idle") == expected
    assert cache.tenant_bytes()["busy"] == 10 * (8 * B - expected)


def test_answers_are_the_same_when_prefixes_come_back_from_host_memory(
    harness: Callable[..., Harness],
) -> None:
    plain = answers(harness(num_cells=1024, slots=1))
    kept = answers(harness(num_cells=1024, slots=1, host_bytes=10**8))
    assert [text for text, _ in kept] == [text for text, _ in plain]
    assert [cached for _, cached in plain] == [0, 0, 0]
    assert kept[1][1] > 100
    assert kept[2][1] > 100


def test_warm_cells_are_bounded(harness: Callable[..., Harness]) -> None:
    one = harness(num_cells=4096, host_bytes=10**8, max_warm_cells=64)
    first = one.submit(LONG, max_new=2)
    one.run()
    one.check_idle()
    assert one.scheduler.stats().num_used_cells <= 64
    again = one.submit(LONG, max_new=2)
    one.run()
    assert one.text(first) == one.text(again)
    assert one.end(again).num_cached_tokens == len(one.prompt(LONG)) - 1


@pytest.mark.parametrize("host_bytes", [10**8, 100_000])
def test_a_floor_is_kept_in_host_memory_where_that_has_room(
    harness: Callable[..., Harness], host_bytes: int
) -> None:
    one = harness(num_cells=4096, host_bytes=host_bytes, max_warm_cells=0)
    share = TenantShare("demo", cache_floor_cells=1000)
    one.submit(LONG, max_new=2, share=share)
    one.run()
    num_tokens = len(one.prompt(LONG)) + 1
    has_room = host_bytes >= num_tokens * one.model.kv_cell_bytes
    assert one.scheduler.stats().num_used_cells == (0 if has_room else num_tokens)
    again = one.submit(LONG, max_new=2, share=share)
    one.run()
    assert one.end(again).num_cached_tokens == num_tokens - 2


def test_a_damaged_prefix_is_computed_again(harness: Callable[..., Harness]) -> None:
    one = harness(num_cells=4096, host_bytes=10**8, max_warm_cells=0)
    first = one.submit(LONG, max_new=8, ignore_eos=True)
    one.run()
    saved = one.runner._saved
    assert saved
    for block, kept in list(saved.items()):
        saved[block] = replace(kept, checksum=kept.checksum ^ 1)
    again = [one.submit(LONG, max_new=8, ignore_eos=True) for _ in range(2)]
    one.run()
    assert {one.text(key) for key in again} == {one.text(first)}
    third = one.submit(LONG, max_new=8, ignore_eos=True)
    one.run()
    assert one.end(third).num_cached_tokens > 100
    one.check_idle()
