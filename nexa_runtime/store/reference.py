"""What a person may write to say which model is meant.

Owns the forms: a name of the catalog, ``org/repo[:QUANT][@revision]``, the same after ``hf.co/`` or
``huggingface.co/``, a page's or file's address there, and a local path. It never asks the hub or the disk
beyond whether a ``.gguf`` is there, and lets nothing through that could leave a folder or an address.
``catalog`` puts the catalog's names in front.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nexa_runtime.errors import UsageError
from nexa_runtime.store.records import record_file_name

MAX_LENGTH = 1000
DEMO_NAME = "demo"
"""What the model that comes with the runtime is called, wherever a model can be named."""

_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_PATH_STARTS = ("/", "./", "../", "~")
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
_REPO = re.compile(rf"{_PART}/{_PART}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_FILE = re.compile(r"[A-Za-z0-9_(][A-Za-z0-9._+() -]*(?:/[A-Za-z0-9_(][A-Za-z0-9._+() -]*)*")
_FORMS = "org/repo, org/repo:QUANT, org/repo@revision, or one of these after hf.co/"


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository on the hub. ``quant`` and ``file``: at most one; none lets the hub's files decide."""

    repo: str
    quant: str | None = None
    file: str | None = None
    revision: str | None = None


def parse_path(text: str) -> Path | None:
    """The local path that ``text`` is written as, there or not; None if it is none."""
    if text.startswith(_PATH_STARTS):
        try:
            return Path(text).expanduser()
        except RuntimeError:
            raise UsageError(f"{_shown(text)} names the home of nobody known here.") from None
    if text.lower().endswith(".gguf") and os.path.isfile(text):
        return Path(text)
    return None


def parse_hub(text: str) -> HubReference | None:
    """The repository that ``text`` names; None if it names none, being one word. Raises ``UsageError``."""
    scheme, separator, _ = text.partition("://")
    if separator:
        if scheme.lower() != "https":
            raise UsageError(f"{_shown(text)} is no address that models come from; those begin with https.")
        return _parse_address(text)
    host, _, path = text.partition("/")
    if host.lower() in _HOSTS:
        return _parse_address(f"https://{text}") if path.count("/") > 1 else _parse_repo(path, text)
    return _parse_repo(text, text) if "/" in text else None


def check_repo(repo: str) -> str:
    """``repo``, if it is ``org/repo``. Raises ``ValueError``."""
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise ValueError("must be org/repo, of A-Z, a-z, 0-9, '.', '_' and '-'")
    return repo


def check_quant(quant: str) -> str:
    """``quant``, if it can be a part of a file's name. Raises ``ValueError``."""
    if not _TAG.fullmatch(quant) or ".." in quant:
        raise ValueError("must be a quant like Q4_K_M")
    return quant


def check_revision(revision: str) -> str:
    """``revision``, if it is a branch, tag or commit. Raises ``ValueError``."""
    if not _REVISION.fullmatch(revision) or ".." in revision or len(revision) > 200:
        raise ValueError("must be a branch, a tag or a commit")
    return revision


def check_file(file: str) -> str:
    """``file``, if it is the path of a GGUF file inside a repository. Raises ``ValueError``."""
    if not _FILE.fullmatch(file) or ".." in file or len(file) > 400 or not file.lower().endswith(".gguf"):
        raise ValueError("must be the path of a .gguf file in the repository")
    return file


def check_name(name: str) -> str:
    """``name``, if a model of the store can have it and be asked for by it. Raises ``UsageError``."""
    record_file_name(name)
    if name != name.strip() or name.startswith(_PATH_STARTS) or name.lower().endswith(".gguf"):
        raise UsageError(
            f"{_shown(name)} cannot be a model's name: it reads as a path, or has blanks around it."
        )
    if name.lower() == DEMO_NAME:
        raise UsageError(f'"{name}" is the model that comes with the runtime; --name gives this one another.')
    return name


def check_text(text: str) -> str:
    """``text`` without blanks around it. Raises ``UsageError`` for what names nothing in any form."""
    text = text.strip()
    if not text:
        raise UsageError("No model is named.")
    if len(text) > MAX_LENGTH or not text.isprintable():
        raise UsageError(f"A model is named by at most {MAX_LENGTH} printable characters.")
    return text


def _parse_repo(text: str, whole: str) -> HubReference:
    """``org/repo[:QUANT][@revision]``."""
    named, at, revision = text.partition("@")
    repo, colon, quant = named.partition(":")
    try:
        return HubReference(
            repo=check_repo(repo),
            quant=check_quant(quant) if colon else None,
            revision=check_revision(revision) if at else None,
        )
    except ValueError:
        raise UsageError(f"{_shown(whole)} does not name a model; that is written as {_FORMS}.") from None


def _parse_address(text: str) -> HubReference:
    """``https://huggingface.co/org/repo``, ``…/tree/<revision>`` and ``…/resolve|blob/<revision>/<file>``."""
    try:
        address = urlsplit(text)
        if address.netloc.lower() not in _HOSTS:
            raise UsageError(f"{_shown(text)} is not at huggingface.co; a mirror is named by HF_ENDPOINT.")
        parts = unquote(address.path, errors="strict").strip("/").split("/")
    except ValueError:
        raise UsageError(f"{_shown(text)} is not an address.") from None
    if len(parts) <= 2 or not _REPO.fullmatch("/".join(parts[:2])):
        return _parse_repo("/".join(parts), text)
    try:
        return _of_page(check_repo("/".join(parts[:2])), parts[2], parts[3:])
    except ValueError:
        raise UsageError(f"{_shown(text)} is neither a repository nor a GGUF file in one.") from None


def _of_page(repo: str, kind: str, rest: list[str]) -> HubReference:
    """Raises ``ValueError``."""
    if kind == "tree" and rest:
        return HubReference(repo, revision=check_revision("/".join(rest)))
    if kind in ("resolve", "blob") and len(rest) > 1:
        return HubReference(repo, file=check_file("/".join(rest[1:])), revision=check_revision(rest[0]))
    raise ValueError


def _shown(text: str) -> str:
    return repr(text[:200])
