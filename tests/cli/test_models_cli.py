"""The commands of the model store, as a person runs them, against a store and a hub of their own."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nexa_runtime.cli import output as words
from nexa_runtime.cli.entry import _sentence, exit_code
from nexa_runtime.errors import NexaError, NoSpaceError
from nexa_runtime.store.importing import import_file
from nexa_runtime.store.store import ModelRecord, ModelStore
from tests.hub_models import DEMO_PATH, demo_bytes, demo_hub
from tests.hub_standin import HubStandin
from tests.support import wait_until

NEXA = Path(sys.executable).with_name("nexa-runtime")
NOBODY = "http://127.0.0.1:9"


class Person:
    """Somebody at a terminal, with a store, and a hub that may be gone."""

    def __init__(self, folder: Path, hub_url: str = NOBODY) -> None:
        self.store = folder / "store"
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith(("NEXA_", "HF_"))
        } | {
            "NEXA_MODEL_STORE": str(self.store),
            "NEXA_STATE_DIR": str(folder / "state"),
            "NEXA_URL": NOBODY,
            "HF_ENDPOINT": hub_url,
        }

    def runs(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [NEXA, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env=self.env | dict(env or {}),
            check=False,
        )

    def gets(self, *arguments: str, status: int = 0, env: Mapping[str, str] | None = None) -> Any:
        """What a command says with ``--json``."""
        done = self.runs(*arguments, "--json", env=env)
        assert (done.returncode, done.stderr) == (status, "")
        return json.loads(done.stdout)

    def fails(self, status: int, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        """The sentence of a command that ends with ``status``."""
        error = self.gets(*arguments, status=status, env=env)["error"]
        assert error["exit_code"] == status
        return str(error["message"])

    def has_demo(self, name: str = "toy") -> ModelRecord:
        """The demo model was imported earlier."""
        return import_file(DEMO_PATH, store=ModelStore(self.store), name=name)

    def blobs(self) -> list[Path]:
        return sorted((self.store / "blobs").glob("*"))


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


@pytest.fixture
def hub() -> Iterator[HubStandin]:
    with demo_hub() as standin:
        yield standin


@pytest.fixture
def puller(tmp_path: Path, hub: HubStandin) -> Person:
    return Person(tmp_path, hub.url)


def test_a_store_that_does_not_exist_is_empty_and_is_not_made(person: Person) -> None:
    assert person.gets("list") == {"models": []}
    assert person.gets("verify") == {"models": []}
    assert person.gets("gc")["removed"] == []
    assert not person.store.exists()


def test_import_list_show_verify_and_rm(person: Person) -> None:
    brought = person.runs("import", str(DEMO_PATH), "--name", "toy")
    assert (brought.returncode, brought.stdout.split()[0]) == (0, "toy")
    listed = person.runs("list").stdout.splitlines()
    assert listed[0].split() == ["NAME", "ID", "SIZE", "MODIFIED", "QUANT", "CONTEXT"]
    (record,) = person.gets("list")["models"]
    assert listed[1].startswith(f"toy   {record['id']}  6.17 MB")
    assert listed[1].endswith("4096")
    assert person.runs("list", "--quiet").stdout == "toy\n"
    assert "good" in person.runs("verify", "toy").stdout
    removed = person.runs("rm", "toy")
    assert (removed.returncode, removed.stdout) == (0, "removed toy\n")
    assert "6.17 MB will be freed" in removed.stderr
    assert person.gets("list") == {"models": []}
    assert person.blobs() == []


def test_show_says_what_a_model_is_and_what_memory_it_takes(person: Person) -> None:
    person.has_demo()
    shown = person.runs("show", "toy").stdout
    for name in ("architecture", "parameters", "quantisation", "context", "template", "licence", "memory"):
        assert name in shown
    assert "template      yes: {%-" in shown
    model = person.gets("show", "toy", "--ctx-size", "2048", "--slots", "2")["model"]
    assert (model["architecture"], model["context_tokens"], model["has_chat_template"]) == (
        "llama",
        4096,
        True,
    )
    assert (model["memory"]["slots"], model["memory"]["kv_cells"]) == (2, 2048)
    more = person.gets("show", "toy", "--slots", "2")["model"]["memory"]
    assert more["kv_cells"] == 2 * 4096
    assert more["bytes"] > model["memory"]["bytes"] > model["size_bytes"]


def test_the_catalog_says_who_was_verified_and_what_is_here(person: Person) -> None:
    person.has_demo("qwen2:7b")
    models = {model["name"]: model for model in person.gets("list", "--catalog")["models"]}
    assert len(models) >= 20
    assert models["qwen2:7b"]["stored"]
    assert not models["llama3:70b"]["stored"]
    assert {type(model["verified"]) for model in models.values()} == {bool}
    assert "VERIFIED" in person.runs("list", "--catalog").stdout.splitlines()[0]


def test_damage_is_exit_code_6_and_named(person: Person) -> None:
    person.has_demo()
    (blob,) = person.blobs()
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(5_000_000)
        byte = file.read(1)
        file.seek(5_000_000)
        file.write(bytes([byte[0] ^ 1]))
    found = person.runs("verify")
    assert (found.returncode, "toy: " in found.stdout, "damaged" in found.stdout) == (6, True, True)
    document = person.gets("verify", "toy", status=6)
    assert document["error"]["exit_code"] == 6
    assert document["models"][0]["problems"]


def test_gc_removes_what_no_model_needs(person: Person) -> None:
    person.has_demo()
    (blob,) = person.blobs()
    for record in (person.store / "records").iterdir():
        record.unlink()
    planned = person.gets("gc", "--dry-run")
    assert f"blobs/{blob.name}" in planned["removed"]
    assert (planned["freed_bytes"], planned["dry_run"], blob.exists()) == (6_168_960, True, True)
    assert "6.17 MB freed" in person.runs("gc").stdout
    assert not blob.exists()
    assert person.runs("gc").stdout == "Nothing to remove.\n"


def test_a_record_that_cannot_be_read_is_given_up_by_force(person: Person) -> None:
    person.has_demo()
    (path,) = (person.store / "records").iterdir()
    path.write_text("{}")
    for command in (["gc"], ["rm", "toy"]):
        assert "rm --force toy" in person.fails(1, *command)
    assert person.gets("rm", "toy", "--force")["removed"] == [{"name": "toy", "id": None, "freed_bytes": 0}]
    person.gets("gc")
    assert person.blobs() == []


def test_a_store_that_cannot_be_written_is_not_a_full_disk(person: Person) -> None:
    env = {"NEXA_MODEL_STORE": "/proc/x"}
    assert "cannot be written at /proc/x" in person.fails(1, "import", str(DEMO_PATH), env=env)


def test_a_dry_run_of_rm_removes_nothing(person: Person) -> None:
    person.has_demo()
    assert person.gets("rm", "toy", "--dry-run")["removed"][0]["freed_bytes"] == 6_168_960
    assert person.runs("list", "-q").stdout == "toy\n"


def test_rm_keeps_what_another_model_shares(person: Person) -> None:
    person.has_demo("one")
    person.has_demo("two")
    assert person.gets("rm", "one")["removed"][0]["freed_bytes"] == 0
    assert "good" in person.runs("verify", "two").stdout


@pytest.mark.parametrize(
    ("status", "arguments", "said"),
    [
        (3, ["show", "nope"], '"nope" is not in the store'),
        (3, ["rm", "nope"], '"nope" is not in the store'),
        (3, ["verify", "nope"], '"nope" is not in the store'),
        (3, ["import", "/none/x.gguf"], "/none/x.gguf"),
        (3, ["import", "x" * 5000], "There is no file xxx"),
        (2, ["import", ""], "is no file"),
        (2, ["import", "/"], "is no file"),
        (2, ["import", str(DEMO_PATH), "--name", ""], "name"),
        (2, ["import", str(DEMO_PATH), "--name", "../x"], "name"),
        (2, ["pull", ""], "No model is named"),
        (2, ["pull", "org/../x"], "org/repo:QUANT"),
        (2, ["pull", "x" * 5000], "1000"),
        (3, ["show", "llama3:70b"], "nexa-runtime pull llama3:70b"),
        (3, ["show", ""], "nothing yet"),
        (3, ["run", "lama3", "hi"], "did you mean llama3"),
        (3, ["run", "org/repo", "hi"], '"org/repo" is not in the store; bring it with: nexa-runtime pull'),
        (3, ["run", "./none.gguf", "hi"], "There is no file none.gguf"),
        (6, ["run", __file__, "hi"], "not a GGUF file"),
        (2, ["run", "", "hi"], "No model is named"),
        (2, ["run", "demo"], "--json needs a question"),
        (3, ["probe", "/none/x.gguf"], "/none/x.gguf"),
        (2, ["probe", "/"], "is no file"),
        (3, ["probe", "~nosuchuser/x.gguf"], "~nosuchuser/x.gguf"),
        (6, ["probe", __file__], "not a GGUF file"),
        (6, ["import", __file__], "not a GGUF file"),
        (2, ["pull", str(DEMO_PATH)], f"nexa-runtime import {DEMO_PATH}"),
        (2, ["pull", "./none.gguf"], "nexa-runtime import ./none.gguf"),
        (2, ["pull", "org/repo:Q4:K"], "org/repo:QUANT"),
        (2, ["pull", "org/repo", "--revision", "../x"], "--revision"),
        (3, ["pull", "lama3"], "llama3"),
        (1, ["ps"], "gave no answer"),
    ],
)
def test_what_cannot_be_done_has_its_exit_code(
    person: Person, status: int, arguments: list[str], said: str
) -> None:
    assert said in person.fails(status, *arguments)


def test_what_was_perhaps_meant_is_said(person: Person) -> None:
    person.has_demo("qwen-small")
    for arguments in (
        ["show", "qwen-smal"],
        ["rm", "qwen"],
        ["verify", "quen-small"],
        ["run", "qwen_small", "hi"],
    ):
        assert "did you mean qwen-small?" in person.fails(3, *arguments)


def test_an_answer_is_one_document(person: Person) -> None:
    person.has_demo()
    answer = person.gets("run", "toy", "What is the capital of France?")
    seconds = answer.pop("seconds")
    assert answer == {
        "model": "toy",
        "text": "The capital of France is Paris.",
        "finish_reason": "stop",
        "usage": answer["usage"],
    }
    assert answer["usage"]["prompt_tokens"] > answer["usage"]["completion_tokens"] > 0
    assert seconds > 0


def test_a_damaged_model_is_not_run(person: Person) -> None:
    person.has_demo()
    (blob,) = person.blobs()
    blob.chmod(0o644)
    content = bytearray(blob.read_bytes())
    content[5_000_000] ^= 1
    blob.write_bytes(content)
    assert "nexa-runtime verify" in person.fails(6, "run", "toy", "hi")
    blob.write_bytes(b"GGUF")
    assert "nexa-runtime verify" in person.fails(6, "run", "toy", "hi")


def test_a_probe_says_that_a_file_can_be_served(person: Person) -> None:
    assert person.gets("probe", str(DEMO_PATH)) == {"files": [str(DEMO_PATH)], "can_be_served": True}
    assert person.runs("probe", str(DEMO_PATH)).stdout == "nexa-demo.gguf can be served.\n"


def test_an_import_takes_no_other_model_s_name(person: Person, tmp_path: Path) -> None:
    person.has_demo()
    other = tmp_path / "other.gguf"
    other.write_bytes(demo_bytes(1))
    assert "--force" in person.fails(2, "import", str(other), "--name", "toy")
    again = person.runs("import", str(DEMO_PATH), "--name", "toy")
    assert (again.returncode, "in the store already" in again.stderr) == (0, True)
    replaced = person.gets("import", str(other), "--name", "toy", "--force")["model"]
    assert person.gets("list")["models"] == [replaced]


def test_a_sentence_never_steers_the_terminal(person: Person) -> None:
    assert "\x1b" not in person.runs("show", "a\x1b[2Jb").stderr


def test_an_error_is_one_sentence_on_stderr(person: Person) -> None:
    done = person.runs("show", "nope")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"nexa-runtime: {person.fails(3, 'show', 'nope')}\n"


def test_offline_is_exit_code_7(person: Person) -> None:
    assert "HF_HUB_OFFLINE" in person.fails(7, "pull", "org/repo", env={"HF_HUB_OFFLINE": "1"})


def test_wrong_usage_is_a_document_too(person: Person) -> None:
    for arguments in (["pull"], ["list", "--colour"], ["show", "a", "b"], ["nothing"]):
        error = person.gets(*arguments, status=2)["error"]
        assert error["code"] == "usage"


def test_a_setting_that_is_wrong_is_a_document_too(person: Person) -> None:
    assert "NEXA_PORT" in person.fails(1, "list", env={"NEXA_PORT": "70000"})


def test_a_name_that_would_steer_the_terminal_is_shown_escaped() -> None:
    assert words.clean("a\x1b[2Jb\x9b\udce4\n") == r"a\x1b[2Jb\x9b\udce4\n"
    assert words.table(("A", "B"), [("x", "\x07")], right=(1,)) == "A     B\nx  \\x07"


def test_numbers_and_ages_are_short() -> None:
    sizes = [words.format_bytes(number) for number in (0, 999, 1000, 6_168_960, 999_999, 43_700_000_000)]
    assert sizes == ["0 B", "999 B", "1.00 kB", "6.17 MB", "1.00 MB", "43.7 GB"]
    assert words.format_count(7_620_000_000) == "7.62 B"
    now = datetime(2026, 1, 2, tzinfo=UTC)
    ages = [words.format_age(text, now) for text in ("2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00", "?")]
    assert ages == ["1 day ago", "just now", "?"]


def test_every_error_ends_with_its_exit_code() -> None:
    assert exit_code(NoSpaceError(Path("/"), 2, 1)) == 5
    assert exit_code(NexaError()) == 1


def test_a_full_disk_is_told_in_units_that_say_something() -> None:
    sentence = _sentence(NoSpaceError(Path("/"), 6_168_960, 5_999_000))
    assert sentence == "/ has 6.00 MB free, and 6.17 MB are needed."


# Pulls.


def test_pulls_of_every_kind(puller: Person) -> None:
    quant = puller.gets("pull", "nexa/demo-GGUF:Q8_0")["model"]
    assert (quant["repo"], quant["quant"], len(quant["revision"])) == ("nexa/demo-GGUF", "Q8_0", 40)
    split = puller.gets("pull", "nexa/split-GGUF")["model"]
    assert len(split["files"]) == 3
    tagged = puller.gets("pull", "nexa/demo-GGUF:Q8_0", "--revision", "v1")["model"]
    assert tagged["id"] != quant["id"]
    assert len(puller.gets("list")["models"]) == 3
    shown = puller.gets("show", "nexa/split-GGUF")["model"]
    assert shown["num_parameters"] == puller.gets("show", quant["name"])["model"]["num_parameters"]
    assert puller.runs("verify").returncode == 0
    assert puller.runs("rm", *(model["name"] for model in (quant, split, tagged))).returncode == 0
    assert puller.blobs() == []


def test_pull_of_a_catalog_name(puller: Person, tmp_path: Path) -> None:
    catalog = tmp_path / "models.yaml"
    catalog.write_text("models:\n  - {name: small, aliases: [tiny], repo: nexa/demo-GGUF, quant: Q8_0}\n")
    env = {"NEXA_CATALOG_FILE": str(catalog)}
    pulled = puller.runs("pull", "tiny", env=env)
    assert (pulled.returncode, pulled.stdout.split()[0]) == (0, "small")
    assert puller.gets("list", "--catalog", env=env)["models"][0]["stored"]
    assert "up to date" in puller.runs("pull", "small", env=env).stderr


def test_a_dry_run_says_what_would_be_transferred(puller: Person) -> None:
    plan = puller.gets("pull", "nexa/split-GGUF", "--dry-run")["plan"]
    assert len(plan["files"]) == 3
    assert plan["transfer_bytes"] == plan["size_bytes"] > 0
    assert "would be transferred" in puller.runs("pull", "nexa/split-GGUF", "--dry-run").stdout
    assert not puller.store.exists()


def test_bars_vanish_in_a_pipe(puller: Person) -> None:
    piped = puller.runs("pull", "nexa/demo-GGUF")
    assert (piped.returncode, "\x1b" in piped.stderr, "%" in piped.stderr) == (0, False, False)
    assert len(piped.stdout.splitlines()) == 1
    quiet = puller.runs("pull", "nexa/demo-GGUF", "--quiet")
    assert (quiet.stdout, quiet.stderr) == ("nexa/demo-GGUF:Q4_K_M\n", "")


def test_bars_are_drawn_in_a_terminal_on_stderr(puller: Person) -> None:
    reader, terminal = os.openpty()
    try:
        pulled = subprocess.run(
            [NEXA, "pull", "nexa/demo-GGUF", "--json"],
            stdout=subprocess.PIPE,
            stderr=terminal,
            env=puller.env | {"TERM": "xterm", "COLUMNS": "100"},
            timeout=60,
            check=True,
        )
        drawn = os.read(reader, 65536).decode()
    finally:
        os.close(reader)
        os.close(terminal)
    assert json.loads(pulled.stdout)["model"]["name"] == "nexa/demo-GGUF:Q4_K_M"
    assert "nexa-demo-Q4_K_M.gguf" in drawn
    assert "6.2 MB" in drawn


@pytest.mark.parametrize(
    ("status", "arguments", "said"),
    [
        (4, ["pull", "nexa/gated-GGUF"], "HF_TOKEN"),
        (4, ["pull", "nexa/private-GGUF"], "HF_TOKEN"),
        (3, ["pull", "nexa/demo-GGUF:Q2_K"], "Q8_0"),
        (3, ["pull", "nexa/demo-GGUF@v9"], "v9"),
        (6, ["pull", "nexa/not-a-model"], "not a GGUF file"),
    ],
)
def test_a_pull_that_the_hub_cannot_serve(
    puller: Person, status: int, arguments: list[str], said: str
) -> None:
    assert said in puller.fails(status, *arguments)
    assert puller.gets("list") == {"models": []}


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_ctrl_c_ends_a_pull_and_keeps_what_came(puller: Person, hub: HubStandin, flags: list[str]) -> None:
    hub.bytes_per_s = 3_000_000
    with subprocess.Popen(
        [NEXA, "pull", "nexa/demo-GGUF", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=puller.env,
    ) as process:
        assert wait_until(lambda: sum(hub.bytes_sent.values()) > 1_000_000)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in stderr) == (130, False)
    if flags:
        assert json.loads(stdout)["error"]["exit_code"] == 130
    else:
        assert (stdout, "What came is kept" in stderr) == ("", True)
    (partial,) = (puller.store / "partial").glob("*.partial")
    assert partial.stat().st_size > 500_000
    hub.bytes_per_s = 0
    assert puller.runs("pull", "nexa/demo-GGUF").returncode == 0
    assert sum(hub.bytes_sent.values()) < 1.2 * len(demo_bytes())


# A running server.


class Running:
    """The part of a running server that the commands ask; ``status`` and ``body`` are its answer."""

    def __init__(self) -> None:
        self.status, self.body = 200, b"{}"
        self.keys: list[str | None] = []
        running = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                running.keys.append(self.headers["Authorization"])
                self.send_response(running.status if self.path == "/admin/models" else 404)
                self.end_headers()
                self.wfile.write(running.body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.env = {
            "NEXA_URL": f"http://127.0.0.1:{self._server.server_address[1]}",
            "NEXA_ADMIN_KEY": "secret",
        }

    def holds(self, **fields: object) -> None:
        model = {
            "name": "toy", "id": None, "state": "loaded", "size_bytes": 10**9, "kv_cells": 4096,
            "load_s": 1.5,
        }  # fmt: skip
        other = model | {"name": "other", "state": "stored"}
        self.body = json.dumps({"models": [model | fields, other]}).encode()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def running() -> Iterator[Running]:
    server = Running()
    yield server
    server.stop()


def test_ps_shows_what_the_server_holds(person: Person, running: Running) -> None:
    running.holds()
    (model,) = person.gets("ps", env=running.env)["models"]
    assert (model["name"], model["state"], model["kv_cells"], model["load_s"]) == ("toy", "loaded", 4096, 1.5)
    table = person.runs("ps", env=running.env).stdout.splitlines()
    assert len(table) == 2
    assert table[1].split() == ["toy", "-", "loaded", "1.00", "GB", "4096", "1.5", "s"]
    assert set(running.keys) == {"Bearer secret"}


def test_a_model_in_use_is_removed_only_by_force(person: Person, running: Running) -> None:
    record = person.has_demo()
    for fields in ({"state": "loading"}, {"name": "an alias", "id": record.id}):
        running.holds(**fields)
        assert "--force" in person.fails(1, "rm", "toy", env=running.env)
    assert person.runs("rm", "toy", "--force", env=running.env).returncode == 0


def test_a_server_that_does_not_hold_it_does_not_mind(person: Person, running: Running) -> None:
    person.has_demo()
    running.holds(state="stored")
    assert person.runs("rm", "toy", env=running.env).returncode == 0


def test_a_server_that_refuses_the_key_is_not_passed_over(person: Person, running: Running) -> None:
    person.has_demo()
    running.status, running.body = 401, b'{"error": {"message": "This needs the admin key.", "code": "x"}}'
    assert "admin key" in person.fails(1, "rm", "toy", env=running.env)
    assert "admin key" in person.fails(1, "ps", env=running.env)


@pytest.mark.parametrize(
    ("status", "body"), [(404, b"<html>"), (200, b"<html>"), (200, b"[]"), (200, b'{"models": [1]}')]
)
def test_somebody_else_at_that_address_does_not_stop_rm(
    person: Person, running: Running, status: int, body: bytes
) -> None:
    person.has_demo()
    running.status, running.body = status, body
    person.fails(1, "ps", env=running.env)
    assert person.runs("rm", "toy", env=running.env).returncode == 0


# What is imported.


def test_the_commands_of_the_store_leave_llama_cpp_alone(puller: Person) -> None:
    commands = [
        ["--help"], ["serve", "--help"], ["list"], ["list", "--catalog", "--json"], ["gc"],
        ["import", str(DEMO_PATH), "--name", "toy"], ["show", "toy"], ["verify"], ["rm", "toy"], ["ps"],
        ["pull", "nexa/demo-GGUF"],
    ]  # fmt: skip
    program = f"""
import sys
from nexa_runtime.cli.entry import main
heavy = {{"llama_cpp", "numpy", "nexa_runtime.llama", "nexa_runtime.serving"}}
for command in {commands!r}:
    sys.argv[1:] = command
    try:
        main()
    except SystemExit as end:
        wanted = 1 if command == ["ps"] else 0
        if end.code != wanted or heavy & sys.modules.keys():
            sys.exit(f"{{command}} ended with {{end.code}} and loaded {{heavy & sys.modules.keys()}}")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=puller.env, check=False
    )
    assert done.returncode == 0, done.stderr


def test_list_asks_nobody_and_draws_nothing(person: Person) -> None:
    program = (
        "import sys; from nexa_runtime.cli.main import app; app(standalone_mode=False); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "list"], capture_output=True, text=True, env=person.env, check=True
    )
    for name in ("httpx", "huggingface_hub", "hvac", "rich.progress"):
        assert name not in done.stdout.split()
