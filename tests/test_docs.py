"""The README cannot lie: every setting, command, error code and endpoint is in it."""

import re
from collections.abc import Iterator
from pathlib import Path

import nexa_runtime
from nexa_runtime import errors, exit_codes
from nexa_runtime.cli.main import app
from nexa_runtime.config import SLICES, env_names, file_names
from nexa_runtime.server.app import App
from nexa_runtime.telemetry.metrics.aliases import ALIASES
from nexa_runtime.telemetry.metrics.catalogue import FAMILIES
from nexa_runtime.telemetry.metrics.labels import MAX_TENANTS
from nexa_runtime.tenancy.tenant import LIMIT_KEYS
from scripts.api_table import written

ROOT = Path(nexa_runtime.__file__).parents[1]
README = (ROOT / "README.md").read_text()


def subclasses(cls: type[errors.NexaError]) -> Iterator[type[errors.NexaError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from subclasses(child)


def test_every_setting_is_documented_and_every_documented_one_exists() -> None:
    settings = {name for cls in SLICES for field in cls.model_fields.values() for name in env_names(field)}
    assert {name for name in settings if f"`{name}`" not in README} == set()
    files = {name for cls in SLICES for name in file_names(cls).values()}
    assert set(re.findall(r"`(NEXA_[A-Z_]+)`", README)) <= settings | files | set(LIMIT_KEYS)


def test_every_secret_key_is_documented() -> None:
    assert [key for key in LIMIT_KEYS if f"| `{key}` |" not in README] == []


def test_every_error_code_is_documented() -> None:
    # Never on the wire: one sentence in the terminal or in the log.
    hidden = {
        cls.code
        for cls in (
            errors.ConfigError, errors.ModelFileError, errors.ClientError, errors.SourceUnavailableError,
            errors.UsageDatabaseError,
        )
    }  # fmt: skip
    codes = {cls.code for cls in subclasses(errors.NexaError)} - hidden
    assert {code for code in codes if f"`{code}`" not in README} == set()


def test_every_exit_code_is_documented() -> None:
    codes = {str(code) for name, code in vars(exit_codes).items() if name.isupper()}
    rows = re.findall(r"^\| ([0-9, ]+) \| ", README.partition("| exit code |")[2].partition("\n\n")[0], re.M)
    assert {code for row in rows for code in row.split(", ")} == codes


def test_every_command_is_documented() -> None:
    names = [
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    ]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        for command in group.typer_instance.registered_commands:
            assert command.callback is not None
            names.append(f"{group.name} {command.name or command.callback.__name__}")
    assert [name for name in names if f"nexa-runtime {name}" not in README] == []


def test_every_endpoint_is_documented() -> None:
    routes = re.findall(r'Route\("([^"]+)"', Path(App.__module__.replace(".", "/") + ".py").read_text())
    paths = [route.replace("{name:path}", "{id}") for route in routes]
    assert len(paths) >= 6
    assert [path for path in paths if path not in README] == []


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    names = {family.name for family in (*FAMILIES, *(alias.family for alias in ALIASES))}
    assert {name for name in names if f"| `{name}` |" not in README} == set()
    assert set(re.findall(r"`((?:nexa_|llamacpp:|vllm:)[a-z0-9_:]+)`", README)) <= names | {"nexa_runtime"}
    assert f"first {MAX_TENANTS} tenants" in README


def test_the_tables_that_are_made_of_code_are_up_to_date() -> None:
    assert written(README) == README, "scripts/api_table writes the tables anew"


def test_the_top_level_is_what_was_agreed() -> None:
    import subprocess

    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    top = {line.split("/")[0] for line in files.splitlines()}
    agreed = {
        "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "Dockerfile.cpu", "Dockerfile.cuda",
        "models.yaml", "nexa_runtime", "tests", "scripts", ".ci", ".gitignore", ".dockerignore",
    }  # fmt: skip
    assert top <= agreed
