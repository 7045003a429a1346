"""How to choose tokens, and what a choice is: the values that go into the sampler and come out of it.

Owns the settings of one request, their limits, and the names of the samplers. It holds no state and calls
nothing of llama.cpp. ``serving`` makes the settings, ``sampler`` reads them, ``engine`` passes both on.
Source: ``common_params_sampling`` (common.h), ``common_sampler_types_from_names`` (sampling.cpp).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from nexa_runtime.errors import LlamaGuardError

MIN_TEMPERATURE = 1e-5

MAX_LAST_TOKENS = 8192
"""No penalty looks back further: DRY goes through so many tokens for each new one, and is told a prompt's one
by one, on the thread that all sequences share.
"""

MAX_DRY_BREAKERS = 16
"""For each of them llama.cpp goes through the whole vocabulary."""

DEFAULT_SAMPLERS = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typ_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)
"""In llama.cpp's order."""

_ALIASES = {
    **{name.replace("_", "-"): name for name in DEFAULT_SAMPLERS},
    **{name.replace("_", ""): name for name in DEFAULT_SAMPLERS},
    **{name: name for name in DEFAULT_SAMPLERS},
    "nucleus": "top_p",
    "temp": "temperature",
    "typ": "typ_p",
    "typical": "typ_p",
    "typical-p": "typ_p",
    "typical_p": "typ_p",
}
SAMPLER_NAMES = (*DEFAULT_SAMPLERS, *sorted(set(_ALIASES) - set(DEFAULT_SAMPLERS)))
"""What ``SamplingParams.samplers`` may name, in any case of letters; the aliases come last."""

_OFF: dict[str, dict[str, Any]] = {
    "penalties": {"penalty_last_n": 0},
    "dry": {"dry_multiplier": 0.0},
    "top_n_sigma": {"top_n_sigma": -1.0},
    "top_k": {"top_k": 0},
    "typ_p": {"typical_p": 1.0},
    "top_p": {"top_p": 1.0},
    "min_p": {"min_p": 0.0},
    "xtc": {"xtc_probability": 0.0},
    "temperature": {"temperature": 1.0, "dynatemp_range": 0.0},
}

_MAX_FLOAT = 3.4e38
_MAX_DYNAMIC_TEMPERATURE = 1000.0


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens; the defaults are llama.cpp's.

    ``temperature`` 0 takes the best token. ``top_k`` 0 or less: off. ``repeat_penalty`` 1: off.
    ``penalty_last_n`` and ``dry_penalty_last_n`` -1: all tokens, up to ``MAX_LAST_TOKENS``; 0: off.
    ``logit_bias``: (token, added to its logit). ``banned``: tokens that are never chosen. ``seed`` None: a
    fresh random one. ``min_tokens``: before so many are out, none of ``end_tokens`` is chosen.
    ``num_logprobs``: of how many best tokens log-probabilities are told, beside the chosen one's; None: none.
    ``samplers``: which ones are used, in which order; None: all, in llama.cpp's. ``mirostat`` 1 or 2 replaces
    all of them but the temperature, as in llama.cpp.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    logit_bias: tuple[tuple[int, float], ...] = ()
    banned: frozenset[int] = frozenset()
    seed: int | None = None
    min_tokens: int = 0
    end_tokens: frozenset[int] = frozenset()
    num_logprobs: int | None = None
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    samplers: tuple[str, ...] | None = None
    prepared_dry: object = field(default=None, compare=False, repr=False)
    """What ``prepare_dry`` has made of them."""

    @property
    def is_greedy(self) -> bool:
        """Whether the best token is taken; a tinier temperature would overflow the arithmetic."""
        return self.temperature < MIN_TEMPERATURE

    @property
    def has_penalties(self) -> bool:
        """Whether tokens already seen weigh on the next one."""
        return self.penalty_last_n != 0 and (
            self.repeat_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0
        )

    @property
    def has_dry(self) -> bool:
        """Whether tokens that would go on with a repetition are made unlikely."""
        return self.dry_multiplier > 0.0 and self.dry_base >= 1.0 and self.dry_penalty_last_n != 0

    @property
    def needs_full_chain(self) -> bool:
        """Whether the choice takes more than penalties, top-k, top-p, min-p and a temperature, in order."""
        return bool(
            self.typical_p < 1.0
            or self.top_n_sigma > 0.0
            or (self.xtc_probability > 0.0 and self.xtc_threshold <= 0.5)
            or self.dynatemp_range > 0.0
            or self.has_dry
            or self.mirostat
            or self.samplers is not None
        )


_LIMITS: dict[str, tuple[float, float]] = {
    **{one.name: (-_MAX_FLOAT, _MAX_FLOAT) for one in fields(SamplingParams) if one.type is float},
    "logit_bias": (-_MAX_FLOAT, _MAX_FLOAT),
    "repeat_penalty": (1e-6, 1e6),
    "frequency_penalty": (-1e6, 1e6),
    "presence_penalty": (-1e6, 1e6),
    "dynatemp_range": (-_MAX_FLOAT, _MAX_DYNAMIC_TEMPERATURE),
    "dynatemp_exponent": (0.0, 1000.0),
    "dry_multiplier": (0.0, 1e6),
    "mirostat_tau": (-1e6, 1e6),
    "mirostat_eta": (-1e6, 1e6),
    "mirostat": (0, 2),
    "num_logprobs": (0, math.inf),
    "penalty_last_n": (-1, math.inf),
    "dry_penalty_last_n": (-1, math.inf),
    "dry_allowed_length": (0, math.inf),
}
"""Beyond them a logit inside llama.cpp's chain could become NaN, which its sorts answer by reading out of
bounds. Numbers without limits are cut to what can be.
"""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """What the model itself thought, before bias, penalties and constraints: natural logarithms of
    probabilities over the whole vocabulary. ``best``: the likeliest tokens, (token, log-probability) each.
    """

    token: int
    logprob: float
    best: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """``tokens``: the one sampled, then those that a constraint says must follow it. ``is_last``: nothing may
    come after them.
    """

    tokens: tuple[int, ...]
    is_last: bool = False
    logprobs: TokenLogprobs | None = None


def last_tokens(last_n: int) -> int:
    """How many tokens ``penalty_last_n`` or ``dry_penalty_last_n`` means."""
    return min(last_n, MAX_LAST_TOKENS) if last_n >= 0 else MAX_LAST_TOKENS


def canonical_samplers(names: Iterable[str]) -> tuple[str, ...]:
    """The full names of ``samplers``. Raises ``ValueError`` for one that is unknown or comes twice."""
    found: list[str] = []
    for given in names:
        name = _ALIASES.get(given.lower())
        if name is None:
            raise ValueError(f"an unknown sampler: {given[:40]!r}")
        if name in found:
            raise ValueError(f"the sampler {name} twice")
        found.append(name)
    return tuple(found)


def resolved(params: SamplingParams) -> SamplingParams:
    """The same choices, with every sampler off that ``samplers`` does not name.

    ``samplers`` of the result: None where the order is llama.cpp's, else the full names in order. Raises
    ``LlamaGuardError`` for a name that is unknown or comes twice.
    """
    if params.samplers is None or params.mirostat:
        return replace(params, samplers=None) if params.samplers else params
    try:
        names = canonical_samplers(params.samplers)
    except ValueError as error:
        raise LlamaGuardError(str(error)) from None
    changes: dict[str, Any] = {"samplers": names}
    if list(names) == [name for name in DEFAULT_SAMPLERS if name in names]:
        changes["samplers"] = None
    for name in set(DEFAULT_SAMPLERS) - set(names):
        changes |= _OFF[name]
    return replace(params, **changes)


def check(params: SamplingParams, vocab_size: int) -> None:
    """Raise ``LlamaGuardError`` for what llama.cpp cannot take, or this vocabulary has not."""
    for token, bias in params.logit_bias:
        if not 0 <= token < vocab_size:
            raise LlamaGuardError(f"a bias on token {token}, outside the vocabulary of {vocab_size} tokens")
        if bias != -math.inf:
            _check_number("logit_bias", bias)
    for token in params.banned | params.end_tokens:
        if not 0 <= token < vocab_size:
            raise LlamaGuardError(f"token {token}, outside the vocabulary of {vocab_size} tokens")
    for one in fields(params):
        value = getattr(params, one.name)
        if isinstance(value, int | float):
            _check_number(one.name, value)
    if params.dynatemp_range > 0.0 and params.temperature > _MAX_DYNAMIC_TEMPERATURE:
        raise LlamaGuardError(f"a dynamic temperature above {_MAX_DYNAMIC_TEMPERATURE:g}")
    if len(params.dry_sequence_breakers) > MAX_DRY_BREAKERS:
        raise LlamaGuardError(f"more than {MAX_DRY_BREAKERS} sequence breakers")


def _check_number(name: str, value: float) -> None:
    low, high = _LIMITS.get(name, (-math.inf, math.inf))
    if not low <= value <= high:
        raise LlamaGuardError(f"{name} is not from {low:g} to {high:g}")
