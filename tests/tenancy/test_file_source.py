"""The tenants file: its form, and edits while it is in use."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nexa_runtime.errors import ConfigError
from nexa_runtime.strict_yaml import MAX_FILE_BYTES
from nexa_runtime.tenancy.file_source import FileSource, load_tenants_file
from nexa_runtime.tenancy.source import LimitsSource

GOOD = """\
tenants:
  demo:
    NEXA_MAX_OUTPUT_TOKENS: "768"
    TENANT_HARD_LIMIT_RPM: 120
    NEXA_LOG_PROMPTS: true
    NEXA_ALLOWED_MODELS: [a, b]
  rut-76832940-3:
"""
SECRET = "hunter2"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tenants.yaml"
    path.write_text(GOOD)
    return path


def edit(path: Path, text: str) -> None:
    """Write so that the file differs even where clocks are coarse."""
    modified_ns = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(modified_ns + 10**9, modified_ns + 10**9))


def rpm(source: FileSource, tenant_id: str = "demo") -> object:
    secret = source.fetch(tenant_id)
    assert secret is not None
    return secret.values.get("TENANT_HARD_LIMIT_RPM")


def fault(path: Path, content: str | bytes) -> str:
    """Why a file is refused, after its name."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load_tenants_file(path)
    assert SECRET not in str(caught.value)
    return str(caught.value).removeprefix(f"The tenants file {path} ")


def test_it_is_a_source_that_always_has_a_word(path: Path) -> None:
    source: LimitsSource = FileSource(path)
    assert source.name == "file"
    assert source.has_answered
    source.close()


def test_values_come_as_yaml_gives_them(path: Path) -> None:
    secret = FileSource(path).fetch("demo")
    assert secret is not None
    assert secret.values == {
        "NEXA_MAX_OUTPUT_TOKENS": "768",
        "TENANT_HARD_LIMIT_RPM": 120,
        "NEXA_LOG_PROMPTS": True,
        "NEXA_ALLOWED_MODELS": ["a", "b"],
    }
    assert len(secret.version) == 12


def test_a_tenant_without_a_value_has_no_keys_set(path: Path) -> None:
    secret = FileSource(path).fetch("rut-76832940-3")
    assert secret is not None
    assert secret.values == {}


def test_there_are_only_the_tenants_in_the_file(path: Path) -> None:
    source = FileSource(path)
    assert source.fetch("other") is None


def test_ids_and_keys_are_text_as_they_are_written(path: Path) -> None:
    path.write_text("tenants: {007: {1: a}, no: {}, 1e3: null, '5': }")
    assert load_tenants_file(path) == {"007": {"1": "a"}, "no": {}, "1e3": {}, "5": {}}


def test_a_file_may_begin_with_a_byte_order_mark(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert "demo" in load_tenants_file(path)


def test_tenants_may_share_a_plan(path: Path) -> None:
    path.write_text(
        "tenants: {a: &plan {X: 1, Y: 2}, b: {<<: *plan, Y: 3}, c: *plan, d: {<<: {<<: *plan, X: 4}}}"
    )
    assert load_tenants_file(path) == {
        "a": {"X": 1, "Y": 2},
        "b": {"X": 1, "Y": 3},
        "c": {"X": 1, "Y": 2},
        "d": {"X": 4, "Y": 2},
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tenants:\n  a: {}\n  b: {}\n  a: {}\n", "has a key twice (line 4)."),
        ("tenants:\n  a:\n    X: 1\n    X: hunter2\n", "has a key twice (line 4)."),
        ("tenants:\n  a:\n    1: 1\n    '1': hunter2\n", "has a key twice (line 4)."),
        ("tenants:\n  a:\n    [hunter2]: 1\n", "has a key that is not a plain word (line 3)."),
        ("tenants:\n  a: [hunter2\n", "is not valid YAML (line 3)."),
        ("tenants:\n  a: *hunter2\n", "is not valid YAML (line 2)."),
        ("tenants:\n  a: {x: !hunter2 1}\n", "is not valid YAML (line 2)."),
        ("tenants:\n  a: {x: !!python/name:os.system hunter2}\n", "is not valid YAML (line 2)."),
        ("tenants: {a: {x: 2024-99-99}}", "is not valid YAML."),
        ("tenants: {a: {x: !!int '', y: !!bool hunter2}}", "is not valid YAML."),
        ("tenants: {a: {x: !!bool hunter2}}", "is not valid YAML."),
        ("tenants: {a: {x: !!timestamp hunter2}}", "is not valid YAML."),
        ("tenants: {a: {x: \0}}", "is not valid YAML."),
        ("tenants: {}\n---\ntenants: {}\n", "is not valid YAML (line 2)."),
        (b"tenants: {a: {x: \xff}}", "is not UTF-8 text."),
        ("tenants: {a: {x: " + "[" * 5_000, "is nested too deeply."),
        ("", 'must hold one mapping, "tenants", and nothing else.'),
        ("hunter2", 'must hold one mapping, "tenants", and nothing else (line 1).'),
        ("[tenants]", 'must hold one mapping, "tenants", and nothing else (line 1).'),
        ("tenants: {}\nhunter2: {}", 'must hold one mapping, "tenants", and nothing else (line 1).'),
        ("\ntenants:\n", 'must map tenant ids to limits under "tenants" (line 2).'),
        ("tenants: [hunter2]", 'must map tenant ids to limits under "tenants" (line 1).'),
        ("tenants:\n  a: hunter2\n", "has a tenant whose value is not a mapping (line 2)."),
        ("tenants:\n  a: !!set {hunter2}\n", "has a tenant whose value is not a mapping (line 2)."),
        ("tenants:\n  a: {x: !!map hunter2}\n", "has a mapping that is none (line 2)."),
    ],
)
def test_a_bad_file_is_refused_with_the_line_but_not_the_contents(
    path: Path, text: str | bytes, expected: str
) -> None:
    assert fault(path, text) == expected


@pytest.mark.parametrize("tenant_id", ["hunter2_x", "../a", "A", '"a\\n"', "1.5", "''", "-3", "? [a]\n  "])
def test_a_bad_tenant_id_is_refused(path: Path, tenant_id: str) -> None:
    reason = fault(path, f"tenants:\n  {tenant_id}: {{}}\n")
    assert (
        reason
        == 'has a tenant id that is not 1 to 64 of a-z, 0-9 and "-", with no "-" at either end (line 2).'
    )


def test_a_file_that_is_too_large_is_refused(path: Path) -> None:
    os.truncate(path, MAX_FILE_BYTES + 1)
    with pytest.raises(ConfigError, match="larger than 10000000 bytes"):
        FileSource(path)


def test_a_file_that_is_missing_or_none_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"cannot be read: No such file or directory\.$"):
        FileSource(tmp_path / "missing")
    for odd in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError, match=r"is not a regular file\.$"):
            FileSource(odd)
    with pytest.raises(ConfigError, match="NUL"):
        FileSource(tmp_path / "a\0b")


def test_an_edit_is_seen_at_once(path: Path) -> None:
    source = FileSource(path)
    before = source.fetch("demo")
    edit(path, GOOD.replace("120", "60").replace("rut-76832940-3", "new"))
    after = source.fetch("demo")
    assert before is not None
    assert after is not None
    assert after.values["TENANT_HARD_LIMIT_RPM"] == 60
    assert after.version != before.version
    assert source.fetch("new") is not None
    assert source.fetch("rut-76832940-3") is None


def test_a_file_put_in_its_place_is_seen_though_its_time_and_size_are_the_same(path: Path) -> None:
    source = FileSource(path)
    new = path.with_suffix(".new")
    new.write_text(GOOD.replace("120", "121"))
    modified_ns = path.stat().st_mtime_ns
    os.utime(new, ns=(modified_ns, modified_ns))
    new.replace(path)
    assert rpm(source) == 121


def test_an_unchanged_file_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FileSource(path)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("opened"))
    assert rpm(source) == 120


def test_a_bad_edit_keeps_the_last_good_version_and_is_logged_once(path: Path) -> None:
    source = FileSource(path)
    good = source.fetch("demo")
    edit(path, "tenants: [hunter2")
    with capture_logs() as lines:
        assert [source.fetch("demo") for _ in range(3)] == [good] * 3
    assert [line["event"] for line in lines] == ["tenants_file_rejected"]
    assert lines[0]["log_level"] == "warning"
    assert lines[0]["reason"] == f"The tenants file {path} is not valid YAML (line 1)."


def test_each_bad_edit_is_logged_and_a_good_one_ends_it(path: Path) -> None:
    source = FileSource(path)
    with capture_logs() as lines:
        for _ in range(2):
            edit(path, "tenants: [hunter2")
            source.fetch("demo")
    assert len(lines) == 2
    edit(path, GOOD.replace("120", "60"))
    with capture_logs() as lines:
        assert rpm(source) == 60
    assert lines == []


def test_a_deleted_file_keeps_the_last_good_version_until_it_is_back(path: Path) -> None:
    source = FileSource(path)
    hidden = path.rename(path.with_suffix(".away"))
    with capture_logs() as lines:
        assert [rpm(source) for _ in range(3)] == [120] * 3
    assert [line["event"] for line in lines] == ["tenants_file_rejected"]
    hidden.rename(path)
    edit(path, GOOD.replace("120", "60"))
    assert rpm(source) == 60


def test_a_file_that_cannot_be_read_for_a_moment_is_read_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FileSource(path)
    edit(path, GOOD.replace("120", "60"))

    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch, capture_logs() as lines:
        patch.setattr(Path, "open", refuse)
        assert [rpm(source) for _ in range(3)] == [120] * 3
    assert len(lines) == 1
    assert rpm(source) == 60


def test_many_threads_see_whole_versions_only(path: Path) -> None:
    source = FileSource(path)
    stop = threading.Event()

    def read() -> set[tuple[object, object]]:
        seen: set[tuple[object, object]] = set()
        while not stop.is_set():
            secret = source.fetch("demo")
            assert secret is not None
            seen.add((secret.version, secret.values["TENANT_HARD_LIMIT_RPM"]))
        return seen

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        try:
            for number in range(20):
                new = path.with_suffix(".new")
                new.write_text(GOOD.replace("120", str(100 + number % 2)))
                new.replace(path)
                source.fetch("demo")
        finally:
            stop.set()
        seen = set().union(*(reader.result() for reader in readers))
    assert len({version for version, _ in seen}) == len(seen)
    assert rpm(source) == 101
