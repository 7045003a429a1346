"""What the store writes down about a model, and how that is written.

Owns the fields of a record, its JSON form with a schema version, and the way from a model's name to a file
name. It never touches the disk, and trusts nothing that it reads: a sum of a record becomes a path. ``store``
reads and writes records; everyone above it passes them around.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import TypeVar

from nexa_runtime.errors import UsageError

SCHEMA_VERSION = 1
MAX_NAME_LENGTH = 200
MAX_RECORD_BYTES = 4 * 1024**2

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789._-")
_MAX_STEM_LENGTH = 200

_FieldT = TypeVar("_FieldT")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """``name``: what the file was called where it came from. ``sha256``: 64 hex digits, lower case."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model that is complete in the store. ``files``: in split order; ``added_at``: ISO 8601, UTC."""

    name: str
    aliases: tuple[str, ...]
    repo: str | None
    revision: str | None
    quant: str | None
    files: tuple[FileRecord, ...]
    added_at: str
    architecture: str
    num_parameters: int
    context_tokens: int | None
    license: str | None

    @property
    def id(self) -> str:
        """Short and of the content: the first 12 hex digits of the first file's sum."""
        return self.files[0].sha256[:12]

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)


def is_sha256(text: object) -> bool:
    """Whether ``text`` is a sum as the store writes it, and so safe as a part of a path."""
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


def record_file_name(name: str) -> str:
    """The file that holds the record of ``name``; two names share one only if they differ in case alone.

    Raises ``UsageError`` for what cannot be a name.
    """
    if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise UsageError(f"A model's name has 1 to {MAX_NAME_LENGTH} printable characters.")
    content = name.lower().encode(errors="surrogatepass")
    stem = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in content)
    if len(stem) > _MAX_STEM_LENGTH:
        # "~" is escaped in every other stem.
        stem = f"{stem[:100]}~{hashlib.sha256(content).hexdigest()}"
    return f"{stem}.json"


def encode_record(record: ModelRecord) -> bytes:
    """The record as JSON. Raises ``UsageError`` for one that could not be read again."""
    content = json.dumps({"schema": SCHEMA_VERSION, **asdict(record)}, indent=2).encode()
    try:
        decode_record(content)
    except ValueError as error:
        raise UsageError(f"The record of {record.name[:200]!r} cannot be kept: {error}.") from None
    return content + b"\n"


def decode_record(content: bytes) -> ModelRecord:
    """The record in ``content``. Raises ``ValueError`` with the reason, without what the file holds."""
    fields = _Fields(_loads(content))
    if fields.get("schema", int) != SCHEMA_VERSION:
        raise ValueError("its schema is of another version")
    record = ModelRecord(
        name=fields.get("name", str),
        aliases=tuple(fields.texts("aliases")),
        repo=fields.optional("repo", str),
        revision=fields.optional("revision", str),
        quant=fields.optional("quant", str),
        files=tuple(_file(_Fields(one)) for one in fields.get("files", list)),
        added_at=fields.get("added_at", str),
        architecture=fields.get("architecture", str),
        num_parameters=fields.get("num_parameters", int),
        context_tokens=fields.optional("context_tokens", int),
        license=fields.optional("license", str),
    )
    if not record.files:
        raise ValueError("it names no files")
    return record


def _loads(content: bytes) -> object:
    try:
        loaded: object = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    return loaded


def _file(fields: "_Fields") -> FileRecord:
    sha256 = fields.get("sha256", str)
    size_bytes = fields.get("size_bytes", int)
    if not is_sha256(sha256) or size_bytes < 0:
        raise ValueError("it has a file without a size or a sum")
    return FileRecord(fields.get("name", str), size_bytes, sha256)


class _Fields:
    """The fields of a JSON object by type. Raises ``ValueError``."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise ValueError("it is not made of objects")
        self._values: dict[str, object] = value

    def get(self, name: str, kind: type[_FieldT]) -> _FieldT:
        value = self._values.get(name)
        # Not isinstance: true is an int in Python.
        if type(value) is not kind:
            raise ValueError(f"its {name} is missing, or of another type")
        return value

    def optional(self, name: str, kind: type[_FieldT]) -> _FieldT | None:
        return None if self._values.get(name) is None else self.get(name, kind)

    def texts(self, name: str) -> list[str]:
        values: list[object] = self.get(name, list)
        texts = [value for value in values if isinstance(value, str)]
        if len(texts) < len(values):
            raise ValueError(f"its {name} are not all texts")
        return texts
