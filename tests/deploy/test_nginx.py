"""The nginx site in front of a real server: it is valid, and passes streams on as they come."""

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import EventStream, LiveServer, free_port, wait_until

SITE = Path(__file__).parents[2] / "scripts" / "deploy" / "nginx.conf"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
OPENSSL = shutil.which("openssl")

pytestmark = pytest.mark.skipif(
    NGINX is None or OPENSSL is None, reason="there is no nginx, or no openssl, here"
)


@pytest.fixture(scope="module")
def front(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of the site; everything of nginx is in one folder."""
    folder = tmp_path_factory.mktemp("nginx")
    assert NGINX is not None
    assert OPENSSL is not None
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    port = free_port()
    site = SITE.read_text()
    for ours, theirs in {
        "127.0.0.1:8080": server.url.removeprefix("http://"),
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/ssl/nexa/fullchain.pem": str(certificate),
        "/etc/ssl/nexa/privkey.pem": str(key),
        "server_name ai.smarterbot.store": "server_name localhost",
    }.items():
        assert ours in site
        site = site.replace(ours, theirs)
    paths = "".join(
        f"{name}_temp_path {folder / name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; pid {folder / 'pid'}; error_log {folder / 'error.log'};\n"
        f"events {{}}\nhttp {{ access_log off;\n{paths}\n{site}\n}}\n"
    )
    command = [NGINX, "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
    subprocess.run([*command, "-t"], check=True, capture_output=True)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        trust = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=f"https://localhost:{port}", verify=trust, timeout=60) as client:

            def answers() -> bool:
                try:
                    return client.get("/health").status_code == 200
                except httpx.TransportError:
                    return False

            assert wait_until(answers)
            yield client
    finally:
        process.terminate()
        process.wait(20)


def test_a_chat_goes_through(front: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    response = front.post("/v1/chat/completions", json=body)
    assert response.json()["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert response.headers["x-request-id"]


def test_a_stream_comes_as_it_is_made(front: httpx.Client, server: LiveServer) -> None:
    body = {
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True, "max_tokens": 1500, "ignore_eos": True,
    }  # fmt: skip
    with front.stream("POST", "/v1/chat/completions", json=body) as response:
        events = EventStream(response).events()
        for _ in range(4):
            assert next(events)["choices"]
        assert not server.is_idle()  # it is still being made
    assert wait_until(server.is_idle)  # who leaves the proxy leaves the server


def test_a_body_that_is_too_large_is_refused_in_front(front: httpx.Client) -> None:
    assert front.post("/v1/chat/completions", content=b" " * (5 * 2**20)).status_code == 413


def test_the_admin_is_for_the_box(front: httpx.Client) -> None:
    assert front.get("/admin/models").status_code == 200
