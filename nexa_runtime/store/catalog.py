"""The catalog: names that people use for models, where each comes from, and how it is served.

Owns the form of ``models.yaml``, its checks, and which name means what. It never asks the hub and never looks
into the store. ``pull``, ``list --catalog`` and the server read it; every error names file, line and field.

Deliberate oddities:

1. A catalog of the owner's own replaces the one that is shipped: a name there means what the owner says.
2. A name holds no slash, so it never hides a repository.
"""

import difflib
import re
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

import nexa_runtime
from nexa_runtime.config import parse_bytes
from nexa_runtime.errors import ConfigError, NotFoundError, UsageError
from nexa_runtime.lora import MAX_SCALE, NAME
from nexa_runtime.store.catalog_file import Entry, read_entries
from nexa_runtime.store.reference import (
    HubReference,
    check_file,
    check_quant,
    check_repo,
    check_revision,
    check_text,
    parse_hub,
    parse_path,
)

__all__ = [
    "Catalog",
    "EngineOptions",
    "HubReference",
    "LoraAdapter",
    "ModelSpec",
    "NamedAdapter",
    "Reference",
    "parse_reference",
]

FILE_NAME = "models.yaml"
_MAX_SUGGESTIONS = 3
_LATEST = ":latest"

_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd]?)")


def _seconds(value: object) -> object:
    """A number of seconds, or like ``10m``."""
    if value is None:
        return None
    match = _DURATION.fullmatch(str(value).strip().lower())
    if match is None:
        raise ValueError("must be seconds, or a text like 10m; -1 for good")
    return float(match[1]) * _UNITS_S[match[2]]


def _of_folder(path: str, info: ValidationInfo) -> str:
    """A path that is relative is so to the catalog's folder."""
    folder = (info.context or {}).get("folder")
    return str(Path(folder or ".") / Path(path).expanduser())


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
Kind = Literal["chat", "completion", "embedding", "rerank"]
KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LoraAdapter(_Part):
    """An adapter put on the weights. ``path``: absolute once read."""

    path: Annotated[str, StringConstraints(min_length=1), AfterValidator(_of_folder)]
    scale: float = Field(default=1.0, ge=-100, le=100)


class NamedAdapter(_Part):
    """An adapter that a request may ask for by its name. ``scale``: where it names none."""

    name: Annotated[str, StringConstraints(pattern=NAME)]
    path: Annotated[str, StringConstraints(min_length=1), AfterValidator(_of_folder)]
    scale: float = Field(default=1.0, ge=-MAX_SCALE, le=MAX_SCALE)


class EngineOptions(_Part):
    """How the model is loaded; None: as the settings say. ``chat_template``: Jinja source.

    ``lora``: adapters (GGUF files, by absolute paths or such as begin in the catalog's folder) that hold for
    every request. ``adapters``: those that requests choose from.
    """

    gpu_layers: int | None = Field(default=None, ge=-1, le=10_000)
    kv_type_k: KvType | None = None
    kv_type_v: KvType | None = None
    kv: Literal["unified", "split"] | None = None
    slots: int | None = Field(default=None, ge=1, le=128)
    lora: tuple[LoraAdapter, ...] = Field(default=(), max_length=16, strict=False)
    adapters: tuple[NamedAdapter, ...] = Field(default=(), max_length=64, strict=False)
    chat_template: str | None = Field(default=None, min_length=1, max_length=1_000_000)
    dialect: str | None = Field(default=None, min_length=1, max_length=40)

    @field_validator("adapters")
    @classmethod
    def _names_each_once(cls, adapters: tuple[NamedAdapter, ...]) -> tuple[NamedAdapter, ...]:
        names = [one.name for one in adapters]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"names {twice[0]} twice")
        return adapters


class ModelSpec(_Part):
    """A model of the catalog.

    ``quant`` or ``file``: at most one. ``sha256``: of the (first) file. ``context``: KV cells of the whole
    model, in tokens. ``keep_alive``: seconds that it stays loaded; negative: for good. ``memory_hint``: bytes
    that it takes loaded. ``size_gb``: about what is transferred. ``verified``: somebody has pulled it.
    """

    name: Name
    aliases: tuple[Name, ...] = Field(default=(), max_length=64, strict=False)
    repo: Annotated[str, AfterValidator(check_repo)]
    file: Annotated[str, AfterValidator(check_file)] | None = None
    quant: Annotated[str, AfterValidator(check_quant)] | None = None
    revision: Annotated[str, AfterValidator(check_revision)] | None = None
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$", to_lower=True)] | None = None
    context: int | None = Field(default=None, ge=256, le=100_000_000)
    kinds: Annotated[frozenset[Kind], Field(min_length=1, strict=False)] = frozenset({"chat", "completion"})
    engine: EngineOptions = EngineOptions()
    keep_alive: Annotated[float | None, BeforeValidator(_seconds)] = Field(default=None, le=31_536_000)
    preload: bool = False
    memory_hint: Annotated[int | None, BeforeValidator(parse_bytes)] = Field(default=None, ge=1, le=2**50)
    size_gb: float | None = Field(default=None, gt=0, le=100_000)
    verified: bool = False
    description: str = Field(default="", max_length=1000)

    @model_validator(mode="after")
    def _names_one_file(self) -> "ModelSpec":
        if self.file is not None and self.quant is not None:
            raise ValueError("names both a file and a quant; one of them says it")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The name and all aliases."""
        return (self.name, *self.aliases)


Reference = ModelSpec | HubReference | Path


class Catalog:
    """Models by name. Made by ``load``."""

    def __init__(self, specs: Iterable[ModelSpec] = ()) -> None:
        self._specs = tuple(specs)
        self._by_name = {_plain(name): spec for spec in self._specs for name in spec.names}

    @classmethod
    def load(cls, path: Path | None = None) -> "Catalog":
        """The catalog in a file; None: the one that is shipped. Raises ``ConfigError``."""
        path = _shipped() if path is None else path
        entries = read_entries(path)
        specs = [_parse(path, entry) for entry in entries]
        _check_names(path, entries, specs)
        return cls(specs)

    def specs(self) -> tuple[ModelSpec, ...]:
        """All, in the file's order."""
        return self._specs

    def find(self, name: str) -> ModelSpec | None:
        """By name or alias; case and ``:latest`` make no difference."""
        return self._by_name.get(_plain(name))

    def suggest(self, name: str) -> list[str]:
        """The names nearest to one that is unknown, the best first."""
        return nearest(name, self._by_name)


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """A few of ``names`` that somebody who wrote ``name`` may have meant, the best first."""
    known = {_plain(one): one for one in names}
    wanted = _plain(name)[:200]
    begun = sorted(one for one in known if wanted and (one.startswith(wanted) or wanted.startswith(one)))
    near = difflib.get_close_matches(wanted, known, n=_MAX_SUGGESTIONS, cutoff=0.6)
    return [known[one] for one in dict.fromkeys([*near, *begun])][:_MAX_SUGGESTIONS]


def parse_reference(text: str, catalog: Catalog) -> Reference:
    """What ``text`` means. Raises ``UsageError`` for no known form, ``NotFoundError`` for an unknown name."""
    text = check_text(text)
    found = parse_path(text) or catalog.find(text) or parse_hub(text)
    if found is not None:
        return found
    if catalog.find(text.partition("@")[0]) is not None:
        raise UsageError(
            f"{text[:200]!r}: another revision of a catalog's model is asked for with --revision."
        )
    if text.lower().endswith(".gguf"):
        raise NotFoundError(f"There is no file {text[:200]!r} here.")
    near = catalog.suggest(text)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; models of the hub are named as org/repo."
    raise NotFoundError(f"The catalog has no model {text[:200]!r}{hint}")


def _parse(path: Path, entry: Entry) -> ModelSpec:
    try:
        return ModelSpec.model_validate(entry.values, context={"folder": path.parent.absolute()})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        location = [part for part in first["loc"] if isinstance(part, (str, int))]
        field = ".".join(map(str, location)) or "the entry"
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}, line {entry.line_of(location)}: {field}: {message}.") from None


def _check_names(path: Path, entries: Sequence[Entry], specs: Sequence[ModelSpec]) -> None:
    """Raises ``ConfigError`` where two entries share a name."""
    owners: dict[str, int] = {}
    for index, spec in enumerate(specs):
        for name in spec.names:
            first = owners.setdefault(_plain(name), index)
            if first != index:
                raise ConfigError(
                    f"{path}, line {entries[index].line}: {name} is also a name of the model in line"
                    f" {entries[first].line}."
                )


def _plain(name: str) -> str:
    return name.lower().removesuffix(_LATEST)


def _shipped() -> Path:
    """In a checkout beside the package, in an installation with its shared data."""
    beside = Path(nexa_runtime.__file__).resolve().parent.parent
    folders = [Path(prefix) / "share" / "nexa-runtime" for prefix in (sysconfig.get_path("data"), sys.prefix)]
    if (beside / "pyproject.toml").is_file():
        folders.insert(0, beside)
    for folder in folders:
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
    raise ConfigError(f"The catalog {FILE_NAME} is not in {folders[0]}; name one with NEXA_CATALOG_FILE.")
