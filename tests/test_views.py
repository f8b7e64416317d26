"""The views of a store: a person with a plain SQL shell, or Datasette, reads what the library says, and changes nothing."""

import json
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aegis_store import UNLIMITED, EventStore, NewEvent, NotAnAegisStore, RetentionPolicy, driver
from aegis_store.events import Event, Session, to_us
from aegis_store.views import SQLITE_VIEWS
from tests.conftest import OpenStore

README = (Path(__file__).parents[1] / "README.md").read_text()
SECTION = README.split("## With a plain SQL shell\n")[1].split("\n## ")[0]

HOSTILE_ID = '<b>"x"</b> & %27; --'
HOSTILE = [
    {"cut": "abc\ud83d", "nul": "x\0y", "tool": "bash", "html": "<script>alert(1)</script>", "big": 2**70},
    "</script><img src=x onerror=alert(2)>",
    {"\udc00": None},
    [[], -0.0, "\u202e\x1b[31m"],
]


@pytest.fixture
def filled(store: EventStore) -> EventStore:
    """Sessions live, hostile, on hold, capped, without a cap, ended, emptied by a prune, empty, and deleted."""
    store.create_session(HOSTILE_ID, tenant="<script>alert(3)</script>", metadata={"cut": "\ud83d", "html": "<script>"})
    store.append_many(HOSTILE_ID, [NewEvent(type="a<b", payload=payload, event_id=f"{n}") for n, payload in enumerate(HOSTILE)])
    store.create_session("capped", max_events=3)
    store.append_many("capped", [NewEvent(type="t", payload={"n": n, "tool": "bash"}, run_id="r") for n in range(9)])
    store.create_session("unlimited", max_events=UNLIMITED, owner="me")
    store.append("unlimited", "t", "ü" * 10_000, payload_ref="file:///here")
    store.update_session("unlimited", hold=True)
    store.create_session("emptied")
    store.append("emptied", "t", 1)
    store.set_status("emptied", "completed")
    store.create_session("gone")
    store.append("gone", "t", 1)
    store.delete_session("gone")
    store.prune()
    store.create_session("ended")
    store.append("ended", "t", 1)
    store.set_status("ended", "failed")
    store.create_session("empty")
    return store


def ask(shell: sqlite3.Connection, query: str, *values: object) -> list[dict[str, Any]]:
    cursor = shell.execute(query, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def text_of(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="microseconds")


# What they say


def overview_of(session: Session, policy: RetentionPolicy) -> dict[str, Any]:
    cap = policy.max_events if session.max_events is None else session.max_events
    alike = (
        *("session_id", "tenant", "owner", "event_count", "first_seq", "last_seq", "retained_bytes"),
        *("removed_events", "removed_bytes", "removed_reason"),
    )
    times = ("created_at", "updated_at", "ended_at", "last_event_at", "removed_at")
    return {
        **{name: getattr(session, name) for name in alike},
        **{name: text_of(getattr(session, name)) for name in times},
        "status": session.status.value,
        "hold": int(session.hold),
        "max_events": None if cap is UNLIMITED else cap,
        "metadata": session.metadata,
    }


def test_session_overview_says_what_the_library_says_of_each_session(filled: EventStore, shell: sqlite3.Connection) -> None:
    expected = [overview_of(session, filled.retention_policy()) for session in filled.list_sessions().sessions]
    found = ask(shell, "SELECT * FROM session_overview ORDER BY updated_at DESC")
    assert [{**row, "metadata": json.loads(row["metadata"])} for row in found] == expected
    assert len(found) == 6


@pytest.mark.parametrize("cap", [7, UNLIMITED])
def test_the_cap_in_the_overview_is_the_one_in_force(store: EventStore, shell: sqlite3.Connection, cap: Any) -> None:
    store.create_session("inherits")
    store.set_retention_policy(RetentionPolicy(max_events=cap))
    assert ask(shell, "SELECT max_events FROM session_overview") == [{"max_events": None if cap is UNLIMITED else cap}]


def readable(event: Event, session: Session) -> dict[str, Any]:
    alike = ("session_id", "seq", "position", "type", "event_id", "run_id", "payload_ref", "payload")
    return {
        **{name: getattr(event, name) for name in alike},
        **{name: text_of(getattr(event, name)) for name in ("occurred_at", "recorded_at")},
        "tenant": session.tenant,
        "owner": session.owner,
    }


def test_event_readable_says_what_the_library_says_of_each_event(filled: EventStore, shell: sqlite3.Connection) -> None:
    expected = [readable(event, filled.get_session(event.session_id)) for event in filled.read_all(on_gap="skip")]
    found = ask(shell, "SELECT * FROM event_readable ORDER BY position")
    assert [row.pop("payload_bytes") for row in found] == [len(row["payload"].encode()) for row in found]
    assert repr([{**row, "payload": json.loads(row["payload"])} for row in found]) == repr(
        [{name: event[name] for name in row} for row, event in zip(found, expected, strict=True)]
    )


def test_a_session_that_is_being_deleted_does_not_show_nor_do_its_events(filled: EventStore, shell: sqlite3.Connection) -> None:
    shell.execute("UPDATE session SET session_id = NULL WHERE session_id = 'capped'")
    assert ask(
        shell, "SELECT count(*) AS events FROM event WHERE session NOT IN (SELECT id FROM session WHERE session_id != '')"
    )
    for view in ("session_overview", "event_readable"):
        assert ask(shell, f"SELECT * FROM {view} WHERE session_id IS NULL OR session_id IN ('capped', 'gone')") == []


def test_prune_history_says_what_the_library_says_of_each_prune(filled: EventStore, shell: sqlite3.Connection) -> None:
    runs = filled.prune_history()
    assert [run.trigger for run in runs] == ["api", "api"]
    assert ask(shell, "SELECT * FROM prune_history ORDER BY id DESC") == [
        {
            "id": run.id,
            "started_at": text_of(run.started_at),
            "trigger": run.trigger,
            "events": run.events,
            "bytes": run.bytes,
            "sessions": run.sessions,
            "sessions_forgotten": run.sessions_forgotten,
            "reasons": json.dumps(dict(run.by_reason)),
            "duration_s": run.duration_s,
            "outcome": run.outcome,
        }
        for run in runs
    ]


MOMENTS = {
    "the year 1": datetime(1, 1, 1, tzinfo=UTC),
    "a microsecond before 1970": datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    "1970": datetime(1970, 1, 1, tzinfo=UTC),
    "a whole second": datetime(2026, 2, 28, 23, 59, 59, tzinfo=UTC),
    "a leap day": datetime(2024, 2, 29, 12, 0, 0, 1, tzinfo=UTC),
    "the year 9999": datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
}


def append_at(shell: sqlite3.Connection, recorded_at: int, payload: str = "1") -> None:
    """As a shell does it, which may write any number for a time, and any text for a payload."""
    shell.execute(
        "INSERT INTO event (session, seq, type, occurred_at, recorded_at, bytes_before, payload)"
        " SELECT id, last_seq + 1, 't', ?1, ?1, total_bytes, ?2 FROM session",
        (recorded_at, payload),
    )


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=list(MOMENTS))
def test_a_time_is_a_text_as_in_an_export(store: EventStore, shell: sqlite3.Connection, moment: datetime) -> None:
    store.create_session("s")
    append_at(shell, to_us(moment))
    (row,) = ask(shell, "SELECT occurred_at, recorded_at FROM event_readable")
    assert set(row.values()) == {moment.isoformat(timespec="microseconds")}
    assert ask(shell, "SELECT last_event_at FROM session_overview") == [{"last_event_at": row["recorded_at"]}]


@pytest.mark.parametrize("us", [-(2**58), -62_135_596_800_000_001, 253_402_300_800_000_000, 2**58])
def test_a_number_that_is_no_time_is_null_and_keeps_no_row_away(store: EventStore, shell: sqlite3.Connection, us: int) -> None:
    store.create_session("s")
    append_at(shell, us)
    assert ask(shell, "SELECT seq, recorded_at FROM event_readable") == [{"seq": 1, "recorded_at": None}]


# What they cost

OF_SESSION = r"SEARCH s USING INDEX sqlite_autoindex_session_1 \(session_id=\?\)"
SESSION_OF_EVENT = r"SEARCH s USING INTEGER PRIMARY KEY \(rowid=\?\)"
PLANS = [
    (
        "SELECT * FROM event_readable WHERE session_id = 's7' AND seq > 9 ORDER BY seq LIMIT 20",
        [OF_SESSION, r"SEARCH e USING INDEX sqlite_autoindex_event_1 \(session=\? AND seq>\?\)"],
    ),
    (
        "SELECT * FROM event_readable WHERE session_id = 's7' ORDER BY seq DESC LIMIT 20",
        [OF_SESSION, r"SEARCH e USING INDEX sqlite_autoindex_event_1 \(session=\?\)"],
    ),
    ("SELECT * FROM event_readable ORDER BY position DESC LIMIT 20", [r"SCAN e", SESSION_OF_EVENT]),
    (
        "SELECT * FROM event_readable WHERE position > 900 ORDER BY position LIMIT 20",
        [r"SEARCH e USING INTEGER PRIMARY KEY \(rowid>\?\)", SESSION_OF_EVENT],
    ),
    (
        "SELECT * FROM session_overview WHERE session_id = 's7'",
        [OF_SESSION, r"SEARCH e USING INDEX sqlite_autoindex_event_1 \(session=\? AND seq=\?\)", r"SCAN store"],
    ),
    ("SELECT session_id, status, event_count FROM session_overview", [r"(SCAN|SEARCH) s"]),
    ("SELECT * FROM prune_history ORDER BY id DESC LIMIT 20", [r"SCAN r"]),
]


@pytest.fixture(scope="module")
def many(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 50 sessions with 40 events each."""
    path = tmp_path_factory.mktemp("many") / "aegis.db"
    shutil.copyfile(template, path)
    with EventStore.open(path, durability="process") as store:
        for number in range(50):
            store.create_session(f"s{number}")
            store.append_many(f"s{number}", [NewEvent(type="t", payload="x" * 100) for _ in range(40)])
    return path


@pytest.mark.parametrize("analyzed", [False, True], ids=["", "analyzed"])
@pytest.mark.parametrize(("query", "steps"), PLANS, ids=[query for query, _ in PLANS])
def test_a_question_goes_by_the_indexes_and_sorts_nothing(
    many: Path, tmp_path: Path, query: str, steps: list[str], analyzed: bool
) -> None:
    path = tmp_path / "many.db"
    shutil.copyfile(many, path)
    with closing(driver.dbapi.connect(str(path), isolation_level=None)) as shell:
        if analyzed:
            shell.execute("ANALYZE")
        plan = [row["detail"] for row in ask(shell, f"EXPLAIN QUERY PLAN {query}")]
    assert not any("TEMP B-TREE" in step for step in plan)
    walked = [step for step in plan if step.startswith(("SCAN", "SEARCH"))]
    assert [bool(re.match(step, found)) for step, found in zip(steps, walked, strict=True)] == [True] * len(steps), walked


# What they allow


@pytest.mark.parametrize("view", SQLITE_VIEWS)
def test_nothing_is_written_through_a_view(filled: EventStore, shell: sqlite3.Connection, view: str) -> None:
    before = ask(shell, f"SELECT * FROM {view}")
    column = next(iter(before[0]))
    for statement in (
        f"INSERT INTO {view} ({column}) VALUES ('x')",
        f"UPDATE {view} SET {column} = 'x'",
        f"DELETE FROM {view}",
    ):
        with pytest.raises(driver.dbapi.OperationalError, match=f"cannot modify {view} because it is a view"):
            shell.execute(statement.format(view, column))
    assert ask(shell, f"SELECT * FROM {view}") == before
    assert filled.verify().ok


@pytest.mark.parametrize("view", SQLITE_VIEWS)
def test_a_connection_that_trusts_no_schema_may_read_a_view(filled: EventStore, shell: sqlite3.Connection, view: str) -> None:
    shell.execute("PRAGMA trusted_schema = OFF")
    assert ask(shell, f"SELECT * FROM {view}")


# Payloads


def test_a_part_of_a_payload_as_json_is_what_was_written_whatever_it_holds(
    filled: EventStore, shell: sqlite3.Connection
) -> None:
    query = "SELECT payload -> '$.cut' AS cut, payload -> '$.nul' AS nul, payload -> '$.big' AS big FROM event_readable"
    found = ask(shell, f"{query} WHERE session_id = ? ORDER BY seq", HOSTILE_ID)
    assert [json.loads(value) for value in found[0].values()] == ["abc\ud83d", "x\0y", 2**70]
    assert [set(row.values()) for row in found[1:]] == [{None}] * 3


def test_a_text_that_was_cut_is_no_utf8_where_it_is_asked_for_as_text(filled: EventStore, shell: sqlite3.Connection) -> None:
    query = "SELECT json_valid(payload) AS valid, {} AS cut FROM event_readable WHERE session_id = ? AND seq = 1"
    assert ask(shell, query.format("CAST(payload ->> '$.cut' AS BLOB)"), HOSTILE_ID) == [
        {"valid": 1, "cut": b"abc\xed\xa0\xbd"}
    ]
    with pytest.raises(driver.dbapi.OperationalError, match="UTF-8"):
        ask(shell, query.format("payload ->> '$.cut'"), HOSTILE_ID)


def test_a_payload_that_is_no_json_fails_a_query_unless_it_is_looked_at_first(
    store: EventStore, shell: sqlite3.Connection
) -> None:
    store.create_session("s")
    store.append("s", "t", {"tool": "bash"})
    append_at(shell, 1, payload="{no JSON")
    (guarded,) = re.findall(r"`(CASE WHEN .*? END)`", SECTION)
    with pytest.raises(driver.dbapi.OperationalError, match="malformed JSON"):
        ask(shell, "SELECT payload -> '$.tool' FROM event_readable")
    assert [row["tool"] for row in ask(shell, f"SELECT {guarded} AS tool FROM event_readable ORDER BY seq")] == ['"bash"', None]


# What becomes of them


def test_a_compacted_store_has_them(filled: EventStore, path: Path, shell: sqlite3.Connection) -> None:
    before = {view: ask(shell, f"SELECT * FROM {view}") for view in SQLITE_VIEWS}
    shell.close()
    filled.close()
    EventStore.compact(path)
    with closing(driver.dbapi.connect(str(path))) as again:
        assert {view: ask(again, f"SELECT * FROM {view}") for view in SQLITE_VIEWS} == before


def test_what_comes_in_from_an_export_shows_as_it_did(
    filled: EventStore, shell: sqlite3.Connection, tmp_path: Path, open_store: OpenStore
) -> None:
    filled.reclaim()
    filled.export(tmp_path / "all.jsonl")
    open_store(tmp_path / "other.db", prune_on_open=False).import_lines(tmp_path / "all.jsonl")
    query = "SELECT session_id, seq, recorded_at, payload FROM event_readable ORDER BY session_id, seq"
    with closing(driver.dbapi.connect(str(tmp_path / "other.db"))) as other:
        assert ask(other, query) == ask(shell, query)


def test_a_dump_that_is_read_in_again_has_the_views_and_is_no_store(
    filled: EventStore, shell: sqlite3.Connection, path: Path, tmp_path: Path
) -> None:
    shell.close()
    filled.close()  # so that there is one SQLite in this process that has the file open
    with closing(sqlite3.connect(path)) as store, closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        copy.executescript("\n".join(store.iterdump()))
        for view in SQLITE_VIEWS:
            assert ask(copy, f"SELECT * FROM {view}") == ask(store, f"SELECT * FROM {view}")
    with pytest.raises(NotAnAegisStore):
        EventStore.open(tmp_path / "copy.db")


# Other programs

SHELL_COMMAND, DATASETTE_COMMAND = re.findall(r"^(?:sqlite3|datasette) .*$", SECTION, re.MULTILINE)


@pytest.fixture
def agents(filled: EventStore, path: Path) -> Path:
    """The store under the name that the README uses, closed."""
    filled.close()
    return path.rename(path.with_name("agents.db"))


def test_the_sqlite3_shell_of_the_readme_shows_the_sessions_and_changes_nothing(agents: Path) -> None:
    if shutil.which("sqlite3") is None:
        pytest.skip("no sqlite3 shell on this machine")
    before = agents.read_bytes()
    done = subprocess.run(["sh", "-c", SHELL_COMMAND], cwd=agents.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"│ capped +│ running +│ 3 +│ max_events +│", done.stdout)
    assert agents.read_bytes() == before
    EventStore.open(agents, prune_on_open=False).close()
    assert {entry.name for entry in agents.parent.iterdir()} <= {"agents.db", "agents.db-lock"}


@contextmanager
def datasette(path: Path) -> Iterator[str]:
    """The command of the README, on a port of its own; the address of the store there."""
    arguments = DATASETTE_COMMAND.split()[1:]
    process = subprocess.Popen(
        [sys.executable, "-m", "datasette", *arguments, "--port", "0"],
        cwd=path.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stderr is not None
            said = ""
            while not (running := re.search(r"running on (http://127.0.0.1:\d+)", said)):
                line = process.stderr.readline()
                assert line, said
                said += line
            yield f"{running[1]}/{path.stem}"
        finally:
            process.terminate()


def get(address: str, **parameters: str) -> str:
    with urllib.request.urlopen(f"{address}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
        content: bytes = answer.read()
    return content.decode()


def served(address: str, **parameters: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(get(f"{address}.json", _shape="array", **parameters))
    return rows


def test_datasette_serves_the_views_while_a_writer_writes(agents: Path, open_store: OpenStore) -> None:
    store = open_store(agents, prune_on_open=False)
    store.create_session("live", max_events=50)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            store.append("live", "t", {"cut": "\ud83d"})

    writer = threading.Thread(target=write)
    with datasette(agents) as address:
        writer.start()
        try:
            pages = [served(f"{address}/event_readable", session_id="live", _sort="seq") for _ in range(10)]
            assert [row["session_id"] for row in served(f"{address}/session_overview", session_id=HOSTILE_ID)] == [HOSTILE_ID]
        finally:
            done.set()
            writer.join()
        last = served(f"{address}/session_overview", session_id="live")[0]["last_seq"]
    ranges = [[row["seq"] for row in page] for page in pages if page]
    assert all(seqs == list(range(seqs[0], seqs[0] + len(seqs))) for seqs in ranges)
    assert ranges[-1][-1] > ranges[0][0]
    assert last == store.get_session("live").last_seq
    assert store.verify().ok


def test_datasette_serves_every_payload_and_runs_nothing_of_it(agents: Path) -> None:
    with datasette(agents) as address:
        events = served(f"{address}/event_readable", session_id=HOSTILE_ID)
        assert repr([json.loads(event["payload"]) for event in events]) == repr(HOSTILE)
        as_json = "SELECT payload -> '$.cut' AS cut FROM event_readable WHERE session_id = :id AND seq = 1"
        assert [json.loads(row["cut"]) for row in served(address, sql=as_json, id=HOSTILE_ID)] == ["abc\ud83d"]
        as_text = as_json.replace("->", "->>")
        assert [row["cut"] for row in served(address, sql=as_text, id=HOSTILE_ID)] == ["abc\ufffd\ufffd\ufffd"]
        assert len(served(f"{address}/prune_history")) == 2
        for view in SQLITE_VIEWS:
            page = get(f"{address}/{view}")
            assert "<table" in page
            assert "alert(1)</script>" not in page
            assert "<script>alert" not in page
            assert "<b>" not in page
            assert "<img src=x" not in page
        assert "&lt;script&gt;alert(3)&lt;/script&gt;" in get(f"{address}/session_overview")


def test_datasette_takes_no_statement_that_writes(agents: Path) -> None:
    before = agents.read_bytes()
    with datasette(agents) as address:
        for statement in ("DELETE FROM event", "UPDATE session SET hold = 1", "INSERT INTO session_overview DEFAULT VALUES"):
            with pytest.raises(urllib.error.HTTPError):
                get(f"{address}.json", sql=statement)
    assert agents.read_bytes() == before
