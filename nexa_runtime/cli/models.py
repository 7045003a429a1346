"""``nexa-runtime pull``, ``list``, ``show``, ``rm``, ``verify``, ``gc``, ``import``, ``ps``: the model store.

Turns what the store, the catalog and a running server know into one result each. It never touches a file of
the store itself, and never imports llama.cpp. ``main`` calls it.

Deliberate: the hub's client and httpx are imported where a command asks somebody; ``list`` asks nobody.
"""

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from nexa_runtime import exit_codes
from nexa_runtime.cli import output as words
from nexa_runtime.cli.client import NobodyError
from nexa_runtime.cli.output import Bars, Document, Output
from nexa_runtime.cli.running import ask_held
from nexa_runtime.config import Settings
from nexa_runtime.errors import IntegrityError, ModelInUseError, NotFoundError, UsageError
from nexa_runtime.store.catalog import Catalog, ModelSpec, nearest, parse_reference
from nexa_runtime.store.gguf import GgufHeader, read_header
from nexa_runtime.store.reference import check_revision, parse_hub
from nexa_runtime.store.store import (
    ModelRecord,
    ModelStore,
    RemovalPlan,
    memory_estimate,
    state_dir,
    store_root,
)

if TYPE_CHECKING:
    from nexa_runtime.store.arrival import PullEvent
    from nexa_runtime.store.hub import PullPlan

_MAX_LINE = 120
_MAX_NAMES = 10
_DEFAULT_CONTEXT = 4096


# Into the store.


def pull(settings: Settings, output: Output, text: str, *, revision: str | None, is_dry_run: bool) -> None:
    """Bring a model into the store. Raises ``StoreError``, and ``KeyboardInterrupt``: what came is kept."""
    from nexa_runtime.store.hub import Hub, PullPlan
    from nexa_runtime.store.pull import pull as pull_model

    catalog, store = _catalog(settings), _store(settings)
    reference = parse_reference(text, catalog)
    if isinstance(reference, Path):
        raise UsageError(f"{text} is a path; bring it in with: nexa-runtime import {shlex.quote(text)}")
    try:
        with output.bars() as bars:
            pulled = pull_model(
                reference,
                store=store,
                hub=Hub(settings.store),
                catalog=catalog,
                on_event=lambda event: _show_event(bars, event),
                dry_run=is_dry_run,
                revision=_checked_revision(revision),
            )
    except KeyboardInterrupt:
        output.say("Interrupted. What came is kept, and the same command goes on from there.")
        raise
    if isinstance(pulled, PullPlan):
        _show_plan(output, pulled, store)
    else:
        _show_record(output, pulled)


def import_path(settings: Settings, output: Output, path: Path, *, name: str | None, is_forced: bool) -> None:
    """Copy a GGUF file into the store. Raises ``StoreError``, ``KeyboardInterrupt``."""
    from nexa_runtime.store.importing import import_file

    store = _store(settings)
    with output.bars() as bars:
        record = import_file(
            Path(os.path.expanduser(path)),
            store=store,
            name=name,
            is_forced=is_forced,
            on_event=lambda event: _show_event(bars, event),
        )
    _show_record(output, record)


def _checked_revision(revision: str | None) -> str | None:
    try:
        return None if revision is None else check_revision(revision)
    except ValueError as error:
        raise UsageError(f"--revision is {revision!r:.100}, and {error}.") from None


def _show_event(bars: Bars, event: "PullEvent") -> None:
    name = event.file.rpartition("/")[2]
    if event.kind == "progress":
        bars.update(name, event.done_bytes, event.total_bytes)
    elif event.kind == "plan":
        bars.say(f"{event.text}, {words.format_bytes(event.total_bytes)}")
    elif event.text:
        bars.say(f"{name}: {event.text}" if name and name not in event.text else event.text)


def _show_record(output: Output, record: ModelRecord) -> None:
    size = words.format_bytes(record.size_bytes)
    text = f"{words.clean(record.name)}  {record.id}  {size}"
    output.result({"model": _record_document(record)}, text, [record.name])


def _show_plan(output: Output, plan: "PullPlan", store: ModelStore) -> None:
    from nexa_runtime.store.pull import remaining_bytes

    needed_bytes = remaining_bytes(plan, store)
    document = {
        **asdict(plan),
        "size_bytes": plan.size_bytes,
        "transfer_bytes": needed_bytes,
        "free_bytes": store.free_bytes(),
    }
    rows = [(file.path, words.format_bytes(file.size_bytes), file.sha256[:12]) for file in plan.files]
    text = words.table(("FILE", "SIZE", "SHA256"), rows, right=(1,))
    text += (
        f"\n{words.format_bytes(needed_bytes)} of {words.format_bytes(plan.size_bytes)} would be transferred."
    )
    output.result({"plan": document}, text, [file.path for file in plan.files])


# What is there.


def list_stored(settings: Settings, output: Output) -> None:
    """The models in the store."""
    records = _store(settings).records()
    rows = [
        (
            record.name, record.id, words.format_bytes(record.size_bytes),
            words.format_age(record.added_at), record.quant or "-", _number(record.context_tokens),
        )
        for record in records
    ]  # fmt: skip
    text = words.table(("NAME", "ID", "SIZE", "MODIFIED", "QUANT", "CONTEXT"), rows, right=(2, 5))
    document = {"models": [_record_document(record) for record in records]}
    output.result(document, text, [record.name for record in records])


def list_catalog(settings: Settings, output: Output) -> None:
    """The names that can be pulled, and which of them are here. Raises ``ConfigError``."""
    specs = _catalog(settings).specs()
    records = _store(settings).records()
    stored = {name.lower() for record in records for name in (record.name, *record.aliases)}
    documents = [_spec_document(spec, is_stored=spec.name.lower() in stored) for spec in specs]
    rows = [
        (
            spec.name, ", ".join(spec.aliases) or "-", spec.repo, spec.quant or spec.file or "-",
            "yes" if spec.verified else "no", "yes" if document["stored"] else "no",
        )
        for spec, document in zip(specs, documents, strict=True)
    ]  # fmt: skip
    text = words.table(("NAME", "ALIASES", "REPOSITORY", "QUANT", "VERIFIED", "STORED"), rows)
    output.result({"models": documents}, text, [spec.name for spec in specs])


def show(settings: Settings, output: Output, name: str) -> None:
    """What a model is. Raises ``NotFoundError``, and ``IntegrityError`` where its file cannot be read."""
    store, catalog = _store(settings), _catalog(settings)
    record = _stored(store, name, catalog)
    headers = [read_header(path) for path in store.paths(record)]
    num_cells, memory_bytes = _memory(settings, catalog.find(record.name), headers)
    template = (headers[0].chat_template or "").strip().partition("\n")[0][:_MAX_LINE]
    num_parameters = sum(header.num_parameters for header in headers)
    document = {
        **_record_document(record),
        "num_parameters": num_parameters,
        "has_chat_template": headers[0].chat_template is not None,
        "chat_template_first_line": template or None,
        "memory": {"slots": settings.engine.slots, "kv_cells": num_cells, "bytes": memory_bytes},
    }
    pairs = [
        ("name", record.name),
        ("aliases", ", ".join(record.aliases) or "-"),
        ("id", record.id),
        ("source", f"{record.repo} at {record.revision or '-'}" if record.repo else "a file"),
        ("architecture", record.architecture),
        ("parameters", words.format_count(num_parameters)),
        ("quantisation", record.quant or "-"),
        ("context", _number(record.context_tokens)),
        ("template", f"yes: {template}" if headers[0].chat_template is not None else "no"),
        ("licence", record.license or "-"),
        ("size", f"{words.format_bytes(record.size_bytes)} in {len(headers)} file{'s' * (len(headers) > 1)}"),
        (
            "memory",
            f"about {words.format_bytes(memory_bytes)} with {num_cells} KV cells"
            f" for {settings.engine.slots} slots",
        ),
    ]
    output.result({"model": document}, words.facts(pairs), [record.name])


def verify(settings: Settings, output: Output, names: Sequence[str]) -> None:
    """Hash models anew. Exit code 6 if one is damaged; raises ``NotFoundError``."""
    store = _store(settings)
    records = _all_stored(store, names) if names else store.records()
    found: dict[str, list[str]] = {}
    with output.bars() as bars:
        for record in records:
            found[record.name] = store.verify(record, partial(_show_hashed, bars, record))
    damaged = [name for name, problems in found.items() if problems]
    document: Document = {"models": [{"name": name, "problems": found[name]} for name in found]}
    lines = [words.clean(f"{name}: {' '.join(found[name]) or 'good'}") for name in found]
    if damaged:
        sentence = f"Damaged: {', '.join(damaged)}. Pull or import again what is damaged."
        document = {**document, **words.error_document(IntegrityError.code, sentence, exit_codes.DAMAGED)}
    output.result(document, "\n".join(lines), damaged)
    if damaged:
        raise typer.Exit(exit_codes.DAMAGED)


def _show_hashed(bars: Bars, record: ModelRecord, done_bytes: int) -> None:
    bars.update(record.name, done_bytes, record.size_bytes)


# Out of the store.


def remove(
    settings: Settings, output: Output, names: Sequence[str], *, is_forced: bool, is_dry_run: bool
) -> None:
    """Remove models. Raises ``NotFoundError``, and ``ModelInUseError`` where a running server has one.

    ``is_forced``: also a record that cannot be read, which has no id.
    """
    store = _store(settings)
    unreadable = {name: plan for name in names if is_forced and (plan := store.plan_unreadable(name))}
    if not unreadable:
        store.refuse_unreadable()
    records = _all_stored(store, [name for name in names if name not in unreadable])
    if not is_forced:
        _refuse_held(settings, records)
    removed: list[dict[str, object]] = []
    for name, plan in unreadable.items():
        freed_bytes = 0 if is_dry_run else store.remove(plan, partial(_say_waiting, output))
        removed.append({"name": name, "id": None, "freed_bytes": freed_bytes})
    for record in records:
        plan = store.plan_removal(record.name)
        output.say(f"{record.name}: {words.format_bytes(plan.freed_bytes)} will be freed.")
        freed_bytes = plan.freed_bytes if is_dry_run else store.remove(plan, partial(_say_waiting, output))
        removed.append({"name": record.name, "id": record.id, "freed_bytes": freed_bytes})
    document = {"removed": removed, "dry_run": is_dry_run}
    gone = [str(one["name"]) for one in removed]
    text = "" if is_dry_run else "\n".join(f"removed {words.clean(name)}" for name in gone)
    output.result(document, text, gone)


def collect_garbage(settings: Settings, output: Output, *, is_dry_run: bool) -> None:
    """Remove what no model needs."""
    store = _store(settings)
    plan = store.plan_gc()
    paths = [str(path.relative_to(store.root)) for path in (*plan.blobs, *plan.leftovers)]
    freed_bytes = (
        plan.freed_bytes if is_dry_run or not paths else store.remove(plan, partial(_say_waiting, output))
    )
    document = {"removed": paths, "freed_bytes": freed_bytes, "dry_run": is_dry_run}
    output.result(document, _garbage_text(plan, paths, freed_bytes, is_dry_run=is_dry_run), paths)


def _say_waiting(output: Output) -> None:
    output.say("Somebody else is writing to the store; waiting.")


def _garbage_text(plan: RemovalPlan, paths: Sequence[str], freed_bytes: int, *, is_dry_run: bool) -> str:
    if not paths:
        return "Nothing to remove."
    count = f"{len(paths)} file{'s' * (len(paths) > 1)}"
    if not is_dry_run:
        return f"{count} removed, {words.format_bytes(freed_bytes)} freed."
    return "\n".join([*paths, f"{count} would be removed, {words.format_bytes(plan.freed_bytes)} freed."])


# The running server.


def list_held(settings: Settings, output: Output) -> None:
    """What the running server holds. Raises ``ClientError``."""
    held = ask_held(settings)
    rows = [
        (
            one.name, one.id or "-", one.state, words.format_bytes(one.size_bytes), str(one.kv_cells),
            "-" if one.load_s is None else f"{one.load_s:.1f} s",
        )
        for one in held
    ]  # fmt: skip
    text = words.table(("NAME", "ID", "STATE", "MEMORY", "KV CELLS", "LOADED IN"), rows, right=(3, 4, 5))
    output.result({"models": [asdict(one) for one in held]}, text, [one.name for one in held])


def _refuse_held(settings: Settings, records: Sequence[ModelRecord]) -> None:
    try:
        held = ask_held(settings)
    except NobodyError:
        return
    for record in records:
        if any(record.id == one.id or record.name == one.name for one in held):
            raise ModelInUseError(
                f'The server at {settings.client.url} uses "{record.name}"; unload it there, or use --force.'
            )


# What they share.


def _store(settings: Settings) -> ModelStore:
    return ModelStore(store_root(settings.store), state_dir(settings.store))


def _catalog(settings: Settings) -> Catalog:
    path = settings.store.catalog_file
    return Catalog.load(Path(os.path.expanduser(path)) if path else None)


def not_stored(store: ModelStore, name: str, catalog: Catalog | None = None) -> NotFoundError:
    """That the store has no model of that name, and what was perhaps meant. ``catalog``: or what to pull."""
    records = store.records()
    here = nearest(name, (one for record in records for one in (record.name, *record.aliases)))
    if catalog is not None and (catalog.find(name) or (not here and _is_of_hub(name))):
        hint = f"bring it with: nexa-runtime pull {name}"
    elif near := here or (catalog.suggest(name) if catalog else []):
        hint = f"did you mean {' or '.join(near)}?"
    else:
        hint = f"there is: {', '.join(one.name for one in records[:_MAX_NAMES]) or 'nothing yet'}."
    return NotFoundError(f'"{name[:200]}" is not in the store; {hint}')


def _is_of_hub(name: str) -> bool:
    try:
        return parse_hub(name) is not None
    except UsageError:
        return False


def _stored(store: ModelStore, name: str, catalog: Catalog | None = None) -> ModelRecord:
    record = store.find(name)
    if record is None:
        raise not_stored(store, name, catalog)
    return record


def _all_stored(store: ModelStore, names: Sequence[str]) -> list[ModelRecord]:
    """The models of these names, each once."""
    records = [_stored(store, name) for name in names]
    return list({record.name: record for record in records}.values())


def _memory(settings: Settings, spec: ModelSpec | None, headers: Sequence[GgufHeader]) -> tuple[int, int]:
    """KV cells in all, as ``serve`` counts them, and the bytes that the model takes with them."""
    asked = settings.engine.ctx_size or (spec.context if spec else None)
    num_cells = asked or settings.engine.slots * (headers[0].context_tokens or _DEFAULT_CONTEXT)
    type_k = (spec.engine.kv_type_k if spec else None) or "f16"
    type_v = (spec.engine.kv_type_v if spec else None) or "f16"
    estimate = memory_estimate(headers[0], num_cells, 1, type_k=type_k, type_v=type_v)
    return num_cells, estimate + sum(header.weights_bytes for header in headers[1:])


def _record_document(record: ModelRecord) -> dict[str, object]:
    first = {"name": record.name, "id": record.id, "size_bytes": record.size_bytes}
    fields = first | {"modified": record.added_at} | asdict(record)
    del fields["added_at"]
    return fields


def _spec_document(spec: ModelSpec, *, is_stored: bool) -> dict[str, object]:
    return {**spec.model_dump(mode="json"), "kinds": sorted(spec.kinds), "stored": is_stored}


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
