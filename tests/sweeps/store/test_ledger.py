"""The event log survives torn lines, flipped bytes and writers that were taken for dead."""

import json
import os
import time
from pathlib import Path

import pytest

from sweeps.store.lease import TTL_SECONDS, Lease, LeaseLost
from sweeps.store.ledger import START, Ledger, read_events


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl", Lease(tmp_path / "lease"))


def names(path: Path) -> list[str]:
    return [event["event"] for event in read_events(path)[0]]


def test_what_is_written_is_read(ledger: Ledger) -> None:
    event = ledger.append("submitted", tag="t", number=1.5, text='ü "quoted"\n', nothing=None)
    events, damage, _ = read_events(ledger.path)
    assert events == [event]
    assert not damage


def test_a_line_cut_at_any_byte_loses_that_line_only(ledger: Ledger) -> None:
    for name in ("first", "second", "third"):
        ledger.append(name)
    whole = ledger.path.read_bytes()
    second_ends = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    for cut in range(second_ends, len(whole)):
        ledger.path.write_bytes(whole[:cut])
        # Without its line break alone it is whole, as its checksum says.
        left = ["first", "second"] if cut < len(whole) - 1 else ["first", "second", "third"]
        assert names(ledger.path) == left
        Ledger(ledger.path, ledger.lease).append("after")
        assert names(ledger.path) == [*left, "after"]


def test_a_flipped_byte_is_noticed_wherever_it_is(ledger: Ledger) -> None:
    for name in ("first", "second", "third"):
        ledger.append(name)
    whole = ledger.path.read_bytes()
    begins = whole.index(b"\n") + 1
    ends = whole.index(b"\n", begins)
    for place in range(begins, ends):
        flipped = bytearray(whole)
        flipped[place] ^= 0x04
        ledger.path.write_bytes(bytes(flipped))
        events, damage, _ = read_events(ledger.path)
        assert [event["event"] for event in events] == ["first", "third"], flipped[begins:ends]
        assert damage


def test_lines_of_a_replaced_writer_do_not_count(ledger: Ledger) -> None:
    ledger.append("before")
    ledger.lease.path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started_at": 0.0}))
    os.utime(ledger.lease.path, (time.time() - 2 * TTL_SECONDS,) * 2)
    new = Ledger(ledger.path, Lease(ledger.lease.folder))
    with pytest.raises(LeaseLost):
        ledger.append("too late")
    # As if the old writer had passed its check a moment before it was replaced.
    new.append("of the new")
    ledger.lease.renew = lambda: 0.0  # type: ignore[method-assign]
    ledger.append("slipped through")
    new.append("of the new again")
    assert names(ledger.path) == ["before", "of the new", "of the new again"]


def test_a_ledger_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_events(tmp_path / "none") == ([], [], START)
