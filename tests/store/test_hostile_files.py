"""Files that are built to do harm, on every way in: each is refused with a reason, and the server answers on.

One server runs throughout. Each file comes by its pull, by a pull and an import of the commands, and lies in
its store under a record as if nobody had looked. Some are refused by what their header says, one by its hash;
those with a good header, by the process that tries a file before the server loads it.
"""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from nexa_runtime.errors import IntegrityError
from nexa_runtime.store.importing import import_file
from nexa_runtime.store.records import FileRecord, ModelRecord
from nexa_runtime.store.store import ModelStore
from tests.hub_models import names_in
from tests.hub_standin import HubStandin
from tests.store.hostile import DEMO_PATH, HOSTILE_FILES, write_bombs
from tests.support import EventStream, LiveServer, free_settings

DEMO = DEMO_PATH.read_bytes()

BAD_HEADERS = [
    "truncated in the counts",
    "truncated in the metadata",
    "truncated in the weights",
    "of 2^63 tensors",
    "of 2^64-1 metadata entries",
    "with a text of 2^62 bytes",
    "of version 99",
    "with a tensor outside the file",
    "of no bytes",
    "a web page",
    "of another magic",
]
FLIPPED = "with a flipped byte"
BOMBS = {
    "with a template bomb": "a text or list longer than",
    "with nested template loops": "steps",
    "with a slow template": "characters",
    "with a growing template": "characters",
    "that ends the process": "ended the process that tried",
}


def slug(name: str) -> str:
    """What a model may be called."""
    return re.sub("[^a-z0-9]+", "-", name.lower())


def repo_of(name: str) -> str:
    """Where the hub has a file."""
    return f"hostile/{slug(name)}"


class Box:
    """A server that runs, its store, and a hub that has nothing good."""

    def __init__(self, folder: Path) -> None:
        self.files = {name: folder / f"{index}.gguf" for index, name in enumerate(BAD_HEADERS)}
        for name, path in self.files.items():
            path.write_bytes(HOSTILE_FILES[name][0])
        self.files |= write_bombs(folder)
        self.hub = HubStandin()
        for name, path in self.files.items():
            self.hub.put(repo_of(name), {"model-Q4_K_M.gguf": path.read_bytes()})
        self.hub.put(repo_of(FLIPPED), {"model-Q4_K_M.gguf": DEMO})
        self.hub.order("flip", where=f"{repo_of(FLIPPED)}/resolve", at=len(DEMO) - 1000, times=math.inf)
        self.store = ModelStore(folder / "store")
        settings = {
            "NEXA_MODEL_STORE": str(self.store.root),
            "NEXA_STATE_DIR": str(folder / "state"),
            "NEXA_CTX_SIZE": 2048,
            "HF_ENDPOINT": self.hub.url,
            "HF_HUB_OFFLINE": "0",
        }
        self.server = LiveServer(free_settings(**settings))

    def close(self) -> None:
        self.server.stop()
        self.hub.close()

    def ask(self, model: str) -> httpx.Response:
        return self.server.chat("What is the capital of France?", model=model, temperature=0)

    def refusal_of(self, model: str) -> tuple[int, str, str]:
        """Status, code and sentence of a chat that names a model."""
        response = self.ask(model)
        error = response.json()["error"]
        return response.status_code, error["code"], error["message"]

    def pull(self, name: str) -> Any:
        """The last word of a pull by the server."""
        body = {"model": repo_of(name)}
        with self.server.http.stream("POST", "/admin/models/pull", json=body) as response:
            if response.status_code != 200:
                return json.loads(response.read())
            *_, last = EventStream(response).events()
            return last

    def assert_well(self) -> None:
        """The server answers and lists nothing but its own model; the store holds nothing that counts."""
        answer = self.ask("demo").json()["choices"][0]["message"]["content"]
        assert answer == "The capital of France is Paris."
        assert [model["id"] for model in self.server.http.get("/v1/models").json()["data"]] == ["demo"]
        assert self.store.records() == []
        assert names_in(self.store.root / "blobs") == []
        assert [name for name in names_in(self.store.root / "partial") if name.endswith(".partial")] == []

    @contextmanager
    def removing(self, model: str) -> Iterator[str]:
        """A model of the store is removed at the end."""
        try:
            yield model
        finally:
            self.store.remove(self.store.plan_removal(model))

    @contextmanager
    def holding(self, name: str, content: bytes, *, sha256: str | None = None) -> Iterator[str]:
        """A file lies in the store under a record, as if nobody had looked at it; the model's name."""
        sha256 = sha256 or hashlib.sha256(content).hexdigest()
        blob = self.store.blob_path(sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        file = FileRecord("model.gguf", len(content), sha256)
        record = ModelRecord(
            name=slug(name), aliases=(), repo=None, revision=None, quant=None, files=(file,),
            added_at="2026-01-01T00:00:00+00:00", architecture="llama", num_parameters=1,
            context_tokens=4096, license=None,
        )  # fmt: skip
        self.store.save(record)
        with self.removing(record.name) as model:
            yield model


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"))
    yield box
    box.close()


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_bad_header_is_refused_on_every_way_in(box: Box, name: str) -> None:
    reason = HOSTILE_FILES[name][1]
    error = box.pull(name)["error"]
    assert error["code"] == "integrity"
    assert ("gives no size" if name == "of no bytes" else reason) in error["message"]
    box.assert_well()
    with pytest.raises(IntegrityError, match=reason):
        import_file(box.files[name], store=box.store, name="hostile")
    box.assert_well()


def test_a_flipped_byte_is_found_by_the_hash(box: Box) -> None:
    error = box.pull(FLIPPED)["error"]
    assert error["code"] == "integrity"
    assert "came damaged twice" in error["message"]
    box.assert_well()
    damaged = bytearray(DEMO)
    damaged[-1000] ^= 1
    with box.holding(FLIPPED, bytes(damaged), sha256=hashlib.sha256(DEMO).hexdigest()) as model:
        status, code, sentence = box.refusal_of(model)
        assert (status, code) == (503, "model_load_failed")
        assert "not those that were pulled" in sentence
        (record,) = box.store.records()
        assert "damaged" in box.store.verify(record)[0]
    box.assert_well()


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_with_a_good_header_is_refused_by_its_trial(box: Box, name: str) -> None:
    """A pull and an import take it: nothing is wrong with its bytes. Nobody gets to run it."""
    assert box.pull(name) == "[DONE]"
    with box.removing(repo_of(name)) as model:
        status, code, sentence = box.refusal_of(model)
        assert (status, code) == (503, "model_load_failed")
        assert BOMBS[name] in sentence
        assert str(box.store.root) not in sentence
        assert box.ask("demo").status_code == 200
    box.assert_well()
    # What was found out about a file is known by its hash, whatever its name.
    import_file(box.files[name], store=box.store, name=slug(name))
    with box.removing(slug(name)) as model:
        assert BOMBS[name] in box.refusal_of(model)[2]


def test_a_good_file_in_the_place_of_a_bad_one_is_served(box: Box) -> None:
    import_file(box.files["that ends the process"], store=box.store, name="mine")
    with box.removing("mine"):
        assert box.refusal_of("mine")[1] == "model_load_failed"
    import_file(DEMO_PATH, store=box.store, name="mine")
    with box.removing("mine"):
        assert box.ask("mine").status_code == 200
        assert box.server.http.post("/admin/models/mine/unload").status_code == 200
    box.assert_well()


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_bad_header_under_a_record_is_not_served(box: Box, name: str) -> None:
    with box.holding(name, HOSTILE_FILES[name][0]) as model:
        assert box.refusal_of(model)[:2] == (404, "model_not_found")
        assert box.server.http.post(f"/admin/models/{model}/load").status_code == 404
    box.assert_well()


def test_the_commands_end_with_6(box: Box, tmp_path: Path) -> None:
    """And the server, which reads the same store, answers meanwhile."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("NEXA_", "HF_"))} | {
        "NEXA_MODEL_STORE": str(box.store.root),
        "NEXA_STATE_DIR": str(tmp_path),
        "HF_ENDPOINT": box.hub.url,
    }
    calls = [["pull", repo_of(name)] for name in (*BAD_HEADERS, FLIPPED)]
    calls += [[verb, str(box.files[name])] for verb in ("import", "probe") for name in BAD_HEADERS]
    calls += [["probe", str(box.files[name])] for name in BOMBS]
    # One process for all: to start one for each takes longer than all else here.
    with subprocess.Popen(
        [sys.executable, "-c", _RUN_COMMANDS, json.dumps(calls)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        while process.poll() is None:
            assert box.ask("demo").status_code == 200
        codes, talk = process.communicate(timeout=60)
    assert json.loads(codes) == [6] * len(calls), talk
    assert "Traceback" not in talk
    sentences = [line for line in talk.splitlines() if line.startswith("nexa-runtime: ")]
    assert len(sentences) == len(calls)
    box.assert_well()


_RUN_COMMANDS = """
import json, sys
from nexa_runtime.cli.entry import main
codes = []
for call in json.loads(sys.argv[1]):
    sys.argv = ["nexa-runtime", *call]
    try:
        main()
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps(codes))
"""
