"""Importing the orchestrator's state files: what is kept, what is refused, and that a bad file brings nothing in."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_store import (
    UNLIMITED,
    EventStore,
    ImportRejected,
    RetentionPolicy,
    SessionNotFound,
)
from aegis_store.errors import shown
from aegis_store.transfer import json_text
from aegis_store.transfer.aegis_import import ImportReport
from aegis_store.transfer.json_text import JsonText

ROOT = Path(__file__).resolve().parents[1]
OpenStore = Callable[..., EventStore]
Record = dict[str, Any]

CREATED_MS = 1_779_516_223_248
START = datetime(2026, 5, 23, 6, 3, 43, 248_000, tzinfo=UTC)


def session_record(session_id: str = "s", **fields: Any) -> Record:
    return {
        "id": session_id,
        "tenantId": "tenant",
        "ownerKeyId": "owner",
        "status": "running",
        "createdAt": CREATED_MS,
        "updatedAt": CREATED_MS + 5,
    } | fields


def event_record(seq: Any, session_id: str = "s", **fields: Any) -> Record:
    occurred = START + timedelta(seconds=seq if isinstance(seq, int) and abs(seq) < 10**6 else 0)
    return {
        "sessionId": session_id,
        "tenantId": "tenant",
        "ownerKeyId": "owner",
        "eventSeq": seq,
        "eventId": f"{session_id}:{seq}",
        "eventType": "hook",
        "occurredAt": occurred.isoformat().replace("+00:00", "Z"),
        "ingestedAt": (occurred + timedelta(milliseconds=7)).isoformat().replace("+00:00", "Z"),
        "payload": {"n": seq},
    } | fields


def events_of(session_id: str, *seqs: int) -> list[Record]:
    return [event_record(seq, session_id) for seq in seqs]


def without(record: Record, name: str) -> Record:
    return {key: value for key, value in record.items() if key != name}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a state file of sessions, events and other parts; the same file each time."""

    def write_state(sessions: list[Record], events: list[Record], **parts: Any) -> Path:
        file = tmp_path / "state.json"
        file.write_text(json.dumps({"version": 1, "sessions": sessions, "events": events, **parts}))
        return file

    return write_state


Write = Callable[..., Path]


def all_payloads(store: EventStore, session_id: str = "s") -> dict[int, Any]:
    return {event.seq: event.payload for event in store.read(session_id, limit=1000).events}


# What is kept

PAYLOADS = {
    "floats": {"a": 0.1, "b": -0.0, "c": 1e308, "d": 5e-324, "e": 1.0},
    "not ASCII": {"größe": "店 🦀 \u202e"},
    "a lone surrogate": {"cut": "abc\ud83d", "other \udc00": 1},
    "numbers over 64 bits": [2**64, -(2**200), 10**4000],
    "control characters": "\x00\x1b[31m\n",
    "nothing": None,
    "text": "text",
    "true, one and 1.0": [True, 1, 1.0],
    "empty": [{}, [], "", {"": ""}],
    "deep": [[[[{"a": [[]]}]]]],
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=list(PAYLOADS))
def test_a_payload_equals_the_files(store: EventStore, write: Write, payload: Any) -> None:
    store.import_aegis(write([session_record()], [event_record(1, payload=payload)]))
    assert repr(all_payloads(store)) == repr({1: payload})


def test_sessions_whose_events_are_mixed_in_the_file_come_apart_in_order(store: EventStore, write: Write) -> None:
    events = [event_record(seq, f"s{number}") for seq in (2, 1, 4, 3) for number in (1, 0, 2)]
    report = store.import_aegis(write([session_record(f"s{number}") for number in range(3)], events))
    assert (report.sessions_added, report.events_added, report.refused) == (3, 12, [])
    assert [all_payloads(store, f"s{n}") for n in range(3)] == [{seq: {"n": seq} for seq in range(1, 5)}] * 3


def test_events_may_stand_before_their_sessions(store: EventStore, tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_text(json.dumps({"events": events_of("s", 1), "sessions": [session_record()], "version": 1}))
    assert store.import_aegis(file).events_added == 1


def test_a_gzip_file_is_read_whatever_its_name(store: EventStore, write: Write) -> None:
    file = write([session_record()], events_of("s", 1, 2))
    file.write_bytes(gzip.compress(file.read_bytes()))
    assert store.import_aegis(file).events_added == 2


def test_all_fields_of_an_event_are_kept(store: EventStore, write: Write) -> None:
    record = event_record(1, eventId="e-1", backendRunId="run-1", payloadRef="s3://bucket/key", eventType="hook.end")
    store.import_aegis(write([session_record()], [record]))
    [event] = store.read("s").events
    assert (event.event_id, event.run_id, event.payload_ref, event.type) == ("e-1", "run-1", "s3://bucket/key", "hook.end")
    assert event.occurred_at == START + timedelta(seconds=1)
    assert event.recorded_at == START + timedelta(seconds=1, milliseconds=7)


@pytest.mark.parametrize("name", ["eventId", "backendRunId", "payloadRef"])
def test_an_event_without_an_optional_field_is_taken(store: EventStore, write: Write, name: str) -> None:
    store.import_aegis(write([session_record()], [without(event_record(1), name)]))
    assert store.get_session("s").event_count == 1


def test_a_time_of_another_zone_is_the_same_moment(store: EventStore, write: Write) -> None:
    store.import_aegis(write([session_record()], [event_record(1, occurredAt="2026-05-23T08:03:43.123456+02:00")]))
    assert store.read("s").events[0].occurred_at == datetime(2026, 5, 23, 6, 3, 43, 123_456, tzinfo=UTC)


def test_id_tenant_owner_status_and_times_of_a_session_are_kept(store: EventStore, write: Write) -> None:
    store.import_aegis(write([session_record(status="paused")], events_of("s", 1)))
    session = store.get_session("s")
    assert (session.tenant, session.owner, session.status) == ("tenant", "owner", "paused")
    assert session.created_at == START
    assert session.updated_at == START + timedelta(milliseconds=5)
    assert session.last_event_at == START + timedelta(seconds=1, milliseconds=7)
    assert session.ended_at is None


def test_other_fields_of_a_session_go_to_its_metadata(store: EventStore, write: Write) -> None:
    others: Record = {
        "conversationId": "c",
        "backendMetadata": {"model": "m", "cost": 0.1},
        "validationWarnings": [{"code": "X"}],
    }
    store.import_aegis(write([session_record(**others)], []))
    assert store.get_session("s").metadata == others


@pytest.mark.parametrize(
    ("status", "fields", "ended_ms"),
    [
        ("closed", {"closedAt": CREATED_MS + 2}, 2),
        ("failed", {"failedAt": CREATED_MS + 3}, 3),
        ("completed", {"completedAt": CREATED_MS + 4}, 4),
        ("failed", {"failedAt": CREATED_MS + 3, "closedAt": CREATED_MS + 4}, 3),
        ("completed", {}, 5),
    ],
)
def test_a_terminal_session_ended_when_the_file_says(
    store: EventStore, write: Write, status: str, fields: Record, ended_ms: int
) -> None:
    store.import_aegis(write([session_record(status=status, **fields)], []))
    session = store.get_session("s")
    assert (session.status, session.ended_at) == (status, START + timedelta(milliseconds=ended_ms))


def test_a_session_that_starts_above_seq_1_keeps_its_numbers(store: EventStore, write: Write) -> None:
    store.import_aegis(write([session_record()], events_of("s", 41, 42)))
    session = store.get_session("s")
    assert (session.first_seq, session.last_seq, session.removed_events) == (41, 42, 40)
    assert session.removed_reason == "before_import"
    assert store.append("s", "note", "next").seq == 43


def test_a_session_without_events_comes_in(store: EventStore, write: Write) -> None:
    assert store.import_aegis(write([session_record()], [])).sessions_added == 1
    assert store.append("s", "note", "first").seq == 1


def test_a_session_that_came_without_events_starts_where_the_files_later_events_do(store: EventStore, write: Write) -> None:
    store.import_aegis(write([session_record()], []))
    store.import_aegis(write([session_record()], events_of("s", 5, 6)))
    assert all_payloads(store).keys() == {5, 6}


def test_over_the_cap_the_newest_stay_and_the_report_says_how_many_went(store: EventStore, write: Write) -> None:
    store.set_retention_policy(RetentionPolicy(max_events=10))
    report = store.import_aegis(write([session_record()], events_of("s", *range(1, 26))))
    assert (report.events_added, report.events_capped) == (25, 15)
    assert list(all_payloads(store)) == list(range(16, 26))


def test_other_parts_of_the_file_are_counted(store: EventStore, write: Write) -> None:
    parts = {"actions": [{"a": 1}, 2, "x"], "pauseInterventions": [], "savedAt": "now", "settings": {"a": [1]}}
    report = store.import_aegis(write([], [], **parts))
    assert report.not_taken == {"actions": 3, "pauseInterventions": 0, "savedAt": 1, "settings": 1}


def test_the_bytes_of_an_imported_session_are_counted(store: EventStore, write: Write) -> None:
    store.import_aegis(write([session_record()], [event_record(1, payload="12345"), event_record(2, payload="größe")]))
    assert store.get_session("s").retained_bytes == 7 + 9


# Once more


def test_a_second_import_adds_nothing(store: EventStore, write: Write) -> None:
    file = write([session_record(), session_record("t")], events_of("s", 1, 2) + events_of("t", 7, 8))
    store.import_aegis(file)
    before = (store.list_sessions(), store.read_all())
    report = store.import_aegis(file)
    assert report == ImportReport(sessions_unchanged=2, events_standing=4)
    assert (store.list_sessions(), store.read_all()) == before


def test_a_second_import_over_the_cap_adds_nothing(store: EventStore, write: Write) -> None:
    store.set_retention_policy(RetentionPolicy(max_events=3))
    file = write([session_record()], events_of("s", *range(1, 11)))
    store.import_aegis(file)
    assert store.import_aegis(file) == ImportReport(sessions_unchanged=1, events_standing=3, events_pruned=7)
    assert list(all_payloads(store)) == [8, 9, 10]


def test_events_that_the_file_got_since_are_added(store: EventStore, write: Write) -> None:
    store.import_aegis(write([session_record()], events_of("s", 1, 2)))
    report = store.import_aegis(write([session_record()], events_of("s", 1, 2, 3, 4)))
    assert (report.sessions_updated, report.events_added, report.events_standing) == (1, 2, 2)
    assert list(all_payloads(store)) == [1, 2, 3, 4]


def test_events_that_the_file_got_since_are_added_even_if_it_lost_the_older_ones(store: EventStore, write: Write) -> None:
    store.import_aegis(write([session_record()], events_of("s", 1, 2)))
    assert store.import_aegis(write([session_record()], events_of("s", 2, 3))).events_added == 1
    assert store.import_aegis(write([session_record()], events_of("s", 4, 5))).events_added == 2
    assert list(all_payloads(store)) == [1, 2, 3, 4, 5]


def test_what_was_pruned_since_does_not_return(open_store: OpenStore, write: Write) -> None:
    file = write([session_record(status="closed")], events_of("s", 1, 2, 3))
    open_store().import_aegis(file)
    reopened = open_store()
    assert reopened.get_session("s").event_count == 0
    report = reopened.import_aegis(file)
    assert (report.events_added, report.events_pruned) == (0, 3)
    assert reopened.get_session("s").event_count == 0


def test_a_session_that_was_deleted_here_is_counted_as_such_and_stays_away(store: EventStore, write: Write) -> None:
    file = write([session_record()], events_of("s", 1, 2))
    store.import_aegis(file)
    store.delete_session("s")
    assert store.import_aegis(file) == ImportReport(sessions_deleted=1, events_pruned=2)
    assert store.list_sessions().sessions == []


def test_after_a_prune_the_files_newer_events_are_added(open_store: OpenStore, write: Write) -> None:
    open_store().import_aegis(write([session_record(status="closed")], events_of("s", 1, 2)))
    reopened = open_store()
    reopened.import_aegis(write([session_record(status="closed")], events_of("s", 1, 2, 3)))
    assert list(all_payloads(reopened)) == [3]


def test_a_newer_record_of_a_session_is_taken_over(store: EventStore, write: Write) -> None:
    store.import_aegis(write([session_record()], []))
    changes: Record = {"status": "failed", "failedAt": CREATED_MS + 9, "updatedAt": CREATED_MS + 9, "note": "new"}
    assert store.import_aegis(write([session_record(**changes)], [])).sessions_updated == 1
    session = store.get_session("s")
    assert (session.status, session.metadata) == ("failed", {"note": "new"})
    assert session.ended_at == session.updated_at == START + timedelta(milliseconds=9)


def test_an_older_record_of_a_session_does_not_undo_what_the_store_has(store: EventStore, write: Write) -> None:
    file = write([session_record()], [])
    store.import_aegis(file)
    store.set_status("s", "completed")
    assert store.import_aegis(file).sessions_unchanged == 1
    assert store.get_session("s").status == "completed"


def test_events_that_were_appended_here_since_stay(store: EventStore, write: Write) -> None:
    file = write([session_record()], events_of("s", 1, 2))
    store.import_aegis(file)
    store.append("s", "note", "mine")
    assert store.import_aegis(file).sessions_unchanged == 1
    assert all_payloads(store) == {1: {"n": 1}, 2: {"n": 2}, 3: "mine"}


# Sessions that are refused

DEEP = json.loads("[" * 201 + "]" * 201)


def one_event(**fields: Any) -> list[Record]:
    return [event_record(1, **fields)]


REFUSED_EVENTS: dict[str, tuple[list[Record], str]] = {
    "a gap": (events_of("s", 1, 2, 4), "a gap: seq 4 follows 2"),
    "a duplicate seq": ([event_record(1), event_record(2), event_record(2, eventId="x")], "seq 2 stands twice"),
    "a duplicate eventId": ([event_record(1), event_record(2, eventId="s:1")], "s:1"),
    "a duplicate eventId, same content": ([event_record(1), event_record(2, eventId="s:1", payload={"n": 1})], "seq 2"),
    "another tenant": ([event_record(1), event_record(2, tenantId="other")], "seq 2 belongs to another tenantId"),
    "another owner": ([event_record(1), event_record(2, ownerKeyId="other")], "seq 2 belongs to another ownerKeyId"),
    "no tenant": ([without(event_record(1), "tenantId")], "tenantId"),
    "an unknown field": ([event_record(1), event_record(2, mood="good")], "'mood'"),
    "no payload": ([without(event_record(1), "payload")], "no payload"),
    "no type": ([without(event_record(1), "eventType")], "seq 1: type"),
    "no seq": ([event_record(1), without(event_record(2), "eventSeq")], "eventSeq"),
    "no time": ([without(event_record(1), "occurredAt")], "occurredAt"),
    "no time of storing": ([without(event_record(1), "ingestedAt")], "ingestedAt"),
    "too deep": ([event_record(1), event_record(2, payload=DEEP)], "seq 2: payload.*deeper"),
    "too large": ([event_record(1), event_record(2, payload="x" * 3_000_000)], "over the limit"),
    "too large for any policy": (one_event(payload="x" * 17_000_000), "over the limit"),
    "a surrogate pair in a type": (one_event(eventType="\ud83d"), "surrogate"),
}
WRONG_EVENT_VALUES: dict[str, list[Any]] = {
    "eventSeq": [0, -1, 1.0, "1", True, None, [1], 2**63],
    "eventId": [1, True, [], "", "a\nb", "x" * 513],
    "eventType": [None, 1, "", {}, "a\0b"],
    "backendRunId": [1, "", ["run"]],
    "payloadRef": [1, "", {"ref": 1}],
    "occurredAt": [None, 1_779_516_223_248, "", "today", "2026-05-23T06:03:43", "9999-99-99T00:00:00Z"],
    "ingestedAt": [None, 1.5, "2026-05-23", "0001-01-01T00:00:00+14:00"],
    "tenantId": [None, 1, ""],
    "ownerKeyId": [None, 1, ["owner"]],
}
WRONG_SESSION_VALUES: dict[str, list[Any]] = {
    "tenantId": [None, 1, "", "a\nb", ["t"]],
    "ownerKeyId": [None, 1, "", {}],
    "status": [None, 1, "", "sleeping", "RUNNING", ["running"]],
    "createdAt": [None, "2026-05-23", -1, 1.5, True, 10**18],
    "updatedAt": [None, "2026-05-23", -1, 1.5, False, 10**18],
    "conversationId": ["x" * 70_000],
    "backendMetadata": [DEEP],
}


def cases(wrong: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}={value!r:.20}") for name, values in wrong.items() for value in values]


def assert_refused_alone(store: EventStore, report: ImportReport, session_id: str, reason: str) -> None:
    """That session was refused for that reason, nothing of it is in the store, and "good" came in."""
    [refusal] = report.refused
    assert refusal.session_id == session_id
    assert re.search(reason, refusal.reason), refusal.reason
    assert [session.session_id for session in store.list_sessions().sessions] == ["good"]
    assert {event.session_id for event in store.read_all()} == {"good"}
    assert (report.sessions_added, report.events_added) == (1, 1)


@pytest.mark.parametrize(("events", "reason"), REFUSED_EVENTS.values(), ids=list(REFUSED_EVENTS))
@pytest.mark.parametrize("first", ["s", "good"])
def test_a_session_with_such_events_is_refused_and_others_come_in(
    store: EventStore, write: Write, events: list[Record], reason: str, first: str
) -> None:
    sessions = sorted([session_record("s"), session_record("good")], key=lambda record: record["id"] != first)
    report = store.import_aegis(write(sessions, events + events_of("good", 1)))
    assert_refused_alone(store, report, "s", reason)


@pytest.mark.parametrize(("name", "value"), cases(WRONG_EVENT_VALUES))
def test_a_session_is_refused_for_a_value_of_an_event_that_cannot_be(
    store: EventStore, write: Write, name: str, value: Any
) -> None:
    sessions = [session_record("s"), session_record("good")]
    report = store.import_aegis(write(sessions, [event_record(1) | {name: value}, *events_of("good", 1)]))
    shown_name = {"eventType": "type", "eventId": "event_id", "backendRunId": "run_id", "payloadRef": "payload_ref"}
    assert_refused_alone(store, report, "s", shown_name.get(name, name))


@pytest.mark.parametrize(("name", "value"), cases(WRONG_SESSION_VALUES))
def test_a_session_is_refused_for_a_value_of_its_own_that_cannot_be(
    store: EventStore, write: Write, name: str, value: Any
) -> None:
    sessions = [session_record("s", **{name: value}), session_record("good")]
    report = store.import_aegis(write(sessions, events_of("good", 1)))
    shown_name = {"tenantId": "tenant", "ownerKeyId": "owner", "conversationId": "metadata", "backendMetadata": "metadata"}
    assert_refused_alone(store, report, "s", shown_name.get(name, name))


@pytest.mark.parametrize("name", ["tenantId", "ownerKeyId", "status", "createdAt", "updatedAt"])
def test_a_session_is_refused_without_a_field_that_it_needs(store: EventStore, write: Write, name: str) -> None:
    sessions = [without(session_record("s"), name), session_record("good")]
    report = store.import_aegis(write(sessions, events_of("good", 1)))
    assert_refused_alone(store, report, "s", {"tenantId": "tenant", "ownerKeyId": "owner"}.get(name, name))


@pytest.mark.parametrize("value", ["yesterday", -1, None, True])
def test_a_terminal_session_is_refused_for_an_end_that_cannot_be(store: EventStore, write: Write, value: Any) -> None:
    sessions = [session_record("s", status="closed", closedAt=value), session_record("good")]
    assert_refused_alone(store, store.import_aegis(write(sessions, events_of("good", 1))), "s", "closedAt")


@pytest.mark.parametrize("value", [None, 1, "", True, ["s"], {"a": 1}, "a\nb", "x" * 513, "\ud83d"])
def test_a_session_is_refused_for_an_id_that_cannot_be(store: EventStore, write: Write, value: Any) -> None:
    sessions = [session_record("s") | {"id": value}, session_record("good")]
    report = store.import_aegis(write(sessions, [event_record(1) | {"sessionId": value}, *events_of("good", 1)]))
    could_be = isinstance(value, str) and len(value) <= 512
    assert_refused_alone(store, report, value if could_be else shown(value), "session_id")


def test_a_session_without_an_id_is_refused(store: EventStore, write: Write) -> None:
    sessions = [without(session_record(), "id"), session_record("good")]
    assert_refused_alone(store, store.import_aegis(write(sessions, events_of("good", 1))), "None", "session_id")


def test_a_session_whose_id_stands_twice_is_refused_each_time(store: EventStore, write: Write) -> None:
    sessions = [session_record("s"), session_record("good"), session_record("s")]
    report = store.import_aegis(write(sessions, events_of("s", 1) + events_of("good", 1)))
    assert [(refusal.session_id, refusal.reason) for refusal in report.refused] == [
        ("s", "its id stands twice in the file")
    ] * 2
    assert [session.session_id for session in store.list_sessions().sessions] == ["good"]


def test_events_without_their_session_are_refused(store: EventStore, write: Write) -> None:
    report = store.import_aegis(write([session_record("good")], events_of("s", 1, 2) + events_of("good", 1)))
    assert_refused_alone(store, report, "s", "2 events, but no session")


def test_events_that_name_no_session_are_refused(store: EventStore, write: Write) -> None:
    events = [without(event_record(1), "sessionId"), *events_of("good", 1)]
    assert_refused_alone(store, store.import_aegis(write([session_record("good")], events)), "None", "1 events")


OTHER_CONTENT: dict[str, Any] = {
    "payload": {"n": 2.0},
    "eventType": "other",
    "eventId": "other",
    "backendRunId": "other",
    "payloadRef": "other",
    "occurredAt": "2026-05-23T06:03:43Z",
    "ingestedAt": "2026-05-23T06:03:43Z",
}


@pytest.mark.parametrize("name", OTHER_CONTENT)
def test_a_session_is_refused_if_the_store_has_another_content_for_an_event(store: EventStore, write: Write, name: str) -> None:
    store.import_aegis(write([session_record()], events_of("s", 1, 2)))
    before = store.read_all()
    changed = [event_record(1), event_record(2, **{name: OTHER_CONTENT[name]}), event_record(3)]
    [refusal] = store.import_aegis(write([session_record()], changed)).refused
    assert refusal.session_id == "s"
    assert "seq 2" in refusal.reason
    assert store.read_all() == before


def test_a_refused_session_keeps_the_record_that_it_had(store: EventStore, write: Write) -> None:
    store.import_aegis(write([session_record()], events_of("s", 1)))
    newer = session_record(status="paused", updatedAt=CREATED_MS + 99)
    assert store.import_aegis(write([newer], events_of("s", 3))).refused
    assert store.get_session("s").status == "running"


def test_a_session_is_refused_if_the_file_begins_beyond_what_the_store_has(store: EventStore, write: Write) -> None:
    store.import_aegis(write([session_record()], events_of("s", 1, 2)))
    [refusal] = store.import_aegis(write([session_record()], events_of("s", 4, 5))).refused
    assert "a gap" in refusal.reason
    assert list(all_payloads(store)) == [1, 2]


@pytest.mark.parametrize(("tenant", "owner"), [("other", "owner"), ("tenant", "other")])
def test_a_session_of_another_tenant_or_owner_is_refused(store: EventStore, write: Write, tenant: str, owner: str) -> None:
    store.create_session("s", tenant=tenant, owner=owner)
    [refusal] = store.import_aegis(write([session_record()], events_of("s", 1))).refused
    assert "another tenant or owner" in refusal.reason
    assert store.get_session("s").event_count == 0


def test_a_refused_session_comes_in_once_its_file_is_mended(store: EventStore, write: Write) -> None:
    store.import_aegis(write([session_record()], events_of("s", 1, 3)))
    assert store.import_aegis(write([session_record()], events_of("s", 1, 2, 3))).events_added == 3


def test_a_lower_limit_of_the_policy_refuses_larger_payloads(store: EventStore, write: Write) -> None:
    store.set_retention_policy(RetentionPolicy(max_event_bytes=100))
    sessions = [session_record("s"), session_record("good")]
    report = store.import_aegis(write(sessions, [event_record(1, payload="x" * 99), *events_of("good", 1)]))
    assert_refused_alone(store, report, "s", "over the limit of 100")


# Files that are rejected


def assert_rejected(store: EventStore, file: Path) -> ImportRejected:
    with pytest.raises(ImportRejected) as caught:
        store.import_aegis(file)
    assert caught.value.place
    assert caught.value.file == str(file)
    assert store.list_sessions().sessions == []
    return caught.value


def small_state() -> bytes:
    sessions = [session_record(f"s{number}") for number in range(3)]
    events = [event_record(seq, f"s{number}", payload={"größe": [1.5, True, None]}) for seq in (1, 2) for number in range(3)]
    return json.dumps({"version": 1, "sessions": sessions, "events": events, "actions": [1]}, ensure_ascii=False).encode()


@pytest.mark.parametrize("size", range(0, len(small_state()), 97))
def test_a_file_that_is_cut_off_is_rejected(store: EventStore, tmp_path: Path, size: int) -> None:
    file = tmp_path / "state.json"
    file.write_bytes(small_state()[:size])
    assert_rejected(store, file)


@pytest.mark.parametrize("lost", range(1, 20))
def test_a_file_that_lost_its_last_bytes_is_rejected(store: EventStore, tmp_path: Path, lost: int) -> None:
    file = tmp_path / "state.json"
    file.write_bytes(small_state()[:-lost])
    assert_rejected(store, file)


@pytest.mark.parametrize("size", range(0, len(gzip.compress(small_state(), mtime=0)), 29))
def test_a_gzip_file_that_is_cut_off_is_rejected(store: EventStore, tmp_path: Path, size: int) -> None:
    file = tmp_path / "state.json.gz"
    file.write_bytes(gzip.compress(small_state(), mtime=0)[:size])
    assert_rejected(store, file)


@pytest.mark.parametrize("offset", [12, 60, 200, -8, -4])
def test_a_gzip_file_with_a_changed_byte_is_rejected(store: EventStore, tmp_path: Path, offset: int) -> None:
    content = bytearray(gzip.compress(small_state(), mtime=0))
    content[offset] ^= 0x55
    file = tmp_path / "state.json.gz"
    file.write_bytes(content)
    assert_rejected(store, file)


SESSION = json.dumps(session_record())
EVENT = json.dumps(event_record(1))
MALFORMED: dict[str, str] = {
    "empty": "",
    "white space": " \n ",
    "a list": "[]",
    "a number": "1",
    "text": "Dear diary,",
    "null": "null",
    "no parts": "{}",
    "no version": f'{{"sessions": [{SESSION}], "events": []}}',
    "version 2": f'{{"version": 2, "sessions": [{SESSION}], "events": []}}',
    "version true": f'{{"version": true, "sessions": [{SESSION}], "events": []}}',
    "version as text": f'{{"version": "1", "sessions": [{SESSION}], "events": []}}',
    "version as a list": f'{{"version": [1], "sessions": [{SESSION}], "events": []}}',
    "no sessions": '{"version": 1, "events": []}',
    "no events": f'{{"version": 1, "sessions": [{SESSION}]}}',
    "sessions twice": f'{{"version": 1, "sessions": [{SESSION}], "events": [], "sessions": []}}',
    "version twice": f'{{"version": 1, "sessions": [{SESSION}], "events": [], "version": 1}}',
    "sessions as an object": '{"version": 1, "sessions": {}, "events": []}',
    "events as null": f'{{"version": 1, "sessions": [{SESSION}], "events": null}}',
    "a session that is none": f'{{"version": 1, "sessions": [{SESSION}, 1], "events": []}}',
    "an event that is none": f'{{"version": 1, "sessions": [{SESSION}], "events": [{EVENT}, []]}}',
    "something after its end": f'{{"version": 1, "sessions": [{SESSION}], "events": []}} {{}}',
    "a comma too many": f'{{"version": 1, "sessions": [{SESSION},], "events": []}}',
    "a comma at its end": f'{{"version": 1, "sessions": [{SESSION}], "events": [],}}',
    "a comma missing": f'{{"version": 1, "sessions": [{SESSION}] "events": []}}',
    "a colon missing": '{"version" 1}',
    "a name without quotes": '{version: 1, "sessions": [], "events": []}',
    "NaN": f'{{"version": 1, "sessions": [{SESSION}], "events": [], "x": NaN}}',
    "infinity in an event": f'{{"version": 1, "sessions": [{SESSION}], "events": [{{"payload": -Infinity}}]}}',
    "a control character in text": f'{{"version": 1, "sessions": [{SESSION}], "events": [], "x": "\n"}}',
    "depth without end": f'{{"version": 1, "sessions": [{SESSION}], "events": [], "x": {"[" * 200_000}',
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=list(MALFORMED))
def test_a_file_that_is_no_state_file_is_rejected(store: EventStore, tmp_path: Path, text: str) -> None:
    file = tmp_path / "state.json"
    file.write_text(text)
    assert_rejected(store, file)


@pytest.mark.parametrize("content", [b"\xff\xfe{\0}\0", b"\xef\xbb\xbf{}", b'{"version": "\xff"}', b"PK\x03\x04", bytes(5000)])
def test_a_file_that_is_not_utf_8_text_is_rejected(store: EventStore, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "state.json"
    file.write_bytes(content)
    assert_rejected(store, file)


def test_the_place_of_an_error_names_the_last_item_that_was_read(store: EventStore, tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_text(f'{{"version": 1, "sessions": [{SESSION}], "events": [{EVENT}, {EVENT}, oops]}}')
    assert "events[1]" in str(assert_rejected(store, file))


def test_a_missing_file_is_rejected(store: EventStore, tmp_path: Path) -> None:
    assert_rejected(store, tmp_path / "state.json")


def test_a_directory_is_rejected(store: EventStore, tmp_path: Path) -> None:
    assert_rejected(store, tmp_path)


@pytest.mark.parametrize("link", [None, "symbolic", "hard"])
def test_the_store_itself_is_rejected(store: EventStore, path: Path, tmp_path: Path, link: str | None) -> None:
    file = path if link is None else tmp_path / "link"
    if link == "symbolic":
        file.symlink_to(path)
    elif link == "hard":
        os.link(path, file)
    assert "a store that is open here" in str(assert_rejected(store, file))


def test_a_rejected_file_leaves_what_the_store_has(store: EventStore, write: Write) -> None:
    file = write([session_record()], events_of("s", 1))
    store.import_aegis(file)
    before = (store.list_sessions(), store.read_all())
    file.write_text(file.read_text()[:-1])
    with pytest.raises(ImportRejected):
        store.import_aegis(file)
    assert (store.list_sessions(), store.read_all()) == before


# Progress and memory


def test_progress_of_reading_goes_up_to_the_size_of_the_file(store: EventStore, tmp_path: Path) -> None:
    file = tmp_path / "state.json.gz"
    file.write_bytes(gzip.compress(small_state()))
    calls: list[tuple[int, int]] = []
    store.import_aegis(file, on_bytes=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (file.stat().st_size, file.stat().st_size)


def test_progress_of_writing_counts_each_session(store: EventStore, write: Write) -> None:
    calls: list[tuple[int, int]] = []
    sessions = [session_record("a"), session_record("b", status="unknown"), session_record("c")]
    store.import_aegis(write(sessions, []), on_sessions=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_an_import_that_is_interrupted_is_finished_by_the_next(store: EventStore, write: Write) -> None:
    file = write([session_record(name) for name in "abc"], [event_record(1, name) for name in "abc"])

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.import_aegis(file, on_sessions=interrupt)
    assert [session.session_id for session in store.list_sessions().sessions] == ["a"]
    report = store.import_aegis(file)
    assert (report.sessions_added, report.sessions_unchanged) == (2, 1)


MEASURED = """
import resource, sys
from pathlib import Path
from aegis_store import EventStore
with EventStore.open(sys.argv[1], durability="process", prune_on_open=False) as store:
    report = store.import_aegis(sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform != "darwin" else 1024 * 1024)
status = Path("/proc/self/status")  # ru_maxrss survives exec there: it would count the memory of the tests
if status.exists():
    peak = int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) // 1024
print(report.events_added, peak)
"""


def test_a_large_file_is_imported_in_flat_memory(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "large.json"
    payload = {"text": "größe und mehr " * 160, "numbers": list(range(40))}
    with file.open("w", encoding="utf-8") as out:
        sessions = ",".join(json.dumps(session_record(f"s{number}")) for number in range(100))
        out.write(f'{{"version": 1, "sessions": [{sessions}], "events": [')
        for seq in range(1, 51):
            for number in range(100):
                comma = "" if (seq, number) == (1, 0) else ","
                out.write(comma + json.dumps(event_record(seq, f"s{number}", payload=payload), ensure_ascii=False))
        out.write("]}")
    assert file.stat().st_size > 15_000_000
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURED), str(path), str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    added, peak_mib = map(int, done.stdout.split())
    assert added == 5000
    assert peak_mib < 120


def test_the_staging_leaves_nothing_behind(
    store: EventStore, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    store.import_aegis(write([session_record()], events_of("s", 1)))
    with pytest.raises(ImportRejected):
        store.import_aegis(tmp_path)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_session_that_a_refused_file_would_have_made_is_not_found(store: EventStore, write: Write) -> None:
    store.import_aegis(write([session_record()], events_of("s", 1, 3)))
    with pytest.raises(SessionNotFound):
        store.get_session("s")


def test_an_unlimited_policy_keeps_all_of_a_file(store: EventStore, write: Write) -> None:
    store.set_retention_policy(RetentionPolicy(max_events=UNLIMITED))
    report = store.import_aegis(write([session_record()], events_of("s", *range(1, 1202))))
    assert (report.events_added, report.events_capped) == (1201, 0)


# Reading JSON piece by piece

_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)
_NUMBERS = st.integers() | st.integers(-(10**300), 10**300) | st.floats(allow_nan=False, allow_infinity=False)
_VALUES = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXT,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(_TEXT, inner, max_size=6),
    max_leaves=25,
)
_LAYOUTS = st.sampled_from([(None, None), (None, (",", ":")), (1, None), ("\t", (" ,\r\n", " : "))])


def loads(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def in_pieces(text: str) -> JsonText:
    return JsonText(io.BytesIO(text.encode()))


def document(text: str) -> dict[str, Any]:
    """An object of lists and other values, read as a state file is."""
    reader = in_pieces(text)
    return {name: list(reader.items()) if reader.peek() == "[" else reader.value() for name in reader.members()}


def outcome(read: Callable[[str], Any], text: str) -> str:
    try:
        return repr(read(text))
    except ValueError:
        return "refused"


@settings(deadline=None)
@given(value=_VALUES, layout=_LAYOUTS)
def test_any_json_value_is_read_as_the_json_module_reads_it(value: Any, layout: tuple[Any, Any]) -> None:
    text = json.dumps(value, indent=layout[0], separators=layout[1])
    with mock.patch.object(json_text, "_CHUNK_BYTES", 7):
        assert repr(in_pieces(text).value()) == repr(loads(text))


@settings(deadline=None)
@given(value=st.dictionaries(_TEXT, _VALUES, max_size=6), layout=_LAYOUTS, padding=st.text(" \t\r\n", max_size=80))
def test_any_json_object_is_read_member_by_member_as_the_json_module_reads_it(
    value: dict[str, Any], layout: tuple[Any, Any], padding: str
) -> None:
    text = padding + json.dumps(value, indent=layout[0], separators=layout[1]) + padding
    with mock.patch.object(json_text, "_CHUNK_BYTES", 7):
        assert repr(document(text)) == repr(loads(text))


@settings(deadline=None)
@given(value=st.dictionaries(st.text(max_size=9), _VALUES, max_size=4), data=st.data())
def test_a_json_object_that_is_cut_off_anywhere_is_refused(value: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps(value)
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    with mock.patch.object(json_text, "_CHUNK_BYTES", 7):
        assert outcome(document, cut) == "refused"


@settings(deadline=None)
@given(value=st.dictionaries(st.text(max_size=9), _VALUES, max_size=4), data=st.data())
def test_a_changed_json_object_is_refused_just_where_the_json_module_refuses_it(
    value: dict[str, Any], data: st.DataObject
) -> None:
    text = json.dumps(value)
    at = data.draw(st.integers(0, len(text)))
    put = data.draw(
        st.sampled_from(['"', "\\", ",", ":", "[", "]", "{", "}", "0", "-", ".", "e", "NaN", "\n", " ", "null", "é"])
    )
    changed = text[:at] + put + text[at + data.draw(st.integers(0, 2)) :]
    expected = outcome(loads, changed)
    with mock.patch.object(json_text, "_CHUNK_BYTES", 7):
        actual = outcome(document, changed)
    assert actual == (expected if expected.startswith("{") else "refused")


@pytest.mark.parametrize("number", ["1e400", "-1E400", "123456789" * 40, "-0", "0.1e-7", "1E+2", f"0.{'3' * 500}"])
def test_a_long_number_is_read_as_the_json_module_reads_it(number: str) -> None:
    with mock.patch.object(json_text, "_CHUNK_BYTES", 1):
        assert repr(document(f'{{"a": [{number}], "b": {number}}}')) == repr(loads(f'{{"a": [{number}], "b": {number}}}'))


def test_a_long_item_is_decoded_a_bounded_number_of_times() -> None:
    reader = in_pieces(json.dumps({"a": "x" * 100_000}))
    decode, calls = reader._decode, []
    reader._decode = lambda *arguments: calls.append(1) or decode(*arguments)  # type: ignore[func-returns-value]
    with mock.patch.object(json_text, "_CHUNK_BYTES", 7):
        assert reader.value() == {"a": "x" * 100_000}
    assert len(calls) < 40


def test_an_item_that_would_fill_the_memory_is_refused() -> None:
    with mock.patch.object(json_text, "_CHUNK_BYTES", 7), mock.patch.object(json_text, "_MAX_ITEM_CHARACTERS", 1000):
        with pytest.raises(ValueError, match="longer than 1,000 characters"):
            in_pieces(json.dumps("x" * 5000)).value()
