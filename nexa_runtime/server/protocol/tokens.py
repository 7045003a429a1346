"""``/tokenize`` and ``/detokenize`` on the wire: requests and responses.

Owns their shapes and caps. The responses are made as bytes, in worker threads: they may hold a million
tokens. Source: llama-server's endpoints of these names.
"""

from collections.abc import Mapping, Sequence

import orjson
from pydantic import Field, field_validator

from nexa_runtime.errors import InvalidRequestError
from nexa_runtime.llama import Vocab
from nexa_runtime.server.protocol.parameters import Support
from nexa_runtime.server.protocol.wire import TOKENS_SCHEMA, WireModel, check_texts_or_tokens
from nexa_runtime.serving.prompts import Tokens

MAX_CHARS = 2**20
"""Of a text to tokenize."""
MAX_CONTENT_BYTES = 4 * MAX_CHARS
"""Of the text that tokens make, as many as such a text may have; some tokens stand for hundreds of bytes."""

TOKENIZE: Mapping[str, Support] = dict.fromkeys(
    ("content", "add_special", "parse_special", "with_pieces", "model"), Support.HONOURED
)
DETOKENIZE: Mapping[str, Support] = dict.fromkeys(("tokens", "model"), Support.HONOURED)


class TokenizeRequest(WireModel):
    """A body of ``/tokenize``, null fields left out."""

    content: str = Field(max_length=MAX_CHARS)
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False
    model: str | None = Field(None, max_length=512)


class DetokenizeRequest(WireModel):
    """A body of ``/detokenize``, null fields left out."""

    tokens: list[int] = Field(json_schema_extra=TOKENS_SCHEMA)
    model: str | None = Field(None, max_length=512)

    @field_validator("tokens", mode="plain")
    @classmethod
    def _check_tokens(cls, value: object) -> list[int]:
        if value == []:
            return []
        if isinstance(value, list) and type(value[0]) is int:
            (tokens,) = check_texts_or_tokens(value, 1)
            if isinstance(tokens, list):
                return tokens
        raise ValueError("must be a list of token ids")


def tokenized(request: TokenizeRequest, vocab: Vocab) -> bytes:
    """The tokens of a text, as JSON. Blocks."""
    tokens = vocab.tokenize(
        request.content, parse_special=request.parse_special, add_special=request.add_special
    )
    if not request.with_pieces:
        return orjson.dumps({"tokens": tokens}, option=orjson.OPT_SERIALIZE_NUMPY)
    return orjson.dumps({"tokens": _with_pieces(tokens, vocab.special_pieces)})


def detokenized(request: DetokenizeRequest, vocab: Vocab) -> bytes:
    """The text of tokens, as JSON; bytes that are no text become U+FFFD. Blocks.

    Raises ``InvalidRequestError``.
    """
    tokens = request.tokens
    if tokens and max(tokens) >= vocab.size:
        raise InvalidRequestError(
            f"tokens: ids of this model are 0 to {vocab.size - 1}, not {max(tokens)}.", param="tokens"
        )
    if sum(len(vocab.special_pieces[token]) for token in tokens) > MAX_CONTENT_BYTES:
        message = f"tokens: must stand for at most {MAX_CONTENT_BYTES} bytes of text."
        raise InvalidRequestError(message, param="tokens")
    content = b"".join(vocab.special_pieces[token] for token in tokens)
    return orjson.dumps({"content": content.decode("utf-8", "replace")})


def _with_pieces(tokens: Tokens, pieces: Sequence[bytes]) -> list[orjson.Fragment]:
    """Each token with its piece: a text, or its bytes where they are none by themselves.

    A piece of JSON for each different token: a million objects would take a quarter of a gigabyte.
    """
    ids = tokens.tolist()
    made = {token: orjson.Fragment(orjson.dumps(_with_piece(token, pieces[token]))) for token in set(ids)}
    return [made[token] for token in ids]


def _with_piece(token: int, piece: bytes) -> dict[str, object]:
    try:
        return {"id": token, "piece": piece.decode()}
    except UnicodeDecodeError:
        return {"id": token, "piece": list(piece)}
