"""The rarer samplers against a chain of llama.cpp's own, and values that are out of all proportion."""

import ctypes
import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_runtime.errors import DecodeError, LlamaGuardError
from nexa_runtime.llama import (
    MAX_DRY_BREAKERS,
    SAMPLER_NAMES,
    Model,
    Sampler,
    SamplingParams,
    Vocab,
    canonical_samplers,
    prepare_dry,
)
from nexa_runtime.llama.candidates import ascending
from nexa_runtime.llama.chain import FullChain
from nexa_runtime.llama.lib import C
from nexa_runtime.llama.narrowing import Left, likely, typical
from nexa_runtime.llama.sampling_params import MAX_LAST_TOKENS
from nexa_runtime.llama.vocab import Tokens
from tests.llama.sampling import LlamaChain, Row, logits, toy_vocab

BREAKERS = ("\n", ":", '"', "*")
PROMPT = np.tile(np.array([700, 701, 702, 703, 704], dtype=np.int32), 8)

Maker = Callable[[SamplingParams, Vocab], object]


def dry(params: SamplingParams, vocab: Vocab) -> Any:
    texts = (ctypes.c_char_p * len(BREAKERS))(*(text.encode() for text in BREAKERS))
    last_n = 1000 if params.dry_penalty_last_n < 0 else params.dry_penalty_last_n
    values = params.dry_multiplier, params.dry_base, params.dry_allowed_length, last_n
    return C.llama_sampler_init_dry(vocab.pointer, *values, texts, len(texts))


def dist(params: SamplingParams, vocab: Vocab) -> Any:
    return C.llama_sampler_init_dist(params.seed)


MAKERS: dict[str, Maker] = {
    "penalties": lambda p, v: C.llama_sampler_init_penalties(
        v.size,
        1000 if p.penalty_last_n < 0 else p.penalty_last_n,
        p.repeat_penalty,
        p.frequency_penalty,
        p.presence_penalty,
    ),
    "dry": dry,
    "top_n_sigma": lambda p, v: C.llama_sampler_init_top_n_sigma(p.top_n_sigma),
    "top_k": lambda p, v: C.llama_sampler_init_top_k(p.top_k),
    "typ_p": lambda p, v: C.llama_sampler_init_typical(p.typical_p, 0),
    "top_p": lambda p, v: C.llama_sampler_init_top_p(p.top_p, 0),
    "min_p": lambda p, v: C.llama_sampler_init_min_p(p.min_p, 0),
    "xtc": lambda p, v: C.llama_sampler_init_xtc(p.xtc_probability, p.xtc_threshold, 0, p.seed),
    "temperature": lambda p, v: C.llama_sampler_init_temp_ext(
        p.temperature, p.dynatemp_range, p.dynatemp_exponent
    ),
}


def llama_chain(params: SamplingParams, vocab: Vocab) -> LlamaChain:
    """As ``common_sampler`` builds it."""
    if params.mirostat:
        tau, eta = params.mirostat_tau, params.mirostat_eta
        last = (
            C.llama_sampler_init_mirostat(vocab.size, params.seed, tau, eta, 100)
            if params.mirostat == 1
            else C.llama_sampler_init_mirostat_v2(params.seed, tau, eta)
        )
        return LlamaChain(C.llama_sampler_init_temp(params.temperature), last)
    names = MAKERS if params.samplers is None else params.samplers
    used = [name for name in names if name != "dry" or params.has_dry]
    chain = LlamaChain(*(MAKERS[name](params, vocab) for name in used), dist(params, vocab))
    chain.accept(*PROMPT)
    return chain


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=1, typical_p=0.5),
        SamplingParams(seed=2, typical_p=0.7, top_k=0, top_p=1.0, min_p=0.0),
        SamplingParams(seed=3, top_n_sigma=1.5, temperature=2.0),
        SamplingParams(seed=4, xtc_probability=0.5, xtc_threshold=0.05),
        SamplingParams(seed=5, xtc_probability=1.0, xtc_threshold=0.01, top_k=0, min_p=0.0),
        SamplingParams(seed=6, dynatemp_range=0.5),
        SamplingParams(seed=7, dynatemp_range=0.3, dynatemp_exponent=2.0, top_k=0),
        SamplingParams(seed=8, dry_multiplier=0.8),
        SamplingParams(seed=9, dry_multiplier=2.0, dry_base=1.2, dry_allowed_length=1, dry_penalty_last_n=16),
        SamplingParams(seed=10, mirostat=1),
        SamplingParams(seed=11, mirostat=2, mirostat_tau=3.0, mirostat_eta=0.3, temperature=1.2),
        SamplingParams(seed=12, samplers=("temperature", "top_k", "min_p")),
        SamplingParams(seed=13, samplers=("top_p", "penalties", "temperature"), repeat_penalty=1.5),
        SamplingParams(seed=14, samplers=("min_p", "xtc", "top_k"), xtc_probability=0.5, temperature=0.1),
        SamplingParams(seed=15, typical_p=0.9, repeat_penalty=1.2, presence_penalty=0.5, penalty_last_n=-1),
        SamplingParams(seed=16, typical_p=0.9, temperature=0.0),
        SamplingParams(seed=17, samplers=("temperature",)),
        SamplingParams(seed=18, samplers=("top_k", "top_p"), temperature=0.0),
        SamplingParams(seed=19, samplers=()),
    ],
    ids=lambda params: str(params.seed),
)
def test_choices_equal_those_of_llama_itself(model: Model, params: SamplingParams) -> None:
    size = model.vocab.size
    ours, theirs = Sampler(params, model.vocab, PROMPT), llama_chain(params, model.vocab)
    random = np.random.default_rng(params.seed)
    same = 0
    for step in range(50):
        row = logits(step, random.choice([0.5, 2.0, 4.0]), size)
        row[700:705] += 9.0
        token = theirs.sample(row)
        same += ours.sample(row).tokens == (token,)
        theirs.accept(token)
    assert same == 50
    ours.close()
    ours.close()
    theirs.close()


WIDE = 40_000


def wide(step: int, scale: float) -> Row:
    """A row of a large vocabulary: a few likely tokens above many others."""
    row = logits(step, scale, WIDE)
    random = np.random.default_rng(step)
    row[random.choice(WIDE, 100, replace=False)] += random.exponential(3.0, 100).astype(np.float32) * scale
    return row


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize(
    "fields",
    [
        {"typical_p": 0.9},
        {"typical_p": 0.2, "top_p": 1.0, "min_p": 0.0},
        {"top_n_sigma": 2.0, "min_p": 0.0, "top_p": 1.0, "dynatemp_range": 0.5},
        {"xtc_probability": 0.5, "xtc_threshold": 0.001, "top_p": 1.0, "min_p": 0.0},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01, "top_p": 1.0, "min_p": 0.0},
        {"dynatemp_range": 0.7, "top_p": 1.0, "min_p": 0.0},
        {"dynatemp_range": 2.0, "dynatemp_exponent": 0.5},
        {"top_k": 5000, "typical_p": 0.99},
        {"mirostat": 1},
        {"mirostat": 2, "mirostat_tau": 8.0, "temperature": 2.0},
    ],
    ids=str,
)
def test_choices_from_a_large_vocabulary_equal_those_of_llama_too(
    fields: dict[str, Any], scale: float
) -> None:
    params = SamplingParams(**{"seed": 3, "top_k": 0, **fields})
    vocab = toy_vocab(WIDE)
    ours, theirs = Sampler(params, vocab, PROMPT), llama_chain(params, vocab)
    rows = [wide(step, scale) for step in range(12)]
    same = sum(ours.sample(row.copy()).tokens == (theirs.sample(row),) for row in rows)
    assert same >= 11  # sums of 40,000 numbers differ in their last digits
    ours.close()
    theirs.close()


@pytest.mark.parametrize("scale", [0.0, 0.05, 1.0, 30.0])
@pytest.mark.parametrize("p", [-1e38, 0.0, 0.2, 0.9, 1 - 1e-16])
def test_typical_tokens_are_those_of_the_definition(scale: float, p: float) -> None:
    row = wide(2, scale)
    left = typical(Left(np.arange(WIDE), row, WIDE), p)
    weights = np.exp(row.astype(np.float64) - row.max())
    probabilities = weights / weights.sum()
    surprises = -np.log(np.maximum(probabilities, 1e-300))
    distances = np.abs(surprises - (probabilities * surprises).sum())
    mass = probabilities[left.ids].sum()
    assert len(left.ids) == 1 or mass == pytest.approx(max(p, 0.0), abs=max(probabilities[left.ids]) + 1e-6)
    dropped = np.setdiff1d(np.arange(WIDE), left.ids)
    assert not len(dropped) or distances[left.ids].max() <= distances[dropped].min() + 1e-4


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
def test_a_tail_that_is_left_out_has_no_weight(temperature: float) -> None:
    row = wide(1, 3.0)
    left = likely(Left(np.arange(WIDE), row, WIDE), temperature)
    weights = np.exp((row.astype(np.float64) - row.max()) / temperature)
    assert weights[left.ids].sum() >= (1 - 2e-7) * weights.sum()
    assert (np.diff(left.logits) <= 0).all()
    if temperature == 0.5:
        assert len(left.ids) < WIDE / 4


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=30), st.integers(1, 200))
def test_values_are_put_in_order_as_by_a_stable_sort(values: list[float], times: int) -> None:
    array = np.array(values * times, dtype=np.float32)
    assert ascending(array).tolist() == np.argsort(array, kind="stable").tolist()


def test_a_row_stays_as_it_is(model: Model) -> None:
    params = SamplingParams(typical_p=0.9, repeat_penalty=1.5, dry_multiplier=1.0)
    chain = FullChain(params, model.vocab, PROMPT)
    row = logits(1, size=model.vocab.size)
    kept = row.copy()
    chain.choose(row)
    assert (row == kept).all()
    chain.close()


def test_penalties_look_back_no_further_than_the_limit(model: Model) -> None:
    far = np.concatenate([[900], np.full(MAX_LAST_TOKENS, 700)]).astype(np.int32)
    row = np.zeros(model.vocab.size, dtype=np.float32)
    row[[700, 900]] = 6.0, 5.0
    for prompt, expected in ((far, 900), (far[:-1], 0)):
        params = SamplingParams(temperature=0.0, repeat_penalty=1e6, penalty_last_n=-1)
        sampler = Sampler(params, model.vocab, prompt)
        (token,) = sampler.sample(row.copy()).tokens
        assert row[token] == row[expected] or expected == 0
        assert (token == 900) == (expected == 900)
        sampler.close()


def test_a_prepared_dry_sampler_is_the_requests_own(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    params = prepare_dry(SamplingParams(temperature=0.0, dry_multiplier=1.0), model.vocab)
    assert params == SamplingParams(temperature=0.0, dry_multiplier=1.0)
    for multiplier in range(2, 20):  # more than are kept
        prepare_dry(SamplingParams(dry_multiplier=multiplier), model.vocab)

    def fail(*_: object) -> None:
        raise AssertionError("a sampler was made again")

    told: list[int] = []
    accept = C.llama_sampler_accept
    monkeypatch.setattr(C, "llama_sampler_init_dry", fail)

    def tell(sampler: object, token: int) -> None:
        told.append(token)
        accept(sampler, token)

    monkeypatch.setattr(C, "llama_sampler_accept", tell)
    row = logits(1, 0.1, model.vocab.size)
    row[700] += 5.0
    for prompt, is_repetition in ((PROMPT, True), (PROMPT, True), (PROMPT[:3], False), (PROMPT, True)):
        sampler = Sampler(params, model.vocab, prompt)
        assert (sampler.sample(row.copy()).tokens != (700,)) == is_repetition
        sampler.close()
    num_sampled = 4
    assert len(told) == 2 * len(PROMPT) + 3 + num_sampled  # sequences of one prompt share what it tells
    monkeypatch.undo()
    changed = dataclasses.replace(params, dry_multiplier=50.5)
    Sampler(changed, model.vocab, PROMPT).close()  # what was prepared does not fit


def test_settings_without_dry_are_prepared_already(model: Model) -> None:
    for params in (SamplingParams(), SamplingParams(dry_multiplier=1.0, mirostat=1)):
        assert prepare_dry(params, model.vocab) is params


def test_names_of_samplers_have_one_form() -> None:
    assert canonical_samplers(["TOPK", "nucleus", "typ", "temp"]) == (
        "top_k",
        "top_p",
        "typ_p",
        "temperature",
    )
    assert canonical_samplers(()) == ()
    for names in (["typ_p", "typical_p"], ["top_k", "top_k"], ["top_q"], [""]):
        with pytest.raises(ValueError, match="sampler"):
            canonical_samplers(names)


def test_dry_breaks_a_repetition_off(model: Model) -> None:
    def run(multiplier: float) -> int:
        sampler = Sampler(SamplingParams(temperature=0.0, dry_multiplier=multiplier), model.vocab, PROMPT)
        row = logits(1, 0.1, model.vocab.size)
        row[700] += 5.0
        (token,) = sampler.sample(row).tokens
        sampler.close()
        return token

    assert run(0.0) == 700
    assert run(1.0) != 700


def test_dry_samplers_are_copies_without_a_memory(model: Model) -> None:
    def run(prompt: Tokens, multiplier: float) -> int:
        params = SamplingParams(temperature=0.0, dry_multiplier=multiplier)
        sampler = Sampler(params, model.vocab, prompt)
        row = logits(1, 0.1, model.vocab.size)
        row[700] += 5.0
        (token,) = sampler.sample(row).tokens
        sampler.close()
        return token

    prepare_dry(SamplingParams(dry_multiplier=1.0), model.vocab)
    for multiplier in (*np.linspace(1.0, 2.0, 12).tolist(), 1.0):  # more than are kept
        assert run(PROMPT, multiplier) != 700
        assert run(PROMPT[:3], multiplier) == 700
    with pytest.raises(LlamaGuardError):
        prepare_dry(SamplingParams(dry_multiplier=-1.0), model.vocab)


def test_dry_samplers_are_made_by_many_threads_at_once(model: Model) -> None:
    def work(seed: int) -> None:
        for step in range(60):
            prepare_dry(SamplingParams(dry_multiplier=1.0 + (seed * step) % 11), model.vocab)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


@pytest.mark.parametrize("names", [("top-k", "TOPP", "temp"), ("top_k", "nucleus", "temperature")])
def test_samplers_have_the_names_llama_server_gives_them(model: Model, names: tuple[str, ...]) -> None:
    assert all(name.lower() in SAMPLER_NAMES for name in names)
    spelled = Sampler(SamplingParams(seed=5, samplers=names), model.vocab, PROMPT)
    plain = Sampler(SamplingParams(seed=5, min_p=0.0), model.vocab, PROMPT)
    assert not spelled.params.needs_full_chain  # llama.cpp's order: the quick way
    for step in range(20):
        row = logits(step, size=model.vocab.size)
        assert spelled.sample(row.copy()) == plain.sample(row)
    spelled.close()
    plain.close()


def test_a_sampler_not_named_is_off(model: Model) -> None:
    row = logits(1, size=model.vocab.size)
    sampler = Sampler(SamplingParams(temperature=0.0, seed=1, samplers=("top_k",)), model.vocab, PROMPT)
    tokens = {sampler.sample(row.copy()).tokens for _ in range(30)}
    assert len(tokens) > 1  # no temperature: 1, not 0
    sampler.close()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(samplers=("top_q",)),
        SamplingParams(samplers=("top_k", "top-k")),
        SamplingParams(mirostat=3),
        SamplingParams(mirostat=1, mirostat_tau=1e300),
        SamplingParams(repeat_penalty=0.0),
        SamplingParams(repeat_penalty=-1.0),
        SamplingParams(frequency_penalty=math.inf),
        SamplingParams(temperature=math.nan),
        SamplingParams(temperature=1e39),
        SamplingParams(typical_p=math.nan),
        SamplingParams(dry_multiplier=-1.0),
        SamplingParams(dry_allowed_length=-1),
        SamplingParams(dry_penalty_last_n=-2),
        SamplingParams(penalty_last_n=-2),
        SamplingParams(dynatemp_range=1.0, dynatemp_exponent=-1.0),
        SamplingParams(dynatemp_range=1.0, temperature=1e6),
        SamplingParams(dry_multiplier=1.0, dry_sequence_breakers=("a",) * (MAX_DRY_BREAKERS + 1)),
        SamplingParams(num_logprobs=-1),
        SamplingParams(banned=frozenset([-1])),
        SamplingParams(end_tokens=frozenset([10**9])),
        SamplingParams(logit_bias=((1, math.nan),)),
        SamplingParams(logit_bias=((1, 1e300),)),
    ],
)
def test_what_llama_cannot_take_is_refused(model: Model, params: SamplingParams) -> None:
    with pytest.raises(LlamaGuardError):
        Sampler(params, model.vocab, PROMPT)


FLOATS = [field.name for field in dataclasses.fields(SamplingParams) if field.type is float]
_ANY = st.sampled_from([-1e38, -1e6, -1.0, -1e-38, 0.0, 5e-324, 1e-9, 0.3, 0.5, 1.0, 2.0, 1e3, 1e6, 1e38])
_WHOLE = st.sampled_from([-(2**40), -(2**31), -1, 0, 1, 2, 40, 2**31 - 1, 2**31, 2**40])
_TEXTS = st.sampled_from(["", "\0", "\n", "\ud800", "é" * 30, "a" * 5000, "\U0001f600", "<|im_end|>", " "])


@settings(deadline=None, max_examples=400)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(FLOATS, _ANY),
            **dict.fromkeys(("top_k", "penalty_last_n", "dry_allowed_length", "seed"), _WHOLE),
            "dry_penalty_last_n": _WHOLE,
            "dry_sequence_breakers": st.lists(_TEXTS, max_size=5).map(tuple),
            "mirostat": st.integers(0, 2),
            "samplers": st.permutations(SAMPLER_NAMES[:9]).map(tuple),
            "num_logprobs": st.sampled_from([0, 1, 20, 10**6]),
            "banned": st.just(frozenset(range(2000))),
            "logit_bias": st.sampled_from([((5, 3e38),), ((5, -3e38), (5, -3e38)), ((2040, 1e9),)]),
        },
    ),
    st.sampled_from([0.0, 1.0, 50.0, 1e30]),
)
def test_no_value_ends_the_process(model: Model, fields: dict[str, Any], scale: float) -> None:
    try:
        sampler = Sampler(SamplingParams(**fields), model.vocab, PROMPT)
    except LlamaGuardError:
        return
    for step in range(3):
        with np.errstate(all="ignore"):
            row = logits(step, scale, model.vocab.size)
            try:
                choice = sampler.sample(row)
            except DecodeError:
                continue
        assert 0 <= choice.tokens[0] < model.vocab.size
        assert choice.tokens[0] not in sampler.params.banned
    sampler.close()
