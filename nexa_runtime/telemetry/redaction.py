"""What must never be in a log: secrets, known by their name, by their shape, or because they are ours.

Owns the patterns. It never decides where it is applied: ``values`` calls it for every text of every line. It
would rather hide a harmless word than show a secret.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

REDACTED = "[redacted]"

_MIN_OWN_CHARS = 8
"""A shorter secret of this process is hidden by its name only: as a text it may be part of any word."""

_NAME = (
    r"(?:authorization|cookie|credentials?|passwd|password|passphrase|pwd|secret(?:_id)?|dsn|token"
    r"|api_?key|[_-]key)"
)
_NAMED = re.compile(rf"{_NAME}$", re.IGNORECASE)

# A letter may end an escape sequence, of Python's or of a terminal's, and begin no word.
_START = r"(?:(?<![A-Za-z0-9])|(?<=\\[a-z])|(?<=[0-9;\[][A-Za-z]))"
_SHAPES = re.compile(
    r"nexa_[a-z0-9-]{1,64}_[A-Za-z0-9_-]{40,}"  # a tenant's key
    r"|hf_[A-Za-z0-9]{8,}|hv[sbr]\.[A-Za-z0-9_.-]{8,}"  # the hub's, Vault's
    rf"|{_START}(?:s\.[A-Za-z0-9]{{24}}|sk-[A-Za-z0-9_-]{{8,}})"  # Vault's of old, OpenAI's
    r"|sb_secret_[A-Za-z0-9_-]{8,}|sbp_[A-Za-z0-9]{8,}"  # Supabase's
    r"|gh[a-z]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,}|AKIA[0-9A-Z]{16}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?"  # a JSON web token
)
_USER = re.compile(r"(?<=://)(?:[^\s/?#@:]{1,128}|[^\s/?#@:]{0,128}:[^\s\"'<>]{0,128})@")
"""Of a URL, the password with it."""
_AFTER = re.compile(
    r"((?:bearer|basic)\s+)[A-Za-z0-9._~+/=:-]{4,}"
    rf"|((?:authorization|cookie)[\"'\\]*\s*[:=]\s*)[^\r\n\"'\\]+"
    rf"|({_NAME}[\"'\\]*\s*[:=]\s*)(?:\\*\"[^\"]*\"|\\*'[^']*'|[^\s,;&\"']+)"
    rf"|({_NAME}[\"']\s*,\s*b?)(?:\"[^\"]*\"|'[^']*')",  # as Python writes a header of ASGI's
    re.IGNORECASE,
)
"""Secrets that follow a word: the word stays."""
_WORDS = (
    "bearer", "basic", "authorization", "cookie", "credential", "passw", "passphrase", "pwd", "secret", "dsn",
    "token", "key",
)  # fmt: skip
"""One of these is in what ``_AFTER`` finds: looking for them first is a hundred times faster."""

_SHORT_CHARS = 40
"""Texts up to there come again: events, paths, names."""

_own: tuple[str, ...] = ()


def hide(secrets: Iterable[str]) -> None:
    """From now on these texts are secrets wherever they are, whatever their shape: those of the settings."""
    global _own
    _own = tuple(sorted({one for one in secrets if len(one) >= _MIN_OWN_CHARS}, key=len, reverse=True))
    _redact_short.cache_clear()


def is_secret_name(name: str) -> bool:
    """Whether what goes by that name is a secret; ``prompt_tokens`` and ``key_id`` are none."""
    return _NAMED.search(name) is not None


def redact(text: str) -> str:
    """The text without its secrets."""
    return _redact_short(text) if len(text) <= _SHORT_CHARS else _redact(text)


def _redact(text: str) -> str:
    for secret in _own:
        if secret in text:
            text = text.replace(secret, REDACTED)
    text = _SHAPES.sub(REDACTED, text)
    if "@" in text:
        text = _USER.sub(f"{REDACTED}@", text)
    if " " in text or ":" in text or "=" in text:
        lower = text.lower()
        if any(word in lower for word in _WORDS):
            text = _AFTER.sub(_keep_word, text)
    return text


_redact_short = lru_cache(maxsize=4096)(_redact)


def _keep_word(match: re.Match[str]) -> str:
    return f"{match[1] or match[2] or match[3] or match[4]}{REDACTED}"
