"""Nothing that somebody else has written reaches a terminal, a log or a page as anything but letters."""

import json
import logging
import shutil
import sqlite3
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis_store import AegisStoreError, EventStore, EventsTruncated, ImportRejected, InvalidEvent
from aegis_store.spool import Spool
from aegis_store.target import Target
from tests.conftest import OpenStore
from tests.hostile.entries import is_clean, received_hook, said_by
from tests.hostile.world import world

HOSTILE = "\x1b[2J\u202e\u2066\ud800\n\x9b"


def test_an_error_says_nothing_that_cannot_be_printed() -> None:
    error = AegisStoreError(f"it said {HOSTILE}", hint="try again")
    assert str(error) == r"it said \x1b[2J\u202e\u2066\ud800\n\x9b: try again"
    assert error.what == r"it said \x1b[2J\u202e\u2066\ud800\n\x9b"
    assert is_clean(str(ImportRejected(file=f"{HOSTILE}.jsonl", place=HOSTILE, detail=HOSTILE)))


def test_a_reason_that_a_shell_wrote_is_told_in_letters(open_store: OpenStore, shell: sqlite3.Connection) -> None:
    store = open_store()
    store.create_session("s", max_events=1)
    for number in range(3):
        store.append("s", "t", number)
    shell.execute("UPDATE session SET removed_reason = ?", ("\x1b[2J\u202e",))
    with pytest.raises(EventsTruncated) as caught:
        store.read("s", after_seq=0)
    assert is_clean(str(caught.value))


def test_what_verify_says_of_a_schema_that_somebody_changed_is_letters(
    open_store: OpenStore, shell: sqlite3.Connection
) -> None:
    shell.execute('CREATE VIEW "\x1b[2J\u202e" AS SELECT 1')
    [problem] = open_store().verify().problems
    assert problem.detail == r"the view \x1b[2J\u202e is not one of this library's"


def test_what_is_logged_of_a_store_with_a_hostile_name_is_letters(
    tmp_path: Path, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    named = tmp_path / "\x1b[2J\u202e\nERROR all is lost.db"
    path.rename(named)
    caplog.set_level(logging.DEBUG, "aegis_store")
    with EventStore.open(named, durability="process") as store:
        store.create_session("s")
        store.append("s", "t", 1)
        store.set_status("s", "completed")
        assert is_clean(repr(store))
    EventStore.open(named).close()
    assert caplog.messages
    assert all(map(is_clean, caplog.messages))


def encodes(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


hostile_texts = st.text(
    st.sampled_from("\x1b[2J\x07\r\n\t\x00\x7f\x9b\u200b\u202e\u2066\u2028\ufeff\U000e0041<&>'\"`$%{}\\[]()a界é\U0001f600")
    | st.characters(),
    min_size=1,
    max_size=12,
)
names = hostile_texts.filter(lambda text: all(ord(c) >= 32 and not 127 <= ord(c) < 160 for c in text)).filter(encodes)
values = st.recursive(
    hostile_texts | st.integers() | st.none(), lambda inner: st.dictionaries(hostile_texts, inner, max_size=2)
)

LOOKS = (
    *("inspect", "sessions", "events SESSION", "tail", "tail SESSION", "inspect SESSION", "prune", "prune --history"),
    *("inspect --html page.html", "inspect SESSION --html page.html", "policy show", "verify", "doctor", "spool show"),
    *("events SESSION --type TYPE", "events SESSION --after 99", "append SESSION TYPE 1 --expected-seq 99", "events TYPE"),
    *("append SESSION TYPE {", "append SESSION TYPE 1 --event-id TYPE", "export TYPE", "import TYPE", "restore TYPE", "TYPE"),
    *("record --session-field TYPE", "prune --archive TYPE", "policy set --max-age TYPE", "sessions --status TYPE"),
)


def payload_text(payload: object) -> bytes:
    return json.dumps({"session_id": payload, "hook_event_name": payload}).encode()


@given(session=names, type=names, tenant=names, payload=values, width=st.sampled_from(["20", "80", "160"]))
def look_at_all(session: str, type: str, tenant: str, payload: object, width: str) -> None:
    directory = world().directory / "sandbox"
    shutil.rmtree(directory, ignore_errors=True)
    with EventStore.open(directory / "aegis.db", durability="process") as store:
        store.create_session(session, tenant=tenant, metadata={type: payload}, max_events=2)
        for _ in range(3):
            with suppress(InvalidEvent):
                store.append(session, type, payload)
        Spool(Target.of(directory / "aegis.db")).add(replace(received_hook(payload_text(payload)), tenant=tenant, reason=type))
    for look in LOOKS:
        words = [{"SESSION": session, "TYPE": type}.get(word, word) for word in look.split()]
        for more in ([], ["--json"]):
            said_by(*words, *more, columns=width)  # which looks at what it said
        if (page := directory / "page.html").exists():
            assert all(c.isprintable() or c == "\n" for c in page.read_text())
            page.unlink()


@pytest.mark.parametrize("examples", [2, pytest.param(200, marks=[pytest.mark.torture, pytest.mark.timeout(1200)])])
def test_whatever_a_store_holds_every_command_prints_letters(examples: int) -> None:
    settings(deadline=None, max_examples=examples, suppress_health_check=list(HealthCheck))(look_at_all)()
