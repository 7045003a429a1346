"""The sampler against llama.cpp's own chain over the whole vocabulary."""

import ctypes
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from nexa_runtime.errors import DecodeError
from nexa_runtime.llama import Sampler, SamplingParams, sample_greedy
from nexa_runtime.llama.lib import C

VOCAB = 5000
PROMPT = np.arange(100, dtype=np.int32)


def logits(seed: int, scale: float = 3.0) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(VOCAB) * scale).astype(np.float32)


class FullChain:
    """llama.cpp's samplers in its own order over every token, as ``common_sampler`` builds them."""

    def __init__(self, params: SamplingParams) -> None:
        self.chain = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
        if params.logit_bias:
            biases = (C.llama_logit_bias * len(params.logit_bias))(*params.logit_bias)
            self._add(C.llama_sampler_init_logit_bias(VOCAB, len(biases), biases))
        self._add(
            C.llama_sampler_init_penalties(
                VOCAB,
                params.penalty_last_n,
                params.repeat_penalty,
                params.frequency_penalty,
                params.presence_penalty,
            )
        )
        self._add(C.llama_sampler_init_top_k(params.top_k))
        self._add(C.llama_sampler_init_top_p(params.top_p, 1))
        self._add(C.llama_sampler_init_min_p(params.min_p, 1))
        self._add(C.llama_sampler_init_temp(params.temperature))
        self._add(C.llama_sampler_init_dist(params.seed))
        for token in PROMPT[-params.penalty_last_n :]:
            C.llama_sampler_accept(self.chain, int(token))

    def _add(self, sampler: Any) -> None:
        C.llama_sampler_chain_add(self.chain, sampler)

    def sample(self, row: npt.NDArray[np.float32]) -> int:
        data = (C.llama_token_data * VOCAB)(*((token, float(row[token]), 0.0) for token in range(VOCAB)))
        array = C.llama_token_data_array(data=data, size=VOCAB, selected=-1, sorted=False)
        C.llama_sampler_apply(self.chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def accept(self, token: int) -> None:
        C.llama_sampler_accept(self.chain, token)

    def close(self) -> None:
        C.llama_sampler_free(self.chain)


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
    ours, theirs = Sampler(params, VOCAB, PROMPT), FullChain(params)
    for step in range(40):
        token = ours.sample(logits(step))
        assert token == theirs.sample(logits(step))
        ours.accept(token)
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
            VOCAB,
            PROMPT,
        )
        counts[sampler.sample(row.copy())] += 1
        sampler.close()
    assert set(counts) <= set(kept.tolist())
    best = int(kept[0])
    assert counts[best] / 2000 == pytest.approx(expected[0], abs=0.05)


def test_greedy_takes_the_largest_and_the_first_of_equals() -> None:
    rows = np.stack([logits(1), logits(2)])
    rows[0, [40, 70]] = 99.0
    assert sample_greedy(rows) == [40, int(rows[1].argmax())]


def test_a_seed_gives_the_same_tokens_again_and_none_gives_others() -> None:
    def run(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(seed=seed, temperature=2.0), VOCAB, PROMPT)
        tokens = [sampler.sample(logits(step)) for step in range(30)]
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
            SamplingParams(temperature=temperature, banned=frozenset([best]), seed=1), VOCAB, PROMPT
        )
        assert sampler.sample(row.copy()) != best
        sampler.close()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_logits_without_a_finite_best_are_an_error(temperature: float, value: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature), VOCAB, PROMPT)
    with pytest.raises(DecodeError, match="finite"):
        sampler.sample(np.full(VOCAB, value, dtype=np.float32))
    sampler.close()


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    row = logits(4)
    sampler = Sampler(SamplingParams(temperature=temperature), VOCAB, PROMPT)
    assert sampler.sample(row.copy()) == int(row.argmax())
    sampler.close()
