"""What ``Context.logits`` shows is what llama.cpp computed last, however many outputs that were."""

from collections.abc import Iterator

import numpy as np
import pytest

from nexa_runtime.llama import Context, ContextParams, DecodeStatus, Model
from nexa_runtime.llama.context import Logits

TOKENS = np.arange(5, 13, dtype=np.int32)


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    made = Context(model, ContextParams(512, num_sequence_ids=4, max_rows=32, max_outputs=4, num_threads=2))
    yield made
    made.close()


def compute(context: Context, runs: list[int], *, one_by_one: bool = False) -> Logits:
    """Logits after the first ``runs[i]`` tokens, computed anew as sequence ``i``."""
    batch = context.make_batch()
    for sequence_id, count in enumerate(runs):
        context.remove(sequence_id)
        if one_by_one:
            for at in range(count):
                token = TOKENS[at : at + 1]
                batch.add(sequence_id, token, at, wants_logits=at == count - 1)
        else:
            batch.add(sequence_id, TOKENS[:count], 0, wants_logits=True)
    assert context.decode(batch) is DecodeStatus.OK
    return context.logits(len(runs))


def test_each_decode_shows_its_own_rows(context: Context) -> None:
    alone = {count: compute(context, [count])[0].copy() for count in (1, 2, 3, 8)}
    for runs in ([1, 8], [8], [3], [2, 1, 8], [3, 8], [8, 3], [1]):
        logits = compute(context, runs)
        assert logits.shape == (len(runs), context.vocab_size)
        for row, count in zip(logits, runs, strict=True):
            assert np.allclose(row, alone[count], atol=1e-2)
            assert int(row.argmax()) == int(alone[count].argmax())


def test_a_run_of_tokens_is_the_same_as_one_at_a_time(context: Context) -> None:
    together = compute(context, [8, 3]).copy()
    assert np.allclose(compute(context, [8, 3], one_by_one=True), together, atol=1e-2)


def test_logits_can_be_written_to(context: Context) -> None:
    compute(context, [8])[0] = 7.0
    assert (context.logits(1) == 7.0).all()
