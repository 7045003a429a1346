"""How many threads are chosen, and what is kept of it."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from nexa_runtime.config import load_settings
from nexa_runtime.errors import DecodeError, LlamaGuardError
from nexa_runtime.llama import Context, ContextParams, Model
from nexa_runtime.llama.tuning import Threads, set_threads, threads_of
from nexa_runtime.serving.calibration import Calibrator, Sample, candidates, choose, rounds
from nexa_runtime.serving.loading import open_pool
from nexa_runtime.serving.machine import num_physical_cores, num_usable_cores, processor_name

MADE_WITH = Threads(2, 2)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else runs on this machine."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    context = Context(model, ContextParams(256, 4, 64, 4, MADE_WITH.decode))
    yield context
    context.close()


class Machine:
    """One whose steps take so many seconds, by the number of threads."""

    def __init__(self, decode_s: dict[int, float], prompt_s: dict[int, float]) -> None:
        self.decode_s, self.prompt_s = decode_s, prompt_s
        self.turns: list[int] = []

    def measure(self, num_threads: int) -> Sample:
        self.turns.append(num_threads)
        slowness = 50 if len(self.turns) == 1 else 1  # the first turn pays for what is cold
        prompt_s = self.prompt_s[num_threads] * slowness
        return Sample((self.decode_s[num_threads] * slowness,) * 3, prompt_s)


@pytest.mark.parametrize(
    ("num_usable", "num_physical", "counts"),
    [
        (1, 1, (1,)),
        (2, 2, (2,)),
        (4, 2, (2, 4)),
        (4, 4, (3, 4)),
        (16, 8, (7, 8, 16)),
        (3, 3, (3,)),
    ],
)
def test_what_is_worth_trying(num_usable: int, num_physical: int, counts: tuple[int, ...]) -> None:
    assert candidates(num_usable, num_physical) == counts


def test_this_machine_has_a_processor_with_cores() -> None:
    assert 1 <= num_physical_cores() <= num_usable_cores()
    assert processor_name() == processor_name().strip() != ""


@pytest.mark.parametrize(
    ("decode_s", "prompt_s", "threads"),
    [
        ([0.03, 0.02, 0.01], [3.0, 2.0, 1.0], Threads(16, 16)),
        ([0.02, 0.01, 0.03], [3.0, 2.0, 1.0], Threads(8, 16)),
        ([0.0104, 0.01, 0.03], [1.04, 1.03, 1.0], Threads(7, 7)),
        ([0.0106, 0.01, 0.03], [1.06, 1.04, 1.0], Threads(8, 8)),
    ],
)
def test_the_least_that_is_about_as_fast_wins_apart_for_decodes_and_prompts(
    decode_s: Sequence[float], prompt_s: Sequence[float], threads: Threads
) -> None:
    counts = (7, 8, 16)
    machine = Machine(
        dict(zip(counts, decode_s, strict=True)),
        dict(zip(counts, prompt_s, strict=True)),
    )
    assert choose(counts, machine.measure) == threads


def test_the_counts_take_turns() -> None:
    machine = Machine({1: 1.0, 2: 1.0}, {1: 1.0, 2: 1.0})
    choose((1, 2), machine.measure)
    first, *turns = machine.turns
    assert first == 2
    assert len(turns) > 2
    assert turns == [1, 2] * (len(turns) // 2)


def test_rounds_end_with_their_budget_but_there_is_always_one() -> None:
    assert list(rounds(1000.0, 3)) == [0, 1, 2]
    assert list(rounds(-1.0, 3)) == [0]


def test_one_candidate_is_not_measured(tmp_path: Path, model: Model, context: Context) -> None:
    Calibrator(tmp_path, (1,)).tune(model, context, is_quiet=True)
    assert threads_of(context) == MADE_WITH
    assert list(tmp_path.iterdir()) == []


def test_a_real_context_is_measured_once_and_left_empty(
    tmp_path: Path, model: Model, context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "state"
    Calibrator(folder, (1, 2)).tune(model, context, is_quiet=True)
    chosen = threads_of(context)
    assert {chosen.decode, chosen.prompt} <= {1, 2}
    assert [context.num_cached(sequence_id) for sequence_id in range(4)] == [0] * 4
    ((key, kept),) = json.loads((folder / "threads.json").read_text()).items()
    assert kept == {"decode": chosen.decode, "prompt": chosen.prompt}
    assert model.description in key
    # What is known holds, whatever it is, and nothing is measured for it.
    other = Threads(3 - chosen.decode, 3 - chosen.prompt)
    (folder / "threads.json").write_text(
        json.dumps({key: {"decode": other.decode, "prompt": other.prompt}, "another": 1})
    )
    Calibrator(folder, (1, 2)).tune(model, context, is_quiet=False)
    assert threads_of(context) == other
    said = capsys.readouterr().err
    assert said.count("threads_chosen") == 2
    assert said.count("measured") == said.count("known") == 1


def test_nothing_is_measured_while_others_compute(tmp_path: Path, model: Model, context: Context) -> None:
    Calibrator(tmp_path, (1, 2)).tune(model, context, is_quiet=False)
    assert threads_of(context) == MADE_WITH
    assert list(tmp_path.iterdir()) == []


def test_what_a_busy_machine_says_is_not_kept(
    tmp_path: Path,
    model: Model,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    Calibrator(tmp_path, (1, 2)).tune(model, context, is_quiet=True)
    assert "threads_chosen" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "\xff", "[" * 100_000, '{"a": {"decode": 1}}'])
def test_a_broken_or_foreign_file_is_measured_over(
    tmp_path: Path, model: Model, context: Context, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "threads.json"
    file.write_bytes(content.encode("latin-1"))
    Calibrator(tmp_path, (1, 2)).tune(model, context, is_quiet=True)
    assert kept_in(file) == threads_of(context)
    assert capsys.readouterr().err.count("threads_file_ignored") == (not content.startswith('{"a"'))


@pytest.mark.parametrize("entry", [7, {}, {"decode": "1", "prompt": 1}, {"decode": 900, "prompt": 1}])
def test_a_choice_that_cannot_be_is_measured_over(
    tmp_path: Path, model: Model, context: Context, entry: object, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrator = Calibrator(tmp_path, (1, 2))
    calibrator.tune(model, context, is_quiet=True)
    file = tmp_path / "threads.json"
    (key,) = json.loads(file.read_text())
    file.write_text(json.dumps({key: entry}))
    calibrator.tune(model, context, is_quiet=True)
    assert kept_in(file) == threads_of(context)
    assert capsys.readouterr().err.count("threads_file_ignored") == 1


def test_a_file_that_can_be_neither_read_nor_written_is_one_warning(
    tmp_path: Path, model: Model, context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "threads.json" / "in-the-way").mkdir(parents=True)
    Calibrator(tmp_path, (1, 2)).tune(model, context, is_quiet=True)
    said = capsys.readouterr().err
    assert said.count("threads_file_ignored") == said.count("threads_chosen") == 1


def test_a_context_that_cannot_compute_keeps_what_it_had(
    tmp_path: Path,
    model: Model,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise DecodeError("nothing works")

    monkeypatch.setattr(Context, "decode", fail)
    Calibrator(tmp_path, (1, 4)).tune(model, context, is_quiet=True)
    assert threads_of(context) == MADE_WITH
    assert "threads_not_measured" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_threads_llama_cpp_would_abort(context: Context) -> None:
    for threads in (Threads(0, 1), Threads(1, 0), Threads(-1, 1)):
        with pytest.raises(LlamaGuardError, match="threads"):
            set_threads(context, threads)
    assert threads_of(context) == MADE_WITH


def test_what_the_owner_sets_holds_unmeasured(tmp_path: Path) -> None:
    settings = {"NEXA_THREADS": 3, "NEXA_CTX_SIZE": 512, "NEXA_STATE_DIR": str(tmp_path)}
    loaded = open_pool(load_settings(settings)).default
    assert loaded is not None
    assert loaded.context is not None
    assert threads_of(loaded.context) == Threads(3, 3)
    assert not (tmp_path / "threads.json").exists()
    loaded.close()


def test_the_default_model_gets_the_threads_that_were_measured_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexa_runtime.serving.calibration.candidates", lambda *_: (1, 2))
    settings = load_settings({"NEXA_CTX_SIZE": 512, "NEXA_STATE_DIR": str(tmp_path)})
    loaded = open_pool(settings).default
    assert loaded is not None
    assert loaded.context is not None
    assert kept_in(tmp_path / "threads.json") == threads_of(loaded.context)
    loaded.close()


def kept_in(file: Path) -> Threads:
    """The newest choice in a file."""
    return Threads(**list(json.loads(file.read_text()).values())[-1])
