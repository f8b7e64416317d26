"""The redact hook: whatever way a payload comes in, it is seen first, and nothing is stored or kept that was not."""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis_store import AsyncEventStore, EventStore, InvalidEvent, InvalidInput, NewEvent, RedactionFailed, SessionNotFound
from aegis_store.events import Json
from aegis_store.redaction import Redact
from aegis_store.spool import Spool
from aegis_store.target import Target
from tests.cli.conftest import Run
from tests.cli.conftest import run as run
from tests.test_import_aegis import event_record, session_record

SECRET = "hunter2"
CLEAR: Json = {"password": SECRET, "n": 1}
STORED: Json = {"password": "***", "n": 1}
HOOK = f"{__name__}:hide"
Open = Callable[..., EventStore]


def hide(session_id: str, type: str, payload: Json) -> Json:
    """What a host might have: takes passwords out, and breaks at what it does not know."""
    if type == "broken":
        raise ValueError(f"cannot redact {payload}")
    if isinstance(payload, dict) and "password" in payload:
        return {**payload, "password": "***"}
    return payload


def unlike_json(session_id: str, type: str, payload: Json) -> Any:
    return {"secrets": {SECRET}}


@pytest.fixture
def store(path: Path) -> Iterator[EventStore]:
    with EventStore.open(path, durability="process", maintain_every=None, redact=hide) as store:
        store.create_session("s")
        yield store


def stored(store: EventStore, session_id: str = "s") -> list[Json]:
    return [event.payload for event in store.read(session_id).events]


def files_with_the_secret(directory: Path) -> list[Path]:
    return [file for file in directory.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]


# The library


def test_append_stores_and_returns_what_the_hook_gives(store: EventStore) -> None:
    assert store.append("s", "note", CLEAR).payload == STORED
    assert stored(store) == [STORED]


def test_append_many_stores_what_the_hook_gives(store: EventStore) -> None:
    assert [event.payload for event in store.append_many("s", [NewEvent(type="t", payload=CLEAR)] * 2)] == [STORED] * 2
    assert stored(store) == [STORED] * 2


def test_an_awaited_append_stores_what_the_hook_gives(path: Path) -> None:
    async def scenario() -> list[Json]:
        async with AsyncEventStore.open(path, maintain_every=None, redact=hide) as store:
            await store.create_session("s")
            await store.append("s", "note", CLEAR)
            await store.append_many("s", [NewEvent(type="t", payload=CLEAR)])
            with pytest.raises(RedactionFailed):
                await store.append("s", "broken", CLEAR)
            return [event.payload for event in (await store.read("s")).events]

    assert asyncio.run(scenario()) == [STORED, STORED]


def test_no_file_of_the_store_ever_holds_what_the_hook_took_out(store: EventStore, tmp_path: Path) -> None:
    store.append("s", "note", CLEAR)
    assert files_with_the_secret(tmp_path) == []


def test_the_hook_is_told_session_and_type_and_sees_what_the_store_would_refuse(path: Path) -> None:
    seen: list[tuple[str, str, Json]] = []

    def replace(session_id: str, type: str, payload: Json) -> Json:
        seen.append((session_id, type, payload))
        return None

    not_json: Any = {1, 2}
    with EventStore.open(path, maintain_every=None, redact=replace) as store:
        store.create_session("s")
        assert store.append("s", "note", not_json).payload is None
    assert seen == [("s", "note", not_json)]


def test_what_the_hook_gives_is_checked_as_any_payload(path: Path) -> None:
    with EventStore.open(path, maintain_every=None, redact=unlike_json) as store:
        store.create_session("s")
        with pytest.raises(InvalidEvent, match=r"payload\.secrets"):
            store.append("s", "note", 1)


@pytest.mark.parametrize(("session_id", "type_"), [(7, "note"), ("s", 7), ("s", "")])
def test_the_hook_is_not_called_for_ids_and_types_that_cannot_be(path: Path, session_id: Any, type_: Any) -> None:
    def never(*_: object) -> Json:
        raise AssertionError

    with EventStore.open(path, maintain_every=None, redact=never) as store:
        store.create_session("s")
        with pytest.raises((InvalidEvent, SessionNotFound)):
            store.append(session_id, type_, 1)


def test_a_hook_that_raises_stores_nothing_and_its_words_are_not_told(store: EventStore) -> None:
    with pytest.raises(RedactionFailed, match=r"raised ValueError in test_redact\.py, line \d+") as caught:
        store.append_many("s", [NewEvent(type="note", payload=1), NewEvent(type="broken", payload=CLEAR)])
    assert (caught.value.session_id, caught.value.type) == ("s", "broken")
    assert SECRET not in str(caught.value)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert stored(store) == []


def test_a_retry_is_known_by_what_the_hook_gives(store: EventStore) -> None:
    first = store.append("s", "note", CLEAR, event_id="e")
    assert store.append("s", "note", CLEAR, event_id="e").seq == first.seq


async def awaited(session_id: str, type: str, payload: Json) -> Json:
    return payload


@pytest.mark.parametrize("hook", ["hide", 7, awaited])
def test_what_is_no_hook_is_refused_at_open(path: Path, hook: Any) -> None:
    with pytest.raises(InvalidInput, match="redact must be a plain function"):
        EventStore.open(path, redact=hook)


# Imports


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    file = tmp_path / "clear.jsonl"
    with EventStore.open(tmp_path / "clear.db", maintain_every=None) as clear:
        clear.create_session("s")
        clear.append("s", "note", CLEAR)
        clear.append("s", "note", 1e16)
        clear.export(file)
    return file


def test_imported_events_are_redacted_and_importing_again_changes_nothing(tmp_path: Path, exported: Path) -> None:
    with EventStore.open(tmp_path / "new.db", maintain_every=None, redact=hide) as store:
        assert store.import_lines(exported).events_added == 2
        assert stored(store) == [STORED, 1e16]
        again = store.import_lines(exported)
        assert (again.events_added, again.refused) == (0, [])
        assert store.verify().ok
    assert SECRET.encode() not in (tmp_path / "new.db").read_bytes()


def test_an_import_whose_events_cannot_be_redacted_writes_nothing(tmp_path: Path, exported: Path) -> None:
    def broken(*_: object) -> Json:
        raise ValueError(SECRET)

    with EventStore.open(tmp_path / "new.db", maintain_every=None, redact=broken) as store:
        with pytest.raises(RedactionFailed):
            store.import_lines(exported)
        assert store.stats().events == 0


def test_events_of_the_orchestrators_file_are_redacted(tmp_path: Path, store: EventStore) -> None:
    file = tmp_path / "state.json"
    state = {"version": 1, "sessions": [session_record("a")], "events": [event_record(1, "a", payload=CLEAR)]}
    file.write_text(json.dumps(state))
    report = store.import_aegis(file)
    assert (report.events_added, report.refused) == (1, [])
    assert stored(store, "a") == [STORED]


# The command line


@pytest.fixture(autouse=True)
def no_hook_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AEGIS_STORE_REDACT", raising=False)


def hook_event(**more: Json) -> bytes:
    return json.dumps({"session_id": "s", "hook_event_name": "Stop", **more}).encode()


def payloads_in(path: Path) -> list[Any]:
    with EventStore.open(path, read_only=True) as store:
        return stored(store)


def test_append_redacts_by_the_option(run: Run, tmp_path: Path) -> None:
    assert run("append", "s", "note", json.dumps(CLEAR), "--create", "--redact", HOOK).returncode == 0
    assert payloads_in(tmp_path / "aegis.db") == [STORED]


def test_append_redacts_by_the_environment(run: Run, tmp_path: Path) -> None:
    lines = f'{{"payload": {json.dumps(CLEAR)}}}\n'.encode() * 2
    assert run("append", "s", "note", "--jsonl", "--create", stdin=lines, AEGIS_STORE_REDACT=HOOK).returncode == 0
    assert payloads_in(tmp_path / "aegis.db") == [STORED, STORED]


def test_import_redacts(run: Run, tmp_path: Path, exported: Path) -> None:
    assert run("import", str(exported), "--db", "new.db", AEGIS_STORE_REDACT=HOOK).returncode == 0
    assert payloads_in(tmp_path / "new.db") == [STORED, 1e16]


@pytest.mark.parametrize("lenient", [(), ("--lenient",)])
def test_record_redacts(run: Run, tmp_path: Path, lenient: tuple[str, ...]) -> None:
    done = run("record", "--json", *lenient, stdin=hook_event(password=SECRET), AEGIS_STORE_REDACT=HOOK)
    assert done.returncode == 0
    assert json.loads(done.stdout)["payload"]["password"] == "***"
    assert files_with_the_secret(tmp_path) == []


MISTAKES = {
    "no module": ("no_such_module:hide", "cannot be imported (ModuleNotFoundError"),
    "no function": (f"{__name__}:nothing", "has no 'nothing'"),
    "no function named": (__name__, "package.module:function"),
    "not a function": (f"{__name__}:SECRET", "redact must be a plain function"),
}


@pytest.mark.parametrize(("hook", "said"), MISTAKES.values(), ids=list(MISTAKES))
@pytest.mark.parametrize("command", [("append", "s", "Stop", "--create"), ("record",), ("spool", "flush")])
def test_a_hook_that_cannot_be_had_is_a_mistake_and_nothing_is_stored(
    run: Run, tmp_path: Path, command: tuple[str, ...], hook: str, said: str
) -> None:
    done = run(*command, "--redact", hook, stdin=hook_event(password=SECRET))
    assert done.returncode == 2
    assert said in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


NOT_TO_BE_REDACTED = {
    "the hook raises": (hook_event(password=SECRET).replace(b"Stop", b"broken"), HOOK),
    "there is no such hook": (hook_event(password=SECRET), "no_such_module:hide"),
    "it is no JSON": (hook_event(password=SECRET)[:-1], HOOK),
    "it is no object": (json.dumps([SECRET]).encode(), HOOK),
    "what the hook gives is no JSON": (hook_event(password=SECRET), f"{__name__}:unlike_json"),
}


@pytest.mark.parametrize(("event", "hook"), NOT_TO_BE_REDACTED.values(), ids=list(NOT_TO_BE_REDACTED))
def test_what_cannot_be_redacted_is_lost_and_told_rather_than_kept_in_clear(
    run: Run, tmp_path: Path, event: bytes, hook: str
) -> None:
    state = tmp_path / "state"
    done = run("record", "--lenient", stdin=event, AEGIS_STORE_REDACT=hook, XDG_STATE_HOME=str(state))
    assert done.returncode == 0
    assert "an event is lost" in done.stderr
    assert "never kept in clear" in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert files_with_the_secret(tmp_path) == []


def test_what_waits_in_the_spool_is_redacted(run: Run, tmp_path: Path) -> None:
    (tmp_path / "aegis.db").write_text("in the way")
    assert "waits" in run("record", "--lenient", stdin=hook_event(password=SECRET), AEGIS_STORE_REDACT=HOOK).stderr
    assert files_with_the_secret(tmp_path) == []
    os.unlink(tmp_path / "aegis.db")
    assert run("spool", "flush").returncode == 0
    assert [payload["password"] for payload in payloads_in(tmp_path / "aegis.db")] == ["***"]


def test_what_waited_in_clear_is_redacted_when_it_comes_in(run: Run, tmp_path: Path) -> None:
    (tmp_path / "aegis.db").write_text("in the way")
    run("record", "--lenient", stdin=hook_event(password=SECRET))
    os.unlink(tmp_path / "aegis.db")
    assert run("spool", "flush", "--redact", HOOK).returncode == 0
    assert [payload["password"] for payload in payloads_in(tmp_path / "aegis.db")] == ["***"]


def test_a_flush_whose_hook_fails_leaves_what_waits(run: Run, tmp_path: Path) -> None:
    (tmp_path / "aegis.db").write_text("in the way")
    run("record", "--lenient", stdin=hook_event().replace(b"Stop", b"broken"))
    os.unlink(tmp_path / "aegis.db")
    assert run("spool", "flush", "--redact", HOOK).returncode == 1
    assert len(Spool(Target.of(tmp_path / "aegis.db")).waiting()) == 1


def test_the_type_of_a_hook_is_that_of_the_examples() -> None:
    hook: Redact = hide
    assert hook("s", "note", CLEAR) == STORED
