"""What the library lists while the store changes under it."""

from pathlib import Path

import pytest

from nexa_runtime.config import load_settings
from nexa_runtime.errors import IntegrityError
from nexa_runtime.serving import library as library_module
from nexa_runtime.serving.library import DEMO_PATH, Library
from nexa_runtime.store.catalog import Catalog
from nexa_runtime.store.gguf import GgufHeader, read_header
from nexa_runtime.store.importing import import_file
from nexa_runtime.store.store import ModelStore
from tests.hub_models import split_files
from tests.support import copy_model


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def library_of(store: ModelStore, **settings: object) -> Library:
    loaded = load_settings(settings)
    return Library(loaded.model, loaded.pool, store, Catalog())


def ids(library: Library) -> list[str]:
    return [source.id for source in library.sources()]


def test_only_headers_of_models_that_are_new_or_changed_are_read(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def reading(path: Path) -> GgufHeader:
        read.append(path)
        return read_header(path)

    one = import_file(copy_model(tmp_path / "one.gguf", name="one"), store=store, name="one")
    library = library_of(store)
    monkeypatch.setattr(library_module, "read_header", reading)
    assert ids(library) == ["demo", "one"]
    two = import_file(copy_model(tmp_path / "two.gguf", name="two"), store=store, name="two")
    assert ids(library) == ["demo", "one", "two"]
    assert read == [*store.paths(one), *store.paths(two)]


def test_a_blob_that_was_missing_and_is_brought_again_is_seen(store: ModelStore, tmp_path: Path) -> None:
    record = import_file(DEMO_PATH, store=store, name="one")
    blob = store.paths(record)[0]
    library = library_of(store, NEXA_MODEL_ID="one")
    before = library.default
    data = blob.read_bytes()
    blob.unlink()
    assert ids(library) == []
    assert "nexa-runtime verify one, then nexa-runtime pull one" in library.missing_reason()
    blob.write_bytes(data)
    assert ids(library) == ["one"]
    assert library.default != before  # whoever failed to load it may try again


def test_names_are_those_of_the_store(store: ModelStore) -> None:
    import_file(DEMO_PATH, store=store, name="Llama3")
    library = library_of(store)
    for name in ("llama3", "LLAMA3:latest", "Llama3:LATEST"):
        found, record = library.find(name), store.find(name)
        assert found is not None
        assert record is not None
        assert found.record == record
    assert library.find("llama3:8b") is None
    served = library_of(store, NEXA_SERVED_NAMES="llama3")
    assert served.find("llama3:latest") == served.default  # what the owner says comes first


def test_a_model_of_the_store_does_not_take_the_defaults_name(store: ModelStore, tmp_path: Path) -> None:
    import_file(DEMO_PATH, store=store, name="One")
    default = copy_model(tmp_path / "one.gguf")
    library = library_of(store, NEXA_MODEL_ID=str(default))
    assert [source.paths for source in library.sources()] == [(default,)]


def test_the_digest_is_of_all_parts(store: ModelStore, tmp_path: Path) -> None:
    for model, extra in (("good", b""), ("bad", b"\0")):
        folder = tmp_path / model
        folder.mkdir()
        for name, data in split_files().items():
            (folder / name).write_bytes(data)
        first, *_, last = sorted(folder.iterdir())
        last.write_bytes(last.read_bytes() + extra)
        import_file(first, store=store, name=model)
    bad, good = library_of(store).sources()[1:]
    assert bad.paths[0] == good.paths[0]
    assert bad.digest != good.digest


def test_a_header_that_could_not_be_read_is_read_again(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_file(DEMO_PATH, store=store, name="one")

    def refuse(path: Path) -> GgufHeader:
        raise IntegrityError("the disk has a moment")

    library = library_of(store)
    monkeypatch.setattr(library_module, "read_header", refuse)
    assert ids(library) == ["demo"]
    monkeypatch.setattr(library_module, "read_header", read_header)
    monkeypatch.setattr(library_module, "_RETRY_S", 0)
    assert ids(library) == ["demo", "one"]
