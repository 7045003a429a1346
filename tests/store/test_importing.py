"""Imports end in a whole model or in none."""

from pathlib import Path

import pytest

from nexa_runtime.errors import IntegrityError, NoSpaceError, NotFoundError, UsageError
from nexa_runtime.store.pull import PullEvent, import_file
from nexa_runtime.store.store import ModelStore
from tests.hub_models import DEMO_PATH, SHA256, SIZE, assert_tidy, demo_bytes, split_files


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models", tmp_path / "state")


def test_an_import_copies_a_file_under_its_own_name(store: ModelStore, tmp_path: Path) -> None:
    events: list[PullEvent] = []
    record = import_file(DEMO_PATH, store=store, on_event=events.append)
    assert (record.name, record.repo, record.quant, record.id) == ("nexa-demo", None, "F16", SHA256[:12])
    assert [path.read_bytes() for path in store.paths(record)] == [demo_bytes()]
    assert DEMO_PATH.exists()
    assert (events[-1].kind, events[-1].text) == ("done", "nexa-demo: imported")
    assert import_file([DEMO_PATH], store=store, name="other").name == "other"
    assert import_file(DEMO_PATH, store=store, on_event=events.append) == record
    assert events[-1].text == "nexa-demo: in the store already, and the same"
    assert [one.name for one in store.records()] == ["nexa-demo", "other"]
    assert_tidy(store)


def test_the_first_part_of_a_split_model_brings_the_others(store: ModelStore, tmp_path: Path) -> None:
    for name, data in split_files().items():
        (tmp_path / name).write_bytes(data)
    first, second, _ = (tmp_path / name for name in split_files())
    record = import_file(first, store=store)
    assert (record.name, len(record.files)) == ("nexa-split", 3)
    assert_tidy(store)
    with pytest.raises(IntegrityError, match="says that it is part"):
        import_file([first, second], store=store, name="half")
    second.unlink()
    with pytest.raises(NotFoundError, match="00002-of-00003"):
        import_file(first, store=store)


def test_a_name_that_is_taken_is_refused_unless_forced(store: ModelStore, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(demo_bytes(1))
    record = import_file(DEMO_PATH, store=store, name="mine")
    for name in ("mine", "MINE", "mine:latest"):
        with pytest.raises(UsageError, match=r"another model in the store; --name .*, --force"):
            import_file(other, store=store, name=name)
    assert store.records() == [record]
    assert len(list((store.root / "blobs").iterdir())) == 1
    replaced = import_file(other, store=store, name="mine", is_forced=True)
    assert store.records() == [replaced]
    assert replaced.id != record.id


def test_the_same_file_mends_a_damaged_model(store: ModelStore) -> None:
    record = import_file(DEMO_PATH, store=store, name="mine")
    (blob,) = store.paths(record)
    blob.chmod(0o644)
    blob.write_bytes(b"x" * SIZE)
    assert import_file(DEMO_PATH, store=store, name="mine").id == record.id
    assert blob.read_bytes() == demo_bytes()


@pytest.mark.parametrize(
    "name", ["", " ", " a", "../x", "./x", "/x", "~x", "x.gguf", "x.GGUF", "a\nb", "x" * 201, "Demo"]
)
def test_a_name_that_nobody_could_ask_for_is_refused(store: ModelStore, name: str) -> None:
    with pytest.raises(UsageError, match=r"name|model that comes with"):
        import_file(DEMO_PATH, store=store, name=name)
    assert not store.root.exists()


def test_what_cannot_be_imported_is_told_and_leaves_nothing(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.gguf"
    page.write_bytes(b"<html>")
    with pytest.raises(IntegrityError, match=r"page\.gguf"):
        import_file(page, store=store)
    with pytest.raises(NotFoundError, match="There is no file"):
        import_file(tmp_path / "nothing.gguf", store=store)
    for folder in (tmp_path, Path(), Path("/")):
        with pytest.raises(UsageError, match="is no file"):
            import_file(folder, store=store)
    with pytest.raises(NotFoundError, match="There is no file xxx"):
        import_file(Path("x" * 5000), store=store)
    with pytest.raises(UsageError, match="No file was given"):
        import_file([], store=store)
    monkeypatch.setattr(store, "free_bytes", lambda: SIZE - 1)
    with pytest.raises(NoSpaceError):
        import_file(DEMO_PATH, store=store)
    assert not store.root.exists()
