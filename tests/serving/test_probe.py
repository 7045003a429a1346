"""Verdicts: what is kept, by which key, and what becomes of a damaged file of them."""

from pathlib import Path

import pytest

from nexa_runtime.errors import ModelFileError
from nexa_runtime.serving.library import DEMO_PATH
from nexa_runtime.serving.probe import Prober


def test_a_verdict_is_kept_unless_the_trial_was_cut_short(tmp_path: Path) -> None:
    paths = [DEMO_PATH]
    stopping = Prober(tmp_path)
    stopping.interrupt()
    with pytest.raises(ModelFileError, match="was killed"):
        stopping.check(paths, "digest")
    assert not (tmp_path / "probes.json").exists()
    Prober(tmp_path).check(paths, "digest")
    knowing = Prober(tmp_path)
    knowing.interrupt()
    knowing.check(paths, "digest")  # from the file: nothing is tried again
    with pytest.raises(ModelFileError):
        knowing.check(paths, "another")


def test_two_processes_keep_each_others_verdicts(tmp_path: Path) -> None:
    first, second = Prober(tmp_path), Prober(tmp_path)
    first.check([DEMO_PATH], "a")
    second.check([DEMO_PATH], "b")
    assert [path.name for path in tmp_path.iterdir()] == ["probes.json"]
    third = Prober(tmp_path)
    assert third.has_tried("a")
    assert third.has_tried("b")


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"[]",
        b'{"a": 1}',
        b'{"a": {"problem": "", "plan": {"weights_bytes": "much"}}}',
        b'{"a": {"problem": "", "plan": 7}}',
        b"\xff",
        b"",
    ],
    ids=lambda content: content[:20],
)
def test_a_damaged_file_of_verdicts_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "probes.json").write_bytes(content)
    prober = Prober(tmp_path)
    prober.check([DEMO_PATH], "digest")
    assert Prober(tmp_path).has_tried("digest")
