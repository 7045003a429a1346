"""Limits from a YAML file, for a box without Vault.

Owns the form of the file, ``tenants: {<id>: {<secret key>: <value>}}``, and noticing that it was edited. It
never judges a limit's value, and no message holds what is in the file. ``directory`` fetches here, in worker
threads; ``nexa-runtime tenants check`` reads a file without a server.

Deliberate oddities:

1. Keys are read as they are written: YAML would make the tenant ``007`` a 7 and ``no`` a false.
2. An edit is noticed by the time of the inode's change as well: a copy that keeps times, or a file that has
   become readable, has an old time of modification.
3. The loader in Python is seven times slower than libyaml's, which dies of deep nesting and the process with
   it. A thousand tenants take it a quarter of a second.
"""

import hashlib
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from nexa_runtime.errors import ConfigError
from nexa_runtime.telemetry import get_logger
from nexa_runtime.tenancy.source import Secret
from nexa_runtime.tenancy.tenant import TENANT_ID, TENANT_ID_RULE

FRESH_S = 1.0
"""How long the limits of a tenant are used before the file is looked at again."""
MAX_FILE_BYTES = 10_000_000

_MAP_TAG = "tag:yaml.org,2002:map"
_NULL_TAG = "tag:yaml.org,2002:null"

_log = get_logger("tenancy.file")

Tenants = dict[str, Mapping[str, object]]
_Stamp = tuple[int, int, int, int] | None


def load_tenants_file(path: Path) -> Tenants:
    """The secrets in a file, by tenant id. Raises ``ConfigError``."""
    return _parse(path, _read(path))


class FileSource:
    """Implements ``LimitsSource``. Raises ``ConfigError`` unless the file is good; later the last good one
    holds.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._rejected: tuple[_Stamp, str] | None = None
        self._stamp = _stamp_of(path)
        content = _read(path)
        self._tenants = _parse(path, content)
        self._version = _version_of(content)

    @property
    def name(self) -> str:
        """For the admin."""
        return "file"

    @property
    def fresh_s(self) -> float:
        """Looking at the file is cheap."""
        return FRESH_S

    @property
    def has_answered(self) -> bool:
        """The constructor has read the file."""
        return True

    def fetch(self, tenant_id: str) -> Secret | None:
        """See ``LimitsSource``. It always has a word: the file's, or that of its last good version."""
        with self._lock:
            self._refresh()
            values = self._tenants.get(tenant_id)
            return None if values is None else Secret(values, self._version)

    def tenant_ids(self) -> list[str]:
        """All tenants in the file, in its order."""
        with self._lock:
            self._refresh()
            return list(self._tenants)

    def close(self) -> None:
        """Nothing is held."""

    def _refresh(self) -> None:
        """Read the file again if it is another than the one read last."""
        stamp = _stamp_of(self._path)
        if stamp is not None and stamp == self._stamp:
            self._rejected = None
            return
        try:
            content = _read(self._path)
            # Only from here on: reading may fail for a moment, with nothing wrong in the file.
            self._stamp = stamp
            self._tenants = _parse(self._path, content)
        except ConfigError as error:
            self._reject(stamp, str(error))
        else:
            self._version = _version_of(content)
            self._rejected = None

    def _reject(self, stamp: _Stamp, reason: str) -> None:
        """Log once why an edit is not in force."""
        if self._rejected != (stamp, reason):
            self._rejected = (stamp, reason)
            _log.warning("tenants_file_rejected", path=str(self._path), reason=reason)


def _stamp_of(path: Path) -> _Stamp:
    """What differs after an edit; None when there is no file to look at."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _version_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _read(path: Path) -> bytes:
    """The file's bytes. Raises ``ConfigError``."""
    try:
        # Opening a pipe would wait for a writer, with every fetch behind it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"The tenants file {path} is not a regular file.")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "input/output error"
        raise ConfigError(f"The tenants file {path} cannot be read: {reason}.") from error
    except ValueError as error:
        raise ConfigError("The path of the tenants file holds a NUL character.") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"The tenants file {path} is larger than {MAX_FILE_BYTES} bytes.")
    return content


def _parse(path: Path, content: bytes) -> Tenants:
    """Raises ``ConfigError``."""
    with _faults_of(path):
        loader = _Loader(content.decode("utf-8-sig"))
        try:
            root = loader.get_single_node()
            _check_shape(root)
            tenants = loader.construct_document(root)["tenants"]
        finally:
            loader.dispose()
    return {tenant_id: values or {} for tenant_id, values in tenants.items()}


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """Every way in which a text is no tenants file becomes a ``ConfigError``, without a cause: the texts of
    those errors repeat what is in the file.
    """
    try:
        yield
    except _ShapeError as error:
        message = f"{error.problem}{_place(error)}."
    except yaml.MarkedYAMLError as error:
        message = f"is not valid YAML{_place(error)}."
    except UnicodeDecodeError:
        message = "is not UTF-8 text."
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError):
        # PyYAML raises whatever comes when a tag and its text do not agree, as in "!!bool maybe".
        message = "is not valid YAML."
    except RecursionError:
        message = "is nested too deeply."
    else:
        return
    raise ConfigError(f"The tenants file {path} {message}") from None


def _place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return "" if mark is None else f" (line {mark.line + 1})"


class _ShapeError(yaml.MarkedYAMLError):
    """Good YAML that is no tenants file; the problem ends a sentence that begins with the file."""

    def __init__(self, problem: str, node: Node | None = None) -> None:
        super().__init__(problem=problem, problem_mark=None if node is None else node.start_mark)


def _check_shape(root: Node | None) -> None:
    if not _is_mapping(root) or [key.value for key, _ in root.value] != ["tenants"]:
        raise _ShapeError('must hold one mapping, "tenants", and nothing else', root)
    tenants = root.value[0][1]
    if not _is_mapping(tenants):
        raise _ShapeError('must map tenant ids to limits under "tenants"', tenants)
    for key, value in tenants.value:
        if not isinstance(key, ScalarNode) or TENANT_ID.fullmatch(key.value) is None:
            raise _ShapeError(f"has a tenant id that is not {TENANT_ID_RULE}", key)
        if not _is_mapping(value) and value.tag != _NULL_TAG:
            raise _ShapeError("has a tenant whose value is not a mapping", value)


def _is_mapping(node: Node | None) -> TypeGuard[MappingNode]:
    """Not ``!!set`` and its like, which are written the same way."""
    return isinstance(node, MappingNode) and node.tag == _MAP_TAG


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, where YAML silently takes the last one."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._checked: set[int] = set()

    def flatten_mapping(self, node: MappingNode) -> None:
        # Merging (<<) adds keys that may be there already, so a mapping is looked at before its first merge.
        if id(node) not in self._checked:
            self._checked.add(id(node))
            _check_keys(node)
        super().flatten_mapping(node)

    def construct_mapping(self, node: Node, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, MappingNode):
            raise _ShapeError("has a mapping that is none", node)
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}


def _check_keys(node: MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, ScalarNode):
            raise _ShapeError("has a key that is not a plain word", key)
        if key.value in seen:
            raise _ShapeError("has a key twice", key)
        seen.add(key.value)
