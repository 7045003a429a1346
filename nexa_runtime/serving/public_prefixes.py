"""Prompt beginnings that the owner of the box declares public: every tenant may share their KV.

Owns the file's form and the way from its texts to tokens. ``loading`` reads it with the model; ``dispatcher``
has them computed at the start, and the engine keeps them for good.

    prefixes:
      - system: You are the assistant of ...     # a chat's first message
      - text: "### Instruction:"                 # the beginning of a prompt of /v1/completions
"""

from pathlib import Path

import numpy as np

from nexa_runtime.chat.messages import Conversation, Message, Role
from nexa_runtime.chat.template import ChatTemplate
from nexa_runtime.engine.kv_cache import common_prefix
from nexa_runtime.errors import ConfigError, InvalidRequestError
from nexa_runtime.llama import Vocab
from nexa_runtime.serving.prompts import Tokens, with_bos
from nexa_runtime.strict_yaml import ShapeError, document, read_file

MAX_PREFIXES = 8
WHAT = "file of public prefixes"
_KINDS = ("system", "text")


def read_public_prefixes(path: Path, template: ChatTemplate, vocab: Vocab) -> tuple[Tokens, ...]:
    """The tokens of each prefix in a file. Raises ``ConfigError``."""
    return tuple(_tokens(kind, text, template, vocab) for kind, text in _read(path))


def _read(path: Path) -> list[tuple[str, str]]:
    with document(read_file(path, WHAT), path, WHAT) as (loader, root):
        content = loader.construct_document(root) if root is not None else None
        entries = content.get("prefixes") if isinstance(content, dict) else None
        if not isinstance(entries, list) or len(entries) > MAX_PREFIXES:
            raise ShapeError(f"must have a list named prefixes with at most {MAX_PREFIXES} entries")
        return [_entry(index, entry) for index, entry in enumerate(entries)]


def _entry(index: int, entry: object) -> tuple[str, str]:
    items = list(entry.items()) if isinstance(entry, dict) else []
    if len(items) != 1 or items[0][0] not in _KINDS or not isinstance(items[0][1], str) or not items[0][1]:
        raise ShapeError(f"must have one of system and text, with a text, at prefixes[{index}]")
    kind, text = items[0]
    return kind, text


def _tokens(kind: str, text: str, template: ChatTemplate, vocab: Vocab) -> Tokens:
    if kind == "text":
        return vocab.tokenize(text, parse_special=True, add_special=True)
    # What two chats that differ from the first word on have in common is what the system message leads to.
    try:
        one, other = (_chat(text, first_word, template, vocab) for first_word in ("Aa", "42"))
    except InvalidRequestError as error:
        raise ConfigError(f"NEXA_PUBLIC_PREFIXES_FILE: {error}") from None
    end = min(len(one), len(other))
    return np.ascontiguousarray(one[: common_prefix(one[:end], other[:end])])


def _chat(system: str, user: str, template: ChatTemplate, vocab: Vocab) -> Tokens:
    prompt = template.render(Conversation((Message(Role.SYSTEM, system), Message(Role.USER, user))))
    return with_bos(vocab, vocab.tokenize_guarded(prompt.text, prompt.guard))
