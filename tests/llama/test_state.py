"""A range of KV in host memory: what comes back is what was saved, or nothing comes back."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from nexa_runtime.errors import LlamaGuardError
from nexa_runtime.llama import Context, ContextParams, DecodeStatus, Model, restore_range, save_range
from nexa_runtime.llama.context import Logits

TOKENS = np.arange(5, 55, dtype=np.int32)
VIA = 5


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    made = Context(model, ContextParams(256, num_sequence_ids=6, max_rows=64, max_outputs=6, num_threads=2))
    yield made
    made.close()


def compute(context: Context, sequence_id: int, start: int, end: int) -> Logits:
    batch = context.make_batch()
    batch.add(sequence_id, TOKENS[start:end], start, wants_logits=True)
    assert context.decode(batch) is DecodeStatus.OK
    row: Logits = context.logits(1)[0]
    return row.copy()


def test_ranges_come_back_among_holes(context: Context) -> None:
    for sequence_id in range(4):  # in pieces, so that each has cells all over the pool
        for start in range(0, 40, 10):
            compute(context, sequence_id, start, start + 10)
    expected = compute(context, 1, 40, 50)
    first = save_range(context, 1, 0, 32, via=VIA)
    second = save_range(context, 1, 32, 18, via=VIA)
    assert context.num_cached(VIA) == 0
    for sequence_id in (0, 1, 3):
        context.remove(sequence_id)
    assert restore_range(context, first, 4, 32, via=VIA)
    assert restore_range(context, second, 4, 8, via=VIA)
    assert (context.num_cached(4), context.num_cached(VIA)) == (40, 0)
    assert np.array_equal(compute(context, 4, 40, 50), expected)


def test_a_flipped_byte_is_noticed(context: Context) -> None:
    compute(context, 0, 0, 20)
    saved = save_range(context, 0, 0, 20, via=VIA)
    data = saved.data.copy()
    data[len(data) // 2] ^= 1
    assert not restore_range(context, replace(saved, data=data), 1, 20, via=VIA)
    assert context.num_cached(1) == context.num_cached(VIA) == 0
    assert restore_range(context, saved, 1, 20, via=VIA)


def test_without_cells_for_it_nothing_changes(context: Context) -> None:
    compute(context, 0, 0, 50)
    saved = save_range(context, 0, 0, 50, via=VIA)
    batch = context.make_batch()
    for sequence_id in range(1, 5):
        batch.clear()
        batch.add(sequence_id, TOKENS, 0, wants_logits=False)
        assert context.decode(batch) is DecodeStatus.OK
    context.remove(4, 40)  # 16 of 256 cells are free
    context.remove(0, 30)
    context.remove(0, 25)
    assert not restore_range(context, replace(saved, start=25), 0, 25, via=VIA)
    assert (context.num_cached(0), context.num_cached(VIA)) == (25, 0)


def test_what_does_not_fit_together_is_refused(context: Context) -> None:
    compute(context, 0, 0, 20)
    saved = save_range(context, 0, 0, 10, via=VIA)
    for act in (
        lambda: save_range(context, 0, 10, 11, via=VIA),
        lambda: save_range(context, 0, 0, 0, via=VIA),
        lambda: save_range(context, 1, 0, 10, via=0),
        lambda: restore_range(context, saved, 0, 10, via=VIA),
        lambda: restore_range(context, saved, 1, 11, via=VIA),
        lambda: restore_range(context, saved, 1, 10, via=0),
        lambda: save_range(context, 99, 0, 10, via=VIA),
    ):
        with pytest.raises(LlamaGuardError):
            act()
    assert context.num_cached(VIA) == 0
