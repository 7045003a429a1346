"""Ids and cells are promised, kept and given back."""

from nexa_runtime.engine.kv_cache import KvCache


def test_an_id_comes_only_with_all_its_cells() -> None:
    cache = KvCache(num_ids=4, num_cells=100)
    first = cache.reserve(60)
    assert first == 0
    assert cache.reserve(41) is None
    assert cache.reserve(40) == 1
    cache.check_integrity({0: 60, 1: 10})


def test_there_is_no_id_beyond_the_last() -> None:
    cache = KvCache(num_ids=2, num_cells=100)
    assert [cache.reserve(1) for _ in range(3)] == [0, 1, None]


def test_a_released_id_is_reused_lowest_first() -> None:
    cache = KvCache(num_ids=3, num_cells=100)
    for _ in range(3):
        cache.reserve(10)
    cache.release(2)
    cache.release(0)
    assert cache.num_reserved_cells == 10
    assert cache.reserve(5) == 0
