"""Every argument that makes llama.cpp abort the process is refused in front of the call."""

from collections.abc import Iterator

import numpy as np
import pytest

from nexa_runtime.errors import LlamaGuardError, ModelFileError
from nexa_runtime.llama import Batch, Context, ContextParams, DecodeStatus, Model, Sampler, SamplingParams
from nexa_runtime.llama.context import MAX_SEQUENCE_IDS

ONE = np.array([5], dtype=np.int32)


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    made = Context(model, ContextParams(512, num_sequence_ids=4, max_rows=32, max_outputs=4, num_threads=2))
    yield made
    made.close()


@pytest.fixture
def batch(context: Context) -> Batch:
    return context.make_batch()


def test_more_rows_than_the_batch_holds(batch: Batch) -> None:
    batch.add(0, np.full(32, 5, dtype=np.int32), 0, wants_logits=False)
    with pytest.raises(LlamaGuardError, match="33 rows in a batch of 32"):
        batch.add(1, ONE, 0, wants_logits=False)


def test_no_rows_at_all(context: Context, batch: Batch) -> None:
    with pytest.raises(LlamaGuardError, match="0 rows"):
        batch.add(0, ONE[:0], 0, wants_logits=False)
    with pytest.raises(LlamaGuardError, match="0 rows"):
        context.decode(batch)


def test_more_outputs_than_the_context_has(batch: Batch) -> None:
    for sequence_id in range(4):
        batch.add(sequence_id, ONE, 0, wants_logits=True)
    with pytest.raises(LlamaGuardError, match="more than 4 outputs"):
        batch.add(0, ONE, 1, wants_logits=True)


def test_fewer_outputs_than_sequence_ids(model: Model) -> None:
    with pytest.raises(LlamaGuardError, match="3 outputs for 4"):
        Context(model, ContextParams(512, num_sequence_ids=4, max_rows=32, max_outputs=3, num_threads=1))


def test_a_batch_of_another_context(context: Context, model: Model) -> None:
    larger = Batch(64, 4, 4, model.vocab.size)
    larger.add(0, np.full(64, 5, dtype=np.int32), 0, wants_logits=True)
    with pytest.raises(LlamaGuardError, match="64 rows"):
        context.decode(larger)


@pytest.mark.parametrize("sequence_id", [-1, 4, 256, 10_000])
def test_a_sequence_id_that_is_not_there(context: Context, batch: Batch, sequence_id: int) -> None:
    with pytest.raises(LlamaGuardError, match="sequence id"):
        batch.add(sequence_id, ONE, 0, wants_logits=False)
    with pytest.raises(LlamaGuardError, match="sequence id"):
        context.remove(sequence_id)
    with pytest.raises(LlamaGuardError, match="sequence id"):
        context.num_cached(sequence_id)


def test_more_sequence_ids_than_llama_has(model: Model) -> None:
    too_many = MAX_SEQUENCE_IDS + 1
    with pytest.raises(LlamaGuardError, match="257 sequence ids"):
        Context(model, ContextParams(512, too_many, 32, too_many, 1))


@pytest.mark.parametrize("token", [-1, 2**31 - 1])
def test_a_token_outside_the_vocabulary(model: Model, batch: Batch, token: int) -> None:
    with pytest.raises(LlamaGuardError, match="token"):
        batch.add(0, np.array([token], dtype=np.int32), 0, wants_logits=False)
    assert len(model.vocab.pieces) == len(model.vocab.special_pieces) == model.vocab.size
    with pytest.raises(LlamaGuardError, match=f"bias on token {token}"):
        Sampler(SamplingParams(logit_bias=((token, 1.0),)), model.vocab, ONE)


@pytest.mark.parametrize("num_outputs", [0, 5])
def test_logits_that_were_not_asked_for(context: Context, num_outputs: int) -> None:
    with pytest.raises(LlamaGuardError, match="logits of"):
        context.logits(num_outputs)


def test_a_gap_in_positions_is_a_status_not_an_abort(context: Context, batch: Batch) -> None:
    batch.add(0, ONE, 7, wants_logits=True)
    assert context.decode(batch) is DecodeStatus.OK  # a sequence may start anywhere
    batch.clear()
    batch.add(0, ONE, 99, wants_logits=True)
    assert context.decode(batch) is DecodeStatus.INVALID_BATCH


def test_a_full_pool_is_a_status_not_an_abort(context: Context, batch: Batch) -> None:
    tokens = np.full(32, 5, dtype=np.int32)
    statuses = []
    for start in range(0, context.num_cells + 32, 32):
        batch.clear()
        batch.add(0, tokens, start, wants_logits=False)
        statuses.append(context.decode(batch))
    assert statuses[-1] is DecodeStatus.NO_KV_SLOT
    assert set(statuses[:-1]) == {DecodeStatus.OK}
    assert context.remove(0)
    assert context.num_cached(0) == 0


def test_an_abort_ends_a_step(context: Context, batch: Batch) -> None:
    context.request_abort()
    batch.add(0, ONE, 0, wants_logits=True)
    assert context.decode(batch) is DecodeStatus.ABORTED


def test_copies_that_llama_cannot_make(model: Model, context: Context, batch: Batch) -> None:
    batch.add(0, np.full(8, 5, dtype=np.int32), 0, wants_logits=False)
    batch.add(1, ONE, 0, wants_logits=False)
    assert context.decode(batch) is DecodeStatus.OK
    for source, target, count in ((0, 0, 8), (0, 2, 9), (0, 2, 0), (0, 9, 4), (9, 2, 4), (0, 1, 4)):
        with pytest.raises(LlamaGuardError):
            context.copy(source, target, count)
    context.copy(0, 2, 5)
    assert context.num_cached(2) == 5
    split = Context(model, ContextParams(1024, 4, 32, 4, 2, is_unified=False))
    split_batch = split.make_batch()
    split_batch.add(0, np.full(8, 5, dtype=np.int32), 0, wants_logits=False)
    assert split.decode(split_batch) is DecodeStatus.OK
    with pytest.raises(LlamaGuardError, match="split"):
        split.copy(0, 1, 4)
    split.close()


def test_more_cells_than_the_machine_has_is_an_error(model: Model) -> None:
    with pytest.raises(ModelFileError, match="cannot load the model"):
        Context(model, ContextParams(2**24, 4, 32, 4, 1))
