"""Limits from a YAML file, for a box without Vault.

Owns the form of the file, ``tenants: {<id>: {<secret key>: <value>}}``, and noticing that it was edited. It
never judges a limit's value, and no message holds what is in the file. ``directory`` fetches here, in worker
threads; ``nexa-runtime tenants check`` reads a file without a server.

An edit is noticed by the time of the inode's change as well: a copy that keeps times, or a file that has
become readable, has an old time of modification. A thousand tenants take a quarter of a second to read.
"""

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

from yaml.nodes import MappingNode, Node, ScalarNode

from nexa_runtime.errors import ConfigError
from nexa_runtime.strict_yaml import ShapeError, document, read_file
from nexa_runtime.telemetry import get_logger
from nexa_runtime.tenancy.source import Secret
from nexa_runtime.tenancy.tenant import TENANT_ID, TENANT_ID_RULE

FRESH_S = 1.0
"""How long the limits of a tenant are used before the file is looked at again."""

WHAT = "tenants file"

_MAP_TAG = "tag:yaml.org,2002:map"
_NULL_TAG = "tag:yaml.org,2002:null"

_log = get_logger("tenancy.file")

Tenants = dict[str, Mapping[str, object]]
_Stamp = tuple[int, int, int, int] | None


def load_tenants_file(path: Path) -> Tenants:
    """The secrets in a file, by tenant id. Raises ``ConfigError``."""
    return _parse(path, read_file(path, WHAT))


class FileSource:
    """Implements ``LimitsSource``. Raises ``ConfigError`` unless the file is good; later the last good one
    holds.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._rejected: tuple[_Stamp, str] | None = None
        self._stamp = _stamp_of(path)
        content = read_file(path, WHAT)
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

    def close(self) -> None:
        """Nothing is held."""

    def _refresh(self) -> None:
        """Read the file again if it is another than the one read last."""
        stamp = _stamp_of(self._path)
        if stamp is not None and stamp == self._stamp:
            self._rejected = None
            return
        try:
            content = read_file(self._path, WHAT)
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


def _parse(path: Path, content: bytes) -> Tenants:
    """Raises ``ConfigError``."""
    with document(content, path, WHAT) as (loader, root):
        _check_shape(root)
        tenants = loader.construct_document(root)["tenants"]
    return {tenant_id: values or {} for tenant_id, values in tenants.items()}


def _check_shape(root: Node | None) -> None:
    if not _is_mapping(root) or [key.value for key, _ in root.value] != ["tenants"]:
        raise ShapeError('must hold one mapping, "tenants", and nothing else', root)
    tenants = root.value[0][1]
    if not _is_mapping(tenants):
        raise ShapeError('must map tenant ids to limits under "tenants"', tenants)
    for key, value in tenants.value:
        if not isinstance(key, ScalarNode) or TENANT_ID.fullmatch(key.value) is None:
            raise ShapeError(f"has a tenant id that is not {TENANT_ID_RULE}", key)
        if not _is_mapping(value) and value.tag != _NULL_TAG:
            raise ShapeError("has a tenant whose value is not a mapping", value)


def _is_mapping(node: Node | None) -> TypeGuard[MappingNode]:
    """Not ``!!set`` and its like, which are written the same way."""
    return isinstance(node, MappingNode) and node.tag == _MAP_TAG
