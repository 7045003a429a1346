"""The spool keeps what it was given, whatever becomes of its files."""

import json
import random
import shutil
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nexa_runtime.errors import ConfigError
from nexa_runtime.usage import UsageRecord
from nexa_runtime.usage.spool import Spool, decode, encode
from tests.usage.records import a_record, some_records

MANY_BYTES = 10**8


def segments(base: Path) -> list[Path]:
    return sorted(base.glob("*/*.spool"))


def drain(spool: Spool) -> list[UsageRecord]:
    """All that is in it, in order; it is empty then."""
    records: list[UsageRecord] = []
    while (batch := spool.next_batch(500)) is not None:
        records += batch.records
        spool.remove(batch)
    assert (spool.num_records, spool.num_bytes) == (0, 0)
    return records


def test_what_was_appended_comes_back_in_order_and_leaves_no_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MANY_BYTES)
    records = some_records(2000)
    for at in range(0, 2000, 100):
        spool.append(records[at : at + 100])
    assert spool.num_records == 2000
    batch = spool.next_batch(500)
    assert batch is not None
    assert 500 <= len(batch.records) < 2000
    assert spool.next_batch(500) == batch
    spool.remove(batch)
    assert list(batch.records) + drain(spool) == records
    assert segments(tmp_path) == []


def test_a_killed_process_leaves_what_it_was_given(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "before", MANY_BYTES)
    records = some_records(30)
    spool.append(records)
    shutil.copytree(tmp_path / "before" / "1", tmp_path / "after" / "1")
    after = Spool(tmp_path / "after", MANY_BYTES)
    assert after.num_records == 30
    assert drain(after) == records


def test_each_server_has_a_folder_and_takes_over_what_nobody_holds(tmp_path: Path) -> None:
    first, second = Spool(tmp_path, MANY_BYTES), Spool(tmp_path, MANY_BYTES)
    ours, theirs = some_records(3), some_records(4)
    first.append(ours)
    second.append(theirs)
    first.adopt()
    assert first.num_records == 3
    second.close()
    first.adopt()
    assert sorted(one.id for one in drain(first)) == sorted(one.id for one in ours + theirs)
    assert segments(tmp_path) == []


def test_what_finds_no_room_is_counted_and_said_once(tmp_path: Path) -> None:
    records = some_records(30)
    spool = Spool(tmp_path, sum(len(encode(record)) for record in records[:20]))
    with capture_logs() as lines:
        for record in records:
            spool.append([record])
    assert spool.num_dropped == 10
    assert [line["event"] for line in lines] == ["usage_spool_full"]
    assert drain(spool) == records[:20]
    with capture_logs() as lines:
        spool.append(records[:5])
    assert lines == []
    assert drain(spool) == records[:5]


def test_what_cannot_be_written_stays_in_memory(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MANY_BYTES)
    records = some_records(9)
    spool.append(records[:3])
    assert spool.next_batch(500) is not None
    folder = tmp_path / "1"
    folder.rename(tmp_path / "away")
    folder.write_text("a file in its place")
    with capture_logs() as lines:
        spool.append(records[3:5])
        spool.append(records[5:6])
    assert [line["event"] for line in lines] == ["usage_spool_unwritable"]
    folder.unlink()
    (tmp_path / "away").rename(folder)
    spool.append(records[6:])
    assert spool.num_records == 9
    assert drain(spool) == records


def test_a_segment_that_cannot_be_read_waits(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MANY_BYTES)
    records = some_records(4)
    spool.append(records[:2])
    assert spool.next_batch(500) is not None
    spool.append(records[2:])
    (first,) = segments(tmp_path)[:1]
    first.rename(tmp_path / "elsewhere")
    batch = spool.next_batch(500)
    assert batch is not None
    assert list(batch.records) == records[2:]
    spool.remove(batch)
    (tmp_path / "elsewhere").rename(first)
    assert drain(spool) == records[:2]


def test_a_folder_that_cannot_be_had_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"kept in .*file/spool: Not a directory\. NEXA_STATE_DIR"):
        Spool(tmp_path / "file" / "spool", MANY_BYTES)


def test_texts_are_cut_and_any_character_survives(tmp_path: Path) -> None:
    record = a_record(model="m" * 5000, request_id="a\nb\0\ud800 é")
    again = decode(encode(record).rstrip(b"\n"))
    assert again is not None
    assert again.model == "m" * 200
    assert again.request_id == record.request_id
    assert encode(record).count(b"\n") == 1


def test_a_field_that_an_older_version_did_not_have_is_none() -> None:
    line = encode(a_record()).partition(b" ")[2].strip()
    values = json.loads(line)
    del values["queue_ms"]
    values["of_a_newer_version"] = 1
    data = json.dumps(values).encode()
    record = decode(b"%08x %b" % (zlib.crc32(data), data))
    assert record is not None
    assert record.queue_ms is None


@settings(max_examples=60, deadline=None)
@given(
    damages=st.lists(
        st.tuples(st.sampled_from(["flip", "cut", "insert", "truncate"]), st.integers(0, 10**6)), max_size=4
    ),
    seed=st.integers(0, 10**6),
)
def test_damage_costs_only_the_lines_it_touches(damages: list[tuple[str, int]], seed: int) -> None:
    noise = random.Random(seed)
    records = some_records(12)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        spool = Spool(base, MANY_BYTES)
        spool.append(records)
        spool.close()
        (path,) = segments(base)
        data = bytearray(path.read_bytes())
        num_cut = 0
        for kind, place in damages:
            at = place % max(len(data), 1)
            if kind == "truncate":
                num_cut += data.count(b"\n", at)
                del data[at:]
            elif kind == "cut":
                num_cut += data.count(b"\n", at, at + 40)
                del data[at : at + 40]
            elif kind == "flip" and data:
                data[at] ^= 1 << noise.randrange(8)
            else:
                data[at:at] = noise.randbytes(5)
        path.write_bytes(bytes(data))
        after = Spool(base, MANY_BYTES)
        kept = drain(after)
        after.close()
    assert [record for record in records if record in kept] == kept, "in order, once, and nothing else"
    assert len(kept) >= len(records) - 2 * len(damages) - num_cut
