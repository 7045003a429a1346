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
    assert import_file(DEMO_PATH, store=store) == record
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
        import_file([first, second], store=store)
    second.unlink()
    with pytest.raises(NotFoundError, match="00002-of-00003"):
        import_file(first, store=store)


def test_what_cannot_be_imported_is_told_and_leaves_nothing(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.gguf"
    page.write_bytes(b"<html>")
    with pytest.raises(IntegrityError, match=r"page\.gguf"):
        import_file(page, store=store)
    with pytest.raises(NotFoundError, match="There is no file"):
        import_file(tmp_path / "nothing.gguf", store=store)
    with pytest.raises(UsageError, match="is no file"):
        import_file(tmp_path, store=store)
    with pytest.raises(UsageError, match="No file was given"):
        import_file([], store=store)
    monkeypatch.setattr(store, "free_bytes", lambda: SIZE - 1)
    with pytest.raises(NoSpaceError):
        import_file(DEMO_PATH, store=store)
    assert not store.root.exists()
