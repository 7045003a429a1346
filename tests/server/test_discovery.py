"""Registration, with a real etcd on ports of its own."""

import base64
import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from nexa_runtime import __version__
from nexa_runtime.config import load_settings
from nexa_runtime.errors import ConfigError
from nexa_runtime.server.discovery import PREFIX, base_url
from nexa_runtime.server.etcd import parse_addresses
from tests.server.child import FAULTY, Child
from tests.support import LiveServer, free_port, wait_until

ETCD = shutil.which("etcd")
NAME = "nexa-runtime"
PUBLIC = "http://10.0.0.5:8080"
KEY = f"{PREFIX}/{NAME}/10.0.0.5:8080"

Make = Callable[..., LiveServer]


class Etcd:
    """An etcd of one member, that can be stopped and started on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._peer = f"http://127.0.0.1:{free_port()}"
        self.url = f"http://127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert ETCD is not None
        self._process = subprocess.Popen(
            [
                ETCD, "--data-dir", self._folder / "data",
                "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
                "--listen-peer-urls", self._peer, "--initial-advertise-peer-urls", self._peer,
                "--initial-cluster", f"default={self._peer}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert wait_until(self._is_up, 30)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def forget(self) -> None:
        shutil.rmtree(self._folder / "data")

    def ask(self, path: str, **body: object) -> Any:
        return httpx.post(f"{self.url}/v3/{path}", json=body, timeout=5).raise_for_status().json()

    def services(self) -> dict[str, Any]:
        """What is registered, by key."""
        first, end = (base64.b64encode(f"{PREFIX}{last}".encode()).decode() for last in "/0")
        found = self.ask("kv/range", key=first, range_end=end).get("kvs", [])
        texts = [{name: base64.b64decode(one[name]).decode() for name in ("key", "value")} for one in found]
        return {one["key"]: json.loads(one["value"]) for one in texts}

    def _is_up(self) -> bool:
        try:
            return bool(httpx.get(f"{self.url}/health").json() == {"health": "true"})
        except (httpx.HTTPError, ValueError):
            return False


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    if ETCD is None:
        pytest.skip("there is no etcd on this machine")
    started = Etcd(tmp_path)
    started.start()
    yield started
    started.stop()


def settings_for(etcd: Etcd, **settings: str) -> dict[str, str]:
    return {"NEXA_ETCD_URL": etcd.url, "NEXA_PUBLIC_URL": PUBLIC, **settings}


def test_a_ready_server_is_registered_and_withdrawn(make_server: Make, etcd: Etcd) -> None:
    server = make_server(**settings_for(etcd))
    assert wait_until(lambda: KEY in etcd.services())
    value = etcd.services()[KEY]
    assert value == {
        "name": NAME,
        "instance": "10.0.0.5:8080",
        "base_url": PUBLIC,
        "metadata_url": f"{PUBLIC}/v1/metadata",
        "version": __version__,
        "domains": ["llm", "embeddings"],
    }
    with server.stream("Hello", ignore_eos=True, max_tokens=500) as stream:
        events = stream.events()
        next(events)
        server.app.dispatcher.drain()  # it drains, and the stream still runs
        assert wait_until(lambda: not etcd.services())
        assert next(events)
    server.stop()
    assert not etcd.ask("lease/leases").get("leases")


def test_it_comes_back_when_etcd_does(make_server: Make, etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexa_runtime.server.discovery.LEASE_S", 3)
    monkeypatch.setattr("nexa_runtime.server.discovery._RETRY_S", 0.1)
    with capture_logs() as lines:
        server = make_server(**settings_for(etcd))
        assert wait_until(lambda: KEY in etcd.services())
        for forgets in (False, True):
            etcd.stop()
            assert wait_until(lambda: lines[-1]["event"] == "etcd_unavailable")
            assert server.chat("Hello", max_tokens=1).status_code == 200
            assert server.http.get("/readyz").status_code == 200
            if forgets:
                etcd.forget()
            etcd.start()
            assert wait_until(lambda: KEY in etcd.services())
    assert [line["event"] for line in lines].count("etcd_unavailable") == 2
    assert etcd.services()[KEY]["base_url"] == PUBLIC


def test_an_etcd_that_is_not_there_harms_nothing(make_server: Make) -> None:
    port = free_port()
    with capture_logs() as lines:
        server = make_server(NEXA_ETCD_URL=f"http://me:secret@127.0.0.1:{port}", NEXA_PUBLIC_URL=PUBLIC)
        assert server.chat("Hello", max_tokens=1).status_code == 200
        assert wait_until(lambda: "etcd_unavailable" in [line["event"] for line in lines])
        server.stop()
    (line,) = [line for line in lines if line["event"] == "etcd_unavailable"]
    assert f"http://127.0.0.1:{port} gives no answer" in line["reason"]
    assert "secret" not in str(lines)


def test_the_second_address_serves_and_a_user_logs_in(make_server: Make, etcd: Etcd) -> None:
    etcd.ask("auth/user/add", name="root", password="s3cr t")
    etcd.ask("auth/role/add", name="root")
    etcd.ask("auth/user/grant", user="root", role="root")
    token = {"Authorization": ""}

    def is_registered() -> bool:
        key = base64.b64encode(KEY.encode()).decode()
        found = httpx.post(f"{etcd.url}/v3/kv/range", json={"key": key}, headers=token).json()
        return "kvs" in found

    etcd.ask("auth/enable")
    token["Authorization"] = etcd.ask("auth/authenticate", name="root", password="s3cr t")["token"]
    place = etcd.url.removeprefix("http://")
    with capture_logs() as lines:
        make_server(
            NEXA_ETCD_URL=f"http://127.0.0.1:{free_port()}, http://root:s3cr%20t@{place}/",
            NEXA_PUBLIC_URL=PUBLIC,
        )
        assert wait_until(is_registered)
    assert "s3cr" not in str(lines)


def test_a_server_that_is_killed_is_gone_soon(etcd: Etcd) -> None:
    with Child(FAULTY, **settings_for(etcd, TEST_LEASE_S="2")) as server:
        server.wait_ready()
        assert wait_until(lambda: KEY in etcd.services())
        server.send(signal.SIGKILL)
        server.end()
    assert wait_until(lambda: not etcd.services())


def test_sigterm_withdraws_before_the_process_ends(etcd: Etcd) -> None:
    with Child(**settings_for(etcd)) as server:
        server.wait_ready()
        assert wait_until(lambda: KEY in etcd.services())
        server.send()
        assert server.end() == 0
        assert not etcd.services()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "http://127.0.0.1:8080"),
        ({"NEXA_HOST": "::1", "NEXA_PORT": 9}, "http://[::1]:9"),
        (
            {"NEXA_HOST": "0.0.0.0", "NEXA_PUBLIC_URL": "https://box.example/nexa/"},
            "https://box.example/nexa",
        ),
    ],
)
def test_where_others_reach_it(settings: dict[str, object], expected: str) -> None:
    loaded = load_settings(settings)
    assert base_url(loaded.server, loaded.discovery) == expected


@pytest.mark.parametrize("settings", [{"NEXA_HOST": "0.0.0.0"}, {"NEXA_HOST": "::"}, {"NEXA_PORT": 0}])
def test_a_server_that_listens_everywhere_needs_its_url(settings: dict[str, object]) -> None:
    loaded = load_settings(settings)
    with pytest.raises(ConfigError, match="set NEXA_PUBLIC_URL"):
        base_url(loaded.server, loaded.discovery)


def test_a_public_url_has_no_password() -> None:
    loaded = load_settings({"NEXA_PUBLIC_URL": "http://me:s3cret@a"})
    with pytest.raises(ConfigError, match="NEXA_PUBLIC_URL") as caught:
        base_url(loaded.server, loaded.discovery)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NEXA_ETCD_URL", "etcd:2379"),
        ("NEXA_ETCD_URL", "http://"),
        ("NEXA_ETCD_URL", "http://a:2379, ftp://root:s3cret@b"),
        ("NEXA_ETCD_URL", "http://root:s3cret@a:port"),
        ("NEXA_PUBLIC_URL", "10.0.0.5:8080"),
        ("NEXA_PUBLIC_URL", "http://a\r\nb"),
        ("NEXA_SERVICE_NAME", "Not a name"),
        ("NEXA_STEP_LIMIT_S", "-1"),
    ],
)
def test_a_bad_setting_is_one_sentence_without_a_password(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({name: value})
    assert str(caught.value).startswith(f"{name} is ")
    assert "s3cret" not in str(caught.value)


def test_addresses_of_a_cluster() -> None:
    first, second = parse_addresses("http://me:p%40ss@a:2379/, https://b/etcd")
    assert (first.url, first.user, first.password) == ("http://a:2379", "me", "p@ss")
    assert (second.url, second.user, second.password) == ("https://b/etcd", "", "")
    assert "p@ss" not in repr(first)
