"""HTTPS, and what is said of certificates and keys that cannot be used."""

import shutil
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from nexa_runtime.config import ServerSettings, load_settings
from nexa_runtime.errors import ConfigError
from nexa_runtime.server.tls import check_tls
from tests.support import LiveServer, free_settings

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not here")

PASSWORD = "a secret"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, its key, the same key with a password, and another key."""
    path = tmp_path_factory.mktemp("tls")
    curve: list[str | Path] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subject: list[str | Path] = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    for name in ("", "other-"):
        out: list[str | Path] = ["-out", path / f"{name}cert.pem", "-keyout", path / f"{name}key.pem"]
        run("req", "-x509", "-nodes", "-days", "2", *curve, *subject, *out)
    locked: list[str | Path] = ["-passout", f"pass:{PASSWORD}", "-out", path / "locked.pem"]
    run("pkcs8", "-topk8", "-in", path / "key.pem", *locked)
    (path / "both.pem").write_text((path / "cert.pem").read_text() + (path / "key.pem").read_text())
    (path / "text.pem").write_text("hello")
    return path


def run(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("cert", "key", "password"),
    [("cert.pem", "key.pem", None), ("both.pem", None, None), ("cert.pem", "locked.pem", PASSWORD)],
)
def test_good_files(folder: Path, cert: str, key: str | None, password: str | None) -> None:
    check_tls(settings(folder, cert, key, password))


@pytest.mark.parametrize(
    ("cert", "key", "password", "words"),
    [
        (None, "key.pem", None, ["NEXA_TLS_KEY is set", "NEXA_TLS_CERT"]),
        ("absent.pem", "key.pem", None, ["NEXA_TLS_CERT", "absent.pem", "No such file"]),
        ("cert.pem", "absent.pem", None, ["NEXA_TLS_KEY", "absent.pem", "No such file"]),
        ("cert.pem", "", None, ["NEXA_TLS_KEY", "Is a directory"]),
        ("text.pem", "key.pem", None, ["NEXA_TLS_CERT", "text.pem", "no certificate"]),
        ("cert.pem", None, None, ["NEXA_TLS_CERT", "no private key"]),
        ("cert.pem", "other-key.pem", None, ["NEXA_TLS_KEY", "the key is not the certificate's"]),
        ("cert.pem", "locked.pem", None, ["NEXA_TLS_KEY_PASSWORD"]),
        ("cert.pem", "locked.pem", "wrong", ["NEXA_TLS_KEY_PASSWORD"]),
    ],
)
def test_bad_files_are_one_sentence(
    folder: Path, cert: str | None, key: str | None, password: str | None, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        check_tls(settings(folder, cert, key, password))
    for word in words:
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "wrong" not in str(raised.value)


def test_answers_and_streams_come_over_https(folder: Path) -> None:
    given = {"NEXA_TLS_CERT": folder / "cert.pem", "NEXA_TLS_KEY": folder / "locked.pem"}
    over_tls = free_settings(
        **{name: str(path) for name, path in given.items()}, NEXA_TLS_KEY_PASSWORD=PASSWORD
    )
    question = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    trust = ssl.create_default_context(cafile=str(folder / "cert.pem"))
    with LiveServer(over_tls) as server:
        url = server.url.replace("http://", "https://")
        with httpx.Client(base_url=url, verify=trust, timeout=30) as client:
            answer = client.post("/v1/chat/completions", json=question).json()
            assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
            streamed = client.post("/v1/chat/completions", json={**question, "stream": True})
            assert streamed.text.endswith("data: [DONE]\n\n")
        with pytest.raises(httpx.RemoteProtocolError):
            server.http.get("/health")


def settings(folder: Path, cert: str | None, key: str | None, password: str | None) -> ServerSettings:
    loaded = load_settings(
        {
            "NEXA_TLS_CERT": None if cert is None else str(folder / cert),
            "NEXA_TLS_KEY": None if key is None else str(folder / key),
            "NEXA_TLS_KEY_PASSWORD": None if password is None else SecretStr(password),
        }
    )
    return loaded.server
