"""The installed commands, as a person runs them."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import nexa_runtime
from nexa_runtime.server.app import bind
from tests.support import free_port, free_settings, wait_until

NEXA = Path(sys.executable).with_name("nexa-runtime")


def nexa(*arguments: str, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [NEXA, *arguments],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | env,
        check=False,
    )


@contextmanager
def spawn(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs on; it is killed if the test leaves it running."""
    process = subprocess.Popen(
        [NEXA, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def assert_one_sentence(result: subprocess.CompletedProcess[str], *words: str, status: int = 1) -> None:
    assert result.returncode == status
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert line.startswith("nexa-runtime: ")
    for word in words:
        assert word in line
    assert "Traceback" not in result.stderr


def test_version() -> None:
    assert nexa("--version").stdout.strip() == nexa_runtime.__version__


def test_no_arguments_shows_the_help() -> None:
    result = nexa()
    assert "serve" in result.stdout + result.stderr


def test_the_help_names_the_settings_and_their_defaults() -> None:
    text = re.sub(r"[\s│]+", " ", nexa("serve", "--help").stdout)
    assert "sequences that run at once, 1 to 128 [env: NEXA_SLOTS; default: 8]" in text
    assert "org/repo[:QUANT][@revision]" in nexa("pull", "--help").stdout


def test_run_answers_on_stdout_alone() -> None:
    result = nexa("run", "demo", "What is the capital of France?")
    assert result.returncode == 0
    assert result.stdout == "The capital of France is Paris.\n"
    assert result.stderr == ""


def test_run_without_a_prompt_is_a_chat() -> None:
    result = nexa("run", "demo", stdin="What is the capital of France?\n\nWhat is the capital of Italy?\n")
    assert result.returncode == 0
    assert result.stdout == "The capital of France is Paris.\nThe capital of Italy is Rome.\n"


def test_ctrl_c_at_the_prompt_ends_the_chat() -> None:
    with spawn("run", "demo") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("What is the capital of France?\n")
        process.stdin.flush()
        assert process.stdout.readline() == "The capital of France is Paris.\n"
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("status", "arguments", "env", "words"),
    [
        (1, ["serve", "--port", "70000"], {}, ["NEXA_PORT", "70000", "0 to 65535"]),
        (1, ["serve", "--slots", "many"], {}, ["NEXA_SLOTS", "many"]),
        (1, ["serve"], {"NEXA_CTX_SIZE": "1"}, ["NEXA_CTX_SIZE", "256"]),
        (3, ["serve", "--model", "absent.gguf", "--port", "0"], {}, ["There is no file absent.gguf"]),
        (2, ["serve", "--model", "/", "--port", "0"], {}, ["/ is no file"]),
        (6, ["serve", "--model", __file__, "--port", "0"], {}, ["not a GGUF file"]),
        (1, ["serve", "--host", "a..b"], {}, ["NEXA_HOST"]),
        (1, ["serve", "--tls-cert", "absent.pem"], {}, ["NEXA_TLS_CERT", "absent.pem", "No such file"]),
        (2, ["serve", "--model", "~nosuchuser/x.gguf", "--port", "0"], {}, ["the home of nobody known"]),
        (1, ["serve", "--ctx-size", "90000000", "--port", "0"], {}, ["NEXA_CTX_SIZE", "GiB"]),
        (3, ["run", "absent.gguf", "hi"], {}, ["There is no file absent.gguf"]),
        (1, ["run", "demo", "word " * 5000], {}, ["tokens", "context"]),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    status: int, arguments: list[str], env: dict[str, str], words: list[str]
) -> None:
    assert_one_sentence(nexa(*arguments, **env), *words, status=status)


def test_a_taken_port_is_one_sentence_and_no_model_is_loaded_for_it() -> None:
    with bind(free_settings().server) as taken:
        port = taken.getsockname()[1]
        result = nexa("serve", "--port", str(port))
    assert_one_sentence(result, f"127.0.0.1:{port}", "--port")
    assert "model_loaded" not in result.stderr


def test_a_wrong_flag_is_a_usage_error() -> None:
    result = nexa("serve", "--colour", "blue")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_greets_answers_and_ends_on_a_signal(number: signal.Signals) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        try:
            return httpx.get(f"{url}/health").status_code == 200
        except httpx.TransportError:
            return False

    with spawn("serve", "--port", str(port), "--served-name", "my-model") as process:
        assert wait_until(is_up, 60)
        question = {"role": "user", "content": "What is the capital of France?"}
        body = {"model": "my-model", "messages": [question]}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
        process.send_signal(number)
        stdout, talk = process.communicate(timeout=60)
    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert (process.returncode, stdout) == (0, "")
    assert url in talk
    assert re.search(r"curl http://\S+/v1/chat/completions", talk)
    assert "Traceback" not in talk


def test_ctrl_c_while_the_model_loads_ends_quietly(tmp_path: Path) -> None:
    with spawn("serve", "--port", "0") as process:
        threading.Event().wait(0.4)
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    assert "Traceback" not in talk


def test_a_log_that_nobody_reads_stops_nothing() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    reader, writer = os.pipe()
    with subprocess.Popen([NEXA, "serve", "--port", str(port)], stderr=writer) as process:
        try:
            os.close(writer)
            with os.fdopen(reader) as lines:
                assert any("Nexa Runtime serves" in line for line in lines)
            for _ in range(3):
                body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
                answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
                assert answer.status_code == 200
            assert httpx.get(f"{url}/readyz").status_code == 200
        finally:
            process.terminate()


def test_output_that_cannot_be_written_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [NEXA, "run", "demo", "Hello"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == 1
    assert result.stderr.startswith("nexa-runtime: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_key_is_printed_once_with_its_digest_and_the_way_into_vault() -> None:
    made = nexa("keys", "create", "--tenant", "acme")
    assert made.returncode == 0
    key = made.stdout.strip()
    assert re.fullmatch(r"nexa_acme_[A-Za-z0-9_-]{43}", key)
    sha256 = hashlib.sha256(key.encode()).hexdigest()
    assert f'vault kv patch secret/tenant/acme/nexa NEXA_API_KEY_SHA256="{sha256}"' in made.stderr
    assert key not in made.stderr
    bad = nexa("keys", "create", "--tenant", "../acme")
    assert (bad.returncode, bad.stdout) == (1, "")
    assert len(bad.stderr.splitlines()) == 1


def test_tenants_of_a_running_server(make_server: Any, tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text("tenants: {acme: {TENANT_HARD_LIMIT_RPM: 7, NEXA_COLOUR: red}, bad: {NEXA_WEIGHT: x}}")
    server = make_server(NEXA_TENANTS_FILE=str(path), NEXA_ADMIN_KEY="secret")
    env = {"NEXA_URL": server.url, "NEXA_ADMIN_KEY": "secret"}
    shown = nexa("tenants", "show", "acme", **env)
    assert (shown.returncode, "TENANT_HARD_LIMIT_RPM=7" in shown.stdout) == (0, True)
    assert "from file" in shown.stderr
    listed = nexa("tenants", "list", **env)
    assert (listed.returncode, "acme" in listed.stdout) == (0, True)
    assert nexa("tenants", "check", "acme", **env).returncode == 0
    broken = nexa("tenants", "check", "bad", **env)
    assert (broken.returncode, "NEXA_WEIGHT" in broken.stderr) == (1, True)
    locked = nexa("tenants", "list", NEXA_URL=server.url)
    assert locked.returncode == 1
    assert "admin key" in locked.stderr
    away = nexa("tenants", "list", NEXA_URL="http://127.0.0.1:9")
    assert (away.returncode, len(away.stderr.splitlines())) == (1, 1)


def test_a_tenants_file_is_checked_without_a_server(tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text("tenants: {acme: {NEXA_WEIGHT: x, NEXA_COLOUR: red, NEXA_MAX_QUEUE: -1}, demo: {}}")
    checked = nexa("tenants", "check", "--file", str(path))
    assert checked.returncode == 1
    for words in ("NEXA_WEIGHT must be", "NEXA_MAX_QUEUE must be", "NEXA_COLOUR is not a key"):
        assert words in checked.stderr
    assert nexa("tenants", "check", "demo", "--file", str(path)).returncode == 0
    assert nexa("tenants", "check", "none", "--file", str(path)).returncode == 1
    assert nexa("tenants", "check", "--file", str(tmp_path / "none.yaml")).returncode == 1
    assert nexa("tenants", "check").returncode == 1


def test_a_server_without_keys_refuses_to_be_reachable() -> None:
    refused = nexa("serve", "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 1
    assert "NEXA_API_KEY" in refused.stderr


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"TENANT_MODE": "multi"}, "NEXA_TENANTS_FILE"),
        ({"VAULT_ADDR": "http://127.0.0.1:9"}, "VAULT_TOKEN"),
        ({"VAULT_ADDR": "http://127.0.0.1:9", "VAULT_TOKEN": "t", "NEXA_TENANTS_FILE": "x"}, "both set"),
        ({"NEXA_TENANTS_FILE": "/none/tenants.yaml"}, "/none/tenants.yaml"),
        ({"DEFAULT_TENANT_ID": "Not An Id"}, "DEFAULT_TENANT_ID"),
        ({"NEXA_PUBLIC_PREFIXES_FILE": "/none/prefixes.yaml"}, "/none/prefixes.yaml"),
        ({"NEXA_REQUEST_LOG": "/none/requests.jsonl"}, "/none/requests.jsonl"),
        ({"NEXA_USAGE_DSN": "nothing", "NEXA_MODEL_ID": "/none/loaded-later.gguf"}, "NEXA_USAGE_DSN"),
    ],
)
def test_other_settings_that_cannot_be_are_one_sentence(env: dict[str, str], words: str) -> None:
    refused = nexa("serve", "--port", "0", **env)
    assert refused.returncode == 1
    assert words in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_ctrl_c_is_not_lost_in_a_callback_of_c() -> None:
    """As llama.cpp's log is one: what is raised in it goes nowhere."""
    program = (
        "import ctypes, signal, sys, time\n"
        "from nexa_runtime.cli import entry\n"
        "def run():\n"
        "    interrupt = ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))\n"
        "    interrupt()\n"
        "    print('called', flush=True)\n"
        "    time.sleep(60)\n"
        "    return 0\n"
        "entry._run = run\n"
        "entry.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=50
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "called\n", "")
