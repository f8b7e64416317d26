"""Exports, archives and imports as JSON lines: what comes back, what is refused, and that no half file is ever there."""

import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from aegis_store import (
    UNLIMITED,
    EventStore,
    FileUnavailable,
    ImportRejected,
    InvalidInput,
    NewEvent,
    ReadOnlyStore,
    RetentionPolicy,
    SessionNotFound,
    StoreCorrupt,
    StoreFull,
    StoreUnavailable,
    append,
    line_reader,
    lines,
)
from aegis_store import schema as tables
from aegis_store.checksum import STORE_NUMBER
from aegis_store.line_reader import LinesReader
from aegis_store.lines import LinesWriter
from aegis_store.packing import packer_for
from aegis_store.transfer import bring_lines, line_rows
from aegis_store.transfer.bring_lines import LinesReport, bring_in
from aegis_store.transfer.export import ExportReport, export

OpenStore = Callable[..., EventStore]
Record = dict[str, Any]
# Of the store for its prunes and against damage: they tell of its own past, and its own numbers.
NOTES = ("oldest_at", "unsorted_seq", "oversize", "record_copy", "counter_sum")
SUFFIXES = [".jsonl", ".jsonl.gz", ".jsonl.zst"]
NO_ROOT = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")


def export_from(store: EventStore, file: Path, session_ids: Any = None, **options: Any) -> ExportReport:
    with store._db.read() as conn:
        return export(conn, file, session_ids, **options)


def import_into(store: EventStore, file: Path, **options: Any) -> LinesReport:
    return bring_in(store._db, file, **options)


@pytest.fixture
def target(open_store: OpenStore, tmp_path: Path, template: Path) -> EventStore:
    """A second, empty store."""
    shutil.copyfile(template, tmp_path / "target.db")
    return open_store(tmp_path / "target.db")


def content(store: EventStore) -> tuple[list[Any], list[Any]]:
    """All that a store says of its sessions and events, as it is in the tables. Positions and row numbers are left out, and
    checksums, which a shell does not write.
    """
    record = [column for column in tables.session.columns if column.name not in ("id", *NOTES)]
    detail = [column for column in tables.event.columns if column.name not in ("position", "session", "checksum")]
    with store._db.read() as conn:
        sessions = conn.execute(select(*record).order_by(tables.session.c.session_id)).all()
        events = conn.execute(
            select(tables.session.c.session_id, *detail)
            .join_from(tables.event, tables.session, tables.session.c.id == tables.event.c.session)
            .order_by(tables.event.c.position)
        ).all()
    return [tuple(row) for row in sessions], [tuple(row) for row in events]


def fill(store: EventStore, *session_ids: str, events: int = 3, **options: Any) -> None:
    """Sessions whose events are mixed in the store's order."""
    for session_id in session_ids:
        store.create_session(session_id, **options)
    for number in range(1, events + 1):
        for session_id in session_ids:
            store.append(session_id, "hook", {"n": number}, event_id=f"{session_id}-{number}")


def records_of(file: Path) -> list[Record]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


HEADER: Record = {"format": "aegis-store", "version": 1, "written_at": "2026-01-01T00:00:00+00:00", "policy": None}
MOMENT = "2026-05-23T06:03:43.123456+00:00"


def session_line(session_id: Any = "s", first: Any = 1, last: Any = 2, **fields: Any) -> Record:
    record = {
        "session_id": session_id,
        "tenant": "t",
        "owner": "o",
        "status": "running",
        "max_events": None,
        "hold": False,
        "first_seq": first,
        "last_seq": last,
        "removed_bytes": 0,
        "created_at": MOMENT,
        "updated_at": MOMENT,
        "ended_at": None,
        "last_event_at": None,
        "removed_at": None,
        "removed_reason": None,
        "metadata": {},
    }
    return {"session": record | fields}


def event_line(seq: Any, session_id: Any = "s", **fields: Any) -> Record:
    record = {
        "session_id": session_id,
        "seq": seq,
        "position": 7,
        "type": "hook",
        "occurred_at": MOMENT,
        "recorded_at": MOMENT,
        "event_id": None,
        "run_id": None,
        "payload_ref": None,
        "payload": {"n": seq},
    }
    return {"event": record | fields}


def without(line: Record, name: str) -> Record:
    ((kind, fields),) = line.items()
    return {kind: {key: value for key, value in fields.items() if key != name}}


def end_line(sessions: Any = 1, events: Any = 2) -> Record:
    return {"end": {"sessions": sessions, "events": events}}


GOOD: list[Any] = [HEADER, session_line(), event_line(1), event_line(2), end_line()]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes lines, records or raw text, as a file."""

    def write_lines(*given: Any) -> Path:
        file = tmp_path / "written.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in given]
        file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8", newline="")
        return file

    return write_lines


Write = Callable[..., Path]


def assert_rejected(store: EventStore, file: Path, place: str, detail: str) -> None:
    before = content(store)
    with pytest.raises(ImportRejected) as caught:
        import_into(store, file)
    assert caught.value.place == place
    assert detail in caught.value.detail
    assert content(store) == before


def refusal_of(report: LinesReport) -> str:
    (refusal,) = report.refused
    return refusal.reason


# What comes back

PAYLOADS = {
    "floats": {"a": 0.1, "b": -0.0, "c": 1e308, "d": 5e-324, "e": 1.0},
    "not ASCII": {"größe": "店 🦀 \u202e \u2028 \x85"},
    "a lone surrogate": {"cut": "abc\ud83d", "other \udc00": 1},
    "numbers over 64 bits": [2**64, -(2**200), 10**4000],
    "control characters": "\x00\x1b[31m\r\n\x7f",
    "nothing": None,
    "true, one and 1.0": [True, 1, 1.0],
    "empty": [{}, [], "", {"": ""}],
    "looks like the format": '"}}\n{"end":{"sessions":1,"events":1}}',
    "members of the format": {"payload": {"session_id": "x"}, "event": 1, "end": {}},
    "deep": json.loads("[" * 200 + "]" * 200),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_import_into_an_empty_store_equals_the_original(
    store: EventStore, target: EventStore, tmp_path: Path, suffix: str
) -> None:
    fill(store, "a", "b", "c", events=20)
    store.create_session("empty", tenant="other", owner="me", metadata={"größe": [1, {"x": "\ud83d"}]}, max_events=UNLIMITED)
    store.update_session("a", hold=True, max_events=7)
    store.set_status("b", "completed")
    file = tmp_path / f"out{suffix}"
    report = export_from(store, file)
    assert (report.sessions, report.events, report.file_bytes) == (4, 47, file.stat().st_size)
    brought = import_into(target, file)
    assert brought == LinesReport(sessions_added=4, events_added=47)
    assert content(target) == content(store)


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=list(PAYLOADS))
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_payload_comes_back_as_it_was(
    store: EventStore, target: EventStore, tmp_path: Path, payload: Any, suffix: str
) -> None:
    store.create_session("s")
    store.append("s", "hook", payload)
    store.append("s", "hook", "after")
    export_from(store, tmp_path / f"out{suffix}")
    import_into(target, tmp_path / f"out{suffix}")
    assert content(target) == content(store)
    assert repr(target.read("s").events[0].payload) == repr(payload)


def append_by_hand(store: EventStore, payload: str, **columns: int) -> None:
    """As a shell appends, to the session "s": whatever the text, whatever the times."""
    with store._db.write() as conn:
        row = conn.execute(select(tables.session).where(tables.session.c.session_id == "s")).one()
        values: Record = {"session": row.id, "seq": row.last_seq + 1, "bytes_before": row.total_bytes, "type": "note"}
        values |= {"occurred_at": 0, "recorded_at": 0, "payload": payload} | columns
        conn.execute(tables.event.insert().values(**values))


@pytest.mark.parametrize(
    "text",
    ['{ "by" : "hand" }', '{"a":1,"a":2}', '"\\u00e9\\/"', "[1.50,1E2,-0,0.10]", '"\\ud83e\\udd80"'],
)
def test_what_a_shell_wrote_comes_back_byte_for_byte(store: EventStore, target: EventStore, tmp_path: Path, text: str) -> None:
    store.create_session("s")
    append_by_hand(store, text)
    append_by_hand(store, "1")
    export_from(store, tmp_path / "out.jsonl")
    import_into(target, tmp_path / "out.jsonl")
    assert content(target) == content(store)
    assert target.verify().ok
    assert [event.payload for event in target.read("s").events] == [event.payload for event in store.read("s").events]


def test_a_payload_that_a_shell_wrote_over_several_lines_keeps_its_value_and_its_size(
    store: EventStore, target: EventStore, tmp_path: Path
) -> None:
    store.create_session("s")
    append_by_hand(store, '{\r\n  "a": "x\\ny"\n}')
    export_from(store, tmp_path / "out.jsonl")
    import_into(target, tmp_path / "out.jsonl")
    assert target.read("s").events[0].payload == {"a": "x\ny"}
    assert target.get_session("s") == store.get_session("s")


@pytest.mark.parametrize("moment", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)], ids=["1", "9999"])
def test_times_come_back_to_the_microsecond_from_the_year_1_to_9999(
    store: EventStore, target: EventStore, tmp_path: Path, moment: datetime
) -> None:
    us = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    store.create_session("s", status="failed")
    append_by_hand(store, "1", occurred_at=us, recorded_at=us)
    with store._db.write() as conn:
        names = ("created_at", "updated_at", "ended_at", "removed_at")
        conn.execute(tables.session.update().values(dict.fromkeys(names, us)))
    export_from(store, tmp_path / "out.jsonl")
    import_into(target, tmp_path / "out.jsonl")
    assert content(target) == content(store)
    session = target.get_session("s")
    assert session.created_at == session.ended_at == session.last_event_at == target.read("s").events[0].recorded_at == moment


def test_a_session_that_was_pruned_keeps_its_numbers_and_what_is_told_of_the_removal(
    store: EventStore, target: EventStore, tmp_path: Path
) -> None:
    fill(store, "part", events=9, max_events=4)
    fill(store, "all", events=5)
    store.set_status("all", "closed")
    store.prune()
    export_from(store, tmp_path / "out.jsonl")
    import_into(target, tmp_path / "out.jsonl")
    assert content(target) == content(store)
    session = target.get_session("all")
    assert (session.first_seq, session.last_seq, session.removed_events) == (6, 5, 5)
    assert session.removed_bytes > 0
    assert session.removed_reason == store.get_session("all").removed_reason
    assert session.last_event_at == store.get_session("all").last_event_at
    assert target.append("all", "note", 1).seq == 6


def test_events_keep_the_order_of_the_store(store: EventStore, target: EventStore, tmp_path: Path) -> None:
    fill(store, "b", "a", events=5)
    export_from(store, tmp_path / "out.jsonl")
    import_into(target, tmp_path / "out.jsonl")
    assert [(e.session_id, e.seq) for e in target.read_all()] == [(e.session_id, e.seq) for e in store.read_all()]


def test_all_fields_of_an_event_come_back(store: EventStore, target: EventStore, tmp_path: Path) -> None:
    store.create_session("ä 店")
    zone = timezone(timedelta(hours=5, minutes=30))
    store.append_many(
        "ä 店",
        [
            NewEvent(
                type="t",
                payload=1,
                event_id="e",
                run_id="r",
                payload_ref="s3://x",
                occurred_at=datetime(2020, 1, 2, tzinfo=zone),
            )
        ],
    )
    export_from(store, tmp_path / "out.jsonl")
    import_into(target, tmp_path / "out.jsonl")
    assert target.read("ä 店").events == store.read("ä 店").events


_IDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
_TEXT = st.text(st.characters(exclude_categories=()), max_size=12).filter(
    lambda text: not any("\ud800" <= a <= "\udbff" and "\udc00" <= b <= "\udfff" for a, b in pairwise(text))
)
_PAYLOADS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)
_EVENTS = st.builds(
    NewEvent,
    type=_IDS,
    payload=_PAYLOADS,
    run_id=st.none() | _IDS,
    payload_ref=st.none() | _IDS,
    occurred_at=st.none() | st.datetimes(timezones=st.just(UTC)),
)
_SESSIONS = st.dictionaries(
    _IDS,
    st.tuples(
        st.lists(_EVENTS, max_size=6), st.dictionaries(_TEXT, _PAYLOADS, max_size=2), st.sampled_from([None, UNLIMITED, 2, 5])
    ),
    max_size=4,
)


@settings(deadline=None, max_examples=40)
@given(sessions=_SESSIONS, suffix=st.sampled_from(SUFFIXES), batch=st.integers(1, 5))
def test_any_store_comes_back_as_it_was(template: Path, sessions: Record, suffix: str, batch: int) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_rows, "BATCH_LINES", batch)
        places = [Path(name, "a.db"), Path(name, "b.db")]
        for place in places:
            shutil.copyfile(template, place)
        with (
            EventStore.open(places[0], durability="process") as store,
            EventStore.open(places[1], durability="process") as target,
        ):
            for session_id, (events, metadata, cap) in sessions.items():
                store.create_session(session_id, metadata=metadata, max_events=cap)
                store.append_many(session_id, events)
            file = Path(name, f"out{suffix}")
            export_from(store, file)
            assert import_into(target, file).refused == []
            assert content(target) == content(store)
            assert import_into(target, file) == LinesReport(
                sessions_unchanged=len(sessions), events_standing=sum(s.event_count for s in store.list_sessions().sessions)
            )


# The file


def test_the_first_line_tells_the_format_and_the_last_one_the_counts(store: EventStore, tmp_path: Path) -> None:
    fill(store, "s", events=2)
    export_from(store, tmp_path / "out.jsonl", policy={"max_events": 1000, "mode": "enforce"})
    header, session, first, second, end = records_of(tmp_path / "out.jsonl")
    assert (header["format"], header["version"]) == ("aegis-store", 1)
    assert datetime.fromisoformat(header["written_at"]).utcoffset() == timedelta(0)
    assert header["policy"] == {"max_events": 1000, "mode": "enforce"}
    assert session.keys() == {"session"}
    assert (first["event"]["seq"], second["event"]["seq"]) == (1, 2)
    assert end == {"end": {"sessions": 1, "events": 2}}


def test_an_export_of_an_empty_store_can_be_imported(store: EventStore, target: EventStore, tmp_path: Path) -> None:
    assert export_from(store, tmp_path / "out.jsonl.zst").sessions == 0
    assert import_into(target, tmp_path / "out.jsonl.zst") == LinesReport()


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".jsonl", b'{"format"'), (".jsonl.gz", b"\x1f\x8b"), (".JSONL.ZST", b"\x28\xb5\x2f\xfd")]
)
def test_the_suffix_decides_how_it_is_written_and_the_first_bytes_how_it_is_read(
    store: EventStore, target: EventStore, tmp_path: Path, suffix: str, magic: bytes
) -> None:
    fill(store, "s")
    file = tmp_path / f"out{suffix}"
    export_from(store, file)
    assert file.read_bytes().startswith(magic)
    assert import_into(target, file.rename(tmp_path / "any.name")).events_added == 3


@pytest.mark.parametrize("name", ["out", "out.json", "out.gz", "out.jsonl.xz", "out.jsonl.", "outjsonl.zst"])
def test_another_suffix_is_refused_with_the_three_that_are_known(store: EventStore, tmp_path: Path, name: str) -> None:
    before = set(tmp_path.iterdir())
    with pytest.raises(InvalidInput, match=r"\.jsonl .*\.jsonl\.gz .*\.jsonl\.zst"):
        export_from(store, tmp_path / name)
    assert set(tmp_path.iterdir()) == before


def test_chosen_sessions_come_alone_and_without_the_policy(store: EventStore, target: EventStore, tmp_path: Path) -> None:
    fill(store, "a", "b", "c")
    report = export_from(store, tmp_path / "out.jsonl", ["c", "a", "c"], policy={"max_events": 1})
    assert (report.sessions, report.events) == (2, 6)
    assert records_of(tmp_path / "out.jsonl")[0]["policy"] is None
    import_into(target, tmp_path / "out.jsonl")
    assert [event.session_id for event in target.read_all()] == ["c"] * 3 + ["a"] * 3


def test_an_unknown_session_is_told_before_anything_is_written(store: EventStore, tmp_path: Path) -> None:
    fill(store, "a")
    before = set(tmp_path.iterdir())
    with pytest.raises(SessionNotFound):
        export_from(store, tmp_path / "out.jsonl", ["a", "b"])
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("session_ids", ["abc", [], 3])
def test_session_ids_that_are_no_ids_are_refused(store: EventStore, tmp_path: Path, session_ids: Any) -> None:
    with pytest.raises(InvalidInput):
        export_from(store, tmp_path / "out.jsonl", session_ids)


def test_an_export_is_of_one_moment(store: EventStore, tmp_path: Path) -> None:
    fill(store, "s", events=600)
    calls: list[tuple[int, int]] = []

    def meanwhile(done: int, total: int) -> None:
        calls.append((done, total))
        store.append("s", "late", {})
        store.ensure_session("late")

    report = export_from(store, tmp_path / "out.jsonl", on_progress=meanwhile)
    assert (report.sessions, report.events) == (1, 600)
    assert calls == [(500, 600), (600, 600)]
    assert store.get_session("s").last_seq == 602


def test_a_session_that_is_being_deleted_is_left_out(store: EventStore, target: EventStore, tmp_path: Path) -> None:
    fill(store, "a", "b")
    with store._db.write() as conn:
        conn.execute(tables.session.update().where(tables.session.c.session_id == "a").values(session_id=None))
    report = export_from(store, tmp_path / "out.jsonl")
    assert (report.sessions, report.events) == (1, 3)
    assert import_into(target, tmp_path / "out.jsonl").sessions_added == 1


def test_events_are_exported_in_the_order_of_the_table_without_sorting(store: EventStore, tmp_path: Path) -> None:
    statements: list[str] = []
    with store._db.read() as conn:
        conn.connection.dbapi_connection.set_trace_callback(statements.append)  # type: ignore[union-attr]
        export(conn, tmp_path / "out.jsonl")
        conn.connection.dbapi_connection.set_trace_callback(None)  # type: ignore[union-attr]
        (query,) = [text for text in statements if "FROM event" in text and "ORDER BY event.position" in text]
        plan = [row[-1] for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}")]
    assert plan[0].startswith("SCAN event")
    assert not [step for step in plan if "TEMP B-TREE" in step]


def test_a_read_only_store_can_be_exported(path: Path, open_store: OpenStore, tmp_path: Path) -> None:
    fill(open_store(), "s")
    assert export_from(open_store(read_only=True), tmp_path / "out.jsonl").events == 3


@pytest.mark.parametrize("text", ["{", "NaN", "1" * 5000, ""], ids=["half", "NaN", "long", "nothing"])
def test_a_payload_that_is_no_json_is_damage_and_leaves_no_file(store: EventStore, tmp_path: Path, text: str) -> None:
    store.create_session("s")
    append_by_hand(store, text)
    before = set(tmp_path.iterdir())
    with pytest.raises(StoreCorrupt, match="event 1 of session 's'"):
        export_from(store, tmp_path / "out.jsonl")
    assert set(tmp_path.iterdir()) == before


def test_a_time_that_is_none_is_damage(store: EventStore, tmp_path: Path) -> None:
    store.create_session("s")
    append_by_hand(store, "1", occurred_at=2**62)
    with pytest.raises(StoreCorrupt, match="is no time"):
        export_from(store, tmp_path / "out.jsonl")


def test_a_line_that_could_not_be_read_again_is_not_written(
    store: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create_session("s")
    store.append("s", "hook", "x" * 2000)
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 2000)
    with pytest.raises(FileUnavailable, match="could not be read again"):
        export_from(store, tmp_path / "out.jsonl")


def test_the_largest_payload_that_a_policy_allows_comes_back(store: EventStore, target: EventStore, tmp_path: Path) -> None:
    for each in (store, target):
        each.set_retention_policy(RetentionPolicy(max_event_bytes=16 * 1024 * 1024))
    store.create_session("s")
    store.append("s", "hook", "é" * (8 * 1024 * 1024 - 1))
    export_from(store, tmp_path / "out.jsonl.zst")
    assert import_into(target, tmp_path / "out.jsonl.zst").events_added == 1
    assert content(target) == content(store)


# No half file is ever there


def test_the_file_is_for_its_owner_alone_whatever_the_umask(store: EventStore, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        export_from(store, tmp_path / "out.jsonl")
    finally:
        os.umask(old)
    assert (tmp_path / "out.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link", "store"])
def test_nothing_is_overwritten(store: EventStore, path: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "out.jsonl"
    make: dict[str, Callable[[], object]] = {
        "file": lambda: file.write_text("mine"),
        "directory": file.mkdir,
        "dangling link": lambda: file.symlink_to("nowhere"),
        "store": lambda: os.link(path, file),
    }
    make[kind]()
    before = os.lstat(file)
    with pytest.raises(InvalidInput, match="no file is overwritten"):
        export_from(store, file)
    assert os.lstat(file) == before
    assert not (tmp_path / "out.jsonl.tmp").exists()
    store.ensure_session("still works")


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_comes_meanwhile_stays(
    store: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    fill(store, "s")
    if not links:
        refuse_links(monkeypatch)
    with pytest.raises(InvalidInput, match="no file is overwritten"):
        export_from(store, tmp_path / "out.jsonl", on_progress=lambda *_: (tmp_path / "out.jsonl").write_text("theirs"))
    assert (tmp_path / "out.jsonl").read_text() == "theirs"
    assert not (tmp_path / "out.jsonl.tmp").exists()


def refuse_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)


def test_where_there_are_no_links_the_file_is_renamed(
    store: EventStore, target: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, "s")
    refuse_links(monkeypatch)
    export_from(store, tmp_path / "out.jsonl")
    assert import_into(target, tmp_path / "out.jsonl").events_added == 3


def test_the_draft_of_another_writer_is_left_alone(store: EventStore, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.tmp").write_text("theirs")
    with pytest.raises(InvalidInput, match=r"out\.jsonl\.tmp' stands already"):
        export_from(store, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl.tmp").read_text() == "theirs"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_is_raised_in_the_middle_leaves_no_file(store: EventStore, tmp_path: Path, error: type[BaseException]) -> None:
    fill(store, "s")
    before = set(tmp_path.iterdir())

    def raising(done: int, total: int) -> None:
        raise error

    with pytest.raises(error):
        export_from(store, tmp_path / "out.jsonl.zst", on_progress=raising)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull), (errno.EIO, FileUnavailable)],
    ids=["full", "quota", "broken"],
)
@pytest.mark.parametrize("call", ["write", "fsync", "open"])
def test_a_disk_that_refuses_is_told_and_leaves_no_file(
    store: EventStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    code: int,
    expected: type[Exception],
    suffix: str,
) -> None:
    fill(store, "s")
    before = set(tmp_path.iterdir())

    def refusing(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refusing)
        with pytest.raises(expected):
            export_from(store, tmp_path / f"out{suffix}")
    assert set(tmp_path.iterdir()) == before


def test_a_directory_that_cannot_be_synced_takes_the_file_back(
    store: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, sync = set(tmp_path.iterdir()), os.fsync

    def refusing(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refusing)
        with pytest.raises(FileUnavailable):
            export_from(store, tmp_path / "out.jsonl")
    assert set(tmp_path.iterdir()) == before


def test_a_disk_that_takes_a_part_at_a_time_is_written_on(
    store: EventStore, target: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, "s")
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:7]))
        export_from(store, tmp_path / "out.jsonl.gz")
    assert import_into(target, tmp_path / "out.jsonl.gz").events_added == 3


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("harm", [lambda data: data[:-9] + b"x" + data[-8:], lambda data: b""], ids=["changed", "lost"])
def test_a_disk_that_gives_back_something_else_is_found_out(
    store: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, harm: Callable[[bytes], bytes]
) -> None:
    fill(store, "s")
    before, write = set(tmp_path.iterdir()), os.write

    def harmful(descriptor: int, data: memoryview) -> int:
        write(descriptor, harm(bytes(data)))
        return len(data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", harmful)
        with pytest.raises(FileUnavailable, match="read back"):
            export_from(store, tmp_path / f"out{suffix}")
    assert set(tmp_path.iterdir()) == before


def test_a_directory_that_cannot_be_synced_is_told(store: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut its names might be gone."""
    before, opened = set(tmp_path.iterdir()), os.open

    def refuse(path: Any, *more: Any) -> int:
        if Path(path) == tmp_path:
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(FileUnavailable, match="Too many open files"):
            export_from(store, tmp_path / "out.jsonl")
    assert set(tmp_path.iterdir()) == before


LIMITED = """
import resource, sys
from aegis_store import EventStore, StoreFull
from aegis_store.transfer.export import export
with EventStore.open(sys.argv[1], read_only=True) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    with store._db.read() as conn:
        try:
            export(conn, sys.argv[2])
        except StoreFull as error:
            print("full:", error.detail)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE")
def test_a_real_limit_of_the_file_system_is_a_full_store(store: EventStore, path: Path, tmp_path: Path) -> None:
    store.create_session("s")
    store.append_many("s", [NewEvent(type="t", payload="x" * 1000) for _ in range(400)])
    before = set(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(tmp_path / "out.jsonl")], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("full:")
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("place", ["missing/out.jsonl", "aegis.db/out.jsonl", f"{'x' * 300}.jsonl"])
def test_a_place_that_cannot_be_written_is_told(store: EventStore, tmp_path: Path, place: str) -> None:
    with pytest.raises(FileUnavailable):
        export_from(store, tmp_path / place)


@NO_ROOT
def test_a_directory_without_permission_is_told(store: EventStore, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(FileUnavailable):
        export_from(store, tmp_path / "closed" / "out.jsonl")


@pytest.mark.parametrize("name", [b"out.jsonl", "out\0.jsonl", 5, ""])
def test_a_name_that_is_none_is_refused(store: EventStore, name: Any) -> None:
    with pytest.raises(InvalidInput):
        export_from(store, name)


# The writer, as an archive uses it


def rows_of(store: EventStore, session_id: str) -> tuple[Any, list[Any]]:
    with store._db.read() as conn:
        row = conn.execute(select(tables.session).where(tables.session.c.session_id == session_id)).one()
        query = select(tables.event, STORE_NUMBER).where(tables.event.c.session == row.id).order_by(tables.event.c.seq)
        return row, list(conn.execute(query))


def archive(file: Path, row: Any, events: list[Any], last_seq: int) -> None:
    with LinesWriter(file) as out:
        out.session(row, 1, last_seq, 0)
        for event in events:
            out.event(event)


def test_an_archive_of_a_part_of_a_session_can_be_imported(store: EventStore, target: EventStore, tmp_path: Path) -> None:
    fill(store, "s", events=5)
    row, events = rows_of(store, "s")
    with LinesWriter(tmp_path / "part.jsonl.gz", {"reason": "max_age"}) as out:
        out.session(row, 2, 3, 123)
        for event in events[1:3]:
            out.event(event)
    assert (out.sessions, out.events, out.file_bytes) == (1, 2, (tmp_path / "part.jsonl.gz").stat().st_size)
    import_into(target, tmp_path / "part.jsonl.gz")
    session = target.get_session("s")
    assert (session.first_seq, session.last_seq, session.removed_bytes) == (2, 3, 123)


def test_an_archive_that_lacks_an_event_is_not_sealed(store: EventStore, tmp_path: Path) -> None:
    fill(store, "s", events=5)
    row, events = rows_of(store, "s")
    before = set(tmp_path.iterdir())
    with pytest.raises(StoreCorrupt, match="should hold 5 events, and 4 were found"):
        archive(tmp_path / "part.jsonl", row, events[1:], 5)
    assert set(tmp_path.iterdir()) == before


def test_an_event_without_a_session_id_belongs_to_the_session_above(store: EventStore, tmp_path: Path) -> None:
    fill(store, "a", "b")
    with pytest.raises(ValueError, match="written last"):
        archive(tmp_path / "part.jsonl", rows_of(store, "a")[0], rows_of(store, "b")[1], 3)


def test_an_archive_that_comes_back_into_its_own_store_restores_nothing(store: EventStore, tmp_path: Path) -> None:
    fill(store, "s", events=9, max_events=4)
    fill(store, "t", events=9)
    row, events = rows_of(store, "t")
    archive(tmp_path / "part.jsonl", row, events[:5], 5)
    store.update_session("t", max_events=4)
    assert import_into(store, tmp_path / "part.jsonl") == LinesReport(sessions_unchanged=1, events_pruned=5)


# Files that are rejected as a whole

MALFORMED: dict[str, tuple[list[Any], int, str]] = {
    "another format": ([HEADER | {"format": "x"}, *GOOD[1:]], 1, "first line"),
    "no header": (GOOD[1:], 1, "first line"),
    "a list as header": ([[], *GOOD[1:]], 1, "first line"),
    "a newer version": ([HEADER | {"version": 2}, *GOOD[1:]], 1, "the file says version 2"),
    "a version that is true": ([HEADER | {"version": True}, *GOOD[1:]], 1, "the file says version True"),
    "no version": ([{"format": "aegis-store"}, *GOOD[1:]], 1, "version None"),
    "a policy that is none": ([HEADER | {"policy": 3}, *GOOD[1:]], 1, "policy must be"),
    "nothing": ([], 1, "first line"),
    "an empty line": ([*GOOD[:2], "", *GOOD[2:]], 3, "neither"),
    "garbage": ([*GOOD[:2], "\x00\x01garbage", *GOOD[2:]], 3, "neither"),
    "another kind of line": ([*GOOD[:2], {"action": {}}, *GOOD[2:]], 3, "neither"),
    "two documents in a line": ([*GOOD[:2], json.dumps(event_line(1)) + "{}", *GOOD[3:]], 3, "not well-formed"),
    "two members in a line": ([*GOOD[:2], event_line(1) | {"end": {}}, *GOOD[3:]], 3, "not well-formed"),
    "a line that is cut": ([*GOOD[:3], json.dumps(event_line(2))[:-30], GOOD[4]], 4, "not well-formed"),
    "NaN": ([*GOOD[:3], event_line(2, payload=float("nan")), GOOD[4]], 4, "NaN"),
    "a number that is too long": ([*GOOD[:3], json.dumps(event_line(2)).replace('{"n": 2}', "1" * 5000), GOOD[4]], 4, "digits"),
    "nested without an end": ([*GOOD[:3], json.dumps(event_line(2)).replace('{"n": 2}', "[" * 99999), GOOD[4]], 4, "nested"),
    "an event before its session": ([HEADER, event_line(1), session_line(), GOOD[3], GOOD[4]], 2, "no line above"),
    "an event of no session": ([*GOOD[:3], event_line(2, "x"), GOOD[4]], 4, "session 'x'"),
    "a session twice": ([*GOOD[:4], session_line(first=3, last=2), end_line(2)], 5, "stands twice"),
    "a duplicate": ([*GOOD[:3], event_line(1), GOOD[4]], 4, "stands twice"),
    "a gap": ([HEADER, session_line(last=3), GOOD[2], event_line(3), GOOD[4]], 4, "a gap"),
    "a wrong start": ([*GOOD[:2], event_line(2), event_line(1), GOOD[4]], 3, "a gap"),
    "an event too many": ([*GOOD[:4], event_line(3), end_line(1, 3)], 5, "no event after 2"),
    "an event too few": ([*GOOD[:3], end_line(1, 1)], 2, "events 2 to 2 of this session are missing"),
    "no end": (GOOD[:4], 5, "cut off"),
    "nothing but a header": ([HEADER], 2, "cut off"),
    "a wrong count of sessions": ([*GOOD[:4], end_line(2)], 5, "should hold 2 sessions and 2 events"),
    "a wrong count of events": ([*GOOD[:4], end_line(1, 3)], 5, "should hold 1 sessions and 3 events"),
    "a count that is true": ([*GOOD[:4], end_line(True)], 5, "should hold True sessions"),
    "something after the end": ([*GOOD, GOOD[2]], 6, "after its end"),
    "an end twice": ([*GOOD, GOOD[4]], 6, "after its end"),
    "an unknown field of a session": ([HEADER, session_line(color=1), *GOOD[2:]], 2, "unknown field, 'color'"),
    "an unknown field of an event": ([*GOOD[:3], event_line(2, color=1), GOOD[4]], 4, "unknown field, 'color'"),
    "an unknown field of the end": ([*GOOD[:4], {"end": {"sessions": 1, "events": 2, "actions": 0}}], 5, "'actions'"),
    "a missing field of a session": ([HEADER, without(session_line(), "owner"), *GOOD[2:]], 2, "has no owner"),
    "a missing field of an event": ([*GOOD[:3], without(event_line(2), "payload"), GOOD[4]], 4, "has no payload"),
    "a field twice": ([*GOOD[:3], json.dumps(event_line(2)).replace('"seq"', '"seq":2,"seq"'), GOOD[4]], 4, "'seq' stands"),
    "a list as event": ([*GOOD[:3], {"event": [1]}, GOOD[4]], 4, "neither"),
    "an empty object as event": ([*GOOD[:3], {"event": {}}, GOOD[4]], 4, "not well-formed"),
    "a session_id that is a number": ([HEADER, session_line(7), *GOOD[2:]], 2, "session_id must be text"),
    "a seq that is text": ([*GOOD[:3], event_line("2"), GOOD[4]], 4, "seq must be a whole number"),
    "a seq of 0": ([*GOOD[:3], event_line(0), GOOD[4]], 4, "seq must be a whole number"),
    "a position that is true": ([*GOOD[:3], event_line(2, position=True), GOOD[4]], 4, "position must be"),
    "a range that is upside down": ([HEADER, session_line(first=5, last=3), *GOOD[2:]], 2, "last_seq must be"),
    "a range beyond all numbers": ([HEADER, session_line(last=10**13), *GOOD[2:]], 2, "last_seq must be"),
    "removed_bytes below 0": ([HEADER, session_line(removed_bytes=-1), *GOOD[2:]], 2, "removed_bytes must be"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "number", "detail"), MALFORMED.values(), ids=list(MALFORMED))
def test_a_malformed_file_is_rejected_with_the_line(
    store: EventStore, write: Write, given: list[Any], number: int, detail: str
) -> None:
    assert_rejected(store, write(*given), f"line {number}", detail)


def test_a_good_file_of_another_hand_comes_in(store: EventStore, write: Write) -> None:
    spaced = [json.dumps(line, indent=None, separators=(" , ", " : ")) + " \r" for line in GOOD]
    assert import_into(store, write(*spaced)) == LinesReport(sessions_added=1, events_added=2)
    assert [event.payload for event in store.read("s").events] == [{"n": 1}, {"n": 2}]


def test_the_last_line_may_lack_its_line_end(store: EventStore, write: Write) -> None:
    file = write(*GOOD)
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    assert import_into(store, file).events_added == 2


def test_bytes_that_are_no_utf8_are_rejected(store: EventStore, write: Write) -> None:
    file = write(*GOOD)
    file.write_bytes(file.read_bytes().replace(b"hook", b"ho\xffk", 1))
    assert_rejected(store, file, "line 3", "not UTF-8")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_cut_off_anywhere_brings_nothing_in(
    store: EventStore, target: EventStore, tmp_path: Path, suffix: str
) -> None:
    fill(store, "a", "b")
    file = tmp_path / f"out{suffix}"
    export_from(store, file)
    whole = file.read_bytes()
    for length in [*range(0, len(whole) - 1, 11), len(whole) - 2]:
        file.write_bytes(whole[:length])
        with pytest.raises(ImportRejected):
            import_into(target, file)
    assert content(target) == ([], [])


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_compressed_file_that_is_damaged_anywhere_brings_nothing_in(
    store: EventStore, target: EventStore, tmp_path: Path, suffix: str
) -> None:
    fill(store, "a", "b")
    file = tmp_path / f"out{suffix}"
    export_from(store, file)
    whole = file.read_bytes()
    for at in range(10, len(whole), 7):  # the first bytes of gzip hold a time and an operating system
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        with pytest.raises(ImportRejected):
            import_into(target, file)
    assert content(target) == ([], [])


def test_something_after_the_compressed_data_is_rejected(store: EventStore, target: EventStore, tmp_path: Path) -> None:
    for suffix in (".jsonl.gz", ".jsonl.zst"):
        file = tmp_path / f"out{suffix}"
        export_from(store, file)
        file.write_bytes(file.read_bytes() + b"more of it")
        with pytest.raises(ImportRejected, match="damaged"):
            import_into(target, file)


def test_a_file_in_several_compressed_parts_comes_in(store: EventStore, write: Write) -> None:
    file = write(*GOOD)
    plain = file.read_bytes()
    file.write_bytes(gzip.compress(plain[:200]) + gzip.compress(plain[200:]))
    assert import_into(store, file).events_added == 2


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe", "null byte"])
def test_a_place_that_is_no_file_is_rejected(store: EventStore, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "in.jsonl"
    if kind == "directory":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    assert_rejected(store, Path(f"{file}\0") if kind == "null byte" else file, "at its start", "")


@pytest.mark.parametrize("link", [None, "symbolic", "hard"])
def test_a_store_that_is_open_here_is_not_opened_as_a_file(
    store: EventStore, path: Path, tmp_path: Path, link: str | None
) -> None:
    file = path if link is None else tmp_path / "in.jsonl"
    if link == "symbolic":
        file.symlink_to(path)
    elif link == "hard":
        os.link(path, file)
    assert_rejected(store, file, "at its start", "a store that is open here")


def test_another_store_is_rejected_as_a_file_of_lines(store: EventStore, template: Path) -> None:
    assert_rejected(store, template, "line 1", "")


def test_a_read_only_store_takes_nothing(open_store: OpenStore, store: EventStore, write: Write) -> None:
    with pytest.raises(ReadOnlyStore):
        import_into(open_store(read_only=True), write(*GOOD))


def test_a_line_that_would_fill_the_memory_is_rejected(
    store: EventStore, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_reader, "MAX_LINE_BYTES", 5000)
    file = write(*GOOD[:3], event_line(2, payload="x" * 5000), GOOD[4])
    assert_rejected(store, file, "line 4", "longer than 5,000 bytes")


MEASURED = """
import sys
from pathlib import Path
from aegis_store import EventStore, ImportRejected
from aegis_store.transfer.bring_lines import bring_in
with EventStore.open(sys.argv[1], durability="process", prune_on_open=False) as store:
    try:
        print(bring_in(store._db, sys.argv[2]).events_added, end=" ")
    except ImportRejected as error:
        print(error.place.replace(" ", "-"), end=" ")
    status = Path("/proc/self/status").read_text()
    print(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) // 1024)
"""


def imported_in_a_process(path: Path, file: Path) -> tuple[str, int]:
    """What came of it, and the peak of its memory in MiB."""
    command = [sys.executable, "-c", MEASURED, str(path), str(file)]
    outcome, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return outcome, int(peak)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_small_file_that_unpacks_to_a_huge_line_does_not_fill_the_memory(path: Path, tmp_path: Path, suffix: str) -> None:
    start = "".join(f"{json.dumps(line)}\n" for line in GOOD[:2]).encode()
    file = tmp_path / f"bomb{suffix}"
    megabytes = [start, *[b"x" * 1_000_000] * 400]
    if suffix == ".gz":
        with gzip.open(file, "wb", compresslevel=1) as out:
            out.writelines(megabytes)
    else:
        packer = packer_for("x.jsonl.zst")
        file.write_bytes(b"".join(packer.compress(part) for part in megabytes) + packer.flush())
    assert file.stat().st_size < 3_000_000
    outcome, peak_mib = imported_in_a_process(path, file)
    assert outcome == "line-3"
    assert peak_mib < 150


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_a_large_file_is_imported_in_flat_memory(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "large.jsonl"
    payload = {"text": "größe und mehr " * 160, "numbers": list(range(40))}
    with file.open("w", encoding="utf-8") as out:
        out.write(f"{json.dumps(HEADER)}\n")
        for number in range(2000):
            out.write(f"{json.dumps(session_line(f's{number}', 1, 5))}\n")
        for seq in range(1, 6):
            for number in range(2000):
                out.write(f"{json.dumps(event_line(seq, f's{number}', payload=payload, event_id='e' * 300 + str(seq)))}\n")
        out.write(f"{json.dumps(end_line(2000, 10_000))}\n")
    assert file.stat().st_size > 30_000_000
    outcome, peak_mib = imported_in_a_process(path, file)
    assert outcome == "10000"
    assert peak_mib < 100


# Sessions that are refused, while the others come in

BAD_VALUES: dict[str, tuple[list[Any], str]] = {
    "an unknown status": ([session_line(status="odd")], "status 'odd'"),
    "a status that is a list": ([session_line(status=[1])], "status"),
    "an empty id": ([session_line("")], "session_id must be"),
    "an id with a control character": ([session_line("a\nb")], "control character"),
    "an id with a lone surrogate": ([session_line("a\ud800")], "surrogate"),
    "no owner": ([session_line(owner=None)], "owner must be text"),
    "metadata that is null": ([session_line(metadata=None)], "metadata must be an object"),
    "metadata that is a list": ([session_line(metadata=[])], "metadata must be an object"),
    "metadata that is too large": ([session_line(metadata={"x": "x" * 70_000})], "over the limit"),
    "a cap of 0": ([session_line(max_events=0)], "max_events must be"),
    "a cap that is true": ([session_line(max_events=True)], "max_events must be"),
    "a hold that is a number": ([session_line(hold=1)], "hold true or false"),
    "a time without a zone": ([session_line(created_at="2026-01-01T00:00:00")], "created_at must be an ISO 8601 time"),
    "a time that is a number": ([session_line(updated_at=5)], "updated_at must be"),
    "no time": ([session_line(created_at=None)], "created_at must be"),
    "a time beyond UTC": ([session_line(created_at="9999-12-31T23:59:59-14:00")], "created_at must be"),
    "an end without having ended": ([session_line(ended_at=MOMENT)], "cannot be"),
    "ended without an end": ([session_line(status="closed")], "cannot be"),
    "a reason that is a number": ([session_line(removed_reason=5)], "removed_reason must be"),
    "a reason that no database takes": ([session_line(removed_reason="\ud800")], "removed_reason holds a lone surrogate"),
    "a reason that PostgreSQL does not take": ([session_line(removed_reason="a\0b")], "holds the control character"),
    "a reason that moves the cursor": ([session_line(removed_reason="\x1b[2J")], "removed_reason holds the control character"),
    "a reason without end": ([session_line(removed_reason="x" * 513)], "removed_reason"),
    "a type with a control character": ([session_line(last=1), event_line(1, type="a\x00")], "seq 1: type"),
    "a type that is null": ([session_line(last=1), event_line(1, type=None)], "seq 1: type must be text"),
    "a payload over the limit": ([session_line(last=1), event_line(1, payload="x" * 2_000_000)], "max_event_bytes"),
    "an infinite payload": ([session_line(last=1), json.dumps(event_line(1)).replace('{"n": 1}', "1e999")], "is inf"),
    "a payload that is too deep": ([session_line(last=1), event_line(1, payload=json.loads("[" * 201 + "]" * 201))], "deeper"),
    "an event without its time": ([session_line(last=1), event_line(1, recorded_at=None)], "recorded_at must be"),
    "an event_id twice": ([session_line(), event_line(1, event_id="e"), event_line(2, event_id="e")], "twice in the file"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "reason"), BAD_VALUES.values(), ids=list(BAD_VALUES))
def test_a_session_with_a_value_that_cannot_be_is_named_and_the_others_come_in(
    store: EventStore, write: Write, given: list[Any], reason: str
) -> None:
    session = given[0]["session"]
    session_id, held = session["session_id"], len(given) - 1
    given = [{"session": session | {"last_seq": held}}, *given[1:]]
    good = [session_line("good", 1, 1), event_line(1, "good")]
    report = import_into(store, write(HEADER, *given, *good, end_line(2, held + 1)))
    assert (report.sessions_added, report.events_added) == (1, 1)
    assert report.refused[0].session_id == session_id
    assert reason in refusal_of(report)
    assert [session.session_id for session in store.list_sessions().sessions] == ["good"]


def test_the_reason_of_a_refusal_names_the_line(store: EventStore, write: Write) -> None:
    report = import_into(store, write(HEADER, session_line(), event_line(1), event_line(2, type=""), end_line()))
    assert refusal_of(report).endswith("(line 4)")


def refused_beside(store: EventStore, write: Write, *given: Any, sessions: int = 1, events: int = 2) -> str:
    """Why the session "s" is refused; nothing changes in the store, and a session beside it comes in."""
    before = content(store)
    report = import_into(
        store, write(HEADER, *given, session_line("beside", 1, 1), event_line(1, "beside"), end_line(sessions + 1, events + 1))
    )
    assert report.sessions_added == 1
    after = content(store)
    assert [row for row in after[0] if row[0] != "beside"] == before[0]
    assert [row for row in after[1] if row[0] != "beside"] == before[1]
    return refusal_of(report)


@pytest.mark.parametrize("field", ["tenant", "owner"])
def test_a_session_of_another_scope_is_refused(store: EventStore, write: Write, field: str) -> None:
    scope = {"tenant": "t", "owner": "o"} | {field: "other"}
    store.create_session("s", tenant=scope["tenant"], owner=scope["owner"])
    reason = refused_beside(store, write, *GOOD[1:4])
    assert reason == "its id is taken in the store by another tenant or owner"


def standing(store: EventStore, write: Write, last: int = 2, **fields: Any) -> None:
    """Bring the good session in, with so many events."""
    events = [event_line(seq, event_id=f"e{seq}") for seq in range(1, last + 1)]
    import_into(store, write(HEADER, session_line(last=last, **fields), *events, end_line(1, last)))


OTHER_EVENTS: dict[str, tuple[Record, str]] = {
    "payload": ({"payload": {"n": 1.0}}, "payload"),
    "sign of zero": ({"payload": -0.0}, "payload"),
    "type": ({"type": "other"}, "type"),
    "occurred_at": ({"occurred_at": "2026-05-23T06:03:43.123457+00:00"}, "occurred_at"),
    "recorded_at": ({"recorded_at": "2026-05-23T06:03:43.123457+00:00"}, "recorded_at"),
    "event_id": ({"event_id": "other"}, "event_id"),
    "no event_id": ({"event_id": None}, "event_id"),
    "run_id": ({"run_id": "r"}, "run_id"),
    "payload_ref": ({"payload_ref": "r"}, "payload_ref"),
}


@pytest.mark.parametrize(("fields", "name"), OTHER_EVENTS.values(), ids=list(OTHER_EVENTS))
def test_a_session_whose_event_is_another_one_is_refused(store: EventStore, write: Write, fields: Record, name: str) -> None:
    standing(store, write)
    events = [event_line(1, **({"event_id": "e1"} | fields)), event_line(2, event_id="e2"), event_line(3)]
    reason = refused_beside(store, write, session_line(last=3), *events, events=3)
    assert reason == f"the store has another {name} for the event at seq 1"


def test_an_equal_event_in_another_order_of_keys_is_the_same(store: EventStore, write: Write) -> None:
    given = [HEADER, session_line(last=1), event_line(1, payload={"a": 1, "b": 2}), end_line(1, 1)]
    import_into(store, write(*given))
    given[2] = event_line(1, payload={"b": 2, "a": 1})
    assert import_into(store, write(*given)) == LinesReport(sessions_unchanged=1, events_standing=1)


def test_a_gap_between_the_store_and_the_file_is_refused(store: EventStore, write: Write) -> None:
    standing(store, write)
    reason = refused_beside(store, write, session_line(first=4, last=4), event_line(4), events=1)
    assert reason == "a gap: the store holds it up to seq 2, the file begins at 4"


def test_an_event_id_that_stands_at_another_seq_is_refused(store: EventStore, write: Write) -> None:
    standing(store, write)
    reason = refused_beside(store, write, session_line(first=3, last=3), event_line(3, event_id="e1"), events=1)
    assert reason == "event_id 'e1' of seq 3 stands at seq 1 already"


def test_an_event_id_whose_event_the_cap_removes_on_the_way_may_come_again(store: EventStore, write: Write) -> None:
    standing(store, write, max_events=2)
    events = [event_line(3), event_line(4, event_id="e1")]
    report = import_into(store, write(HEADER, session_line(first=3, last=4, max_events=2), *events, end_line()))
    assert (report.refused, report.events_added, report.events_capped) == ([], 2, 2)


def test_a_record_that_sets_a_cap_below_what_the_store_holds_is_refused(store: EventStore, write: Write) -> None:
    standing(store, write)
    newer = session_line(max_events=1, updated_at="2027-01-01T00:00:00+00:00")
    reason = refused_beside(store, write, newer, event_line(1, event_id="e1"), event_line(2, event_id="e2"))
    assert "max_events to 1, and the store holds 2" in reason


# Once more


def test_importing_again_changes_nothing(store: EventStore, target: EventStore, tmp_path: Path) -> None:
    fill(store, "a", "b", events=4)
    export_from(store, tmp_path / "out.jsonl")
    import_into(target, tmp_path / "out.jsonl")
    before = content(target)
    assert import_into(target, tmp_path / "out.jsonl") == LinesReport(sessions_unchanged=2, events_standing=8)
    assert content(target) == before
    assert import_into(store, tmp_path / "out.jsonl") == LinesReport(sessions_unchanged=2, events_standing=8)


def test_an_import_that_is_interrupted_inside_of_transactions_is_finished_by_the_next(
    store: EventStore, target: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, "a", "b", events=6)
    fill(store, "c", events=3, status="failed")
    export_from(store, tmp_path / "out.jsonl")
    monkeypatch.setattr(line_rows, "BATCH_LINES", 2)
    insert, calls = append.insert_one, 0

    def interrupting(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return insert(*arguments, **options)

    monkeypatch.setattr(append, "insert_one", interrupting)
    interrupted = 0
    while target.stats().events < 15:
        calls = 0
        try:
            import_into(target, tmp_path / "out.jsonl")
        except KeyboardInterrupt:
            interrupted += 1
            assert interrupted < 15
    assert interrupted >= 3
    assert content(target) == content(store)


KILLED = """
import os, sys
from aegis_store import EventStore
from aegis_store.transfer import line_rows
from aegis_store.transfer.bring_lines import bring_in
line_rows.BATCH_LINES = 7
calls = 0
def count(done, total):
    global calls
    calls += done * 2 > total
    if calls == 5:
        os.kill(os.getpid(), 9)
with EventStore.open(sys.argv[1], durability="process", prune_on_open=False) as store:
    bring_in(store._db, sys.argv[2], on_bytes=count)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_an_import_that_is_killed_is_finished_by_the_next(
    store: EventStore, open_store: OpenStore, template: Path, tmp_path: Path
) -> None:
    fill(store, "a", "b", events=40)
    export_from(store, tmp_path / "out.jsonl.zst")
    shutil.copyfile(template, tmp_path / "killed.db")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed.db"), str(tmp_path / "out.jsonl.zst")]
    assert [subprocess.run(command, check=False).returncode for _ in range(2)] == [-9, -9]
    killed = open_store(tmp_path / "killed.db")
    assert 0 < killed.stats().events < 80
    assert import_into(killed, tmp_path / "out.jsonl.zst").refused == []
    assert content(killed) == content(store)


def test_an_import_that_is_interrupted_after_each_number_of_transactions_is_finished_by_the_next(
    store: EventStore, open_store: OpenStore, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, "a", "b", events=4, max_events=3)
    export_from(store, tmp_path / "out.jsonl")
    monkeypatch.setattr(line_rows, "BATCH_LINES", 2)
    for stop_at in range(1, 5):
        place = tmp_path / f"stopped-{stop_at}.db"
        shutil.copyfile(template, place)
        stopped = open_store(place)
        calls = 0

        def interrupt(done: int, total: int, stop_at: int = stop_at) -> None:
            nonlocal calls
            calls += done * 2 > total
            if calls == stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            import_into(stopped, tmp_path / "out.jsonl", on_bytes=interrupt)
        before = len(content(stopped)[1])
        report = import_into(stopped, tmp_path / "out.jsonl")
        assert (report.events_standing, report.events_added) == (before, 6 - before)
        assert content(stopped) == content(store)


def test_what_the_file_got_since_is_added(store: EventStore, target: EventStore, tmp_path: Path) -> None:
    fill(store, "s")
    export_from(store, tmp_path / "one.jsonl")
    import_into(target, tmp_path / "one.jsonl")
    store.append("s", "late", {})
    export_from(store, tmp_path / "two.jsonl")
    report = import_into(target, tmp_path / "two.jsonl")
    assert report == LinesReport(sessions_updated=1, events_added=1, events_standing=3)
    assert content(target) == content(store)


def test_a_newer_record_is_taken_over(store: EventStore, target: EventStore, tmp_path: Path) -> None:
    fill(store, "s")
    export_from(store, tmp_path / "one.jsonl")
    import_into(target, tmp_path / "one.jsonl")
    store.update_session("s", metadata={"new": 1}, max_events=UNLIMITED, hold=True)
    store.set_status("s", "failed")
    export_from(store, tmp_path / "two.jsonl")
    assert import_into(target, tmp_path / "two.jsonl") == LinesReport(sessions_updated=1, events_standing=3)
    assert content(target) == content(store)


def test_an_older_record_does_not_undo_what_the_store_has(store: EventStore, target: EventStore, tmp_path: Path) -> None:
    fill(store, "s")
    export_from(store, tmp_path / "one.jsonl")
    import_into(target, tmp_path / "one.jsonl")
    target.update_session("s", metadata={"mine": 1})
    target.append("s", "mine", {})
    before = content(target)
    assert import_into(target, tmp_path / "one.jsonl") == LinesReport(sessions_unchanged=1, events_standing=3)
    assert content(target) == before


def test_what_was_pruned_does_not_return(store: EventStore, target: EventStore, tmp_path: Path) -> None:
    fill(store, "s", events=5)
    export_from(store, tmp_path / "one.jsonl")
    import_into(target, tmp_path / "one.jsonl")
    target.update_session("s", max_events=2)
    report = import_into(target, tmp_path / "one.jsonl")
    assert (report.events_pruned, report.events_standing, report.events_added) == (3, 2, 0)
    assert target.get_session("s").event_count == 2


def test_over_the_cap_the_newest_stay_and_the_report_says_how_many_went(
    store: EventStore, target: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_rows, "BATCH_LINES", 4)
    fill(store, "s", events=20)
    export_from(store, tmp_path / "out.jsonl")
    target.set_retention_policy(RetentionPolicy(max_events=6))
    report = import_into(target, tmp_path / "out.jsonl")
    assert (report.events_added, report.events_capped) == (20, 14)
    assert [event.seq for event in target.read("s").events] == list(range(15, 21))


def test_a_session_that_stands_without_an_event_begins_where_the_file_does(
    store: EventStore, target: EventStore, tmp_path: Path
) -> None:
    fill(store, "s", events=6, max_events=2)
    fill(store, "gone", events=2)
    store.set_status("gone", "closed")
    store.prune()
    export_from(store, tmp_path / "out.jsonl")
    target.create_session("s", max_events=2)
    target.create_session("gone")
    assert import_into(target, tmp_path / "out.jsonl").refused == []
    for session_id in ("s", "gone"):
        here, there = target.get_session(session_id), store.get_session(session_id)
        assert (here.first_seq, here.last_seq, here.removed_bytes) == (there.first_seq, there.last_seq, there.removed_bytes)
        assert (here.removed_at, here.removed_reason, here.last_event_at) == (
            there.removed_at,
            there.removed_reason,
            there.last_event_at,
        )


@pytest.mark.parametrize("stands", [False, True])
def test_hold_keeps_every_prune_away(store: EventStore, target: EventStore, tmp_path: Path, stands: bool) -> None:
    fill(store, "s")
    store.set_status("s", "closed")
    export_from(store, tmp_path / "out.jsonl")
    if stands:
        import_into(target, tmp_path / "out.jsonl")
    report = import_into(target, tmp_path / "out.jsonl", hold=True)
    assert (report.sessions_added, report.sessions_updated) == (0 if stands else 1, 1 if stands else 0)
    target.prune()
    assert (target.get_session("s").hold, target.get_session("s").event_count) == (True, 3)
    assert target.get_session("s").updated_at == store.get_session("s").updated_at
    assert import_into(target, tmp_path / "out.jsonl", hold=True).sessions_unchanged == 1


def test_the_policy_of_the_file_is_told_before_anything_is_written(
    store: EventStore, target: EventStore, tmp_path: Path
) -> None:
    target.set_retention_policy(RetentionPolicy(max_events=2, max_event_bytes=10))
    store.create_session("s")
    for number in range(5):
        store.append("s", "hook", {"text": "more than ten bytes", "n": number})
    export_from(store, tmp_path / "out.jsonl", policy={"max_events": 9})
    seen: list[Any] = []

    def adopt(policy: Any) -> bool:
        seen.append((policy, content(target)))
        target.set_retention_policy(RetentionPolicy(max_events=9))
        return True

    report = import_into(target, tmp_path / "out.jsonl", on_checked=adopt)
    assert seen == [({"max_events": 9}, ([], []))]
    assert report == LinesReport(sessions_added=1, events_added=5, policy={"max_events": 9}, policy_adopted=True)


def test_of_a_rejected_file_the_policy_is_not_told(store: EventStore, write: Write) -> None:
    with pytest.raises(ImportRejected):
        import_into(store, write(*GOOD[:-1]), on_checked=lambda policy: pytest.fail("it was told"))


# Other writers, between the two readings


def meanwhile(store: EventStore, write: Write, act: Callable[[], object], *given: Any) -> LinesReport:
    def on_checked(policy: Any) -> bool:
        act()
        return False

    return import_into(store, write(*(given or GOOD)), on_checked=on_checked)


def test_a_session_that_another_tenant_takes_meanwhile_is_refused(store: EventStore, write: Write) -> None:
    report = meanwhile(store, write, lambda: store.create_session("s", tenant="other"))
    assert refusal_of(report) == "its id is taken in the store by another tenant or owner"
    assert store.get_session("s").event_count == 0


def test_a_session_that_gets_other_events_meanwhile_is_refused(store: EventStore, write: Write) -> None:
    def act() -> None:
        store.create_session("s", tenant="t", owner="o")
        store.append("s", "other", {})

    report = meanwhile(store, write, act)
    assert "another type for the event at seq 1 (another writer changed it meanwhile" in refusal_of(report)
    assert [event.type for event in store.read("s").events] == ["other"]
    assert (report.sessions_added, report.sessions_updated, report.sessions_unchanged) == (0, 0, 0)


def test_a_session_that_another_import_brings_meanwhile_is_passed_over(store: EventStore, write: Write, tmp_path: Path) -> None:
    shutil.copyfile(write(*GOOD), tmp_path / "same.jsonl")
    report = meanwhile(store, write, lambda: import_into(store, tmp_path / "same.jsonl"))
    assert report == LinesReport(sessions_unchanged=1, events_standing=2)


def test_a_limit_that_is_lowered_meanwhile_refuses_the_rest(store: EventStore, write: Write) -> None:
    def act() -> None:
        with store._db.write() as conn:
            conn.execute(tables.store.update().values(max_event_bytes=1))

    assert "max_event_bytes" in refusal_of(meanwhile(store, write, act))


def test_an_event_that_comes_in_the_middle_of_the_writing_refuses_the_rest_and_says_so(
    store: EventStore, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_rows, "BATCH_LINES", 1)
    calls = 0

    def after_the_first_event(done: int, total: int) -> None:
        nonlocal calls
        calls += done * 2 > total
        if calls == 2:
            store.append("s", "theirs", {})

    report = import_into(store, write(*GOOD), on_bytes=after_the_first_event)
    assert "what came in before stays" in refusal_of(report)
    assert report.events_added == 1
    assert [event.type for event in store.read("s").events] == ["hook", "theirs"]


def test_a_cap_that_the_store_does_not_take_meanwhile_refuses_the_session(store: EventStore, write: Write) -> None:
    standing(store, write, last=1)

    def act() -> None:
        store.append("s", "theirs", {})

    newer = session_line(last=1, max_events=1, updated_at="2027-01-01T00:00:00+00:00")
    report = meanwhile(store, write, act, HEADER, newer, event_line(1, event_id="e1"), end_line(1, 1))
    assert "max_events to 1, and the store holds 2" in refusal_of(report)


def test_a_session_that_the_schema_does_not_take_is_refused(store: EventStore, write: Write) -> None:
    with store._db.write() as conn:
        conn.exec_driver_sql("CREATE TRIGGER no BEFORE INSERT ON session BEGIN SELECT RAISE(ABORT, 'aegis: buried'); END")
    report = import_into(store, write(*GOOD))
    assert refusal_of(report) == "the store does not take it: aegis: buried"
    assert content(store) == ([], [])


@pytest.mark.parametrize("change", ["cut", "garbage", "another session"])
def test_a_file_that_changes_while_it_is_imported_is_told(store: EventStore, write: Write, change: str) -> None:
    file = write(*GOOD)
    texts = {"cut": "", "garbage": "x" * 9, "another session": json.dumps(session_line("x"))}

    def act(policy: Any) -> bool:
        file.write_text(f"{json.dumps(HEADER)}\n{texts[change]}\n")
        return False

    with pytest.raises(StoreUnavailable, match="the file changed while it was imported"):
        bring_lines.bring_in(store._db, file, on_checked=act)


def test_a_transaction_that_fails_leaves_what_came_in_before_and_the_next_import_does_the_rest(
    store: EventStore, target: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create_session("s")
    store.append_many("s", [NewEvent(type="t", payload="x" * 5000) for _ in range(60)])
    export_from(store, tmp_path / "out.jsonl")
    monkeypatch.setattr(line_rows, "BATCH_LINES", 10)
    with target._db.write() as conn:
        conn.exec_driver_sql("CREATE TRIGGER full BEFORE INSERT ON event WHEN NEW.seq = 35 BEGIN SELECT RAISE(FAIL, 'x'); END")
    with pytest.raises(StoreCorrupt):
        import_into(target, tmp_path / "out.jsonl")
    assert target.get_session("s").last_seq == 29
    with target._db.write() as conn:
        conn.exec_driver_sql("DROP TRIGGER full")
    assert import_into(target, tmp_path / "out.jsonl").events_added == 31
    assert content(target) == content(store)


# Progress, memory, leavings


def test_progress_goes_up_to_twice_the_size_of_the_file(store: EventStore, target: EventStore, tmp_path: Path) -> None:
    fill(store, "a", "b", events=300)
    for suffix in SUFFIXES:
        file = tmp_path / f"out{suffix}"
        export_from(store, file)
        calls: list[tuple[int, int]] = []
        import_into(target, file, on_bytes=lambda done, total, calls=calls: calls.append((done, total)))
        assert calls == sorted(calls)
        assert calls[-1] == (2 * file.stat().st_size, 2 * file.stat().st_size)


def test_an_import_leaves_no_temporary_file(
    store: EventStore, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    import_into(store, write(*GOOD))
    with pytest.raises(ImportRejected):
        import_into(store, write(*GOOD[:-1]))
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_temporary_directory_that_cannot_be_removed_does_not_undo_an_import(
    store: EventStore, write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", refuse)
        report = import_into(store, write(*GOOD))
    assert report.events_added == 2
    assert len(list((tmp_path / "temporary").iterdir())) == 1


def test_where_no_temporary_directory_can_be_had_an_import_says_so(
    store: EventStore, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:  # as when no descriptor is free to try one out
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._get_default_tempdir", fail)
    with pytest.raises(StoreUnavailable, match="No usable temporary directory"):
        import_into(store, write(*GOOD))


def test_a_reader_can_be_read_twice(write: Write) -> None:
    with LinesReader(write(*GOOD)) as reader:
        assert [type(line).__name__ for line in reader.lines()] == ["SessionLine", "EventLine", "EventLine"]
        assert [line.number for line in reader.lines()] == [2, 3, 4]


def test_exporting_and_importing_need_zstd_only_for_zstd(path: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "x.jsonl.gz")
    code = (
        "import sys; from aegis_store import EventStore; from aegis_store.transfer.export import export\n"
        f"with EventStore.open({str(path)!r}) as store, store._db.read() as conn: export(conn, {file!r})\n"
        "print([name for name in sys.modules if 'zstd' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_a_killed_import_left_in_the_temporary_directory_is_swept_an_hour_later(
    store: EventStore, target: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    for name, age_s in (("aegis-store-import-old", 4000), ("aegis-store-import-new", 60), ("another-old", 4000)):
        (temporary / name).mkdir(parents=True)
        (temporary / name / "scratch.db").write_text("x")
        os.utime(temporary / name, (time.time() - age_s,) * 2)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    fill(store, "s")
    export_from(store, tmp_path / "out.jsonl")
    import_into(target, tmp_path / "out.jsonl")
    assert {entry.name for entry in temporary.iterdir()} == {"aegis-store-import-new", "another-old"}


def test_an_event_that_was_deleted_and_does_not_return_refuses_nothing_by_its_size(store: EventStore, tmp_path: Path) -> None:
    store.create_session("s")
    store.append("s", "t", "x" * 100)
    store.export(tmp_path / "all.jsonl")
    store.delete_session("s")
    store.set_retention_policy(RetentionPolicy(max_event_bytes=60))
    report = store.import_lines(tmp_path / "all.jsonl")
    assert (report.refused, report.sessions_deleted, report.events_pruned) == ([], 1, 1)
