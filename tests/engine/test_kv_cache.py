"""The books of ids and cells: prefixes are matched, shared, kept and evicted."""

import numpy as np
import pytest

from nexa_runtime.engine.kv_cache import KvCache, Reuse, common_prefix
from nexa_runtime.engine.sequence import CopyPrefix, Sequence, SequenceState, TenantShare, Truncate


def make(key: int, prompt: list[int], *, tenant: str = "a", floor: int = 0) -> Sequence:
    return Sequence(
        key,
        np.array(prompt, dtype=np.int32),
        max_new_tokens=10,
        share=TenantShare(tenant, cache_floor_cells=floor),
        cache_namespace=tenant,
    )


def run(cache: KvCache, sequence: Sequence) -> None:
    """Compute all that a sequence knows."""
    cache.attach(sequence, cache.match(sequence))
    sequence.state = SequenceState.RUNNING
    cache.grow(sequence, sequence.num_pending)
    sequence.num_computed = sequence.num_known


def end(cache: KvCache, sequence: Sequence) -> None:
    cache.release(sequence)
    sequence.state = SequenceState.FINISHED


@pytest.mark.parametrize(
    ("left", "right", "length"),
    [([], [], 0), ([1], [2], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2, 4], 2), ([5, 2], [1, 2], 0)],
)
def test_common_prefix(left: list[int], right: list[int], length: int) -> None:
    arrays = np.array(left, dtype=np.int32), np.array(right, dtype=np.int32)
    assert common_prefix(*arrays) == length
    for above in range(3):
        assert max(common_prefix(*arrays, above=above), above) == max(length, above)


def test_what_has_ended_stays_and_is_matched_but_for_the_last_token() -> None:
    cache = KvCache(num_ids=4, num_cells=100)
    first = make(1, [1, 2, 3, 4])
    run(cache, first)
    end(cache, first)
    match = cache.match(make(2, [1, 2, 3, 4]))
    assert match.num_tokens == 3
    assert cache.match(make(3, [1, 2, 3, 4, 5])).num_tokens == 4
    assert cache.match(make(4, [9, 2])).holding is None
    cache.check_integrity([])


def test_a_resident_that_is_matched_whole_is_taken_over() -> None:
    cache = KvCache(num_ids=4, num_cells=100)
    first = make(1, [1, 2, 3])
    run(cache, first)
    end(cache, first)
    second = make(2, [1, 2, 3, 4])
    assert cache.attach(second, cache.match(second)) == []
    assert (second.sequence_id, second.num_computed) == (0, 3)
    assert cache.num_resident_ids == 0


def test_a_partial_match_is_copied_and_its_cells_count_once() -> None:
    cache = KvCache(num_ids=4, num_cells=100)
    first = make(1, [1, 2, 3, 4])
    run(cache, first)
    second = make(2, [1, 2, 9])
    assert cache.attach(second, cache.match(second)) == [CopyPrefix(0, 1, 2)]
    second.state = SequenceState.RUNNING
    assert cache.num_free_cells == 96
    cache.grow(second, 1)
    second.num_computed = 3
    cache.check_integrity([first, second])
    assert cache.drop(cache.holding_of(first)) == [Truncate(0, 0)]
    assert cache.num_free_cells == 97
    cache.check_integrity([second])


def test_planned_tokens_are_not_there_yet() -> None:
    cache = KvCache(num_ids=4, num_cells=100)
    first = make(1, [1, 2, 3, 4])
    cache.attach(first, cache.match(first))
    cache.grow(first, 4)
    assert cache.match(make(2, [1, 2, 3, 4, 5])).num_tokens == 0


def test_a_state_that_is_one_piece_is_reused_whole_or_not_at_all() -> None:
    cache = KvCache(num_ids=4, num_cells=100, reuse=Reuse.WHOLE)
    first = make(1, [1, 2, 3])
    run(cache, first)
    end(cache, first)
    assert cache.match(make(2, [1, 2, 9])).num_tokens == 0
    assert cache.match(make(3, [1, 2, 3])).num_tokens == 0
    assert cache.match(make(4, [1, 2, 3, 4])).num_tokens == 3


def test_split_cells_are_taken_over_and_cut_back_and_never_shared() -> None:
    cache = KvCache(num_ids=2, num_cells=100, reuse=Reuse.OWN_PREFIX)
    first = make(1, [1, 2, 3, 4])
    run(cache, first)
    second = make(2, [1, 2, 9])
    assert cache.match(second).num_tokens == 0
    end(cache, first)
    assert cache.attach(second, cache.match(second)) == [Truncate(0, 2)]
    second.state = SequenceState.RUNNING
    assert (second.sequence_id, second.num_computed, cache.num_free_cells) == (0, 2, 98)
    cache.check_integrity([second])


def test_other_namespaces_are_not_seen() -> None:
    cache = KvCache(num_ids=4, num_cells=100)
    run(cache, make(1, [1, 2, 3], tenant="a"))
    assert cache.match(make(2, [1, 2, 3, 4], tenant="b")).num_tokens == 0


def test_eviction_order() -> None:
    cache = KvCache(num_ids=8, num_cells=60)
    big = [make(key, [key * 10 + index for index in range(20)], tenant="big") for key in (1, 2)]
    mine = make(3, [1000, 1001], tenant="mine")
    other = make(4, [2000, 2001], tenant="other")
    safe = make(5, [3000, 3001], tenant="safe", floor=5)
    for sequence in (safe, other, mine, *big):
        run(cache, sequence)
        end(cache, sequence)
    order = [holding.sequence.key for holding in cache.evictable(TenantShare("mine"))]
    assert order == [1, 2, 3, 4]
    with_floors = cache.evictable(TenantShare("mine"), breaks_floors=True)
    assert [holding.sequence.key for holding in with_floors] == [1, 2, 3, 4, 5]
    assert [one.sequence.key for one in cache.evictable(TenantShare("safe"))] == [1, 2, 5, 4, 3]


def test_shared_cells_count_once() -> None:
    cache = KvCache(num_ids=8, num_cells=60)
    prefix = list(range(1, 21))
    first = make(1, [*prefix, 100], tenant="a")
    run(cache, first)
    second = make(2, [*prefix, 200, 201], tenant="a")
    run(cache, second)
    assert cache.held_and_idle() == ({"a": 23.0}, {})
    end(cache, first)
    assert cache.held_and_idle() == ({"a": 23.0}, {"a": 11.0})
    (holding,) = cache.evictable(TenantShare("a"))
    assert cache.num_reclaimable([holding]) == 1
    end(cache, second)
    assert cache.num_reclaimable(cache.evictable(TenantShare("a"))) == 23
    assert cache.num_reclaimable([]) == 0


def test_an_idle_tenants_weight_counts_too() -> None:
    cache = KvCache(num_ids=8, num_cells=60)
    for key, (tenant, weight) in enumerate([("heavy", 3.0), ("light", 1.0)], start=1):
        sequence = make(key, [key * 100 + index for index in range(25)], tenant=tenant)
        sequence.share = TenantShare(tenant, weight=weight)
        run(cache, sequence)
        end(cache, sequence)
    # 25 of 60 cells are more than a quarter and less than three quarters.
    order = [one.sequence.share.tenant_id for one in cache.evictable(TenantShare("other"))]
    assert order == ["light", "heavy"]


def test_a_public_prefix_is_shared_by_all_and_never_goes() -> None:
    cache = KvCache(num_ids=3, num_cells=100)
    public = make(1, list(range(1, 21)), tenant="(public)")
    public.is_public = True
    run(cache, public)
    end(cache, public)
    assert cache.num_pinned_cells == 20
    for key, tenant in enumerate(["a", "b"], start=2):
        one = make(key, [*range(1, 21), key * 100, 7], tenant=tenant)
        match = cache.match(one)
        assert (match.num_tokens, cache.takes_over(match)) == (20, False)
        run(cache, one)
        end(cache, one)
    assert [one.sequence.key for one in cache.evictable(TenantShare("c"), breaks_floors=True)] == [2, 3]
    # What a tenant added is its own.
    assert cache.match(make(9, [*range(1, 21), 200, 7, 8], tenant="b")).num_tokens == 20


def test_a_public_prefix_serves_nobody_who_has_other_adapters() -> None:
    cache = KvCache(num_ids=3, num_cells=100)
    public = make(1, list(range(1, 21)), tenant="(public)")
    public.is_public = True
    run(cache, public)
    end(cache, public)
    for adapters, num_tokens in (((), 20), ((("formal", 1.0),), 0)):
        share = TenantShare("a")
        prompt = np.array([*range(1, 21), 7], dtype=np.int32)
        one = Sequence(2, prompt, max_new_tokens=10, share=share, cache_namespace="a", adapters=adapters)
        assert cache.match(one).num_tokens == num_tokens


def test_split_ids_are_not_cut_back_for_little_while_one_is_free() -> None:
    cache = KvCache(num_ids=2, num_cells=100, reuse=Reuse.OWN_PREFIX)
    long = make(1, list(range(1, 31)))
    run(cache, long)
    end(cache, long)
    assert cache.match(make(2, [1, 2, 3, 99])).num_tokens == 0
    assert cache.match(make(3, [*range(1, 21), 99])).num_tokens == 20
    run(cache, make(4, [7, 8, 9]))
    assert cache.match(make(5, [1, 2, 3, 99])).num_tokens == 3
