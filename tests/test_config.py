"""Settings: environment, overrides, and the sentence for a bad value."""

from pathlib import Path

import pytest

from nexa_runtime.config import SLICES, env_names, load_log_settings, load_settings, shown_default
from nexa_runtime.errors import ConfigError
from nexa_runtime.server.app import bind


def test_defaults_need_no_environment() -> None:
    settings = load_settings()
    assert settings.model.model_id == "demo"
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8080)
    assert settings.engine.slots == 8
    assert settings.serving.request_timeout_s == 600


def test_defaults_are_shown_as_a_person_writes_them() -> None:
    shown = {
        env_names(field)[0]: shown_default(field) for cls in SLICES for field in cls.model_fields.values()
    }
    assert shown["NEXA_SLOTS"] == "8"
    assert shown["NEXA_THREADS"] == "measured at the first start"
    assert shown["NEXA_SERVED_NAMES"] == "none"
    assert shown["NEXA_TRUST_TENANT_HEADER"] == "false"
    assert (shown["NEXA_MAX_BODY_BYTES"], shown["NEXA_USAGE_SPOOL_BYTES"]) == ("4 MiB", "64 MB")


def test_what_is_shown_of_a_size_can_be_given_as_one() -> None:
    settings = load_settings({"NEXA_MAX_BODY_BYTES": "4 MiB", "NEXA_USAGE_SPOOL_BYTES": "64 MB"})
    assert settings.server.max_body_bytes == load_settings().server.max_body_bytes
    assert settings.usage_database.spool_bytes == load_settings().usage_database.spool_bytes


def test_flags_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXA_PORT", "9000")
    monkeypatch.setenv("NEXA_SLOTS", "3")
    settings = load_settings({"NEXA_PORT": "9001", "NEXA_SLOTS": None})
    assert settings.server.port == 9001
    assert settings.engine.slots == 3


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXA_PORT", "")
    assert load_settings().server.port == 8080


def test_served_names_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXA_SERVED_NAMES", "gpt-4o, llama ,")
    assert load_settings().model.served_names == ("gpt-4o", "llama")


def test_log_level_has_the_name_of_the_seed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "debug")
    assert load_settings().log.level == "DEBUG"


def test_the_inter_token_target_is_auto_or_a_number() -> None:
    assert load_settings().engine.itl_target_ms is None
    assert load_settings({"NEXA_ITL_TARGET_MS": "auto"}).engine.itl_target_ms is None
    assert load_settings({"NEXA_ITL_TARGET_MS": "50"}).engine.itl_target_ms == 50


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("NEXA_PORT", "70000", "an integer from 0 to 65535"),
        ("NEXA_PORT", "http", "an integer from 0 to 65535"),
        ("NEXA_SLOTS", "0", "an integer from 1 to 128"),
        ("NEXA_CTX_SIZE", "12", "an integer from 256 to"),
        ("NEXA_REQUEST_TIMEOUT_S", "0", "a number above 0 to 86400"),
        ("NEXA_REQUEST_TIMEOUT_S", "nan", "a number above 0"),
        ("NEXA_LOG_LEVEL", "loud", "one of DEBUG, INFO, WARNING, ERROR"),
    ],
)
def test_a_bad_value_names_the_setting_and_its_range(name: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        load_settings({name: value})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_host_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="NEXA_HOST"):
        bind(load_settings({"NEXA_HOST": "no such host"}).server)


def test_a_taken_port_is_one_sentence() -> None:
    with bind(load_settings({"NEXA_PORT": 0}).server) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Cannot listen on 127.0.0.1:{port}"):
            bind(load_settings({"NEXA_PORT": port}).server)


def test_a_file_of_settings_wins_over_the_environment_and_flags_over_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "nexa.env"
    file.write_text(
        "# the box\n\nNEXA_PORT=9000\nexport NEXA_SLOTS = '3'\nNEXA_HOST=\nOTHER=x\nLOG_LEVEL=\"debug\"\n"
    )
    monkeypatch.setenv("NEXA_ENV_FILE", str(file))
    monkeypatch.setenv("NEXA_PORT", "8000")
    monkeypatch.setenv("NEXA_HOST", "127.0.0.2")
    settings = load_settings({"NEXA_SLOTS": 4})
    assert (settings.server.port, settings.engine.slots, settings.log.level) == (9000, 4, "DEBUG")
    assert settings.server.host == "127.0.0.2"
    file.write_text("LOG_LEVEL=error")
    assert load_log_settings().level == "ERROR"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"NEXA_PORT=70000", "NEXA_PORT is '70000', but must be an integer from 0 to 65535"),
        (b"A=1\nNEXA_API_KEY: secret", "line 2 is not NAME=value"),
        (b"A=\xff", "is not in UTF-8"),
        (b"A=" + b"x" * 2**20, "is larger than"),
        (None, "cannot be read: No such file"),
    ],
    ids=["value", "line", "encoding", "size", "missing"],
)
def test_a_bad_file_of_settings_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "nexa.env"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("NEXA_ENV_FILE", str(file))
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_secrets_among_the_settings_are_known() -> None:
    settings = load_settings({"NEXA_API_KEY": "one", "VAULT_TOKEN": "two", "NEXA_HOST": "no-secret"})
    assert sorted(settings.secrets()) == ["one", "two"]


def test_a_secret_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("s3cret\n")
    monkeypatch.setenv("NEXA_API_KEY_FILE", str(file))
    monkeypatch.setenv("VAULT_TOKEN_FILE", str(file))
    settings = load_settings()
    assert settings.access.api_key is not None
    assert settings.access.api_key.get_secret_value() == "s3cret"
    assert settings.vault.token is not None


def test_a_file_of_settings_may_name_files_of_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key, file = tmp_path / "key", tmp_path / "nexa.env"
    key.write_text("s3cret")
    file.write_text(f"NEXA_ADMIN_KEY_FILE={key}\n")
    monkeypatch.setenv("NEXA_ENV_FILE", str(file))
    assert load_settings().secrets() == ["s3cret"]


def test_a_secret_comes_from_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("s3cret")
    monkeypatch.setenv("NEXA_ADMIN_KEY", "other")
    monkeypatch.setenv("NEXA_ADMIN_KEY_FILE", str(file))
    with pytest.raises(ConfigError, match="NEXA_ADMIN_KEY and NEXA_ADMIN_KEY_FILE are both set"):
        load_settings()


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file"), (b" \n", "is empty"), (b"\xff\xfe", "it holds no text")]
)
def test_a_file_without_a_secret_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("HF_TOKEN_FILE", str(file))
    with pytest.raises(ConfigError, match="HF_TOKEN_FILE is") as caught:
        load_settings()
    assert words in str(caught.value)


def test_a_setting_that_is_a_file_itself_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXA_VAULT_SECRET_ID_FILE", "/nowhere")
    assert load_settings().vault.secret_id_file == "/nowhere"


@pytest.mark.parametrize("key", ["schl\u00fcssel", "two\nlines", "\ufeffx"], ids=["letter", "lines", "mark"])
def test_a_key_that_no_client_can_send_stops_the_start(key: str) -> None:
    for name in ("NEXA_API_KEY", "NEXA_ADMIN_KEY"):
        with pytest.raises(ConfigError, match="must be printable ASCII") as caught:
            load_settings({name: key})
        assert key not in str(caught.value)


def test_a_file_that_is_larger_than_any_secret_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text("x" * 70_000)
    monkeypatch.setenv("NEXA_API_KEY_FILE", str(file))
    with pytest.raises(ConfigError, match="larger than any secret"):
        load_settings()
