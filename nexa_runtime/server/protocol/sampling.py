"""How tokens are chosen, on the wire: the fields of chat and completions that become ``SamplingParams``.

Owns their names and ranges: whatever passes here is harmless further down. It never samples; ``common`` is
built on it. Sources: OpenAI's API, llama-server and vLLM for what OpenAI does not have.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, field_validator

from nexa_runtime.llama import SAMPLER_NAMES, canonical_samplers
from nexa_runtime.server.protocol.wire import WireModel, at_most

MAX_LOGIT_BIAS = 1024
MAX_BREAKERS = 16
MAX_BREAKER_BYTES = 40
MAX_LAST_N = 65536

_SAME_NAMES = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold",
    "dynatemp_range", "dynatemp_exponent", "dry_multiplier", "dry_base", "dry_allowed_length",
    "dry_penalty_last_n", "mirostat", "mirostat_tau", "mirostat_eta", "repeat_penalty", "presence_penalty",
    "frequency_penalty", "min_tokens", "seed",
)  # fmt: skip
"""Fields that ``SamplingParams`` calls as the wire does."""

Breaker = Annotated[
    str, WithJsonSchema({"type": "string", "pattern": "^[^\\x00]+$", "maxLength": MAX_BREAKER_BYTES})
]
SamplerName = Annotated[str, WithJsonSchema({"enum": list(SAMPLER_NAMES)})]
Bias = Annotated[float, Field(ge=-100, le=100)]
LogitBias = Annotated[
    dict[str, Bias],
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        }
    ),
]


class SamplingFields(WireModel):
    """The sampling fields of a request. ``repeat_last_n`` -1: as far back as it goes."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, ge=0, le=1)
    top_n_sigma: float | None = Field(None, ge=-1, le=100)
    xtc_probability: float | None = Field(None, ge=0, le=1)
    xtc_threshold: float | None = Field(None, ge=0, le=1)
    dynatemp_range: float | None = Field(None, ge=0, le=2)
    dynatemp_exponent: float | None = Field(None, ge=0, le=10)
    dry_multiplier: float | None = Field(None, ge=0, le=100)
    dry_base: float | None = Field(None, ge=1, le=100)
    dry_allowed_length: int | None = Field(None, ge=0, le=4096)
    dry_penalty_last_n: int | None = Field(None, ge=-1, le=MAX_LAST_N)
    dry_sequence_breakers: Annotated[list[Breaker] | None, at_most(MAX_BREAKERS)] = None
    mirostat: Literal[0, 1, 2] | None = None
    mirostat_tau: float | None = Field(None, ge=0, le=20)
    mirostat_eta: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, ge=0.01, le=10)
    repeat_last_n: int | None = Field(None, ge=-1, le=MAX_LAST_N)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[LogitBias | None, at_most(MAX_LOGIT_BIAS)] = None
    min_tokens: int | None = Field(None, ge=0, le=2**20)
    samplers: Annotated[list[SamplerName] | None, at_most(len(SAMPLER_NAMES))] = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)

    @field_validator("logit_bias")
    @classmethod
    def _check_bias(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or {}:
            if not (key.isascii() and key.isdecimal() and len(key) < 10):
                raise ValueError("must map token ids to numbers from -100 to 100")
        return value

    @field_validator("mirostat", mode="before")
    @classmethod
    def _no_bool(cls, value: object) -> object:
        if isinstance(value, bool):
            raise ValueError("must be 0, 1 or 2")
        return value

    @field_validator("dry_sequence_breakers")
    @classmethod
    def _check_breakers(cls, value: list[str] | None) -> list[str] | None:
        for text in value or ():
            size = len(text.encode("utf-8", "surrogatepass"))
            if not 0 < size <= MAX_BREAKER_BYTES or "\0" in text:
                raise ValueError(f"must be texts of 1 to {MAX_BREAKER_BYTES} bytes, without a zero byte")
        return value

    @field_validator("samplers")
    @classmethod
    def _check_samplers(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else list(canonical_samplers(value))

    def sampling(self) -> dict[str, Any]:
        """Fields of ``SamplingParams`` and their values, of those that the client named."""
        named = {name: value for name in _SAME_NAMES if (value := getattr(self, name)) is not None}
        if self.repeat_last_n is not None:
            named["penalty_last_n"] = self.repeat_last_n
        if self.dry_sequence_breakers is not None:
            named["dry_sequence_breakers"] = tuple(self.dry_sequence_breakers)
        if self.samplers is not None:
            named["samplers"] = tuple(self.samplers)
        if self.logit_bias is not None:
            named["logit_bias"] = tuple((int(token), bias) for token, bias in self.logit_bias.items())
        return named
