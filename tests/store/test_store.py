"""The store: records, blobs, removal, and that nothing is ever half there."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nexa_runtime.config import load_settings
from nexa_runtime.errors import IntegrityError, NotFoundError, StoreError, UsageError
from nexa_runtime.store.files import sha256_of
from nexa_runtime.store.records import decode_record, encode_record, record_file_name
from nexa_runtime.store.store import FileRecord, ModelRecord, ModelStore, RemovalPlan, state_dir, store_root

NOBODY = "0" * 64


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models", tmp_path / "state")


def put(store: ModelStore, content: bytes) -> FileRecord:
    """A blob as a pull would bring it."""
    sha256 = hashlib.sha256(content).hexdigest()
    with store.lock(sha256, pytest.fail):
        partial = store.partial_path(sha256)
        partial.write_bytes(content)
        assert store.adopt(partial, sha256) == store.blob_path(sha256)
    return FileRecord("model.gguf", len(content), sha256)


def record_of(name: str, *files: FileRecord, aliases: tuple[str, ...] = ()) -> ModelRecord:
    return ModelRecord(
        name=name,
        aliases=aliases,
        repo="org/repo",
        revision="a" * 40,
        quant="Q4_K_M",
        files=files,
        added_at="2026-01-02T03:04:05+00:00",
        architecture="llama",
        num_parameters=7,
        context_tokens=4096,
        license=None,
    )


def add(store: ModelStore, name: str, *contents: bytes, aliases: tuple[str, ...] = ()) -> ModelRecord:
    record = record_of(name, *(put(store, content) for content in contents), aliases=aliases)
    store.save(record)
    return record


def names_under(path: Path) -> set[str]:
    return {one.relative_to(path).as_posix() for one in path.rglob("*") if one.is_file()}


def test_a_store_that_does_not_exist_is_empty_and_stays_away(store: ModelStore, tmp_path: Path) -> None:
    assert store.records() == []
    assert store.find("any") is None
    assert not store.has_blob(NOBODY, 1)
    assert store.free_bytes() > 0
    assert store.plan_gc() == RemovalPlan((), (), 0)
    assert store.remove(store.plan_gc()) == 0
    with pytest.raises(NotFoundError, match="no model 'any'"):
        store.plan_removal("any")
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_there_once_its_record_is(store: ModelStore) -> None:
    file = put(store, b"weights")
    assert store.records() == []
    record = record_of("mistral:7b-instruct", file)
    store.save(record)
    assert store.records() == [record]
    assert [path.read_bytes() for path in store.paths(record)] == [b"weights"]
    assert (record.id, record.size_bytes) == (file.sha256[:12], 7)
    assert not os.access(store.paths(record)[0], os.W_OK) or os.geteuid() == 0
    assert store.paths(record)[0].stat().st_mode & 0o222 == 0


def test_no_record_without_its_blobs(store: ModelStore) -> None:
    with pytest.raises(IntegrityError, match="no longer in the store"):
        store.save(record_of("a", FileRecord("model.gguf", 1, NOBODY)))
    file = put(store, b"weights")
    with pytest.raises(IntegrityError):
        store.save(record_of("a", replace(file, size_bytes=8)))
    assert store.records() == []


def test_names_aliases_case_and_latest(store: ModelStore) -> None:
    first = add(store, "mistral:7b", b"1", aliases=("mistral", "other"))
    second = add(store, "Other:latest", b"2")
    assert store.find("MISTRAL:7B") == store.find("mistral") == store.find("mistral:latest") == first
    # A name goes before another's alias.
    assert store.find("other") == store.find("other:latest") == second
    assert store.find("mistral:8b") is None


def test_a_name_saved_again_replaces_the_record(store: ModelStore) -> None:
    add(store, "org/Repo:Q4_0", b"1")
    second = add(store, "org/repo:Q4_0", b"2")
    assert store.records() == [second]


def test_a_damaged_record_is_left_out_and_logged(store: ModelStore) -> None:
    good = add(store, "good", b"1")
    folder = store.root / "records"
    content = json.loads((folder / "good.json").read_text())
    damaged = {
        "empty.json": "",
        "html.json": "<html>",
        "deep.json": "[" * 100_000,
        "list.json": "[]",
        "future.json": json.dumps({**content, "name": "future", "schema": 2}),
        "renamed.json": json.dumps(content),
        "climbing.json": json.dumps(
            {**content, "name": "climbing", "files": [{"name": "x", "size_bytes": 1, "sha256": "../../etc"}]}
        ),
        "fileless.json": json.dumps({**content, "name": "fileless", "files": []}),
        "nameless.json": json.dumps({**content, "name": None}),
        "true.json": json.dumps({**content, "name": "true", "num_parameters": True}),
    }
    for name, text in damaged.items():
        (folder / name).write_text(text)
    (folder / "folder.json").mkdir()
    (folder / "binary.json").write_bytes(b"\xff\xfe\x00")
    (folder / "notes.txt").write_text("not a record")
    with capture_logs() as logs:
        assert store.records() == [good]
    assert {Path(log["path"]).name for log in logs} == {*damaged, "folder.json", "binary.json"}
    assert {log["event"] for log in logs} == {"record_damaged"}


def test_nothing_is_removed_while_a_record_cannot_be_read(store: ModelStore) -> None:
    newer, good = add(store, "org/newer", b"1"), add(store, "good", b"2")
    path = store.root / "records" / record_file_name("org/newer")
    stale = replace(store.plan_removal("good"), records=())
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 2}))
    for refused in (store.plan_gc, lambda: store.plan_removal("good"), lambda: store.remove(stale)):
        with pytest.raises(StoreError, match=r"org%2Fnewer\.json .*another version.*rm --force org/newer"):
            refused()
    assert all(store.paths(record)[0].exists() for record in (newer, good))
    plan = store.plan_unreadable("org/newer")
    assert plan is not None
    assert store.plan_unreadable("good") is None
    assert store.remove(plan) == 0
    assert not path.exists()
    assert store.plan_gc().blobs == store.paths(newer)


def test_a_removal_says_that_it_waits_for_another_writer(store: ModelStore) -> None:
    add(store, "a", b"1")
    waits: list[str] = []
    writer = FileLock(store.root / ".lock", thread_local=False)
    writer.acquire()

    def on_wait() -> None:
        waits.append("waited")
        writer.release()

    assert store.remove(store.plan_removal("a"), on_wait) == 1
    assert waits == ["waited"]


@given(st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=200))
def test_file_names_are_safe_and_differ(first: str, second: str) -> None:
    file_names = []
    for name in (first, second):
        try:
            file_name = record_file_name(name)
        except UsageError:
            assert not name.isprintable()
            return
        assert len(file_name) <= 255
        assert file_name not in (".", "..")
        assert not set(file_name) - set("abcdefghijklmnopqrstuvwxyzABCDEF0123456789._-%~")
        file_names.append(file_name)
    assert (file_names[0] == file_names[1]) == (first.lower() == second.lower())


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "x" * 201, "\u202e"])
def test_what_cannot_be_a_name(name: str) -> None:
    with pytest.raises(UsageError, match="printable"):
        record_file_name(name)


def test_names_that_try_to_climb_stay_in_the_folder(store: ModelStore, tmp_path: Path) -> None:
    for name in ("../../up", "/etc/passwd", "..", ".", "a/../b", "~", "con", "%2e%2e"):
        record = add(store, name, b"1")
        assert store.find(name) == record
    assert {path.name for path in tmp_path.iterdir()} == {"models", "state"}
    assert len(list((store.root / "records").iterdir())) == 8


def test_a_record_survives_its_json() -> None:
    record = record_of("é 7", FileRecord("a.gguf", 2**40, NOBODY), aliases=("b", "c"))
    assert decode_record(encode_record(record)) == record
    with pytest.raises(UsageError, match="cannot be kept"):
        encode_record(record_of("a"))
    with pytest.raises(UsageError, match="cannot be kept"):
        encode_record(record_of("a", FileRecord("a", 1, "A" * 64)))


@pytest.mark.parametrize("sha256", ["", "../x", "A" * 64, "0" * 63, "0" * 64 + "\n", "0" * 63 + "/"])
def test_no_path_is_made_of_what_is_no_sum(store: ModelStore, sha256: str) -> None:
    for use in (store.blob_path, store.partial_path):
        with pytest.raises(IntegrityError, match="not a SHA-256"):
            use(sha256)
    with pytest.raises(IntegrityError), store.lock(sha256):
        pass


def test_adopting_twice_is_one_adoption(store: ModelStore) -> None:
    file = put(store, b"weights")
    partial = store.partial_path(file.sha256)
    assert store.adopt(partial, file.sha256).read_bytes() == b"weights"
    assert not partial.exists()
    with pytest.raises(StoreError, match="No such file"):
        store.adopt(store.partial_path(NOBODY), NOBODY)


def test_adopting_mends_a_damaged_blob(store: ModelStore) -> None:
    record = add(store, "a", b"weights")
    damage(store, record)
    assert not store.trusted(record)
    put(store, b"weights")
    assert store.trusted(record)


def damage(store: ModelStore, record: ModelRecord, content: bytes = b"wEights") -> None:
    path = store.paths(record)[0]
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(1, 10**18))


def test_verify_tells_what_is_damaged_or_missing(store: ModelStore) -> None:
    record = add(store, "a", b"weights", b"more")
    seen: list[int] = []
    assert store.verify(record, seen.append) == []
    assert seen == [7, 11]
    damage(store, record)
    assert store.verify(record) == ["model.gguf is damaged: its bytes are not those that were recorded."]
    store.paths(record)[0].unlink()
    assert store.verify(record) == ["model.gguf is missing."]


def test_a_blob_is_hashed_once_and_again_when_it_changes(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = add(store, "a", b"weights")
    hashed = count_hashes(monkeypatch)
    # What was adopted has been verified on its way, for other processes too.
    assert store.trusted(record)
    assert ModelStore(store.root, tmp_path / "state").trusted(record)
    assert hashed == []
    unknowing = ModelStore(store.root)
    assert unknowing.trusted(record)
    assert unknowing.trusted(record)
    assert len(hashed) == 1
    os.utime(store.paths(record)[0], ns=(1, 1))
    assert store.trusted(record)
    assert len(hashed) == 2
    damage(store, record)
    assert not store.trusted(record)
    assert not ModelStore(store.root, tmp_path / "state").trusted(record)
    damage(store, record, b"shorter")
    assert not store.trusted(record)


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that the store hashes from now on."""
    hashed: list[Path] = []

    def counting(path: Path, on_progress: Callable[[int], None]) -> str:
        hashed.append(path)
        return sha256_of(path, on_progress)

    monkeypatch.setattr("nexa_runtime.store.store.sha256_of", counting)
    return hashed


@pytest.mark.parametrize("content", ["", "[]", '{"blobs": 7}', '{"blobs": {"a": [1]}}', "[" * 100_000])
def test_a_damaged_memory_of_blobs_is_forgotten(store: ModelStore, tmp_path: Path, content: str) -> None:
    record = add(store, "a", b"weights")
    (tmp_path / "state" / "verified-blobs.json").write_text(content)
    assert ModelStore(store.root, tmp_path / "state").trusted(record)


def test_where_the_state_cannot_be_written_memory_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    store = ModelStore(tmp_path / "models", tmp_path / "file" / "state")
    record = add(store, "a", b"weights")
    hashed = count_hashes(monkeypatch)
    assert store.trusted(record)
    assert hashed == []


def test_removal_frees_what_no_other_model_needs(store: ModelStore) -> None:
    first = add(store, "first", b"shared", b"own")
    second = add(store, "second", b"shared")
    plan = store.plan_removal("FIRST")
    assert plan.records == (first,)
    assert plan.blobs == (store.paths(first)[1],)
    assert plan.freed_bytes == 3
    assert store.records() == [first, second]
    assert store.remove(plan) == 3
    assert store.records() == [second]
    assert store.trusted(second)
    assert not store.paths(first)[1].exists()
    assert store.remove(plan) == 0


def test_a_blob_that_came_into_use_after_the_plan_stays(store: ModelStore) -> None:
    first = add(store, "first", b"weights")
    plan = store.plan_removal("first")
    second = add(store, "second", b"weights")
    assert store.remove(plan) == 0
    assert store.records() == [second]
    assert store.trusted(first)


def test_gc_leaves_only_models(store: ModelStore) -> None:
    record = add(store, "kept", b"weights")
    orphan = put(store, b"orphan")
    partial = store.partial_path(NOBODY)
    partial.write_bytes(b"half")
    (store.root / "records" / ".cut-off.tmp").write_bytes(b"{")
    (store.root / "blobs" / "notes.txt").write_text("not ours")
    plan = store.plan_gc()
    assert plan.blobs == (store.blob_path(orphan.sha256),)
    assert partial in plan.leftovers
    assert plan.freed_bytes == 6 + 4 + 1
    assert store.remove(plan) == plan.freed_bytes
    assert store.records() == [record]
    kept = f"blobs/sha256-{record.files[0].sha256}"
    assert names_under(store.root) == {kept, "blobs/notes.txt", "records/kept.json", ".lock"}
    assert store.plan_gc() == RemovalPlan((), (), 0)


def test_gc_keeps_what_a_transfer_works_on(store: ModelStore) -> None:
    orphan = put(store, b"first of two files")
    partial = store.partial_path(NOBODY)
    stale = store.plan_gc()
    assert stale.blobs
    with store.lock(orphan.sha256), store.lock(NOBODY):
        partial.write_bytes(b"half")
        plan = store.plan_gc()
        assert plan == RemovalPlan((), (), 0)
        # Nor does a plan from before the locks.
        assert store.remove(replace(stale, leftovers=(partial,))) == 0
        assert partial.exists()
    assert store.plan_gc().freed_bytes == 18 + 4


def test_a_lock_is_waited_for_and_its_owner_may_die(store: ModelStore, tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom nexa_runtime.store.store import ModelStore\n"
        "with ModelStore(Path(sys.argv[1])).lock('0' * 64):\n"
        "    print('held', flush=True)\n    time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(store.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        waits: list[str] = []

        def on_wait() -> None:
            waits.append("waited")
            holder.kill()

        with store.lock(NOBODY, on_wait):
            assert waits == ["waited"]
    with pytest.raises(KeyError), store.lock(NOBODY):
        raise KeyError
    with store.lock(NOBODY, pytest.fail):
        pass


def test_waiting_ends_with_what_on_wait_raises(store: ModelStore) -> None:
    def give_up() -> None:
        raise InterruptedError("enough")

    with store.lock(NOBODY), pytest.raises(InterruptedError, match="enough"), store.lock(NOBODY, give_up):
        pass


def test_readers_see_whole_records_while_a_writer_works(store: ModelStore) -> None:
    record = add(store, "a", b"weights")
    versions = {replace(record, added_at=str(number)) for number in range(200)}
    is_done = threading.Event()
    seen: set[ModelRecord] = set()

    def read() -> None:
        while not is_done.is_set():
            seen.update(ModelStore(store.root).records())

    with capture_logs() as logs:
        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for version in versions:
            store.save(version)
        is_done.set()
        for reader in readers:
            reader.join()
    assert seen <= {record, *versions}
    assert logs == []


@pytest.fixture
def read_only(store: ModelStore) -> Iterator[ModelStore]:
    """A store that even its owner cannot write; root can, which the tests then look past."""
    add(store, "a", b"weights")
    folders = [store.root, *(path for path in store.root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    yield store
    for folder in folders:
        folder.chmod(0o755)


def test_a_store_that_can_only_be_read_is_read(read_only: ModelStore) -> None:
    before = names_under(read_only.root)
    reader = ModelStore(read_only.root)
    record = reader.find("a")
    assert record is not None
    assert reader.trusted(record)
    assert reader.verify(record) == []
    assert reader.free_bytes() > 0
    assert reader.plan_removal("a").freed_bytes == 7
    assert names_under(read_only.root) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_store_that_can_only_be_read_says_so_to_writers(read_only: ModelStore) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        read_only.save(replace(read_only.records()[0], name="b"))
    with pytest.raises(StoreError, match="cannot be written"):
        read_only.remove(read_only.plan_removal("a"))


def test_a_root_that_is_a_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ModelStore(tmp_path / "file")
    with pytest.raises(StoreError, match="cannot be read"):
        store.records()
    with pytest.raises(StoreError, match="cannot be written"), store.lock(NOBODY):
        pass


def test_where_the_settings_have_the_store(tmp_path: Path) -> None:
    given = load_settings({"NEXA_MODEL_STORE": "~/models", "NEXA_STATE_DIR": str(tmp_path)}).store
    assert store_root(given) == Path.home() / "models"
    assert state_dir(given) == tmp_path
    unset = given.model_copy(update={"model_store": None, "state_dir": None})
    assert store_root(unset).parts[-2:] == ("nexa-runtime", "models")
    assert state_dir(unset).name == "nexa-runtime"


def test_the_store_imports_neither_llama_nor_numpy() -> None:
    code = (
        "import sys, nexa_runtime.store.store, nexa_runtime.store.catalog\n"
        "bad = ('llama_cpp', 'numpy', 'nexa_runtime.llama', 'nexa_runtime.engine', 'nexa_runtime.serving')\n"
        "sys.exit(', '.join(name for name in bad if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
