"""The sampler against llama.cpp's own chain over the whole vocabulary."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_runtime.errors import DecodeError
from nexa_runtime.llama import Sampler, SamplingParams, sample_greedy
from nexa_runtime.llama.candidates import best_ids
from nexa_runtime.llama.lib import C
from tests.llama.sampling import VOCAB, LlamaChain, Row, logits, toy_vocab

PROMPT = np.arange(100, dtype=np.int32)


def llama_chain(params: SamplingParams) -> LlamaChain:
    """llama.cpp's samplers in its own order over every token, as ``common_sampler`` builds them."""
    biases = (C.llama_logit_bias * len(params.logit_bias))(*params.logit_bias)
    chain = LlamaChain(
        C.llama_sampler_init_logit_bias(VOCAB, len(biases), biases),
        C.llama_sampler_init_penalties(
            VOCAB,
            params.penalty_last_n,
            params.repeat_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        ),
        C.llama_sampler_init_top_k(params.top_k),
        C.llama_sampler_init_top_p(params.top_p, 1),
        C.llama_sampler_init_min_p(params.min_p, 1),
        C.llama_sampler_init_temp(params.temperature),
        C.llama_sampler_init_dist(params.seed),
    )
    chain.accept(*PROMPT[-params.penalty_last_n :])
    return chain


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=1),
        SamplingParams(seed=2, top_k=5, top_p=0.5),
        SamplingParams(seed=3, top_k=500, top_p=1.0, min_p=0.0, temperature=1.5),
        SamplingParams(seed=4, repeat_penalty=1.3),
        SamplingParams(seed=5, frequency_penalty=1.5, presence_penalty=-1.0, penalty_last_n=8),
        SamplingParams(seed=6, logit_bias=((7, 5.0), (8, -100.0))),
        SamplingParams(seed=7, top_k=VOCAB - 1, top_p=1.0, min_p=0.0),
        SamplingParams(seed=8, top_k=1),
    ],
    ids=lambda params: str(params.seed),
)
def test_choices_equal_those_of_the_full_chain(params: SamplingParams) -> None:
    ours, theirs = Sampler(params, toy_vocab(), PROMPT), llama_chain(params)
    for step in range(40):
        (token,) = ours.sample(logits(step)).tokens
        assert token == theirs.sample(logits(step))
        theirs.accept(token)
    ours.close()
    theirs.close()


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """Flat or peaked, high or low, with ties, -inf and one or two extremes anywhere."""
    size = draw(st.one_of(st.integers(1, 300), st.integers(301, 40_000)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    row = random.standard_normal(size) * draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0]))
    row[random.random(size) < draw(st.sampled_from([0.0, 1e-3, 0.1]))] += draw(st.sampled_from([0.0, 20.0]))
    row += draw(st.sampled_from([0.0, -700.0, 700.0, 1e30]))
    if draw(st.booleans()):
        row = np.round(row, draw(st.integers(-1, 1)))
    row[random.random(size) < draw(st.sampled_from([0.0, 0.5, 0.999, 1.0]))] = -np.inf
    extremes = st.sampled_from([-np.inf, -3e38, 3e38, np.inf, np.nan, -np.nan])
    for at, value in draw(st.lists(st.tuples(st.integers(0, size - 1), extremes), max_size=2)):
        row[at] = value
    return row.astype(np.float32)


@settings(deadline=None, max_examples=500)
@given(rows(), st.integers(1, 100))
def test_the_best_tokens_are_those_of_a_full_sort(row: Row, top_k: int) -> None:
    top_k = min(top_k, len(row))
    if not np.isfinite(row.max()):
        with pytest.raises(DecodeError, match="finite"):
            best_ids(row, top_k)
        return
    before = row.copy()
    ids = best_ids(row, top_k)
    last = np.sort(row)[-top_k]
    wanted = np.flatnonzero((row >= last) & (row > -np.inf))
    assert np.array_equal(row, before)
    assert np.array_equal(np.unique(ids), ids)
    assert set(wanted.tolist()) <= set(ids.tolist())


@settings(deadline=None, max_examples=200)
@given(rows(), st.lists(st.tuples(st.floats(-300, 300), st.sampled_from([0.5, 1.0, 1.1]))), st.data())
def test_what_was_learned_from_other_rows_drops_none_of_the_best(
    row: Row, changes: list[tuple[float, float]], data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, 100))
    sampler = Sampler(SamplingParams(top_k=top_k, seed=1), toy_vocab(len(row)), PROMPT)
    top_k = min(top_k, len(row))
    for shift, scale in [(0.0, 1.0), (0.0, 1.0), *changes]:
        with np.errstate(over="ignore"):
            row = (row * np.float32(scale) + np.float32(shift)).astype(np.float32)
        if not np.isfinite(row.max()):
            with pytest.raises(DecodeError, match="finite"):
                sampler.sample(row)
        elif top_k < len(row):
            ids = sampler._preselection.ids(row)
            wanted = np.flatnonzero((row >= np.sort(row)[-top_k]) & (row > -np.inf))
            assert np.array_equal(np.unique(ids), ids)
            assert set(wanted.tolist()) <= set(ids.tolist())
    sampler.close()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_little_more_than_the_best_tokens_goes_to_the_chain(scale: float) -> None:
    for size in (32_000, 50_257, 151_936):
        row = (np.random.default_rng(1).standard_normal(size) * scale).astype(np.float32)
        assert 40 <= len(best_ids(row, 40)) < 200


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.lists(st.sampled_from([0.1, 1.0, 5.0]), min_size=1, max_size=12), st.data())
def test_choices_equal_those_of_the_full_chain_while_the_logits_drift(
    seed: int, scales: list[float], data: st.DataObject
) -> None:
    tokens = st.integers(0, VOCAB - 1)
    bias = tuple(data.draw(st.dictionaries(tokens, st.sampled_from([-100.0, 1.0, 5.0]), max_size=5)).items())
    banned = data.draw(st.frozensets(tokens, max_size=5))
    params = SamplingParams(seed=seed % 1000, repeat_penalty=1.1, logit_bias=bias, banned=banned)
    ours, theirs = Sampler(params, toy_vocab(), PROMPT), llama_chain(params)
    random = np.random.default_rng(seed)
    for scale in scales:
        row = (random.standard_normal(VOCAB) * scale + random.choice([-300, 0, 300])).astype(np.float32)
        allowed = row.copy()
        allowed[list(banned)] = -np.inf
        (token,) = ours.sample(row).tokens
        assert row[token] == row[theirs.sample(allowed)]  # of equals, either
        assert token not in banned
        theirs.accept(token)
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=0, top_p=0.6, min_p=0.0, temperature=1.0),
        SamplingParams(top_k=0, top_p=1.0, min_p=0.1, temperature=1.0),
        SamplingParams(top_k=0, top_p=0.9, min_p=0.2, temperature=0.7),
    ],
    ids=["top-p", "min-p", "both"],
)
def test_without_top_k_only_the_same_tokens_are_ever_chosen(params: SamplingParams) -> None:
    row = logits(1, scale=2.0)
    weights = np.exp(row.astype(np.float64) - row.max())
    weights /= weights.sum()
    order = np.argsort(-weights)
    kept = order[: int(np.searchsorted(np.cumsum(weights[order]), params.top_p)) + 1]
    kept = kept[weights[kept] >= params.min_p * weights.max() * (1 - 1e-4)]
    expected = weights[kept] ** (1 / params.temperature)
    expected /= expected.sum()
    counts: Counter[int] = Counter()
    for seed in range(2000):
        sampler = Sampler(
            SamplingParams(
                temperature=params.temperature, top_k=0, top_p=params.top_p, min_p=params.min_p, seed=seed
            ),
            toy_vocab(),
            PROMPT,
        )
        counts[sampler.sample(row.copy()).tokens[0]] += 1
        sampler.close()
    assert set(counts) <= set(kept.tolist())
    best = int(kept[0])
    assert counts[best] / 2000 == pytest.approx(expected[0], abs=0.05)


@pytest.mark.parametrize(
    ("last_n", "is_seen"), [(-1, True), (2**40, True), (100, True), (99, False), (0, False)]
)
def test_penalties_look_back_so_far(last_n: int, is_seen: bool) -> None:
    row = np.zeros(VOCAB, dtype=np.float32)
    row[[PROMPT[0], 4000]] = 5.0, 4.0
    params = SamplingParams(temperature=0.0, presence_penalty=2.0, penalty_last_n=last_n)
    sampler = Sampler(params, toy_vocab(), PROMPT)
    assert sampler.sample(row).tokens == (4000 if is_seen else PROMPT[0],)
    sampler.close()


def test_greedy_takes_the_largest_and_the_first_of_equals() -> None:
    rows = np.stack([logits(1), logits(2)])
    rows[0, [40, 70]] = 99.0
    assert sample_greedy(rows) == [40, int(rows[1].argmax())]
    rows[1, 7] = np.nan  # the largest, for argmax
    assert sample_greedy(rows) is None
    rows[1] = -np.inf
    assert sample_greedy(rows) is None


def test_a_seed_gives_the_same_tokens_again_and_none_gives_others() -> None:
    def run(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(seed=seed, temperature=2.0), toy_vocab(), PROMPT)
        tokens = [sampler.sample(logits(step)).tokens[0] for step in range(30)]
        sampler.close()
        return tokens

    assert run(11) == run(11)
    assert run(11) != run(12)
    assert run(None) != run(None)
    assert run(0xFFFFFFFF) == run(0xFFFFFFFF)  # llama.cpp would take this one for "random"
    assert run(-1) == run(-1)


def test_banned_tokens_are_never_chosen() -> None:
    row = logits(3)
    best = int(row.argmax())
    for temperature in (0.0, 1.0):
        sampler = Sampler(
            SamplingParams(temperature=temperature, banned=frozenset([best]), seed=1), toy_vocab(), PROMPT
        )
        assert sampler.sample(row.copy()).tokens[0] != best
        sampler.close()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_logits_without_a_finite_best_are_an_error(temperature: float, value: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature), toy_vocab(), PROMPT)
    with pytest.raises(DecodeError, match="finite"):
        sampler.sample(np.full(VOCAB, value, dtype=np.float32))
    sampler.close()


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
def test_one_bad_logit_is_an_error_whatever_came_before(value: float) -> None:
    sampler = Sampler(SamplingParams(seed=1), toy_vocab(), PROMPT)
    for at in (0, 2500, VOCAB - 1):
        row = logits(1)
        assert 0 <= sampler.sample(row).tokens[0] < VOCAB
        row[at] = value
        with pytest.raises(DecodeError, match="finite"):
            sampler.sample(row)
    with pytest.raises(DecodeError, match="finite"):
        sampler.sample(np.full(VOCAB, -np.inf, dtype=np.float32))
    sampler.close()


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    row = logits(4)
    sampler = Sampler(SamplingParams(temperature=temperature), toy_vocab(), PROMPT)
    assert sampler.sample(row.copy()).tokens[0] == int(row.argmax())
    sampler.close()
