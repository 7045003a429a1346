"""``nexa-runtime bench``, as a person and as a program runs it. How fast it is, no test says."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nexa_runtime.serving.library import DEMO_PATH
from scripts.bench.make_model import Shape, write_model
from tests.cli.test_models_cli import Person

FIELDS = {
    "model", "description", "size_bytes", "gpu_layers", "layers", "threads", "slots", "kv_cells",
    "llama_cpp_python", "machine_was_busy", "prompt_tokens", "prompt_tokens_per_s", "first_token_ms",
    "cached_tokens", "cached_first_token_ms", "output", "token_gap_ms",
}  # fmt: skip


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


def test_a_program_gets_every_number(person: Person) -> None:
    found = person.gets("bench", "demo", "--slots", "3", "--threads", "1", "--ctx-size", "4096")
    assert set(found) == FIELDS
    assert found["model"] == "demo"
    assert (found["slots"], found["kv_cells"], found["prompt_tokens"]) == (3, 4096, 512)
    assert found["threads"] == {"decode": 1, "prompt": 1}
    assert [one["streams"] for one in found["output"]] == [1, 3]
    assert all(one["tokens_per_s"] > 0 for one in found["output"])
    assert found["cached_tokens"] == 511
    assert found["first_token_ms"] > 0
    assert found["cached_first_token_ms"] > 0
    gaps = found["token_gap_ms"]
    assert 0 < gaps["median"] <= gaps["worst"]
    assert gaps["alone"] > 0


def test_a_person_gets_a_table_also_with_one_slot_and_a_small_context(person: Person) -> None:
    person.has_demo("toy")
    done = person.runs("bench", "toy", "--slots", "1", "--threads", "1", "--ctx-size", "256")
    assert done.returncode == 0
    assert "Measuring toy" in done.stderr
    facts, table = done.stdout.split("\n\n")
    assert re.fullmatch(r"model +toy \(.+\)\nbackend +.+\nthreads +1\nslots +1, with 256 KV cells", facts)
    lines = table.splitlines()
    assert len(lines) == 5
    assert lines[1].startswith("a prompt of 128 tokens ")
    assert all(re.search(r" \d+(\.\d)?  (tokens/s|ms)$", line) for line in lines[1:])


def test_a_split_cache_is_measured_too(person: Person) -> None:
    env = {"NEXA_KV": "split", "NEXA_SLOTS": "2", "NEXA_CTX_SIZE": "512", "NEXA_THREADS": "1"}
    found = person.gets("bench", env=env)
    assert [one["streams"] for one in found["output"]] == [1, 2]
    assert found["token_gap_ms"] is not None


@pytest.mark.parametrize(
    ("status", "arguments", "words"),
    [
        (3, ["lama3"], "did you mean llama3"),
        (3, ["./none.gguf"], "There is no file none.gguf"),
        (6, [__file__], "not a GGUF file"),
        (2, [""], "No model is named"),
        (1, ["demo", "--slots", "many"], "NEXA_SLOTS"),
        (1, ["demo", "--threads", "0"], "NEXA_THREADS"),
        (2, ["demo", "more"], "more"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(
    person: Person, status: int, arguments: list[str], words: str
) -> None:
    assert words in person.fails(status, "bench", *arguments)


def test_a_model_that_only_embeds_has_no_such_speed(person: Person, tmp_path: Path) -> None:
    path = tmp_path / "encoder.gguf"
    write_model(Shape("bert", 2, 64, 128, 4, 4, 64), DEMO_PATH, path)
    assert "not made for" in person.fails(1, "bench", str(path))


def test_ctrl_c_ends_it(person: Person) -> None:
    nexa = Path(sys.executable).with_name("nexa-runtime")
    command: list[str | Path] = [nexa, "bench", "demo", "--ctx-size", "4096"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=person.env
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Measuring demo")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr
