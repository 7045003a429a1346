"""The real hvac client against Vault's API over real sockets.

The tests with the ``vault`` fixture also run against a real server when NEXA_TEST_VAULT_ADDR and
NEXA_TEST_VAULT_TOKEN are given; they make a mount of their own there and remove it.
"""

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import hvac  # type: ignore[import-untyped,unused-ignore]
import pytest
import structlog

from nexa_runtime.config import load_settings
from nexa_runtime.errors import ConfigError, SourceUnavailableError
from nexa_runtime.tenancy.source import LimitsSource, Secret
from nexa_runtime.tenancy.vault import VaultSource
from tests.vault_standin import (
    JWT,
    KUBERNETES_ROLE,
    ROLE_ID,
    ROOT_TOKEN,
    SECRET_ID,
    SECRET_ID_PATH,
    VaultStandin,
)

TENANT = "rut-76832940-3"
VALUES = {"NEXA_MODEL_ID": "llama-3-8b-instruct", "TENANT_HARD_LIMIT_RPM": "120"}
APPROLE = {"NEXA_VAULT_ROLE_ID": ROLE_ID, "NEXA_VAULT_SECRET_ID": SECRET_ID}
LOGIN = "auth/approle/login"
RENEW = "auth/token/renew-self"

Make = Callable[..., VaultSource]


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class RemoteVault:
    """Secrets under one mount of any Vault, written over HTTP."""

    def __init__(self, url: str, token: str, mount: str) -> None:
        self.url, self.token, self.mount = url, token, mount
        self._http = httpx.Client(base_url=f"{url}/v1/", headers={"X-Vault-Token": token}, timeout=10)
        self._ask("POST", f"sys/mounts/{mount}", {"type": "kv", "options": {"version": "2"}})

    @property
    def template(self) -> str:
        return f"{self.mount}/data/limits/{{{{tenant_id}}}}/nexa"

    def put(self, tenant_id: str, values: dict[str, str]) -> None:
        self._ask("POST", f"{self.mount}/data/limits/{tenant_id}/nexa", {"data": values})

    def delete(self, tenant_id: str) -> None:
        self._ask("DELETE", f"{self.mount}/data/limits/{tenant_id}/nexa")

    def erase(self, tenant_id: str) -> None:
        self._ask("DELETE", f"{self.mount}/metadata/limits/{tenant_id}/nexa")

    def close(self) -> None:
        self._ask("DELETE", f"sys/mounts/{self.mount}")
        self._http.close()

    def _ask(self, method: str, path: str, body: dict[str, object] | None = None) -> None:
        for _ in range(50):
            response = self._http.request(method, path, json=body)
            # A new mount says 400 for a moment, while it is made ready for versions.
            if response.status_code != 400:
                break
            threading.Event().wait(0.1)
        response.raise_for_status()


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("VAULT_", "NEXA_VAULT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def standin(clock: Clock) -> Iterator[VaultStandin]:
    with VaultStandin(clock=clock) as standin:
        standin.put(TENANT, VALUES)
        yield standin


@pytest.fixture
def make(clock: Clock) -> Iterator[Make]:
    """Sources by environment names, closed at the end."""
    made: list[VaultSource] = []

    def source(address: str, **environment: object) -> VaultSource:
        settings = load_settings({"VAULT_ADDR": address, "NEXA_VAULT_TIMEOUT_S": 5, **environment})
        made.append(VaultSource(settings.vault, clock))
        return made[-1]

    yield source
    for one in made:
        one.close()


@pytest.fixture(params=["standin", pytest.param("real", marks=pytest.mark.vault)])
def vault(request: pytest.FixtureRequest) -> Iterator[RemoteVault]:
    """A Vault with an empty mount."""
    mount = f"nexa-test-{secrets.token_hex(4)}"
    if request.param == "standin":
        with VaultStandin() as standin, closing(RemoteVault(standin.url, ROOT_TOKEN, mount)) as remote:
            yield remote
        return
    address, token = os.environ.get("NEXA_TEST_VAULT_ADDR"), os.environ.get("NEXA_TEST_VAULT_TOKEN")
    if not address or not token:
        pytest.skip("no real Vault: NEXA_TEST_VAULT_ADDR and NEXA_TEST_VAULT_TOKEN are not set")
    with closing(RemoteVault(address, token, mount)) as remote:
        yield remote


def source_of(vault: RemoteVault, make: Make) -> VaultSource:
    return make(vault.url, VAULT_TOKEN=vault.token, NEXA_VAULT_PATH_TEMPLATE=vault.template)


def reason_of(source: VaultSource, tenant_id: str = TENANT) -> str:
    """Why a fetch gives no word."""
    with pytest.raises(SourceUnavailableError) as caught:
        source.fetch(tenant_id)
    return caught.value.reason


class TestReading:
    def test_a_secret_is_read_with_its_version(self, vault: RemoteVault, make: Make) -> None:
        vault.put(TENANT, VALUES)
        assert source_of(vault, make).fetch(TENANT) == Secret(VALUES, "1")

    def test_a_new_version_is_seen(self, vault: RemoteVault, make: Make) -> None:
        source = source_of(vault, make)
        vault.put(TENANT, VALUES)
        source.fetch(TENANT)
        vault.put(TENANT, {"TENANT_HARD_LIMIT_RPM": "60"})
        assert source.fetch(TENANT) == Secret({"TENANT_HARD_LIMIT_RPM": "60"}, "2")

    def test_a_secret_that_does_not_exist_is_an_answer(self, vault: RemoteVault, make: Make) -> None:
        source = source_of(vault, make)
        assert not source.has_answered
        assert source.fetch("nobody") is None
        assert source.has_answered

    def test_a_soft_deleted_secret_is_none(self, vault: RemoteVault, make: Make) -> None:
        source = source_of(vault, make)
        vault.put(TENANT, VALUES)
        vault.delete(TENANT)
        assert source.fetch(TENANT) is None
        vault.put(TENANT, VALUES)
        assert source.fetch(TENANT) == Secret(VALUES, "2")

    def test_an_erased_secret_is_none(self, vault: RemoteVault, make: Make) -> None:
        vault.put(TENANT, VALUES)
        vault.erase(TENANT)
        assert source_of(vault, make).fetch(TENANT) is None

    def test_a_mount_that_does_not_exist_revokes_nobody(self, vault: RemoteVault, make: Make) -> None:
        template = "no-such-mount/data/{{tenant_id}}"
        source = make(vault.url, VAULT_TOKEN=vault.token, NEXA_VAULT_PATH_TEMPLATE=template)
        assert "404" in reason_of(source)
        assert not source.has_answered

    def test_the_template_names_mount_and_path(self, make: Make) -> None:
        with VaultStandin(path="kv-eu/data/{}/limits") as standin:
            standin.put(TENANT, VALUES)
            source = make(
                standin.url,
                VAULT_TOKEN=ROOT_TOKEN,
                NEXA_VAULT_PATH_TEMPLATE="kv-eu/data/{{ tenant_id }}/limits",
            )
            assert source.fetch(TENANT) == Secret(VALUES, "1")
            assert standin.calls[f"kv-eu/data/{TENANT}/limits"] == 1

    def test_the_namespace_is_sent_with_every_call(self, make: Make) -> None:
        with VaultStandin(namespace="team/ai") as standin:
            standin.put(TENANT, VALUES)
            assert make(standin.url, VAULT_NAMESPACE="team/ai", **APPROLE).fetch(TENANT)
            assert standin.namespaces_seen == {"team/ai"}

    def test_it_is_a_source_of_limits(self, standin: VaultStandin, make: Make) -> None:
        source: LimitsSource = make(standin.url, VAULT_TOKEN=ROOT_TOKEN)
        assert source.name == "vault"


class TestConfiguration:
    @pytest.mark.parametrize(
        "environment",
        [
            {},
            {"NEXA_VAULT_ROLE_ID": ROLE_ID},
            {"NEXA_VAULT_SECRET_ID": SECRET_ID},
            {**APPROLE, "NEXA_VAULT_SECRET_ID_FILE": "secret-id"},
            {**APPROLE, "VAULT_TOKEN": ROOT_TOKEN},
            {"VAULT_TOKEN": ROOT_TOKEN, "NEXA_VAULT_KUBERNETES_ROLE": KUBERNETES_ROLE},
            {**APPROLE, "NEXA_VAULT_KUBERNETES_ROLE": KUBERNETES_ROLE},
        ],
    )
    def test_exactly_one_way_to_log_in_must_be_given(self, environment: dict[str, str]) -> None:
        settings = load_settings({"VAULT_ADDR": "http://127.0.0.1:1", **environment})
        with pytest.raises(ConfigError) as caught:
            VaultSource(settings.vault)
        assert SECRET_ID not in str(caught.value)
        assert ROOT_TOKEN not in str(caught.value)

    def test_the_constructor_asks_vault_nothing(self, standin: VaultStandin, make: Make) -> None:
        make(standin.url, **APPROLE)
        make(standin.url, VAULT_TOKEN=ROOT_TOKEN)
        assert standin.num_calls == 0

    def test_tokens_lying_around_are_not_picked_up(
        self, standin: VaultStandin, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        source = make(standin.url, **APPROLE)
        monkeypatch.setenv("VAULT_TOKEN", "hvs.of-the-shell")
        monkeypatch.setenv("VAULT_NAMESPACE", "of-the-shell")
        (tmp_path / ".vault-token").write_text("hvs.of-the-home")
        assert source.fetch(TENANT)
        assert not any("of-the" in token for token in standin.tokens_seen)
        assert standin.namespaces_seen == {""}


class TestOutage:
    @pytest.mark.parametrize(
        ("switch", "value", "word"),
        [
            ("is_sealed", True, "503"),
            ("html_status", 200, "form"),
            ("html_status", 403, "403"),
            ("html_status", 404, "404"),
            ("html_status", 502, "502"),
            ("is_list", True, "form"),
            ("is_forbidding", True, "403"),
        ],
    )
    def test_a_faulty_answer_to_a_read_is_no_word(
        self, standin: VaultStandin, make: Make, switch: str, value: int, word: str
    ) -> None:
        standin.faulty_prefix = "secret/"
        source = make(standin.url, **APPROLE)
        setattr(standin, switch, value)
        reason = reason_of(source)
        assert word in reason
        assert "portal" not in reason
        assert not source.has_answered
        setattr(standin, switch, type(value)(0))
        assert source.fetch(TENANT) == Secret(VALUES, "1")

    def test_a_proxys_403_is_not_about_our_token(self, standin: VaultStandin, make: Make) -> None:
        source = make(standin.url, **APPROLE)
        source.fetch(TENANT)
        standin.html_status = 403
        reason_of(source)
        assert standin.num_logins == 1

    @pytest.mark.parametrize("switch", ["is_sealed", "is_list"])
    def test_a_vault_that_is_down_at_start_is_found_when_it_is_back(
        self, standin: VaultStandin, make: Make, clock: Clock, switch: str
    ) -> None:
        setattr(standin, switch, True)
        source = make(standin.url, **APPROLE)
        reason_of(source)
        setattr(standin, switch, False)
        reason_of(source)
        assert standin.num_calls == 1
        clock.now += 5
        assert source.fetch(TENANT) == Secret(VALUES, "1")

    def test_a_hang_ends_with_the_timeout(self, standin: VaultStandin, make: Make) -> None:
        source = make(standin.url, NEXA_VAULT_TIMEOUT_S=0.3, **APPROLE)
        source.fetch(TENANT)
        standin.hang_s = 30
        with ThreadPoolExecutor(8) as pool:
            reasons = list(pool.map(lambda _: reason_of(source), range(8)))
        assert all("Timeout" in reason for reason in reasons)
        assert standin.num_reads(TENANT) == 9

    def test_a_read_does_not_wait_for_another(self, standin: VaultStandin, make: Make) -> None:
        source = make(standin.url, **APPROLE)
        source.fetch(TENANT)
        standin.gather = 8
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda _: source.fetch(TENANT), range(8))) == [Secret(VALUES, "1")] * 8

    def test_a_login_that_hangs_is_tried_once_for_all_who_wait(
        self, standin: VaultStandin, make: Make
    ) -> None:
        standin.hang_s = 30
        source = make(standin.url, NEXA_VAULT_TIMEOUT_S=0.3, **APPROLE)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: reason_of(source), range(8)))
        assert standin.num_calls == 1

    def test_a_refused_connection_is_no_word(self, make: Make) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert "ConnectionError" in reason_of(make(address, VAULT_TOKEN=ROOT_TOKEN))

    def test_failed_tls_is_no_word(self, standin: VaultStandin, make: Make) -> None:
        address = standin.url.replace("http:", "https:")
        assert "SSLError" in reason_of(make(address, VAULT_TOKEN=ROOT_TOKEN))

    def test_a_redirect_does_not_take_the_token_along(self, standin: VaultStandin, make: Make) -> None:
        with VaultStandin() as other:
            other.put(TENANT, VALUES)
            source = make(standin.url, **APPROLE)
            source.fetch(TENANT)
            standin.redirect_to = other.url
            assert "307" in reason_of(source)
            assert other.num_calls == 0
            # What hvac would do by itself, so that the line above says something.
            careless = hvac.Client(url=standin.url, token="hvs.careless")
            with pytest.raises(hvac.exceptions.Forbidden):
                careless.secrets.kv.v2.read_configuration()
            careless.adapter.close()
            assert other.tokens_seen == {"hvs.careless"}

    def test_a_login_is_not_redirected_either(self, standin: VaultStandin, make: Make) -> None:
        with VaultStandin() as other:
            standin.redirect_to = other.url
            assert "307" in reason_of(make(standin.url, **APPROLE))
            assert other.num_calls == 0

    def test_nothing_that_vault_says_or_we_present_is_logged(
        self, standin: VaultStandin, make: Make, clock: Clock
    ) -> None:
        with structlog.testing.capture_logs() as lines:
            source = make(standin.url, **APPROLE)
            source.fetch(TENANT)
            for switch, value in (("html_status", 200), ("is_forbidding", True), ("is_sealed", True)):
                setattr(standin, switch, value)
                reason_of(source)
                setattr(standin, switch, type(value)(0))
            clock.now += 3000
            source.fetch(TENANT)
        text = str(lines)
        events = [line["event"] for line in lines]
        assert events == ["vault_login", "vault_login", "vault_forbidden", "vault_renewed"]
        told = {SECRET_ID, "portal", "permission", "120", *standin.tokens_seen} - {""}
        assert not [word for word in told if word in text]


class TestLogin:
    def test_a_secret_id_logs_in_once_for_many_reads(self, standin: VaultStandin, make: Make) -> None:
        source = make(standin.url, **APPROLE)
        for _ in range(3):
            assert source.fetch(TENANT)
        assert standin.num_logins == 1

    def test_fifty_threads_with_an_expired_token_log_in_once(self, standin: VaultStandin, make: Make) -> None:
        source = make(standin.url, **APPROLE)
        source.fetch(TENANT)
        standin.revoke_tokens()
        start = threading.Barrier(50)

        def fetch(_: int) -> Secret | None:
            start.wait(10)
            return source.fetch(TENANT)

        with ThreadPoolExecutor(50) as pool:
            assert list(pool.map(fetch, range(50))) == [Secret(VALUES, "1")] * 50
        assert standin.num_logins == 2

    def test_a_missing_policy_leads_to_one_login_in_five_minutes(
        self, standin: VaultStandin, make: Make, clock: Clock
    ) -> None:
        standin.is_forbidding = True
        source = make(standin.url, **APPROLE)
        for _ in range(20):
            assert "403" in reason_of(source)
        assert standin.num_logins == 2
        clock.now += 301
        reason_of(source)
        assert standin.num_logins == 3
        standin.is_forbidding = False
        assert source.fetch(TENANT)

    def test_a_bad_secret_id_never_locks_the_role_out(
        self, standin: VaultStandin, make: Make, clock: Clock
    ) -> None:
        source = make(standin.url, NEXA_VAULT_ROLE_ID=ROLE_ID, NEXA_VAULT_SECRET_ID="wrong")
        tried_at: list[float] = []
        for _ in range(4 * 3600):
            before = standin.num_logins
            assert "login" in reason_of(source)
            if standin.num_logins > before:
                tried_at.append(clock.now - 1000)
            clock.now += 1
        assert tried_at[:4] == [0, 5, 305, 1265]
        assert standin.num_lockouts == 0
        assert standin.num_calls == standin.num_logins == len(tried_at) < 20

    def test_a_new_secret_id_in_the_file_is_tried_at_once(
        self, standin: VaultStandin, make: Make, tmp_path: Path
    ) -> None:
        file = tmp_path / "secret-id"
        file.write_text("wrong")
        source = make(standin.url, NEXA_VAULT_ROLE_ID=ROLE_ID, NEXA_VAULT_SECRET_ID_FILE=str(file))
        reason_of(source)
        file.write_text(f"{SECRET_ID}\n")
        assert source.fetch(TENANT)
        assert standin.num_logins == 2

    def test_a_missing_file_is_named_by_its_setting(
        self, standin: VaultStandin, make: Make, tmp_path: Path
    ) -> None:
        file = str(tmp_path / "nothing")
        source = make(standin.url, NEXA_VAULT_ROLE_ID=ROLE_ID, NEXA_VAULT_SECRET_ID_FILE=file)
        assert "NEXA_VAULT_SECRET_ID_FILE" in reason_of(source)
        assert standin.num_calls == 0

    def test_kubernetes_logs_in_with_the_file_of_the_pod(
        self, standin: VaultStandin, make: Make, tmp_path: Path, clock: Clock
    ) -> None:
        file = tmp_path / "jwt"
        file.write_text("too old")
        source = make(
            standin.url,
            NEXA_VAULT_KUBERNETES_ROLE=KUBERNETES_ROLE,
            NEXA_VAULT_KUBERNETES_TOKEN_FILE=str(file),
        )
        assert "403" in reason_of(source)
        file.write_text(JWT)
        assert source.fetch(TENANT)
        assert standin.calls["auth/kubernetes/login"] == 2

    def test_a_static_token_that_is_refused_cannot_be_mended(self, standin: VaultStandin, make: Make) -> None:
        source = make(standin.url, VAULT_TOKEN="hvs.revoked")
        assert "403" in reason_of(source)
        assert standin.num_reads(TENANT) == 1
        assert standin.num_logins == 0


class TestWrapping:
    @staticmethod
    def source(standin: VaultStandin, make: Make, wrapping_token: str) -> VaultSource:
        return make(
            standin.url,
            NEXA_VAULT_ROLE_ID=ROLE_ID,
            NEXA_VAULT_SECRET_ID=wrapping_token,
            NEXA_VAULT_SECRET_ID_WRAPPED=True,
        )

    def test_it_is_opened_once_and_remembered(self, standin: VaultStandin, make: Make) -> None:
        source = self.source(standin, make, standin.wrap_secret_id())
        assert source.fetch(TENANT)
        standin.revoke_tokens()
        assert source.fetch(TENANT)
        assert standin.calls["sys/wrapping/unwrap"] == 1
        assert standin.num_logins == 2

    @pytest.mark.parametrize(
        "created_by",
        ["sys/wrapping/wrap", f"evil/{SECRET_ID_PATH}", f"{SECRET_ID_PATH}/lookup", "auth/token/create"],
    )
    def test_one_from_a_foreign_path_stays_closed(
        self, standin: VaultStandin, make: Make, created_by: str
    ) -> None:
        source = self.source(standin, make, standin.wrap_secret_id(created_by=created_by))
        assert "not made for a secret id" in reason_of(source)
        assert standin.calls["sys/wrapping/unwrap"] == standin.num_logins == 0

    def test_one_that_was_opened_before_is_refused(self, standin: VaultStandin, make: Make) -> None:
        token = standin.wrap_secret_id()
        assert self.source(standin, make, token).fetch(TENANT)
        assert "wrapping token with 400" in reason_of(self.source(standin, make, token))


class TestRenewal:
    def test_the_token_is_renewed_after_two_thirds_of_its_lease(
        self, standin: VaultStandin, make: Make, clock: Clock
    ) -> None:
        source = make(standin.url, **APPROLE)
        source.fetch(TENANT)
        clock.now += 2399
        source.fetch(TENANT)
        assert standin.calls[RENEW] == 0
        clock.now += 2
        source.fetch(TENANT)
        source.fetch(TENANT)
        assert (standin.calls[RENEW], standin.num_logins) == (1, 1)
        clock.now += 2401
        source.fetch(TENANT)
        assert (standin.calls[RENEW], standin.num_logins) == (2, 1)

    def test_a_renewal_that_is_cut_short_leads_to_a_login(
        self, standin: VaultStandin, make: Make, clock: Clock
    ) -> None:
        standin.token_max_ttl_s = 4000
        source = make(standin.url, **APPROLE)
        source.fetch(TENANT)
        clock.now += 2401
        assert source.fetch(TENANT)
        assert (standin.calls[RENEW], standin.num_logins) == (1, 2)

    def test_a_renewal_that_is_refused_leads_to_a_login(
        self, standin: VaultStandin, make: Make, clock: Clock
    ) -> None:
        source = make(standin.url, **APPROLE)
        source.fetch(TENANT)
        standin.revoke_tokens()
        clock.now += 2401
        assert source.fetch(TENANT)
        assert (standin.calls[RENEW], standin.num_logins) == (1, 2)

    def test_a_token_that_cannot_be_renewed_is_replaced_in_time(
        self, standin: VaultStandin, make: Make, clock: Clock
    ) -> None:
        standin.is_renewable = False
        source = make(standin.url, **APPROLE)
        source.fetch(TENANT)
        clock.now += 2401
        assert source.fetch(TENANT)
        assert (standin.calls[RENEW], standin.num_logins) == (0, 2)

    def test_what_is_left_of_a_lease_serves_while_no_login_succeeds(
        self, standin: VaultStandin, make: Make, clock: Clock
    ) -> None:
        standin.token_max_ttl_s = 4000
        source = make(standin.url, **APPROLE)
        source.fetch(TENANT)
        standin.faulty_prefix, standin.is_sealed = LOGIN, True
        clock.now += 2401
        assert source.fetch(TENANT)
        assert source.fetch(TENANT)
        assert (standin.calls[RENEW], standin.num_logins) == (1, 2)
        clock.now += 1600
        reason_of(source)

    def test_a_renewal_that_hangs_costs_one_fetch(
        self, standin: VaultStandin, make: Make, clock: Clock
    ) -> None:
        source = make(standin.url, NEXA_VAULT_TIMEOUT_S=0.3, **APPROLE)
        source.fetch(TENANT)
        standin.faulty_prefix, standin.hang_s = RENEW, 30
        clock.now += 2401
        assert "Timeout" in reason_of(source)
        assert source.fetch(TENANT)
        standin.hang_s = 0
        clock.now += 5
        assert source.fetch(TENANT)
        assert (standin.calls[RENEW], standin.num_logins) == (2, 1)

    def test_an_expired_token_is_replaced_without_asking_with_it(
        self, standin: VaultStandin, make: Make, clock: Clock
    ) -> None:
        source = make(standin.url, **APPROLE)
        source.fetch(TENANT)
        clock.now += 3601
        assert source.fetch(TENANT)
        assert (standin.calls[RENEW], standin.num_logins, standin.num_reads(TENANT)) == (0, 2, 2)

    def test_a_static_token_with_a_lease_is_kept_alive_to_its_end(
        self, standin: VaultStandin, make: Make, clock: Clock
    ) -> None:
        source = make(standin.url, VAULT_TOKEN=standin.issue_token(600, max_ttl_s=1100))
        for _ in range(10):
            assert source.fetch(TENANT)
            clock.now += 100
        assert standin.calls[RENEW] == 2
        clock.now += 101
        assert "403" in reason_of(source)
        assert standin.calls[RENEW] == 2


class TestStandin:
    def test_it_stops_at_once_while_an_answer_hangs(self) -> None:
        with VaultStandin() as standin:
            standin.hang_s = 3600
            with pytest.raises(httpx.ReadTimeout):
                httpx.get(f"{standin.url}/v1/sys/health", timeout=0.2)

    def test_it_tells_its_health(self, standin: VaultStandin) -> None:
        assert httpx.get(f"{standin.url}/v1/sys/health").status_code == 200
        standin.is_sealed = True
        assert httpx.get(f"{standin.url}/v1/sys/health").status_code == 503

    def test_it_locks_a_role_out_after_five_bad_logins(self, standin: VaultStandin, clock: Clock) -> None:
        def log_in(secret_id: str) -> int:
            body = {"role_id": ROLE_ID, "secret_id": secret_id}
            return httpx.post(f"{standin.url}/v1/{LOGIN}", json=body).status_code

        assert [log_in("wrong") for _ in range(6)] == [400] * 5 + [403]
        assert log_in(SECRET_ID) == 403
        clock.now += 901
        assert log_in(SECRET_ID) == 200
