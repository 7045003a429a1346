"""Pulls and imports end in a whole model or in none, however they are disturbed."""

import errno
import os
import threading
from pathlib import Path

import pytest

from nexa_runtime.errors import (
    HubUnavailableError,
    IntegrityError,
    NoSpaceError,
    StoreError,
    UsageError,
)
from nexa_runtime.store import gguf
from nexa_runtime.store.catalog import Catalog, HubReference, ModelSpec
from nexa_runtime.store.hub import PullPlan
from nexa_runtime.store.pull import PullEvent, pull
from nexa_runtime.store.store import ModelRecord, ModelStore
from tests.hub_models import (
    DEMO,
    SHA256,
    SIZE,
    Waits,
    assert_tidy,
    demo_bytes,
    hub_of,
    names_in,
    split_files,
)
from tests.hub_standin import HubStandin

PINNED = ModelSpec(name="demo-pinned", aliases=("demo-alias",), repo=DEMO, quant="Q8_0", revision="v1")


class Puller:
    """Pulls into one store, and keeps what it was told."""

    def __init__(self, standin: HubStandin, store: ModelStore) -> None:
        self.hub = hub_of(standin, Waits())
        self.store = store
        self.catalog = Catalog(())
        self.events: list[PullEvent] = []

    def __call__(
        self, reference: str | HubReference | ModelSpec | Path, *, revision: str | None = None
    ) -> ModelRecord:
        self.events.clear()
        return pull(
            reference,
            store=self.store,
            hub=self.hub,
            catalog=self.catalog,
            on_event=self.events.append,
            revision=revision,
        )

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events if event.kind != "progress"]


def damage(blob: Path) -> None:
    """Change one byte; the size stays."""
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(5_000_000)
        byte = file.read(1)
        file.seek(5_000_000)
        file.write(bytes([byte[0] ^ 1]))


@pytest.fixture
def puller(standin: HubStandin, store: ModelStore) -> Puller:
    return Puller(standin, store)


# What a pull leaves.


def test_a_pull_makes_a_record_of_a_file_that_is_what_the_hub_has(
    puller: Puller, store: ModelStore, standin: HubStandin
) -> None:
    record = puller(HubReference(DEMO))
    assert (record.name, record.aliases) == (f"{DEMO}:Q4_K_M", (DEMO,))
    assert (record.repo, record.revision) == (DEMO, standin.repos[DEMO].names["main"])
    assert (record.architecture, record.quant, record.license) == ("llama", "Q4_K_M", "MIT")
    assert (record.context_tokens, record.size_bytes, record.id) == (4096, SIZE, SHA256[:12])
    assert [path.read_bytes() for path in store.paths(record)] == [demo_bytes()]
    assert store.records() == [record]
    assert store.find(DEMO) == record
    assert store.trusted(record)
    assert puller.kinds == ["plan", "done"]
    assert_tidy(store)


@pytest.mark.parametrize(
    ("reference", "revision", "name", "aliases", "variant"),
    [
        (f"{DEMO}:q8_0", None, f"{DEMO}:Q8_0", (), 1),
        (f"hf.co/{DEMO}@v1", None, f"{DEMO}:Q8_0@v1", (f"{DEMO}@v1",), 9),
        (DEMO, "v1", f"{DEMO}:Q8_0@v1", (f"{DEMO}@v1",), 9),
        (HubReference(DEMO, file="nexa-demo-Q8_0.gguf"), None, f"{DEMO}:nexa-demo-Q8_0", (), 1),
        ("demo-alias", None, "demo-pinned", ("demo-alias",), 9),
        ("demo-pinned", "v2", "demo-pinned", ("demo-alias",), 1),
    ],
    ids=str,
)
def test_what_was_asked_for_decides_the_names(
    puller: Puller,
    store: ModelStore,
    reference: str | HubReference,
    revision: str | None,
    name: str,
    aliases: tuple[str, ...],
    variant: int,
) -> None:
    puller.catalog = Catalog((PINNED,))
    record = puller(reference, revision=revision)
    assert (record.name, record.aliases) == (name, aliases)
    assert store.paths(record)[0].read_bytes() == demo_bytes(variant)
    assert store.find(name) == record


def test_a_split_model_is_one_model(puller: Puller, store: ModelStore) -> None:
    record = puller(HubReference("nexa/split-GGUF"))
    assert [file.name for file in record.files] == [f"Q4_K_M/{name}" for name in split_files()]
    assert [path.read_bytes() for path in store.paths(record)] == list(split_files().values())
    assert record.num_parameters == puller(HubReference(DEMO)).num_parameters
    assert_tidy(store)


def test_a_second_pull_transfers_nothing_and_changes_nothing(
    puller: Puller, store: ModelStore, standin: HubStandin
) -> None:
    first = puller(HubReference(DEMO))
    standin.requests.clear()
    assert puller(HubReference(DEMO)) == puller(HubReference(DEMO, quant="Q4_K_M")) == first
    assert puller.events[-1].text == f"{DEMO}:Q4_K_M: up to date"
    assert not any("/resolve/" in request for request in standin.requests)
    assert store.records() == [first]


def test_a_model_that_changed_upstream_replaces_the_record(
    puller: Puller, store: ModelStore, standin: HubStandin
) -> None:
    old = puller(HubReference(DEMO))
    standin.put(DEMO, {"nexa-demo-Q4_K_M.gguf": demo_bytes(7)})
    new = puller(HubReference(DEMO))
    assert store.records() == [new]
    assert new.revision != old.revision
    assert store.plan_gc().blobs == store.paths(old)


def test_a_blob_that_another_model_brought_is_not_transferred_again(
    puller: Puller, store: ModelStore, standin: HubStandin
) -> None:
    puller(HubReference(DEMO))
    puller(HubReference("nexa/many-GGUF", quant="BF16"))
    assert standin.bytes_sent[SHA256] == SIZE
    assert len(store.records()) == 2
    assert len(names_in(store.root / "blobs")) == 1


def test_a_damaged_blob_is_noticed_and_fetched_again(
    puller: Puller, store: ModelStore, standin: HubStandin
) -> None:
    record = puller(HubReference(DEMO))
    (blob,) = store.paths(record)
    damage(blob)
    assert puller(HubReference(DEMO)) == record
    assert [(event.kind, event.text) for event in puller.events if event.kind == "verify"] == [
        ("verify", "what the store has of it is damaged, and is fetched again")
    ]
    assert puller.events[0].kind == "progress"
    assert blob.read_bytes() == demo_bytes()
    assert standin.bytes_sent[SHA256] == 2 * SIZE
    assert_tidy(store)


def test_a_sound_blob_is_hashed_once(puller: Puller, store: ModelStore, standin: HubStandin) -> None:
    record = puller(HubReference(DEMO))
    puller.store = ModelStore(store.root, store.root / "other state")
    puller(HubReference(DEMO))
    assert puller.events[-3].kind == "progress"
    puller(HubReference(DEMO))
    assert [event.kind for event in puller.events] == ["plan", "done"]
    assert standin.bytes_sent[SHA256] == SIZE
    assert store.trusted(record)


def test_a_dry_run_gives_the_plan_and_writes_nothing(puller: Puller, store: ModelStore) -> None:
    plan = pull(
        HubReference(DEMO), store=store, hub=puller.hub, catalog=puller.catalog, dry_run=True,
        on_event=puller.events.append,
    )  # fmt: skip
    assert isinstance(plan, PullPlan)
    assert plan.size_bytes == SIZE
    assert [(event.kind, event.done_bytes, event.total_bytes) for event in puller.events] == [
        ("plan", 0, SIZE)
    ]
    assert not store.root.exists()


def test_a_running_server_sees_that_a_pull_mended_a_model(puller: Puller, store: ModelStore) -> None:
    record = puller(HubReference(DEMO))
    folder = store.root / "records"
    before = folder.stat().st_mtime_ns
    assert puller(HubReference(DEMO)) == record
    assert folder.stat().st_mtime_ns == before
    store.paths(record)[0].unlink()
    assert puller(HubReference(DEMO)) == record
    assert folder.stat().st_mtime_ns > before


# What stops one.


def test_a_file_that_cannot_be_read_back_now_is_kept(
    puller: Puller, store: ModelStore, standin: HubStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(gguf, "_open", fail)
        with pytest.raises(StoreError, match="cannot be read back"):
            puller(HubReference(DEMO))
    assert store.partial_path(SHA256).stat().st_size == SIZE
    puller(HubReference(DEMO))
    assert standin.bytes_sent[SHA256] == SIZE


def test_where_nothing_can_be_written_that_is_the_reason(puller: Puller) -> None:
    puller.store = ModelStore(Path("/proc/models"))
    with pytest.raises(StoreError, match="cannot be written at /proc/models") as caught:
        puller(HubReference(DEMO))
    assert not isinstance(caught.value, NoSpaceError)


def test_a_path_is_for_import(puller: Puller) -> None:
    with pytest.raises(UsageError, match="nexa-runtime import"):
        puller("./model.gguf")


def test_what_is_no_gguf_is_refused_and_not_kept(puller: Puller, store: ModelStore) -> None:
    with pytest.raises(IntegrityError, match=r"model-Q4_K_M\.gguf"):
        puller(HubReference("nexa/not-a-model"))
    assert store.records() == []
    assert_tidy(store)


def test_parts_of_different_models_are_refused(puller: Puller, standin: HubStandin) -> None:
    first, second, third = split_files().items()
    standin.put("nexa/mixed", {first[0]: first[1], second[0]: third[1], third[0]: second[1]})
    with pytest.raises(
        IntegrityError, match="says that it is part 3 of 3 of a model, and it should be 2 of 3"
    ):
        puller(HubReference("nexa/mixed"))
    assert puller.store.records() == []


def test_a_full_disk_is_told_before_with_what_remains(
    puller: Puller, store: ModelStore, standin: HubStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = store.partial_path(SHA256)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(demo_bytes()[:1_000_000])
    monkeypatch.setattr(store, "free_bytes", lambda: 1_000_000)
    with pytest.raises(NoSpaceError) as caught:
        puller(HubReference(DEMO))
    assert (caught.value.needed_bytes, caught.value.free_bytes) == (SIZE - 1_000_000, 1_000_000)
    assert not standin.bytes_sent
    monkeypatch.setattr(store, "free_bytes", lambda: SIZE - 1_000_000)
    assert puller(HubReference(DEMO)).id == SHA256[:12]
    assert puller.kinds == ["plan", "verify", "done"]


@pytest.mark.parametrize(
    ("number", "error", "sentence"),
    [
        (errno.ENOSPC, NoSpaceError, "GB are needed"),
        (errno.EDQUOT, NoSpaceError, "GB are needed"),
        (errno.EROFS, StoreError, "cannot be written at .*: Read-only"),
    ],
)
def test_a_disk_that_refuses_on_the_way_is_told(
    puller: Puller,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: type[StoreError],
    sentence: str,
) -> None:
    def download(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(puller.hub, "download", download)
    with pytest.raises(error, match=sentence):
        puller(HubReference(DEMO))


def test_a_hub_that_fails_leaves_what_came_for_the_next_pull(
    puller: Puller, store: ModelStore, standin: HubStandin
) -> None:
    fault = standin.order("drop", where="/resolve/", at=4_000_000)
    gone = standin.order("status", where="/resolve/", times=0)

    def fail_for_good(event: PullEvent) -> None:
        gone.times = 99 * (event.kind == "retry")

    with pytest.raises(HubUnavailableError, match="4000000 of"):
        pull(HubReference(DEMO), store=store, hub=puller.hub, catalog=puller.catalog, on_event=fail_for_good)
    assert fault.times == 0
    assert store.records() == []
    assert names_in(store.root / "blobs") == []
    gone.times = 0
    puller(HubReference(DEMO))
    assert standin.bytes_sent[SHA256] == SIZE
    assert_tidy(store)


def test_who_listens_can_end_a_pull_and_the_next_goes_on(
    puller: Puller, store: ModelStore, standin: HubStandin
) -> None:
    standin.bytes_per_s = 20_000_000

    def interrupt(event: PullEvent) -> None:
        if event.kind == "progress" and event.done_bytes > 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(HubReference(DEMO), store=store, hub=puller.hub, catalog=puller.catalog, on_event=interrupt)
    assert names_in(store.root / "blobs") == []
    puller(HubReference(DEMO))
    assert puller.kinds == ["plan", "verify", "done"]
    assert standin.bytes_sent[SHA256] < 1.1 * SIZE


def test_many_pulls_of_models_with_the_same_files_transfer_each_once(
    standin: HubStandin, store: ModelStore
) -> None:
    standin.put("nexa/copy", split_files())
    names = ["nexa/copy", "nexa/split-GGUF"] * 2
    threads = [threading.Thread(target=Puller(standin, store), args=(HubReference(name),)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert standin.bytes_sent.total() == sum(map(len, split_files().values()))
    assert len(store.records()) == 2
