"""Secrets by name, by shape, and those of the settings."""

import time

import pytest

from nexa_runtime.telemetry.redaction import REDACTED, hide, is_secret_name, redact
from nexa_runtime.tenancy.keys import create_key

TOKEN = "Abc123def456ghi789jkl0"


@pytest.mark.parametrize(
    "name",
    [
        "authorization", "Authorization", "proxy-authorization", "api_key", "apikey", "apiKey", "x-api-key",
        "NEXA_API_KEY", "token", "hf_token", "accessToken", "secret", "client_secret", "secret_id",
        "password", "passwd", "dsn", "NEXA_USAGE_DSN", "cookie", "set-cookie", "private_key", "credentials",
    ],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "prompt_tokens",
        "max_tokens",
        "tokens",
        "key_id",
        "key",
        "keys",
        "tenant",
        "monkey",
        "tokenizer",
        "secrets_read",
    ],
)
def test_names_that_only_look_like_it(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"hf_{TOKEN}", REDACTED),
        (f"a\\nsk-{TOKEN}", f"a\\n{REDACTED}"),
        (f"\x1b[2Jsk-{TOKEN}", f"\x1b[2J{REDACTED}"),
        (f"for hvs.{TOKEN} it", f"for {REDACTED} it"),
        (f"sk-{TOKEN}, sk-ant-{TOKEN}", f"{REDACTED}, {REDACTED}"),
        (f"eyJhbGciOiJI.{TOKEN}.{TOKEN}", REDACTED),
        (f"Bearer {TOKEN}", f"Bearer {REDACTED}"),
        ("authorization: Basic dXNlcjpw", f"authorization: {REDACTED}"),
        (f"{{'X-API-Key': '{TOKEN}', 'a': 1}}", f"{{'X-API-Key': {REDACTED}, 'a': 1}}"),
        (f'{{\\"token\\": \\"{TOKEN}\\"}}', f'{{\\"token\\": {REDACTED}}}'),
        ("[(b'x-api-key', b'hunter2'), (b'a', b'b')]", f"[(b'x-api-key', b{REDACTED}), (b'a', b'b')]"),
        ("host=h password=hunter2 port=5", f"host=h password={REDACTED} port=5"),
        ("GET /x?api_key=hunter2&a=b", f"GET /x?api_key={REDACTED}&a=b"),
        ("postgres://nexa:p@ss/w@db:5432/logs", f"postgres://{REDACTED}@db:5432/logs"),
        ("https://token@host/repo", f"https://{REDACTED}@host/repo"),
    ],
    ids=lambda text: text.replace("/", "|")[:30],
)
def test_shapes_of_secrets(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_a_tenants_key_is_one() -> None:
    assert redact(f"key {create_key('rut-76832940-3')} is new") == f"key {REDACTED} is new"


@pytest.mark.parametrize(
    "text",
    [
        "/v1/chat/completions", "req_0123456789abcdef0123456789abcdef", "rut-76832940-3",
        "llama-3-8b-instruct",
        "nexa_queue_wait_seconds_bucket", "prompt_tokens=5, key_id=1a2b3c4d", "http://127.0.0.1:8080/v1",
        "Llama-3.2-1B-Instruct-Q4_K_M.gguf", "risk-management is a task-force",
    ],
    ids=lambda text: text.replace("/", "|")[:30],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_secrets_of_the_settings_are_hidden_whatever_their_shape() -> None:
    try:
        hide(["correct horse battery", "short"])
        assert redact("it is correct horse battery, in short") == f"it is {REDACTED}, in short"
    finally:
        hide([])


@pytest.mark.parametrize("piece", ["://a:", "token: ", "bearer ", "nexa_a_", "eyJaaaaaaaa.", 'password="'])
def test_no_text_takes_long(piece: str) -> None:
    """Not a measurement: a pattern that backtracks would take minutes."""
    start = time.process_time()
    redact(piece * 2000 + "@")
    assert time.process_time() - start < 5
