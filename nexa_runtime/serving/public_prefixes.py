"""Prompt beginnings that the owner of the box declares public: every tenant may share their KV.

Owns the file's form and the way from its texts to tokens. ``loading`` reads it with the model; ``dispatcher``
has them computed at the start, and the engine keeps them for good.

    prefixes:
      - system: You are the assistant of ...     # a chat's first message
      - text: "### Instruction:"                 # the beginning of a prompt of /v1/completions
"""

from pathlib import Path

import numpy as np
import yaml

from nexa_runtime.chat.messages import Message, Role
from nexa_runtime.chat.template import ChatTemplate
from nexa_runtime.engine.kv_cache import common_prefix
from nexa_runtime.errors import ConfigError, InvalidRequestError
from nexa_runtime.llama import Vocab
from nexa_runtime.serving.prompts import Tokens, with_bos

MAX_PREFIXES = 8
_KINDS = ("system", "text")


def read_public_prefixes(path: Path, template: ChatTemplate, vocab: Vocab) -> tuple[Tokens, ...]:
    """The tokens of each prefix in a file. Raises ``ConfigError``."""
    return tuple(_tokens(kind, text, template, vocab) for kind, text in _read(path))


def _read(path: Path) -> list[tuple[str, str]]:
    what = f"NEXA_PUBLIC_PREFIXES_FILE ({path})"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{what} cannot be read: {type(error).__name__}.") from None
    entries = content.get("prefixes") if isinstance(content, dict) else None
    if not isinstance(entries, list) or len(entries) > MAX_PREFIXES:
        raise ConfigError(f"{what} must have a list named prefixes with at most {MAX_PREFIXES} entries.")
    prefixes = []
    for index, entry in enumerate(entries):
        items = list(entry.items()) if isinstance(entry, dict) else []
        if (
            len(items) != 1
            or items[0][0] not in _KINDS
            or not isinstance(items[0][1], str)
            or not items[0][1]
        ):
            raise ConfigError(f"{what}: prefixes[{index}] must have one of system and text, with a text.")
        prefixes.append(items[0])
    return prefixes


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
    prompt = template.render([Message(Role.SYSTEM, system), Message(Role.USER, user)])
    return with_bos(vocab, vocab.tokenize_guarded(prompt.text, prompt.guard))
