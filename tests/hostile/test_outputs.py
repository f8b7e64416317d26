"""Nothing that somebody else has written reaches a terminal, a log or a page as anything but letters."""

import logging
import sqlite3
from pathlib import Path

import pytest

from aegis_store import AegisStoreError, EventStore, EventsTruncated, ImportRejected
from tests.conftest import OpenStore
from tests.hostile.entries import is_clean

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
