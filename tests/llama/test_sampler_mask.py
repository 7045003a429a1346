"""Constraints, ends that come too early, and log-probabilities: what the sampler does around a draw."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from nexa_runtime.errors import DecodeError
from nexa_runtime.llama import (
    Choice,
    Context,
    ContextParams,
    DecodeStatus,
    Model,
    Sampler,
    SamplingParams,
    TokenMask,
)
from tests.llama.sampling import VOCAB, Row, logits, toy_vocab

PROMPT = np.arange(100, dtype=np.int32)
PLAIN = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)
GREEDY = SamplingParams(temperature=0.0)


class FakeMask:
    """Always allows the same tokens; some of them force others."""

    def __init__(
        self, allowed: Collection[int], forced: Mapping[int, tuple[int, ...]] | None = None, last: int = -1
    ) -> None:
        self.allowed = sorted(allowed)
        self.forced = forced or {}
        self.last = last
        self.accepted: list[int] = []

    def allows(self, token: int) -> bool:
        return token in self.allowed

    def apply(self, row: Row) -> None:
        kept = row[self.allowed]
        row[:] = -np.inf
        row[self.allowed] = kept

    def accept(self, token: int) -> Sequence[int]:
        assert token in self.allowed
        forced = self.forced.get(token, ())
        self.accepted += (token, *forced)
        return forced

    @property
    def is_complete(self) -> bool:
        return self.last in self.accepted


def peaked(*best: int) -> Row:
    """A row in which these tokens come first, in this order."""
    row = logits(1)
    row[list(best)] = 100.0 - np.arange(len(best), dtype=np.float32)
    return row


def sampled(params: SamplingParams, mask: TokenMask | None, *rows: Row) -> list[Choice]:
    sampler = Sampler(params, toy_vocab(), PROMPT, mask)
    choices = [sampler.sample(row.copy()) for row in rows]
    sampler.close()
    return choices


@pytest.mark.parametrize(
    "params",
    [PLAIN, replace(PLAIN, top_k=VOCAB - 1), replace(PLAIN, typical_p=0.9999, samplers=("typ_p",))],
    ids=["plain", "top-k", "full chain"],
)
def test_what_is_allowed_keeps_its_share(params: SamplingParams) -> None:
    row = logits(3, 2.0)
    allowed = [int(token) for token in np.argsort(-row)[1:12:2]]
    weights = np.exp(row[allowed].astype(np.float64))
    expected = 4000 * weights / weights.sum()
    sampler = Sampler(params, toy_vocab(), PROMPT, FakeMask(allowed))
    counts = Counter(sampler.sample(row.copy()).tokens[0] for _ in range(4000))
    sampler.close()
    assert set(counts) <= set(allowed)
    distance = sum((counts[token] - n) ** 2 / n for token, n in zip(allowed, expected, strict=True))
    assert distance < 25  # chi-square with 5 degrees of freedom: one in ten thousand


def test_the_draw_is_left_alone_while_it_is_allowed() -> None:
    params = SamplingParams(seed=4, temperature=1.5)
    rows = [logits(step) for step in range(20)]
    assert sampled(params, FakeMask(range(VOCAB)), *rows) == sampled(params, None, *rows)


def test_a_refused_draw_sees_bias_and_penalties_once() -> None:
    params = SamplingParams(temperature=0.0, logit_bias=((7, 2.0),), presence_penalty=3.0)
    row = np.zeros(VOCAB, dtype=np.float32)
    row[[1000, 7, 8]] = 50.0, 11.0, 9.0  # 7: 11 + 2 - 3 = 10
    again = row.copy()
    sampler = Sampler(params, toy_vocab(), np.array([7], dtype=np.int32), FakeMask([7, 8]))
    assert sampler.sample(row).tokens == (7,)
    assert row[7] == 10.0
    again[8] = 10.5
    assert sampler.sample(again).tokens == (8,)
    sampler.close()


def test_a_banned_token_stays_so_under_a_constraint() -> None:
    params = SamplingParams(temperature=0.0, banned=frozenset([3]))
    assert sampled(params, FakeMask([3, 4]), peaked(9, 3, 4)) == [Choice((4,))]


@pytest.mark.parametrize("params", [GREEDY, PLAIN, replace(PLAIN, mirostat=2), SamplingParams(seed=1)])
def test_a_constraint_that_leaves_nothing_is_an_error(params: SamplingParams) -> None:
    params = replace(params, banned=frozenset([3]))
    for allowed in ([], [3]):
        with pytest.raises(DecodeError, match="leaves no token"):
            sampled(params, FakeMask(allowed), peaked(9))


def test_tokens_that_must_follow_come_at_once_and_count() -> None:
    params = SamplingParams(temperature=0.0, presence_penalty=200.0)
    mask = FakeMask([200, 500, 501], {200: (500,)}, last=501)
    rows = peaked(200), peaked(500, 501)
    assert sampled(params, mask, *rows) == [Choice((200, 500)), Choice((501,), is_last=True)]
    assert mask.accepted == [200, 500, 501]


def test_forced_tokens_wait_for_their_own_logprobs() -> None:
    params = SamplingParams(temperature=0.0, num_logprobs=1)
    mask = FakeMask([200, 501], {200: (500, 501)}, last=501)
    choices = sampled(params, mask, peaked(200), peaked(7), peaked(501))
    assert [choice.tokens for choice in choices] == [(200,), (500,), (501,)]
    assert [choice.is_last for choice in choices] == [False, False, True]
    told = [choice.logprobs for choice in choices if choice.logprobs]
    assert [one.token for one in told] == [200, 500, 501]
    assert [one.best[0][0] for one in told] == [200, 7, 501]
    assert told[1].logprob == pytest.approx(float(peaked(7)[500]) - 100.0, abs=1e-4)


def test_no_end_before_the_minimum() -> None:
    ends = replace(GREEDY, min_tokens=2, end_tokens=frozenset([9, 10]))
    tokens = [choice.tokens[0] for choice in sampled(ends, None, *[peaked(9, 10, 11)] * 4)]
    assert tokens == [11, 11, 9, 9]
    forcing = FakeMask([9, 11], {11: (11,)})
    assert [choice.tokens for choice in sampled(ends, forcing, *[peaked(9, 10, 11)] * 2)] == [(11, 11), (9,)]


def test_an_end_that_alone_is_allowed_comes_early() -> None:
    ends = replace(GREEDY, min_tokens=5, end_tokens=frozenset([9, 10]), logit_bias=((9, -1.5),))
    mask = FakeMask([9, 10], last=9)
    rows = peaked(11, 10, 9), peaked(11, 9, 10), peaked(9)
    choices = sampled(ends, mask, *rows)
    assert [choice.tokens[0] for choice in choices] == [10, 10, 9]
    assert [choice.is_last for choice in choices] == [False, False, True]


def test_plain_greedy_is_said_only_of_what_is() -> None:
    def is_plain(params: SamplingParams, mask: TokenMask | None = None) -> bool:
        sampler = Sampler(params, toy_vocab(), PROMPT, mask)
        said = sampler.is_plain_greedy
        sampler.close()
        return said

    assert is_plain(GREEDY)
    assert is_plain(replace(GREEDY, min_tokens=3))  # no ends to be hidden
    assert is_plain(replace(GREEDY, samplers=("penalties", "temperature")))
    assert not is_plain(GREEDY, FakeMask([1]))
    for change in (
        {"temperature": 0.5},
        {"num_logprobs": 0},
        {"repeat_penalty": 1.1},
        {"banned": frozenset([1])},
        {"logit_bias": ((1, 1.0),)},
        {"xtc_probability": 0.5},
        {"mirostat": 1},
        {"min_tokens": 1, "end_tokens": frozenset([1])},
        {"samplers": ("top_k",)},
    ):
        assert not is_plain(replace(GREEDY, **change))
    sampler = Sampler(replace(GREEDY, min_tokens=1, end_tokens=frozenset([1])), toy_vocab(), PROMPT)
    sampler.sample(peaked(5))
    assert sampler.is_plain_greedy
    sampler.close()


@pytest.mark.parametrize("num_best", [0, 1, 20, 10_000])
def test_logprobs_are_those_of_the_raw_row(model: Model, num_best: int) -> None:
    context = Context(
        model, ContextParams(512, num_sequence_ids=1, max_rows=32, max_outputs=1, num_threads=2)
    )
    batch = context.make_batch()
    batch.add(0, PROMPT[5:25], 0, wants_logits=True)
    assert context.decode(batch) is DecodeStatus.OK
    row = context.logits(1)[0]
    wide = row.astype(np.float64)
    expected = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    banned = frozenset([int(row.argmax())])
    params = SamplingParams(seed=1, num_logprobs=num_best, banned=banned, repeat_penalty=1.5)
    sampler = Sampler(params, context.vocab, PROMPT)
    choice = sampler.sample(row)
    told = choice.logprobs
    assert told is not None
    assert (told.token,) == choice.tokens
    assert told.logprob == pytest.approx(expected[told.token], abs=1e-3)
    order = np.argsort(-expected, kind="stable")[:num_best]
    assert [token for token, _ in told.best] == order.tolist()
    assert np.allclose([logprob for _, logprob in told.best], expected[order], atol=1e-3)
    sampler.close()
    context.close()


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
@pytest.mark.parametrize("num_best", [0, 5])
def test_logprobs_of_a_bad_row_are_an_error(value: float, num_best: int) -> None:
    with pytest.raises(DecodeError, match="finite"):
        sampled(replace(PLAIN, num_logprobs=num_best), None, np.full(VOCAB, value, dtype=np.float32))


def test_logprobs_change_no_choice() -> None:
    rows = [logits(step) for step in range(20)]
    params = SamplingParams(seed=4, temperature=1.5)
    told = sampled(replace(params, num_logprobs=3), None, *rows)
    assert [choice.tokens for choice in told] == [choice.tokens for choice in sampled(params, None, *rows)]
