"""The console in a real browser: what it shows, what it does, what it may load, and who may see it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nexa_runtime.store.importing import import_file
from nexa_runtime.store.store import ModelStore
from tests.console.browser import CHROMIUM, Browser
from tests.support import LiveServer, copy_model, free_settings

ADMIN_KEY = "the-admin-key-of-the-test"
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}

BUTTON = "document.querySelector('#models button')"

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with keys and two tenants."""
    folder = tmp_path_factory.mktemp("closed")
    tenants = folder / "tenants.yaml"
    tenants.write_text("tenants: {acme: {}, rut-76832940-3: {NEXA_MAX_OUTPUT_TOKENS: 64}}")
    settings = {
        "NEXA_ADMIN_KEY": ADMIN_KEY,
        "NEXA_API_KEY": "the-service-key",
        "NEXA_TENANTS_FILE": str(tenants),
        "NEXA_MODEL_STORE": str(folder / "store"),
    }
    other = copy_model(folder / "other.gguf", name="Other")
    import_file(other, store=ModelStore(folder / "store"), name="other")
    with LiveServer(free_settings(**settings)) as live:
        yield live


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as opened:
        yield opened


def log_in(browser: Browser, live: LiveServer) -> None:
    browser.open(f"{live.url}/console")
    browser.wait("!document.getElementById('gate').hidden")
    browser.type(ADMIN_KEY)  # the field has the focus
    browser.press("Enter")
    browser.wait("!document.getElementById('main').hidden && document.querySelector('#tiles dd') !== null")


def test_the_page_is_small_and_loads_nothing(closed: LiveServer) -> None:
    response = closed.http.get("/console")
    assert response.status_code == 200
    assert len(response.content) < 150_000
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert "://" not in response.text.replace("http://www.w3.org/2000/svg", "")


def test_what_it_shows_is_for_the_admin(closed: LiveServer) -> None:
    assert closed.http.get("/admin/live").status_code == 401
    service = {"authorization": "Bearer the-service-key"}
    assert closed.http.get("/admin/live", headers=service).status_code == 403


def test_the_stream_says_what_the_box_does(closed: LiveServer) -> None:
    with closed.http.stream("GET", "/admin/live", headers=ADMIN) as response:
        line = next(line for line in response.iter_lines() if line.startswith("data: "))
    assert '"tenants":[' in line
    assert '"is_ready":true' in line


def test_the_stream_ends_with_the_server(tmp_path: Path) -> None:
    live = LiveServer(free_settings())
    with httpx.stream("GET", f"{live.url}/admin/live", timeout=60) as response:
        lines = response.iter_lines()
        assert next(lines)
        live.stop()
        assert list(lines)[-1:] in ([], [""])


@in_browser
def test_a_wrong_key_is_told_and_forgotten(browser: Browser, closed: LiveServer) -> None:
    browser.open(f"{closed.url}/console")
    browser.wait("!document.getElementById('gate').hidden")
    browser.type("wrong")
    browser.press("Enter")
    browser.wait("document.getElementById('refusal').textContent.includes('not the admin key')")
    assert browser.ask("sessionStorage.length") == 0
    assert browser.ask("localStorage.length + document.cookie.length") == 0


@in_browser
def test_a_chat_and_an_unload(browser: Browser, closed: LiveServer) -> None:
    log_in(browser, closed)
    browser.wait("document.querySelector('#models li') !== null")
    browser.ask("document.getElementById('try-tenant').focus()")
    browser.type("acme")
    browser.press("Tab")
    browser.type("the-service-key")
    browser.ask("document.getElementById('send').focus()")
    browser.press("Enter")
    browser.wait("document.getElementById('answer').textContent === 'The capital of France is Paris.'")
    browser.wait("/tokens, first after/.test(document.getElementById('try-state').value)")
    browser.wait("[...document.querySelectorAll('#tenants td')].some(cell => cell.textContent === 'acme')")
    browser.wait(f"{BUTTON}?.textContent === 'Load'")  # the default one has none
    browser.ask(f"{BUTTON}.focus()")
    browser.press("Enter")
    browser.wait(f"{BUTTON}.textContent === 'Unload'")
    browser.press("Enter")  # the focus has stayed
    browser.wait("document.getElementById('model-news').textContent === 'other is unloaded.'")
    browser.wait(f"{BUTTON}.textContent === 'Load'")
    assert {url.split("/console")[0].split("/admin")[0].split("/v1")[0] for url in browser.requests()} == {
        closed.url
    }
    assert [text for text in browser.complaints() if "401" not in text] == []  # before there was a key


@in_browser
def test_a_key_that_cannot_be_sent_is_told_and_not_kept(browser: Browser, closed: LiveServer) -> None:
    browser.open(f"{closed.url}/console")
    browser.wait("!document.getElementById('gate').hidden")
    browser.type("\u043a\u043b\u044e\u0447")
    browser.press("Enter")
    browser.wait("document.getElementById('refusal').textContent.includes('ASCII')")
    assert browser.ask("sessionStorage.length") == 0
