"""A writer with a plain SQL shell is held to the promises as well: the schema itself keeps them."""

import sqlite3
from contextlib import suppress
from typing import Any, NamedTuple

import pytest

from aegis_store import EventStore, EventsTruncated, NewEvent, RetentionPolicy, StoreCorrupt, driver
from aegis_store.record_copy import intact_sql

Refused: type[Exception] = driver.dbapi.IntegrityError

NEXT_EVENT = """
    INSERT INTO event (session, seq, type, occurred_at, recorded_at, event_id, bytes_before, payload)
    SELECT id, last_seq + 1, 'shell', 1, 1, NULL, total_bytes, '"from a shell"' FROM session WHERE session_id = 's'
"""


@pytest.fixture(autouse=True)
def three_events(store: EventStore) -> None:
    """Session `s` at its cap of 3, `empty`, and `inherits` with 3 events under the cap of the policy."""
    store.create_session("s", max_events=3)
    store.create_session("empty")
    store.create_session("inherits")
    for session_id in ("s", "inherits"):
        store.append_many(session_id, [NewEvent(type="t", payload=f"p{n}", event_id=f"e{n}") for n in (1, 2, 3)])
    store.create_session("gone")
    store.delete_session("gone")


def insert(shell: sqlite3.Connection, verb: str = "INSERT", **given: Any) -> None:
    """The next event of session `s`, but for what is given."""
    row = shell.execute("SELECT id, last_seq + 1, total_bytes FROM session WHERE session_id = 's'").fetchone()
    session, seq, total_bytes = row
    columns = {
        "session": session,
        "seq": seq,
        "type": "shell",
        "occurred_at": 1,
        "recorded_at": 1,
        "bytes_before": total_bytes,
        "payload": "null",
    } | given
    names = ", ".join(columns)
    marks = ", ".join("?" * len(columns))
    shell.execute(f"{verb} INTO event ({names}) VALUES ({marks})", tuple(columns.values()))


def events(shell: sqlite3.Connection, session_id: str = "s") -> list[tuple[Any, ...]]:
    return shell.execute(
        "SELECT e.seq, e.event_id, e.payload FROM event AS e JOIN session AS s ON s.id = e.session"
        " WHERE s.session_id = ? ORDER BY e.seq",
        (session_id,),
    ).fetchall()


def test_a_shell_may_append_and_the_store_goes_on_from_there(store: EventStore, shell: sqlite3.Connection) -> None:
    shell.execute(NEXT_EVENT)
    assert [event.payload for event in store.read("s").events] == ["p2", "p3", "from a shell"]
    assert store.append("s", "t", "next").seq == 5


def test_a_session_never_holds_more_than_its_cap_when_a_shell_writes(shell: sqlite3.Connection) -> None:
    for seq in range(4, 10):
        shell.execute(NEXT_EVENT)
        assert [row[0] for row in events(shell)] == [seq - 2, seq - 1, seq]


def test_the_cap_of_the_policy_holds_when_a_shell_writes(store: EventStore, shell: sqlite3.Connection) -> None:
    store.set_retention_policy(RetentionPolicy(max_events=2))
    store.update_session("s", max_events=None)
    for _ in range(4):
        shell.execute(NEXT_EVENT)
    assert [row[0] for row in events(shell)] == [6, 7]


def test_what_the_cap_removes_for_a_shell_is_accounted_for(store: EventStore, shell: sqlite3.Connection) -> None:
    shell.execute(NEXT_EVENT)
    session = store.get_session("s")
    assert (session.removed_events, session.removed_bytes, session.removed_reason) == (1, len('"p1"'), "max_events")


@pytest.mark.parametrize("seq", [-1, 0, 1, 3, 5, 2**62])
@pytest.mark.parametrize("verb", ["INSERT", "INSERT OR REPLACE"])
def test_an_event_that_is_not_the_next_is_refused(shell: sqlite3.Connection, verb: str, seq: int) -> None:
    before = events(shell)
    with pytest.raises(Refused, match="seq must be last_seq"):
        insert(shell, verb, seq=seq)
    assert events(shell) == before


@pytest.mark.parametrize("position", [1, 3, 99, -5])
@pytest.mark.parametrize("verb", ["INSERT", "INSERT OR REPLACE", "INSERT OR IGNORE"])
def test_a_position_of_the_writers_own_is_refused(shell: sqlite3.Connection, verb: str, position: int) -> None:
    before = events(shell)
    with pytest.raises(Refused, match="position is given by the store"):
        insert(shell, verb, position=position)
    assert events(shell) == before


def test_position_minus_one_is_refused_too(shell: sqlite3.Connection) -> None:
    with pytest.raises(Refused):
        insert(shell, position=-1)
    assert [row[0] for row in events(shell)] == [1, 2, 3]


@pytest.mark.parametrize("verb", ["INSERT", "INSERT OR REPLACE", "INSERT OR IGNORE"])
def test_an_event_id_that_stands_is_refused(shell: sqlite3.Connection, verb: str) -> None:
    before = events(shell)
    with pytest.raises(Refused, match="event_id stands"):
        insert(shell, verb, event_id="e2")
    assert events(shell) == before


def test_an_upsert_by_event_id_is_refused(shell: sqlite3.Connection) -> None:
    before = events(shell)
    with pytest.raises(Refused):
        shell.execute(
            NEXT_EVENT.replace("NULL", "'e2'")
            + " ON CONFLICT (session, event_id) WHERE event_id IS NOT NULL DO UPDATE SET payload = excluded.payload"
        )
    assert events(shell) == before


@pytest.mark.parametrize(
    "change",
    ["payload = 'null'", "seq = seq + 10", "event_id = NULL", "position = position + 100", "type = type", "session = 2"],
)
@pytest.mark.parametrize("verb", ["UPDATE", "UPDATE OR REPLACE", "UPDATE OR IGNORE"])
def test_an_event_does_not_change(shell: sqlite3.Connection, verb: str, change: str) -> None:
    before = events(shell)
    with pytest.raises(Refused, match="events do not change"):
        shell.execute(f"{verb} event SET {change}")
    assert events(shell) == before


@pytest.mark.parametrize("where", ["seq = 1", "seq = 2", "seq = 3", "true"])
def test_an_event_that_is_retained_is_not_deleted(shell: sqlite3.Connection, where: str) -> None:
    before = events(shell)
    with pytest.raises(Refused, match="raise first_seq"):
        shell.execute(f"DELETE FROM event WHERE {where}")
    assert events(shell) == before


def test_a_payload_over_max_event_bytes_is_refused(store: EventStore, shell: sqlite3.Connection) -> None:
    store.set_retention_policy(RetentionPolicy(max_event_bytes=10))
    insert(shell, payload='"éééé"')
    with pytest.raises(Refused, match="max_event_bytes"):
        insert(shell, payload='"éééé1"')
    assert store.get_session("s").last_seq == 4


@pytest.mark.parametrize("session", [999, 0, -1, None])
def test_an_event_without_a_session_is_refused_with_foreign_keys_off(shell: sqlite3.Connection, session: int | None) -> None:
    assert shell.execute("PRAGMA foreign_keys").fetchone() == (0,)
    with pytest.raises(Refused):
        insert(shell, session=session, seq=1, bytes_before=0)
    assert shell.execute("SELECT count(*) FROM event").fetchone() == (6,)


@pytest.mark.parametrize("bytes_before", [0, 11, 13, -1])
def test_a_wrong_count_of_bytes_is_refused(shell: sqlite3.Connection, bytes_before: int) -> None:
    with pytest.raises(Refused, match="bytes_before"):
        insert(shell, bytes_before=bytes_before)


@pytest.mark.parametrize(
    "given", [{"seq": "four"}, {"payload": b"null"}, {"recorded_at": "2026-01-01"}, {"type": None}, {"payload": None}]
)
def test_values_of_other_types_are_refused(shell: sqlite3.Connection, given: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        insert(shell, **given)


def test_two_events_of_one_seq_in_one_statement_are_refused_both(shell: sqlite3.Connection) -> None:
    with pytest.raises(Refused):
        shell.execute(NEXT_EVENT.replace("FROM session", "FROM (SELECT 1 UNION ALL SELECT 2), session"))
    assert [row[0] for row in events(shell)] == [1, 2, 3]


# Sessions


@pytest.mark.parametrize("cap", [1, 2])
def test_a_cap_below_what_a_session_holds_is_refused(shell: sqlite3.Connection, cap: int) -> None:
    with pytest.raises(Refused, match="prune it first"):
        shell.execute("UPDATE session SET max_events = ? WHERE session_id = 's'", (cap,))


def test_a_cap_of_just_what_a_session_holds_is_taken(store: EventStore, shell: sqlite3.Connection) -> None:
    shell.execute("UPDATE session SET max_events = 3 WHERE session_id = 'inherits'")
    assert store.get_session("inherits").max_events == 3


def test_a_session_cannot_fall_back_to_a_policy_that_it_exceeds(store: EventStore, shell: sqlite3.Connection) -> None:
    store.set_retention_policy(RetentionPolicy(max_events=2))
    with pytest.raises(Refused, match="prune it first"):
        shell.execute("UPDATE session SET max_events = NULL WHERE session_id = 's'")


def test_a_cap_of_the_store_below_what_sessions_hold_is_refused(store: EventStore, shell: sqlite3.Connection) -> None:
    with pytest.raises(Refused, match="prune them first"):
        shell.execute("UPDATE store SET max_events = 2")
    assert store.retention_policy().max_events == 1000


def test_a_cap_of_the_store_that_no_session_exceeds_is_taken(store: EventStore, shell: sqlite3.Connection) -> None:
    shell.execute("UPDATE store SET max_events = 3")
    assert store.retention_policy().max_events == 3


@pytest.mark.parametrize("cap", [0, -1])
def test_a_cap_of_nothing_is_refused(shell: sqlite3.Connection, cap: int) -> None:
    for table in ("store", "session"):
        with pytest.raises(Refused):
            shell.execute(f"UPDATE {table} SET max_events = ?", (cap,))


@pytest.mark.parametrize("session_id", ["s", "empty"])
def test_a_session_is_not_deleted(store: EventStore, shell: sqlite3.Connection, session_id: str) -> None:
    with pytest.raises(Refused, match="to delete a session"):
        shell.execute("DELETE FROM session WHERE session_id = ?", (session_id,))
    assert store.get_session(session_id).session_id == session_id


@pytest.mark.parametrize(
    "change",
    [
        "first_seq = 1, last_seq = 0",
        "last_seq = last_seq - 1",
        "total_bytes = total_bytes - 1",
        "total_bytes = 0",
        "id = 77",
        "session_id = 'renamed'",
    ],
)
@pytest.mark.parametrize("verb", ["UPDATE", "UPDATE OR REPLACE"])
def test_the_counters_of_a_session_only_go_up_and_its_id_stays(shell: sqlite3.Connection, verb: str, change: str) -> None:
    before = shell.execute("SELECT * FROM session").fetchall()
    with pytest.raises(Refused, match="counters only go up"):
        shell.execute(f"{verb} session SET {change} WHERE session_id = 's'")
    assert shell.execute("SELECT * FROM session").fetchall() == before


@pytest.mark.parametrize("columns", ["id, session_id", "session_id"])
def test_a_session_is_not_replaced(store: EventStore, shell: sqlite3.Connection, columns: str) -> None:
    before = store.get_session("s")
    with pytest.raises(Refused):
        shell.execute(
            f"INSERT OR REPLACE INTO session ({columns}, tenant, owner, status, created_at, updated_at)"
            f" SELECT {columns}, tenant, owner, status, 1, 1 FROM session WHERE session_id = 's'"
        )
    assert store.get_session("s") == before


def test_the_policy_is_not_deleted(shell: sqlite3.Connection) -> None:
    with pytest.raises(Refused, match="changed, not deleted"):
        shell.execute("DELETE FROM store")


def test_the_policy_is_not_replaced(store: EventStore, shell: sqlite3.Connection) -> None:
    before = store.retention_policy()
    with pytest.raises(Refused):
        shell.execute("INSERT OR REPLACE INTO store (id, max_events, max_event_bytes, terminal_grace_us) VALUES (1, 1, 9, 0)")
    assert store.retention_policy() == before


def test_there_is_one_policy(shell: sqlite3.Connection) -> None:
    with pytest.raises(Refused):
        shell.execute("INSERT INTO store (id, max_events, max_event_bytes, terminal_grace_us) VALUES (2, 1, 9, 0)")


@pytest.mark.parametrize(
    "change", ["status = 'closed'", "status = 'unknown'", "ended_at = 5", "hold = 2", "updated_at = 'now'"]
)
def test_a_session_that_cannot_be_is_refused(shell: sqlite3.Connection, change: str) -> None:
    with pytest.raises(Refused):
        shell.execute(f"UPDATE session SET {change} WHERE session_id = 's'")


def test_a_session_id_is_taken_once(shell: sqlite3.Connection) -> None:
    with pytest.raises(Refused):
        shell.execute(
            "INSERT INTO session (session_id, tenant, owner, status, created_at, updated_at)"
            " VALUES ('s', 'x', 'x', 'idle', 1, 1)"
        )


@pytest.mark.parametrize("verb", ["INSERT OR IGNORE", "INSERT OR FAIL", "INSERT OR REPLACE"])
@pytest.mark.parametrize("column", ["type", "payload", "occurred_at", "recorded_at"])
def test_an_event_that_lacks_something_takes_no_position(
    store: EventStore, shell: sqlite3.Connection, verb: str, column: str
) -> None:
    last = store.read_all()[-1].position
    with pytest.raises(Refused, match="an event needs type, payload"):
        insert(shell, verb, **{column: None})
    assert store.append("s", "t", 1).position == last + 1
    assert [event.position for event in store.read_all(after_position=last)] == [last + 1]


def test_an_insert_that_fails_at_its_second_event_leaves_a_first_one_after_which_the_store_goes_on(
    store: EventStore, shell: sqlite3.Connection
) -> None:
    (session,) = shell.execute("SELECT id FROM session WHERE session_id = 'empty'").fetchone()
    with pytest.raises(Refused, match="ck_event_position"):
        shell.execute(
            "INSERT OR FAIL INTO event (position, session, seq, bytes_before, type, occurred_at, recorded_at, payload)"
            " VALUES (NULL, :key, 1, 0, 't', 1, 1, '1'), (-1, :key, 2, 1, 't', 1, 1, '1')",
            {"key": session},
        )
    assert store.verify().ok
    store.append("empty", "t", "next")
    assert [event.payload for event in store.read("empty").events] == [1, "next"]
    assert store.verify().ok


def test_what_is_left_of_a_deleted_session_goes_though_all_were_put_on_hold(
    store: EventStore, shell: sqlite3.Connection
) -> None:
    shell.execute("UPDATE session SET session_id = NULL WHERE session_id = 's'")
    shell.execute("UPDATE session SET hold = 1")
    assert store.prune().events_by_reason == {"deleted": 3}
    assert shell.execute("SELECT session_id FROM session ORDER BY id").fetchall() == [("empty",), ("inherits",)]


# Truncating by hand


def test_raising_first_seq_removes_the_events_below_it(store: EventStore, shell: sqlite3.Connection) -> None:
    shell.execute("UPDATE session SET first_seq = 3, removed_at = 5, removed_reason = 'by hand' WHERE session_id = 's'")
    assert [row[0] for row in events(shell)] == [3]
    session = store.get_session("s")
    assert (session.removed_events, session.event_count, session.removed_reason) == (2, 1, "by hand")


def test_raising_first_seq_is_never_silent_for_a_reader_of_the_store(store: EventStore, shell: sqlite3.Connection) -> None:
    positions = [event.position for event in store.read("s").events]
    shell.execute("UPDATE session SET first_seq = 3 WHERE session_id = 's'")
    with pytest.raises(EventsTruncated):
        store.read_all(after_position=positions[0])
    assert store.read_all(after_position=positions[1])[0].seq == 3


def test_raising_first_seq_touches_no_other_session(shell: sqlite3.Connection) -> None:
    before = events(shell, "inherits")
    shell.execute("UPDATE session SET first_seq = 4 WHERE session_id = 's'")
    assert events(shell) == []
    assert events(shell, "inherits") == before


def test_seq_goes_on_after_all_events_were_removed_by_hand(store: EventStore, shell: sqlite3.Connection) -> None:
    shell.execute("UPDATE session SET first_seq = 4 WHERE session_id = 's'")
    assert store.append("s", "t", 1).seq == 4


@pytest.mark.parametrize("first_seq", [0, -1, 5, 99])
def test_first_seq_beyond_the_next_event_or_below_the_last_is_refused(shell: sqlite3.Connection, first_seq: int) -> None:
    with pytest.raises(Refused):
        shell.execute("UPDATE session SET first_seq = ? WHERE session_id = 's'", (first_seq,))
    assert [row[0] for row in events(shell)] == [1, 2, 3]


def test_a_payload_that_is_no_json_is_reported_as_damage(store: EventStore, shell: sqlite3.Connection) -> None:
    insert(shell, payload="NaN")
    with pytest.raises(StoreCorrupt, match="payload of event 4"):
        store.read("s")


# Every trigger is needed


class Breach(NamedTuple):
    """What a trigger stands against: a statement, and the question whether it did harm."""

    statement: str
    harm: str


def not_intact(table: str) -> str:
    """Whether a record of that table differs from what it says a second time."""
    return f"SELECT count(*) FROM {table} WHERE NOT ({intact_sql(table)})"


BREACHES = {
    "event_guards_insert": Breach(NEXT_EVENT.replace("last_seq + 1", "99"), "SELECT count(*) FROM event WHERE seq = 99"),
    "event_counts": Breach(
        NEXT_EVENT, "SELECT count(*) > 3 FROM event WHERE session = (SELECT id FROM session WHERE session_id = 's')"
    ),
    "event_guards_update": Breach("UPDATE event SET payload = '0'", "SELECT count(*) FROM event WHERE payload = '0'"),
    "event_guards_delete": Breach("DELETE FROM event WHERE seq = 2", "SELECT count(*) < 6 FROM event"),
    "session_truncates": Breach(
        "UPDATE session SET first_seq = 3 WHERE last_seq = 3",
        "SELECT count(*) FROM event AS e JOIN session AS s ON s.id = e.session WHERE e.seq < s.first_seq",
    ),
    "session_guards_counters": Breach(
        "UPDATE session SET first_seq = 1, last_seq = 0", "SELECT count(*) < 2 FROM session WHERE last_seq = 3"
    ),
    "session_guards_insert": Breach(
        "INSERT OR REPLACE INTO session (id, session_id, tenant, owner, status, created_at, updated_at) "
        "SELECT id, session_id, 'x', owner, status, 1, 1 FROM session",
        "SELECT count(*) FROM session WHERE tenant = 'x'",
    ),
    "session_guards_cap": Breach("UPDATE session SET max_events = 1", "SELECT count(*) FROM session WHERE max_events = 1"),
    "session_guards_delete": Breach("DELETE FROM session WHERE session_id = 'empty'", "SELECT count(*) < 3 FROM session"),
    "session_is_buried": Breach(
        "UPDATE session SET session_id = NULL WHERE session_id = 's'",
        "SELECT count(*) = 0 FROM tombstone WHERE session_id = 's' AND last_seq = 3",
    ),
    "session_revives": Breach(
        "INSERT INTO session (session_id, tenant, owner, status, created_at, updated_at, first_seq, last_seq) "
        "VALUES ('gone', 'default', 'default', 'idle', 1, 1, 1, 0)",
        "SELECT count(*) FROM tombstone JOIN session USING (session_id)",
    ),
    "tombstone_guards_insert": Breach(
        "INSERT OR REPLACE INTO tombstone (session_id, tenant, owner, last_seq, total_bytes) "
        "VALUES ('gone', 'other', 'default', 0, 0)",
        "SELECT tenant = 'other' FROM tombstone WHERE session_id = 'gone'",
    ),
    "tombstone_guards_update": Breach(
        "UPDATE tombstone SET tenant = 'other'", "SELECT tenant = 'other' FROM tombstone WHERE session_id = 'gone'"
    ),
    "tombstone_guards_delete": Breach("DELETE FROM tombstone", "SELECT count(*) = 0 FROM tombstone WHERE session_id = 'gone'"),
    "store_guards_insert": Breach(
        "INSERT OR REPLACE INTO store (id, max_events, max_event_bytes, terminal_grace_us) VALUES (1, 1, 9, 0)",
        "SELECT count(*) FROM store WHERE max_events = 1",
    ),
    "store_guards_cap": Breach("UPDATE store SET max_events = 1", "SELECT count(*) FROM store WHERE max_events = 1"),
    "store_guards_removed": Breach(
        "UPDATE store SET removed_position = removed_position - 1", "SELECT removed_position < 0 FROM store"
    ),
    "store_guards_delete": Breach("DELETE FROM store", "SELECT count(*) = 0 FROM store"),
    "identity_guards_insert": Breach("INSERT OR REPLACE INTO identity VALUES (1, 7)", "SELECT number = 7 FROM identity"),
    "identity_guards_update": Breach("UPDATE identity SET number = 7", "SELECT number = 7 FROM identity"),
    "identity_guards_delete": Breach("DELETE FROM identity", "SELECT count(*) = 0 FROM identity"),
    "session_is_copied": Breach(
        "INSERT INTO session (session_id, tenant, owner, status, created_at, updated_at) "
        "VALUES ('new', 't', 'o', 'idle', 1, 1)",
        not_intact("session"),
    ),
    "session_copy_follows": Breach("UPDATE session SET owner = 'other'", not_intact("session")),
    "session_sum_follows": Breach("UPDATE session SET removed_at = 7", not_intact("session")),
    "store_copy_follows": Breach("UPDATE store SET max_event_bytes = 7", not_intact("store")),
    "store_sum_follows": Breach("UPDATE store SET removed_position = 7", not_intact("store")),
    "tombstone_is_copied": Breach("UPDATE session SET session_id = NULL WHERE session_id = 's'", not_intact("tombstone")),
    "prune_run_is_copied": Breach(
        "INSERT INTO prune_run (started_at, now, trigger) VALUES (1, 1, 'api')", not_intact("prune_run")
    ),
    "prune_run_copy_follows": Breach("UPDATE prune_run SET events = 7", not_intact("prune_run")),
}


def harm_done(shell: sqlite3.Connection, breach: Breach) -> bool:
    with suppress(Refused):
        shell.execute(breach.statement)
    return bool(shell.execute(breach.harm).fetchone()[0])


@pytest.mark.parametrize("trigger", BREACHES)
def test_a_trigger_keeps_harm_away(shell: sqlite3.Connection, trigger: str) -> None:
    assert not harm_done(shell, BREACHES[trigger])


@pytest.mark.parametrize("trigger", BREACHES)
def test_without_its_trigger_the_harm_is_done(shell: sqlite3.Connection, trigger: str) -> None:
    shell.execute(f"DROP TRIGGER {trigger}")
    assert harm_done(shell, BREACHES[trigger])


def test_every_trigger_of_the_schema_is_accounted_for_here(shell: sqlite3.Connection) -> None:
    names = shell.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
    assert {name for (name,) in names} == set(BREACHES)


def test_last_seq_does_not_go_up_without_an_event(shell: sqlite3.Connection, store: EventStore) -> None:
    with pytest.raises(Refused, match="last_seq with its events"):
        shell.execute("UPDATE session SET last_seq = 9 WHERE session_id = 's'")
    assert store.append("s", "t", 1).seq == 4


def test_a_session_is_not_inserted_with_events_that_it_does_not_have(shell: sqlite3.Connection) -> None:
    with pytest.raises(Refused, match="begins without events"):
        shell.execute(
            "INSERT INTO session (session_id, tenant, owner, status, created_at, updated_at, last_seq) "
            "VALUES ('new', 't', 'o', 'running', 1, 1, 5)"
        )
