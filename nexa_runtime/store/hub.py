"""The hub: which files make up a model there, and their bytes.

Owns all that is said to Hugging Face or a mirror of it: resolving a revision to a commit, choosing a quant as
``llama.cpp -hf`` does, and fetching a file. It is the only module that imports huggingface_hub. It never
touches the store's finished files, and never lets a token, an address or an answer's text into an error.
``pull`` calls it, on any thread; an object holds no connection and no state.

Deliberate oddities:

1. huggingface_hub is asked for metadata only: its downloads cannot resume across processes and compare sizes,
   not hashes.
2. Without a token it gets ``False``: it would send the one it finds in the user's home, to any endpoint.
"""

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import httpx
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as ClientError  # type: ignore[attr-defined,unused-ignore]
from huggingface_hub.hf_api import ModelInfo, RepoSibling

from nexa_runtime.config import StoreSettings
from nexa_runtime.errors import (
    HubAccessError,
    HubUnavailableError,
    IntegrityError,
    NotFoundError,
    UsageError,
)
from nexa_runtime.store.catalog import HubReference, ModelSpec
from nexa_runtime.store.names import is_first_part, quant_of, split_paths
from nexa_runtime.store.transfer import (
    OnProgress,
    OnRetry,
    PassingError,
    Retries,
    Sleep,
    Source,
    Transfer,
    retry_after_s,
)

# Read at each call, unlike the environment variable of this name, which is read at the import.
constants.HF_HUB_DISABLE_TELEMETRY = True

STALL_S = 30.0
"""A connection that brings nothing for so long has broken."""
DEFAULT_QUANTS = ("Q4_K_M", "Q8_0")
"""What is taken where none is named, the first that is there; else the first GGUF file."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOT_MODELS = ("mmproj", "imatrix")


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository at a commit."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PullPlan:
    """The files of one model at one commit, in split order.

    ``quant``: as the repository names it. ``is_default``: whether it is what comes where no quant is named.
    """

    repo: str
    revision: str
    quant: str | None
    files: tuple[HubFile, ...]
    is_default: bool = False

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)


def _ignore(_: object) -> None:
    pass


class Hub:
    """The hub that the settings name. The constructor asks it nothing."""

    def __init__(
        self, settings: StoreSettings, *, stall_s: float = STALL_S, sleep: Sleep = time.sleep
    ) -> None:
        self._endpoint = settings.endpoint.rstrip("/")
        self._token = settings.token.get_secret_value() if settings.token else None
        self._is_offline = settings.is_offline
        self._stall_s = stall_s
        self._sleep = sleep

    def plan(
        self, reference: ModelSpec | HubReference, *, revision: str | None = None, on_retry: OnRetry = _ignore
    ) -> PullPlan:
        """The files of a model; ``revision`` wins over the reference's.

        Raises ``NotFoundError``, ``HubAccessError``, ``HubUnavailableError``, ``UsageError``, or
        ``IntegrityError`` where the hub no longer has what the catalog pins.
        """
        self._refuse_offline()
        wanted = revision or reference.revision
        info = self._ask(reference.repo, wanted, Retries(on_retry, self._sleep))
        commit = info.sha or ""
        if not _COMMIT.fullmatch(commit):
            raise HubUnavailableError(f"The hub names no commit for {reference.repo}.")
        if wanted and _COMMIT.fullmatch(wanted) and wanted != commit:
            raise IntegrityError(f"The hub answered with another commit of {reference.repo} than {wanted}.")
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
        paths = choose_files(reference.repo, sorted(siblings), quant=reference.quant, file=reference.file)
        files = tuple(_file(reference.repo, siblings[path]) for path in paths)
        _refuse_other_hash(reference, files[0])
        return PullPlan(
            repo=reference.repo,
            revision=commit,
            quant=quant_of(paths[0]) or reference.quant,
            files=files,
            is_default=paths[0] == _default(sorted(siblings)),
        )

    def download(
        self,
        plan: PullPlan,
        file: HubFile,
        partial: Path,
        on_progress: OnProgress = _ignore,
        *,
        on_retry: OnRetry = _ignore,
    ) -> None:
        """Fetch what ``partial`` lacks of the file; ``on_progress`` gets the bytes that are there.

        The caller holds the blob's lock. On return the sha256 of the whole is right. Damaged bytes are
        removed and fetched again once. Raises ``IntegrityError``, ``HubUnavailableError``,
        ``HubAccessError``, ``NotFoundError``, or ``OSError`` of the disk.
        """
        self._refuse_offline()
        url = hf_hub_url(plan.repo, file.path, revision=plan.revision, endpoint=self._endpoint)
        source = Source(f"{file.path} of {plan.repo}", url, file.size_bytes, self._token)
        try:
            if self._fetch(source, partial, on_progress, on_retry) == file.sha256:
                return
            partial.unlink()
            on_retry(f"{file.path} came damaged; fetching it again")
            digest = self._fetch(source, partial, on_progress, on_retry)
        except HubAccessError:
            raise HubAccessError(
                f"{plan.repo} is gated or private: {self._how_to_enter(plan.repo)}"
            ) from None
        if digest != file.sha256:
            partial.unlink()
            raise IntegrityError(
                f"{source.name} came damaged twice: its sha256 is {digest[:12]}… where the hub promises"
                f" {file.sha256[:12]}…; nothing of it was kept."
            )

    def _fetch(self, source: Source, partial: Path, on_progress: OnProgress, on_retry: OnRetry) -> str:
        with httpx.Client(timeout=self._stall_s, follow_redirects=True) as client:
            return Transfer(client, source, on_progress, Retries(on_retry, self._sleep)).run(partial)

    def _refuse_offline(self) -> None:
        if self._is_offline:
            raise HubUnavailableError("HF_HUB_OFFLINE is set, so the hub is not asked.")

    def _ask(self, repo: str, revision: str | None, retries: Retries) -> ModelInfo:
        while True:
            try:
                return self._info(repo, revision)
            except PassingError as error:
                if not retries.wait(error):
                    raise HubUnavailableError(
                        f"The hub could not be asked for {repo}: {error.reason}."
                    ) from None

    def _info(self, repo: str, revision: str | None) -> ModelInfo:
        api = HfApi(endpoint=self._endpoint, token=self._token or False)
        try:
            return api.model_info(repo, revision=revision, files_metadata=True, timeout=self._stall_s)
        except HfHubHTTPError as error:
            self._refuse(error, repo, revision)
        except ClientError:
            raise PassingError("it cannot be reached, or the connection broke") from None
        except OfflineModeIsEnabled:
            raise HubUnavailableError("HF_HUB_OFFLINE is set, so the hub is not asked.") from None
        except HFValidationError:
            raise UsageError(f'"{repo}" is no name of a repository; one looks like org/name.') from None
        except (ValueError, TypeError, KeyError, AttributeError):
            # The client takes a page of HTML, or JSON of another shape, as it comes.
            raise PassingError("the answer is not one of a hub") from None

    def _refuse(self, error: HfHubHTTPError, repo: str, revision: str | None) -> NoReturn:
        status = error.response.status_code
        if isinstance(error, GatedRepoError):
            raise HubAccessError(f"{repo} is gated: {self._how_to_enter(repo)}") from None
        if isinstance(error, RevisionNotFoundError):
            raise NotFoundError(f'{repo} has no revision "{revision}".') from None
        # Without a token the hub says 401 to what is private and to what does not exist.
        if status in (401, 403):
            raise HubAccessError(
                f"{repo} does not exist, or is private: {self._how_to_enter(repo)}"
            ) from None
        if isinstance(error, RepositoryNotFoundError) or status == 404:
            raise NotFoundError(f"There is no repository {repo} at {_host(self._endpoint)}.") from None
        if status in (408, 429) or status >= 500:
            wait_s = retry_after_s(error.response.headers)
            raise PassingError(f"it answered with status {status}", wait_s) from None
        raise HubUnavailableError(f"The hub answered with status {status} for {repo}.") from None

    def _how_to_enter(self, repo: str) -> str:
        if self._token:
            return "the token in HF_TOKEN has no access to it."
        return f"ask for access at {_host(self._endpoint)}/{repo} and set HF_TOKEN."


def choose_files(repo: str, paths: Sequence[str], *, quant: str | None, file: str | None) -> tuple[str, ...]:
    """One model of a repository: one GGUF file, or all files of a split one in order.

    The rule is that of ``llama.cpp -hf``: a quant matches where it is followed by "." or "-", in any case.
    Raises ``NotFoundError`` that lists what there is.
    """
    models = [path for path in paths if _is_model(path)]
    if file is not None:
        return _with_splits(repo, _named(repo, paths, models, file), paths)
    if not models:
        raise NotFoundError(f"{repo} has no GGUF file.")
    found = _of_quant(models, quant) if quant else _default(models)
    if found is None:
        raise NotFoundError(f'{repo} has no "{quant}"; there is: {_listed(models)}.')
    return _with_splits(repo, found, paths)


def _of_quant(models: Iterable[str], quant: str) -> str | None:
    pattern = re.compile(re.escape(quant) + "[.-]", re.IGNORECASE)
    return next((path for path in models if pattern.search(path)), None)


def _default(paths: Iterable[str]) -> str | None:
    models = [path for path in paths if _is_model(path)]
    found = (_of_quant(models, quant) for quant in DEFAULT_QUANTS)
    return next(filter(None, found), next(iter(models), None))


def _is_model(path: str) -> bool:
    """Whether a model begins with this file."""
    name = path.rpartition("/")[2].lower()
    # Names are shown on a terminal, which would obey what is not printable.
    is_named_well = path.isprintable() and not any(word in name for word in _NOT_MODELS)
    return name.endswith(".gguf") and is_first_part(name) and is_named_well


def _named(repo: str, paths: Sequence[str], models: Sequence[str], file: str) -> str:
    if file not in paths:
        there = f"; there is: {_listed(models)}" if models else ""
        raise NotFoundError(f'{repo} has no file "{file}"{there}.')
    return file


def _listed(models: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(quant_of(path) or path for path in models))


def _with_splits(repo: str, path: str, paths: Sequence[str]) -> tuple[str, ...]:
    parts, _ = split_paths(path)
    missing = next((part for part in parts if part not in paths), None)
    if missing:
        raise NotFoundError(f"{repo} lacks {missing}, a part of a split model.")
    return parts


def _file(repo: str, sibling: RepoSibling) -> HubFile:
    # The hash becomes part of a path in the store, so its form is checked and not only its presence.
    lfs, path = sibling.lfs, sibling.rfilename
    if lfs is None or not isinstance(lfs.sha256, str) or not _SHA256.fullmatch(lfs.sha256):
        raise IntegrityError(f"The hub gives no sha256 for {path} of {repo}, so it could not be verified.")
    if not isinstance(lfs.size, int) or lfs.size <= 0:
        raise IntegrityError(f"The hub gives no size for {path} of {repo}.")
    return HubFile(path, lfs.size, lfs.sha256)


def _refuse_other_hash(reference: ModelSpec | HubReference, file: HubFile) -> None:
    pinned = reference.sha256 if isinstance(reference, ModelSpec) else None
    if pinned and pinned != file.sha256:
        raise IntegrityError(
            f"The catalog pins {file.path} of {reference.repo} to the sha256 {pinned[:12]}…, and the hub has"
            f" {file.sha256[:12]}…."
        )


def _host(endpoint: str) -> str:
    """The endpoint without credentials that somebody may have put into it."""
    url = httpx.URL(endpoint)
    return f"{url.scheme}://{url.netloc.decode()}"
