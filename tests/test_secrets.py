"""Payloads and metadata are nobody's business: a word in them comes up in no error, no log line and no repr."""

import asyncio
import json
import logging
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from aegis_store import AegisStoreError, AsyncEventStore, EventStore, NewEvent, RetentionPolicy, driver
from aegis_store.target import Target
from tests.cli.conftest import Run
from tests.cli.conftest import run as run
from tests.test_import_aegis import event_record, session_record

WORD = "".join(reversed("drowssap-terces"))  # it stands in no line of code, which a traceback would show
CLEAR = {"text": WORD, "deep": [{"text": WORD}]}


@pytest.fixture
def store(path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[EventStore]:
    caplog.set_level(logging.DEBUG)
    with EventStore.open(path, durability="process", maintain_every=None) as store:
        store.create_session("s", metadata=CLEAR)
        store.append("s", "note", CLEAR, event_id="e")
        yield store


def told(error: BaseException) -> str:
    """All that anybody prints of an error: its words, its fields, how it came to be."""
    return "\n".join((str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)))


def cyclic() -> Any:
    found: dict[str, Any] = {"text": WORD}
    found["again"] = found
    return found


def deep() -> Any:
    found: Any = WORD
    for _ in range(300):
        found = [found]
    return found


class Odd:
    def __repr__(self) -> str:
        return WORD


NOT_JSON: dict[str, Callable[[], Any]] = {
    "not a number": lambda: {"text": WORD, "n": float("nan")},
    "bytes": lambda: {"text": WORD.encode()},
    "a set": lambda: {"text": {WORD}},
    "a tuple": lambda: {"text": (WORD,)},
    "an object": Odd,
    "an object inside": lambda: [WORD, Odd()],
    "a number as key": lambda: {1: WORD},
    "a cycle": cyclic,
    "too deep": deep,
    "a pair of surrogates": lambda: {"text": f"{WORD}\ud83d\ude00"},
    "a number of many digits": lambda: [WORD, 10**5000],
    "too large": lambda: WORD * 10**5,
    "far too large": lambda: WORD * 2 * 10**6,
}


@pytest.mark.parametrize("payload", NOT_JSON.values(), ids=list(NOT_JSON))
def test_no_error_about_a_payload_shows_it(
    store: EventStore, payload: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    tries: tuple[Callable[[], object], ...] = (
        lambda: store.append("s", "note", payload()),
        lambda: store.append_many("s", [NewEvent(type="note", payload=payload())]),
        lambda: store.create_session("m", metadata={"m": payload()}),
        lambda: store.create_session("m", metadata=[payload()]),  # type: ignore[arg-type]
        lambda: store.update_session("s", metadata={"m": payload()}),
    )
    caught = [_caught(each) for each in tries]
    # (Metadata may be larger than a payload of the policy.)
    assert all(isinstance(error, AegisStoreError) for error in caught[:2])
    assert all(WORD not in told(error) for error in caught if error is not None)
    assert WORD not in caplog.text


def _caught(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is looked at
        return error
    return None


REFUSED: dict[str, Callable[[EventStore], object]] = {
    "no such session": lambda store: store.append("none", "note", CLEAR),
    "a type that cannot be": lambda store: store.append("s", "", CLEAR),
    "another seq": lambda store: store.append("s", "note", CLEAR, expected_seq=7),
    "a known event_id": lambda store: store.append("s", "note", [CLEAR], event_id="e"),
    "a known event_id in a batch": lambda store: store.append_many("s", [NewEvent(type="x", payload=CLEAR, event_id="e")]),
    "no events": lambda store: store.append_many("s", CLEAR),  # type: ignore[arg-type]
    "no NewEvent": lambda store: store.append_many("s", [CLEAR]),  # type: ignore[list-item]
    "a session that is there": lambda store: store.create_session("s", metadata=CLEAR),
    "a status that is none": lambda store: store.create_session("t", metadata=CLEAR, status="odd"),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=list(REFUSED))
def test_no_error_about_something_else_shows_the_payload(
    store: EventStore, call: Callable[[EventStore], object], caplog: pytest.LogCaptureFixture
) -> None:
    error = _caught(lambda: call(store))
    assert isinstance(error, AegisStoreError)
    assert WORD not in told(error)
    assert WORD not in caplog.text


def busy(store: EventStore, shell: sqlite3.Connection) -> None:
    shell.execute("BEGIN IMMEDIATE")


def full(store: EventStore, shell: sqlite3.Connection) -> None:
    store._db.writer.driver.execute("PRAGMA max_page_count = 1").fetchall()
    store._db.writer.driver.execute(
        "CREATE TEMP TRIGGER fill BEFORE INSERT ON main.event BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
    )


def another_schema(store: EventStore, shell: sqlite3.Connection) -> None:
    shell.execute("UPDATE alembic_version SET version_num = '9999'")


def closed(store: EventStore, shell: sqlite3.Connection) -> None:
    store.close()


def no_table(store: EventStore, shell: sqlite3.Connection) -> None:
    shell.execute("PRAGMA writable_schema = ON")
    shell.execute("ALTER TABLE event RENAME COLUMN run_id TO run")


def guarded(store: EventStore, shell: sqlite3.Connection) -> None:
    shell.execute("CREATE TRIGGER no BEFORE INSERT ON event BEGIN SELECT RAISE(ABORT, 'aegis: no'); END")


@pytest.mark.parametrize("spoil", [busy, full, another_schema, closed, no_table, guarded])
def test_no_error_of_a_store_that_fails_shows_what_was_to_be_stored(
    path: Path,
    shell: sqlite3.Connection,
    spoil: Callable[[EventStore, sqlite3.Connection], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    with EventStore.open(path, durability="process", maintain_every=None, busy_timeout_ms=50) as store:
        store.create_session("s")
        spoil(store, shell)
        tries = (
            lambda: store.append("s", "note", CLEAR),
            lambda: store.append_many("s", [NewEvent(type="note", payload=CLEAR)]),
        )
        for error in map(_caught, tries):
            assert isinstance(error, AegisStoreError)
            assert WORD not in told(error)
    assert WORD not in caplog.text


DAMAGE = {
    "no JSON": '\'{"text": "\' || payload',
    "another text": "replace(payload, 'text', 'test')",
    "no text": "CAST(payload || x'ff' AS TEXT)",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_no_error_about_a_damaged_payload_shows_it(
    store: EventStore, shell: sqlite3.Connection, damage: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    shell.execute("DROP TRIGGER event_guards_update")
    shell.execute(f"UPDATE event SET payload = {damage}")
    tries: tuple[Callable[[], object], ...] = (
        lambda: store.read("s"),
        lambda: store.read_all(),
        lambda: next(store.follow("s", timeout=0)),
        lambda: store.append("s", "note", 1, event_id="e"),
        lambda: store.export(tmp_path / "out.jsonl"),
    )
    errors = [error for error in map(_caught, tries) if error is not None]
    assert errors
    assert WORD not in "".join(map(told, errors))
    assert WORD not in repr(store.verify())
    assert WORD not in caplog.text


def test_no_repr_shows_a_payload_or_metadata(store: EventStore) -> None:
    event, session = store.read("s").events[0], store.get_session("s")
    assert event.payload == CLEAR
    assert session.metadata == CLEAR
    shown = [
        *(store, event, session, store.read("s"), store.read_all(), store.list_sessions(), NewEvent(type="t", payload=CLEAR)),
        *(store.overview(), store.session_overview("s"), store.stats(), store.health(), store.verify(), store.plan_prune()),
    ]
    assert WORD not in repr(shown)
    assert "seq=1" in repr(event)


def test_no_log_line_of_a_prune_shows_what_goes(store: EventStore, caplog: pytest.LogCaptureFixture) -> None:
    store.set_status("s", "closed")
    store.set_retention_policy(RetentionPolicy())
    store.close()
    with EventStore.open(store._db.target.path, maintain_every=None) as again:
        assert again.stats().events == 0
    assert "aegis_act" in vars(caplog.records[-1])
    assert all(WORD not in record.getMessage() + repr(vars(record)) for record in caplog.records)


def test_no_error_of_a_task_shows_a_payload(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def scenario() -> list[object]:
        async with AsyncEventStore.open(path, durability="process", maintain_every=None) as store:
            await store.create_session("s", metadata=CLEAR)
            calls = [
                *(store.append("none", "note", CLEAR), store.append("s", "", CLEAR)),
                store.append("s", "note", CLEAR, expected_seq=7),
                *(store.append("s", "note", make()) for make in NOT_JSON.values()),
            ]
            return list(await asyncio.gather(*calls, return_exceptions=True))

    outcomes = asyncio.run(scenario(), debug=True)
    assert all(isinstance(outcome, AegisStoreError) and WORD not in told(outcome) for outcome in outcomes)
    assert WORD not in caplog.text


# Files


MALFORMED: dict[str, Callable[[str], str]] = {
    "cut off": lambda text: text[:-40],
    "another payload": lambda text: text.replace(WORD, WORD[::-1] + WORD, 1),
    "no JSON": lambda text: text.replace(f'"{WORD}"', WORD, 1),
    "an unknown field": lambda text: text.replace('"run_id"', f'"{"x" * 3}"'),
    "no type": lambda text: text.replace('"type":"note"', '"type":7').replace('"type": "note"', '"type": 7'),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=list(MALFORMED))
def test_no_refusal_of_an_export_shows_what_is_in_it(store: EventStore, tmp_path: Path, change: Callable[[str], str]) -> None:
    store.export(tmp_path / "good.jsonl")
    text = (tmp_path / "good.jsonl").read_text()
    bad = tmp_path / "bad.jsonl"
    bad.write_text(change(text))
    assert bad.read_text() != text
    with EventStore.open(tmp_path / "new.db", maintain_every=None) as new:
        try:
            said = repr(new.import_lines(bad).refused)
        except AegisStoreError as error:
            said = told(error)
    assert WORD not in said


def test_no_refusal_of_a_state_file_shows_what_is_in_it(store: EventStore, tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    events = [event_record(1, "a", payload=CLEAR), event_record(3, "a", payload=CLEAR)]
    other = [event_record(1, "b", payload=CLEAR, tenantId="another")]
    state = {"version": 1, "sessions": [session_record("a", note=WORD), session_record("b")], "events": events + other}
    for text in (json.dumps(state), json.dumps(state)[:-30], json.dumps(state).replace('"payload"', '"pay"')):
        file.write_text(text)
        try:
            said = repr(store.import_aegis(file).refused)
        except AegisStoreError as error:
            said = told(error)
        assert WORD not in said


# The command line


COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "no JSON": (("append", "s", "note", "--create"), '{"text": %s}'),
    "a text without quotes": (("append", "s", "note", "--create"), "%s"),
    "no such session": (("append", "none", "note"), '"%s"'),
    "no type": (("append", "s", "--jsonl", "--create"), '{"payload": "%s"}'),
    "a line of no object": (("append", "s", "--jsonl", "--create"), '["%s"]'),
    "a line that is cut off": (("append", "s", "--jsonl", "--create"), '{"type": "t", "payload": "%s'),
    "an id stored with other content": (("append", "s", "t", "--event-id", "e", "--create"), '"%s"'),
    "a hook event of no object": (("record",), '["%s"]'),
    "a hook event that is cut off": (("record",), '{"session_id": "s", "text": "%s"'),
    "a hook event without a session": (("record",), '{"text": "%s"}'),
    "a hook event whose session is no text": (("record",), '{"session_id": ["%s"], "hook_event_name": "Stop"}'),
    "a hook event that is set aside": (("record", "--lenient"), '{"session_id": ["%s"], "hook_event_name": "Stop"}'),
}


@pytest.mark.parametrize(("command", "given"), COMMANDS.values(), ids=list(COMMANDS))
def test_no_command_that_fails_shows_what_it_was_given(run: Run, tmp_path: Path, command: tuple[str, ...], given: str) -> None:
    run("append", "s", "t", "1", "--event-id", "e", "--create")
    done = run(*command, stdin=(given % WORD).encode())
    assert done.stderr.startswith("aegis-store: ")
    assert WORD not in done.stdout + done.stderr


# URLs


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:{0}@host/db",
        "postgresql+psycopg://me:{0}@host:5432/db",
        "sqlite://me:{0}@host/db",
        "sqlite:///x.db?password={0}",
        "postgresql://me:{0}@host:port/db",
        "://me:{0}@host/db",
        "post gres://me:{0}@host/db",
        "postgresql://me:{0}@host/db\0",
        "postgresql://host/db?user=me&password={0}",
        "postgresql://me:a@{0}@host:x/db",
    ],
)
def test_no_error_about_a_url_shows_its_password(url: str) -> None:
    with pytest.raises(AegisStoreError) as caught:
        Target.of(url.format(WORD))
    assert WORD not in told(caught.value)
    assert vars(caught.value)["store"]


def test_no_command_shows_the_password_of_a_url(run: Run) -> None:
    for command in ("sessions", "upgrade", "append s t 1", "stats"):
        with suppress(AssertionError):
            done = run(*command.split(), "--db", f"postgresql://me:{WORD}@host:port/db")
        assert WORD not in done.stdout + done.stderr


# On PostgreSQL, whose errors come with the row that was refused


@pytest.fixture
def on_server(postgres_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[EventStore]:
    """A store that is named by a URL with a password."""
    caplog.set_level(logging.DEBUG)
    url = make_url(postgres_url).set(password=WORD).render_as_string(hide_password=False)
    with EventStore.open(url, durability="process", maintain_every=None) as store:
        store.create_session("s", metadata=CLEAR)
        store.append("s", "note", CLEAR, event_id="e")
        yield store


REFUSED_BY_THE_SERVER = (
    "ALTER TABLE event ADD CONSTRAINT aegis_test CHECK (seq < 2)",
    "CREATE FUNCTION aegis_test() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no more'; END $$;"
    " CREATE TRIGGER aegis_test BEFORE INSERT ON event FOR EACH ROW EXECUTE FUNCTION aegis_test()",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()",
)
AS_IT_WAS = (
    "ALTER TABLE event DROP CONSTRAINT IF EXISTS aegis_test",
    "DROP TRIGGER IF EXISTS aegis_test ON event",
    "DROP FUNCTION IF EXISTS aegis_test",
)


def error_of(attempt: Callable[[], object]) -> AegisStoreError | None:
    try:
        attempt()
    except AegisStoreError as error:
        return error
    return None


@pytest.mark.parametrize("refusal", REFUSED_BY_THE_SERVER, ids=["a constraint", "a trigger", "a lost connection"])
def test_no_error_of_a_server_shows_payload_or_password(
    on_server: EventStore, postgres_url: str, refusal: str, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.postgres.server import connect

    tries: tuple[Callable[[], object], ...] = (
        lambda: on_server.append("s", "note", CLEAR),
        lambda: on_server.append_many("s", [NewEvent(type="note", payload=CLEAR)] * 2),
        lambda: on_server.append("s", "note", {"other": WORD}, event_id="e"),
    )
    errors = []
    for attempt in tries:
        with connect(postgres_url) as shell:
            shell.execute(refusal.encode())
            errors.append(error_of(attempt))
            for statement in AS_IT_WAS:
                shell.execute(statement.encode())
    assert any(errors)  # after a loss the next call may come through
    assert all(error is None or (WORD not in told(error) and error.__cause__ is None) for error in errors)
    assert WORD not in caplog.text
    assert WORD not in f"{on_server!r} {on_server._db!r} {on_server._db.target!r} {vars(on_server)!r}"


def test_no_finding_of_a_server_shows_the_password(on_server: EventStore, postgres_url: str) -> None:
    for url in (
        make_url(postgres_url).set(password=WORD),
        make_url(postgres_url).update_query_dict({"password": WORD}),
        make_url(f"postgresql+psycopg://me:{WORD}@127.0.0.1:1/x"),
    ):
        named = url.render_as_string(hide_password=False)
        assert WORD not in repr(EventStore.doctor(named))
    assert WORD not in repr((on_server.overview(), on_server.health(), on_server.stats(), on_server.verify()))


def test_the_driver_in_use_is_the_one_whose_words_were_looked_at() -> None:
    with closing(driver.dbapi.connect(":memory:")) as connection, pytest.raises(driver.dbapi.OperationalError) as caught:
        connection.execute("SELECT CAST(? AS TEXT)", (b"\xff" + WORD.encode(),)).fetchall()
    assert "with text" in str(caught.value)
