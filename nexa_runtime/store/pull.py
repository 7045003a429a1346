"""Bringing a model into the store from the hub.

Owns the order of the steps: what it is, whether it fits, one transfer per blob, is it a model, into the
store, and the record last. Whoever is killed in between leaves partial files that the next pull goes on from,
and never half a model. It never speaks HTTP and never decides how a file is named in the store. ``cli`` and
the server's admin routes call it, on a thread that may wait; ``import_file`` is part of what they see here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

from nexa_runtime.errors import UsageError
from nexa_runtime.store.arrival import (
    OnEvent,
    Progress,
    PullEvent,
    adopt,
    ignore,
    locked,
    make_record,
    refuse_full,
    save_new,
)
from nexa_runtime.store.catalog import Catalog, HubReference, ModelSpec, parse_reference
from nexa_runtime.store.files import writing
from nexa_runtime.store.gguf import GgufHeader, read_header
from nexa_runtime.store.hub import Hub, HubFile, PullPlan
from nexa_runtime.store.importing import import_file
from nexa_runtime.store.names import split_paths
from nexa_runtime.store.store import FileRecord, ModelRecord, ModelStore

__all__ = ["OnEvent", "PullEvent", "import_file", "pull", "remaining_bytes"]


@overload
def pull(
    reference: str | ModelSpec | HubReference | Path,
    *,
    store: ModelStore,
    hub: Hub,
    catalog: Catalog,
    on_event: OnEvent = ...,
    dry_run: Literal[False] = ...,
    revision: str | None = ...,
) -> ModelRecord: ...
@overload
def pull(
    reference: str | ModelSpec | HubReference | Path,
    *,
    store: ModelStore,
    hub: Hub,
    catalog: Catalog,
    on_event: OnEvent = ...,
    dry_run: bool,
    revision: str | None = ...,
) -> ModelRecord | PullPlan: ...
def pull(
    reference: str | ModelSpec | HubReference | Path,
    *,
    store: ModelStore,
    hub: Hub,
    catalog: Catalog,
    on_event: OnEvent = ignore,
    dry_run: bool = False,
    revision: str | None = None,
) -> ModelRecord | PullPlan:
    """Make the store hold the model as the hub has it now; what is there already is not transferred again.

    ``revision`` wins over the reference's. A dry run returns the plan and writes nothing. What ``on_event``
    raises ends the pull, and what was transferred is kept. Raises ``StoreError``s.
    """
    wanted = parse_reference(reference, catalog) if isinstance(reference, str) else reference
    if isinstance(wanted, Path):
        raise UsageError(f"{wanted} is a file of this machine: `nexa-runtime import` takes it.")

    def on_retry(text: str) -> None:
        on_event(PullEvent("retry", text=text))

    plan = hub.plan(wanted, revision=revision, on_retry=on_retry)
    needed_bytes = remaining_bytes(plan, store, on_event)
    on_event(PullEvent("plan", "", plan.size_bytes - needed_bytes, plan.size_bytes, _sentence(plan)))
    if dry_run:
        return plan
    refuse_full(store, needed_bytes)

    def on_wait() -> None:
        on_event(PullEvent("waiting", "", 0, plan.size_bytes, "somebody else is pulling it; waiting"))

    # The locks are kept until the record is written: what no record names, gc may remove.
    with writing(store.root, needed_bytes), locked(store, (file.sha256 for file in plan.files), on_wait):
        brought = [_bring(plan, file, store=store, hub=hub, on_event=on_event) for file in plan.files]
        made = _record_of(wanted, revision, plan, [header for header, _ in brought])
        record, is_new = save_new(made, store, is_mended=any(is_written for _, is_written in brought))
    text = f"{record.name}: {'pulled' if is_new else 'up to date'}"
    on_event(PullEvent("done", "", plan.size_bytes, plan.size_bytes, text))
    return record


def remaining_bytes(plan: PullPlan, store: ModelStore, on_event: OnEvent = ignore) -> int:
    """What a pull of this plan would transfer now. It hashes what nobody has hashed yet."""
    files = {file.sha256: file for file in plan.files}.values()
    return sum(
        max(0, file.size_bytes - _size(store.partial_path(file.sha256)))
        for file in files
        if not _is_sound(file, store, on_event)
    )


def _bring(
    plan: PullPlan, file: HubFile, *, store: ModelStore, hub: Hub, on_event: OnEvent
) -> tuple[GgufHeader, bool]:
    """Make sure that the store has the file's blob, which is locked; its header, and if it was brought."""
    if _is_sound(file, store, on_event):
        return read_header(store.blob_path(file.sha256)), False
    if store.has_blob(file.sha256, file.size_bytes):
        text = "what the store has of it is damaged, and is fetched again"
        on_event(PullEvent("verify", file.path, 0, file.size_bytes, text))
    partial = store.partial_path(file.sha256)
    there = _size(partial)
    if there:
        text = f"checking the {there} bytes that are there"
        on_event(PullEvent("verify", file.path, there, file.size_bytes, text))
    hub.download(
        plan,
        file,
        partial,
        Progress(file.path, file.size_bytes, on_event),
        on_retry=lambda text: on_event(PullEvent("retry", file.path, _size(partial), file.size_bytes, text)),
    )
    return adopt(partial, file.path, file.sha256, store), True


def _is_sound(file: HubFile, store: ModelStore, on_event: OnEvent) -> bool:
    return store.is_sound(_recorded(file), Progress(file.path, file.size_bytes, on_event))


def _recorded(file: HubFile) -> FileRecord:
    return FileRecord(file.path, file.size_bytes, file.sha256)


def _record_of(
    wanted: ModelSpec | HubReference, revision: str | None, plan: PullPlan, headers: Sequence[GgufHeader]
) -> ModelRecord:
    name, aliases = _names(wanted, revision or wanted.revision, plan)
    return make_record(
        headers,
        tuple(map(_recorded, plan.files)),
        name=name,
        aliases=aliases,
        repo=plan.repo,
        revision=plan.revision,
        quant=plan.quant,
    )


def _names(
    wanted: ModelSpec | HubReference, revision: str | None, plan: PullPlan
) -> tuple[str, tuple[str, ...]]:
    """The catalog's names, or ``org/repo:QUANT[@revision]`` and what else leads to it."""
    if isinstance(wanted, ModelSpec):
        return wanted.name, tuple(wanted.aliases)
    suffix = f"@{revision}" if revision else ""
    if wanted.file:
        stem = split_paths(wanted.file.rpartition("/")[2])[1]
        return f"{plan.repo}:{stem}{suffix}", ()
    names = [f"{plan.repo}:{quant}{suffix}" for quant in (plan.quant, wanted.quant) if quant]
    if plan.is_default:
        names.append(f"{plan.repo}{suffix}")
    # In any case a name is one name.
    distinct = tuple({name.lower(): name for name in reversed(names)}.values())[::-1]
    return distinct[0], distinct[1:]


def _sentence(plan: PullPlan) -> str:
    what = f"{plan.repo}:{plan.quant}" if plan.quant else plan.repo
    files = f"{len(plan.files)} file{'s' * (len(plan.files) > 1)}"
    return f"{what} at {plan.revision[:12]}: {files}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
