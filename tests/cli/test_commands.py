"""The commands, run as a user runs them."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from rich.cells import cell_len

from aegis_store import EventStore, ReadOnlyStore, StoreBusy, driver
from aegis_store.cli import main
from tests.cli.conftest import Run

HOSTILE = "\x1b[31mred\x07\u202e\ud83d end"


@pytest.fixture
def filled(path: Path) -> Path:
    """A store with a running session, an ended one, and an event that is hostile to terminals."""
    with EventStore.open(path) as store:
        store.create_session("run-1", metadata={"note": HOSTILE})
        for number in range(25):
            store.append("run-1", "hook", {"number": number, "text": HOSTILE})
        store.create_session("run-2")
        store.append("run-2", "hook", {"last": "words"})
        store.set_status("run-2", "failed")
    return path


def lines(output: str) -> list[Any]:
    return [json.loads(line) for line in output.splitlines()]


def test_the_help_of_demo_says_that_it_leaves_the_store_of_the_environment_alone(run: Run) -> None:
    told = " ".join(run("demo", "--help").stdout.split())
    assert "Without it aegis-demo.db here." in told
    assert "nor the one that $AEGIS_STORE_URL names" in told


def test_inspect_shows_the_store_at_a_glance(run: Run, filled: Path) -> None:
    done = run("inspect", "--db", str(filled))
    assert done.returncode == 0
    assert "26 retained, 0 removed" in done.stdout
    assert "running" in done.stdout


def test_inspect_as_json_has_the_numbers(run: Run, filled: Path) -> None:
    (found,) = lines(run("inspect", "--json", "--db", str(filled)).stdout)
    assert (found["events"], found["sessions"]) == (26, {"running": 1, "failed": 1})
    assert found["policy"]["max_events"] == 1000


def test_inspect_a_session_shows_its_record(run: Run, filled: Path) -> None:
    done = run("inspect", "run-1", "--db", str(filled))
    assert "25, " in done.stdout
    assert "seq 1 to 25" in done.stdout


def test_what_was_removed_last_is_told_with_its_reason(run: Run, filled: Path) -> None:
    with EventStore.open(filled, prune_on_open=False) as store:
        store.update_session("run-1", max_events=16)
    assert re.search(
        r"removed +9, .*, last [0-9: -]+ UTC \(max_events\)\n", run("inspect", "run-1", "--db", str(filled)).stdout
    )


def test_times_in_inspect_say_that_they_are_utc(run: Run, filled: Path) -> None:
    run("prune", "--yes", "--db", str(filled))
    assert re.search(r"last prune +[0-9-]+ [0-9:]+ UTC, done", run("inspect", "--db", str(filled)).stdout)
    done = run("inspect", "run-2", "--db", str(filled))
    times = re.findall(r"[0-9-]{10} [0-9:]{8}(.{4})", done.stdout)
    assert times == [" UTC"] * 5  # updated, removed, created, last event, ended


def test_an_empty_file_is_told_in_one_piece_of_advice(run: Run, tmp_path: Path) -> None:
    (tmp_path / "aegis.db").touch()
    told = run("inspect").stderr
    assert "is damaged (the file is empty): it was left as it is; restore a backup, or remove it if nothing was ever" in told
    assert "keep a copy" not in told


def test_the_store_is_named_before_the_command_after_it_or_by_the_environment(run: Run, filled: Path) -> None:
    outputs = [
        run("--db", str(filled), "sessions", "--json").stdout,
        run("sessions", "--json", "--db", str(filled)).stdout,
        run("sessions", "--json", AEGIS_STORE_URL=f"sqlite:///{filled}").stdout,
        run("sessions", "--json").stdout,  # aegis.db, here
    ]
    assert [len(lines(output)) for output in outputs] == [2, 2, 2, 2]


def test_sessions_can_be_filtered_by_status(run: Run, filled: Path) -> None:
    found = lines(run("sessions", "--status", "failed", "--json", "--db", str(filled)).stdout)
    assert [session["session_id"] for session in found] == ["run-2"]


def test_sessions_says_that_there_are_more(run: Run, filled: Path) -> None:
    assert "There are more" in run("sessions", "--limit", "1", "--db", str(filled)).stdout


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("sessions", "The store holds no session."),
        ("sessions --status failed", "No session has that status."),
        ("tail", "The store holds no event."),
    ],
)
def test_an_empty_store_is_told_in_a_sentence(run: Run, path: Path, command: str, told: str) -> None:
    EventStore.open(path).close()
    assert run(*command.split(), "--db", str(path)).stdout == f"{told}\n"
    done = run(*command.split(), "--json", "--db", str(path))
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--type other", "No event of that type in the session."),
        ("--type hook --after 25", "No event of that type after seq 25."),
        ("--after 25", "No event after seq 25."),
    ],
)
def test_no_event_is_told_in_a_sentence(run: Run, filled: Path, options: str, told: str) -> None:
    assert run("events", "run-1", *options.split(), "--db", str(filled)).stdout == f"{told}\n"


def test_json_that_is_not_all_says_so_beside_it(run: Run, filled: Path) -> None:
    done = run("sessions", "--limit", "1", "--json", "--db", str(filled))
    assert (len(lines(done.stdout)), done.stderr) == (1, "There are more: --limit 2 shows twice as many.\n")
    with EventStore.open(filled, prune_on_open=False) as store:
        store.update_session("run-1", max_events=5)
    done = run("events", "run-1", "--limit", "2", "--json", "--db", str(filled))
    assert [event["seq"] for event in lines(done.stdout)] == [21, 22]
    assert done.stderr == "20 events before seq 21 were removed.\nThere are more, up to seq 25: go on with --after 22.\n"
    assert run("events", "run-1", "--after", "22", "--json", "--db", str(filled)).stderr == ""


def test_events_go_on_after_a_cursor(run: Run, filled: Path) -> None:
    found = lines(run("events", "run-1", "--after", "20", "--limit", "3", "--json", "--db", str(filled)).stdout)
    assert [event["seq"] for event in found] == [21, 22, 23]


def test_events_says_what_was_missed(run: Run, filled: Path) -> None:
    with EventStore.open(filled, prune_on_open=False) as store:
        store.update_session("run-1", max_events=5)
    lost = run("events", "run-1", "--after", "3", "--db", str(filled))
    assert (lost.returncode, lost.stdout) == (4, "")
    skipped = run("events", "run-1", "--after", "3", "--skip-gap", "--json", "--db", str(filled))
    assert [event["seq"] for event in lines(skipped.stdout)] == [21, 22, 23, 24, 25]
    assert "17 events before seq 21 were removed" in skipped.stderr


@pytest.mark.parametrize("arguments", [("events", "run-1"), ("inspect", "run-1"), ("events", "run-1", "--json")])
def test_what_is_printed_holds_no_control_characters(run: Run, filled: Path, arguments: tuple[str, ...]) -> None:
    done = run(*arguments, "--db", str(filled))
    assert done.returncode == 0
    assert all(character.isprintable() for character in done.stdout.replace("\n", ""))


def test_errors_hold_no_control_characters_either(run: Run, filled: Path) -> None:
    done = run("events", "\x1b[31mred", "--db", str(filled))
    assert done.returncode == 3
    assert "\x1b" not in done.stderr


def test_tables_fit_80_columns(run: Run, filled: Path) -> None:
    with EventStore.open(filled, prune_on_open=False) as store:
        store.create_session("s" * 300, status="initializing")
        store.append("s" * 300, "t" * 100, {"text": "日本語" * 100})
        store.set_status("s" * 300, "completed")
    for arguments in (("inspect",), ("sessions",), ("events", "run-1"), ("prune",), ("policy", "show"), ("inspect", "run-1")):
        done = run(*arguments, "--db", str(filled))
        assert done.returncode == 0
        lines_shown = [line for line in done.stdout.splitlines() if not line.startswith("aegis-store ")]  # to be pasted
        assert max(map(len, lines_shown)) <= 80, arguments


def test_long_names_wide_characters_and_large_numbers_fit_80_columns(run: Run, filled: Path) -> None:
    with EventStore.open(filled, prune_on_open=False) as store:
        store.create_session("s" * 512, metadata={"note": "日本語" * 100})
    largest = ("--max-bytes", "4611686TB", "--max-total-bytes", "4611686TB")
    told = {
        ("inspect", "s" * 512): "日本語",
        ("verify",): "All is well: 26 events of 3 sessions",
        ("policy", "set", *largest): "changed",
        ("policy", "set", "--max-bytes", "4611685TB"): "yes",
    }
    for arguments, part in told.items():
        done = run(*arguments, "--db", str(filled))
        assert (done.returncode, done.stderr) == (0, "")
        assert part in done.stdout
        assert max(map(cell_len, done.stdout.splitlines())) <= 80, arguments


def test_prune_shows_the_plan_and_removes_nothing(run: Run, filled: Path) -> None:
    done = run("prune", "--db", str(filled))
    assert "run-2" in done.stdout
    assert "Nothing was removed" in done.stdout
    assert run("prune", "--yes", "--dry-run", "--json", "--db", str(filled)).stdout.endswith('"report": null}\n')
    with EventStore.open(filled, prune_on_open=False) as store:
        assert store.get_session("run-2").event_count == 1


def test_prune_with_yes_removes_what_it_showed(run: Run, filled: Path) -> None:
    (found,) = lines(run("prune", "--yes", "--json", "--db", str(filled)).stdout)
    assert found["plan"]["events"] == found["report"]["events_removed"] == 1
    with EventStore.open(filled, prune_on_open=False) as store:
        assert store.get_session("run-2").event_count == 0


def test_an_archive_directory_that_cannot_be_is_named_and_nothing_goes(run: Run, filled: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine\n")
    done = run("prune", "--yes", "--archive", "taken", "--json", "--db", str(filled))
    assert (done.returncode, done.stdout) == (2, "")
    assert "'--archive': a file stands at 'taken': name a directory" in done.stderr
    with EventStore.open(filled, prune_on_open=False) as store:
        assert store.get_session("run-2").event_count == 1


@pytest.mark.parametrize("option", [("--yes",), ("--dry-run",), ("--archive", "old")], ids=lambda option: option[0])
def test_the_history_is_not_asked_for_together_with_what_a_prune_is_to_do(
    run: Run, filled: Path, option: tuple[str, ...]
) -> None:
    done = run("prune", "--history", *option, "--db", str(filled))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert option[0] in done.stderr


def test_session_records_that_go_are_told_before_and_after(run: Run, filled: Path) -> None:
    done = run("policy", "set", "--forget-sessions-after", "0", "--db", str(filled))
    assert "  by terminal_grace: 1 event of 1 session\n  by forget_sessions_after: 1 session record" in done.stdout
    (found,) = lines(run("policy", "set", "--forget-sessions-after", "0", "--json", "--db", str(filled)).stdout)
    assert found["next_prune"] == {"events": 1, "bytes": 16, "sessions_forgotten": 1}
    run("prune", "--yes", "--db", str(filled))
    done = run("prune", "--history", "--db", str(filled))
    assert [line.split()[-5:] for line in done.stdout.splitlines() if " cli " in line] == [["1", "16", "B", "1", "done"]]
    assert "1 event went by terminal_grace." in done.stdout


def test_the_history_does_not_count_what_was_only_reported_as_gone(run: Run, filled: Path) -> None:
    run("policy", "set", "--mode", "warn", "--forget-sessions-after", "0", "--db", str(filled))
    EventStore.open(filled).close()
    done = run("prune", "--history", "--db", str(filled))
    assert "reported" in done.stdout
    assert "went" not in done.stdout


def test_the_history_takes_a_line_a_run_in_80_columns(run: Run, filled: Path) -> None:
    outcomes = ["failed: StoreCorrupt", "failed: FileUnavailable", "interrupted", "overtaken", None]
    with driver.dbapi.connect(str(filled), isolation_level=None) as shell:
        for outcome in outcomes:
            shell.execute(
                "INSERT INTO prune_run (started_at, now, trigger, events, bytes, sessions, sessions_forgotten, reasons,"
                " duration_us, outcome) VALUES (0, 0, 'maintenance', 9999999, 2000000000, 1000, 100000,"
                """ '{"terminal_grace": 1, "max_total_bytes": 9999998}', 1, ?)""",
                (outcome,),
            )
    done = run("prune", "--history", "--db", str(filled))
    shown = [line.split(maxsplit=7)[-1].strip() for line in done.stdout.splitlines() if "maintenance" in line]
    assert shown == ["not ended", "overtaken", "interrupted", "archive failed", "store damaged"]
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_history_leaves_out_runs_without_work_and_says_that_there_are_more(run: Run, filled: Path) -> None:
    def rows(done: "subprocess.CompletedProcess[str]") -> list[str]:
        return [line.split()[3] for line in done.stdout.splitlines() if " api " in line]

    with EventStore.open(filled, prune_on_open=False) as store:
        for number in range(1, 4):
            for _ in range(number):
                store.append("run-2", "hook", number)
            store.prune()
            store.prune()
        assert len(store.prune_history()) == 6
    assert rows(run("prune", "--history", "--db", str(filled))) == ["3", "2", "2"]
    done = run("prune", "--history", "--limit", "2", "--db", str(filled))
    assert rows(done) == ["3", "2"]
    assert "There are more: --limit 4 shows twice as many." in done.stdout
    assert "There are more" not in run("prune", "--history", "--limit", "3", "--db", str(filled)).stdout
    assert len(lines(run("prune", "--history", "--limit", "5", "--json", "--db", str(filled)).stdout)) == 5


def test_a_limit_is_one_of_the_history(run: Run, filled: Path) -> None:
    done = run("prune", "--limit", "5", "--db", str(filled))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_no_command_but_prune_removes_events_by_opening_a_store(run: Run, filled: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text('{"version": 1, "sessions": [], "events": []}')
    others = [
        "inspect",
        "inspect run-1",
        "sessions",
        "events run-1",
        "tail",
        "policy show",
        "policy set --max-events 2000",
        "upgrade",
    ]
    for command in [*others, f"import-aegis {state}", "prune"]:
        assert run(*command.split(), "--db", str(filled)).returncode == 0, command
    with EventStore.open(filled, prune_on_open=False) as store:
        assert store.get_session("run-2").event_count == 1


def test_policy_is_set_and_shown(run: Run, filled: Path) -> None:
    done = run(
        "policy",
        "set",
        "--max-events",
        "unlimited",
        "--max-event-bytes",
        "2MiB",
        "--terminal-grace",
        "36h",
        "--db",
        str(filled),
    )
    assert done.returncode == 0
    (found,) = lines(run("policy", "show", "--json", "--db", str(filled)).stdout)
    assert found == {
        "max_events": "unlimited",
        "max_bytes": None,
        "max_age_s": None,
        "max_event_bytes": 2 * 1024 * 1024,
        "terminal_grace_s": 36 * 3600.0,
        "max_total_bytes": None,
        "forget_sessions_after_s": None,
        "mode": "enforce",
    }


def test_a_lower_cap_asks_before_it_removes_events(run: Run, filled: Path) -> None:
    refused = run("policy", "set", "--max-events", "10", "--db", str(filled))
    assert refused.returncode == 2
    assert "would remove 15 events of 1 session now" in refused.stderr
    assert run("policy", "set", "--max-events", "10", "--yes", "--db", str(filled)).returncode == 0
    with EventStore.open(filled, prune_on_open=False) as store:
        assert store.get_session("run-1").event_count == 10


@pytest.mark.parametrize(
    "arguments",
    [
        ("--max-events", "0"),
        ("--max-events", "-1"),
        ("--max-events", "many"),
        ("--max-event-bytes", "1GiB"),
        ("--max-event-bytes", "12XB"),
        ("--terminal-grace", "soon"),
        (),
    ],
)
def test_a_policy_that_cannot_be_is_refused_in_one_line(run: Run, filled: Path, arguments: tuple[str, ...]) -> None:
    done = run("policy", "set", *arguments, "--db", str(filled))
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


def test_the_help_says_how_sizes_and_durations_are_written(run: Run) -> None:
    told = " ".join(run("policy", "set", "--help").stdout.split())
    for part in ("500MB, 2GiB", "30d, 12h, 90m, 45s; or 0, but for --max-age.", "none takes a limit away, unlimited the cap"):
        assert part in told


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--max-events", "-1", "(or unlimited), not '-1'"),
        ("--max-events", "0", "(or unlimited), not '0'"),
        ("--max-events", "many", "'unlimited'"),
        ("--max-bytes", "12XB", "500MB or 2GiB; 'none' takes the limit away"),
        ("--max-bytes", "0", "(or none), not '0'"),
        ("--max-age", "soon", "30d, 12h, 90m or 45s; 'none' takes the limit away"),
        ("--max-age", "0", "'--max-age': must be over 0 and at most 365,000 days, not '0'"),
        ("--max-age", "400000d", "not '400000d'"),
        ("--terminal-grace", "none", "30d, 12h, 90m or 45s "),
        ("--mode", "odd", "'--mode': must be 'enforce' or 'warn', not 'odd'"),
        ("--max-event-bytes", "1GiB", "payload_ref"),
    ],
)
def test_what_a_value_should_be_is_told_in_the_words_of_the_command_line(
    run: Run, filled: Path, option: str, value: str, told: str
) -> None:
    done = run("policy", "set", option, value, "--db", str(filled))
    assert done.returncode == 2
    assert told in done.stderr
    assert not any(word in done.stderr for word in ("timedelta", "UNLIMITED", "None"))


def test_upgrade_creates_a_store_and_leaves_one_at_head(run: Run, tmp_path: Path) -> None:
    assert "created at schema 0005" in run("upgrade", "--db", "new.db").stdout
    assert "already" in run("upgrade", "--db", "new.db").stdout
    assert (tmp_path / "new.db").stat().st_size > 0


def test_import_reports_what_it_took_and_what_not(run: Run, tmp_path: Path) -> None:
    session = {"id": "s", "tenantId": "t", "ownerKeyId": "o", "status": "idle", "createdAt": 1, "updatedAt": 2}
    event = {"sessionId": "s", "tenantId": "t", "ownerKeyId": "o", "eventSeq": 1, "eventType": "x", "payload": {}}
    event |= {"occurredAt": "2026-05-22T09:00:00.000Z", "ingestedAt": "2026-05-22T09:00:00.000Z"}
    state = {
        "version": 1,
        "sessions": [session, {**session, "id": "bad", "status": "odd"}],
        "events": [event],
        "actions": [1, 2],
    }
    (tmp_path / "state.json").write_text(json.dumps(state))
    done = run("import-aegis", "state.json")
    assert done.returncode == 7
    assert "1 added" in done.stdout
    assert "not taken: actions" in done.stdout
    assert "bad" in done.stdout
    (tmp_path / "cut.json").write_text('{"version": 1, "sess')
    cut = run("import-aegis", "cut.json")
    assert (cut.returncode, len(cut.stderr.splitlines())) == (7, 1)


def test_demo_plays_the_incident_on_a_new_store_and_never_on_an_old_one(run: Run, filled: Path, tmp_path: Path) -> None:
    done = run("demo", "--json", AEGIS_STORE_URL=str(filled))  # which the demo must not touch
    assert done.returncode == 0, done.stderr
    (found,) = lines(done.stdout)
    assert found["store"] == "aegis-demo.db"
    assert (found["removed_by_cap"], found["removed_at_start"]) > (1000, 1000)
    with EventStore.open(tmp_path / "aegis-demo.db", prune_on_open=False) as store:
        stats = store.stats()
        assert sum(stats.sessions.values()) == 359
        assert stats.events + stats.removed_events == found["appends"]
    refused = run("demo", "--db", str(filled))
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    with EventStore.open(filled, prune_on_open=False) as store:
        assert store.stats().events == 26


def test_demo_plays_a_state_file(run: Run, tmp_path: Path) -> None:
    session = {"id": "s", "tenantId": "t", "ownerKeyId": "o", "status": "closed", "createdAt": 1, "updatedAt": 2}
    event = {"sessionId": "s", "eventSeq": 1, "eventType": "x", "payload": {"a": 1}}
    (tmp_path / "state.json").write_text(json.dumps({"version": 1, "sessions": [session], "events": [event]}))
    done = run("demo", "--from", "state.json", "--db", "played.db")
    assert done.returncode == 0, done.stderr
    assert "removed 1 event of ended sessions" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda path: None, 5),
        (lambda path: path.mkdir(), 5),
        (lambda path: path.write_bytes(b""), 5),
        (lambda path: path.write_text("some notes\n"), 5),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000), 5),
    ],
    ids=["missing", "directory", "empty", "text", "corrupt"],
)
@pytest.mark.parametrize(
    "command", ["inspect", "sessions", "events x", "prune --yes", "policy show", "policy set --max-events 5"]
)
def test_a_wrong_path_is_one_line_and_an_exit_code(run: Run, tmp_path: Path, command: str, make: Any, code: int) -> None:
    place = tmp_path / "wrong.db"
    make(place)
    done = run(*command.split(), "--db", str(place))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("events run-1 --after -1", "--after must be a whole number from 0 to 9,223,372,036,854,775,807, not -1"),
        ("events run-1 --type \t", "--type holds the control character"),
        ("sessions --limit 0", "'--limit': must be 1 or more, not '0' "),
        ("sessions --limit x", "'--limit': must be a whole number, not 'x' "),
        ("inspect --db ", "'--db': a store needs a path or a URL, not ''"),
        ("prune --yes --archive ", "'--archive': a directory needs a name, not ''"),
        ("export .jsonl.gz", "the file needs a name before its suffix, not only '.jsonl.gz'"),
        ("reclaim --max-seconds -1", "--max-seconds must be a number over 0, not -1"),
        ("reclaim --free-ratio 2", "'--free-ratio': must be 1 or less, not '2' "),
        ("record --busy-timeout inf", "'--busy-timeout': must be 3600 or less, not 'inf' "),
        ("spool flush --busy-timeout inf", "'--busy-timeout': must be 3600 or less, not 'inf' "),
        ("inspect --watch --every inf", "'--every': must be 86400 or less, not 'inf' "),
        ("bench --only foo", "'--only': 'foo' is not one of"),
        ("bench --dir ", "'--dir': a directory needs a name, not ''"),
    ],
)
def test_a_value_that_cannot_be_is_told_as_it_was_given(run: Run, filled: Path, command: str, told: str) -> None:
    done = run(*command.split(" "))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert told in done.stderr


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("events none", "no session 'none' in this store: `aegis-store sessions` lists those that there are"),
        ("events run-1 --after 3", ": --skip-gap goes on with what is retained"),
        ("events run-1 --after 99", ": read again from the start, without --after"),
        ("inspect --db missing.db", "run `aegis-store upgrade --db PATH`"),
    ],
)
def test_errors_say_what_an_operator_can_do(run: Run, filled: Path, command: str, told: str) -> None:
    with EventStore.open(filled, prune_on_open=False) as store:
        store.update_session("run-1", max_events=5)
    done = run(*command.split())
    assert told in done.stderr
    assert not any(word in done.stderr for word in ("create_session", "on_gap", "cursor)"))


def test_a_store_that_is_held_is_told_without_the_words_of_the_library(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = [
        StoreBusy(store="a.db", waited_ms=5000),
        ReadOnlyStore(store="a.db"),
        StoreBusy(store="a.db", waited_ms=0, detail="x"),
    ]
    said = []
    for error in errors:
        monkeypatch.setattr(EventStore, "open", Mock(side_effect=error))
        monkeypatch.setattr(sys, "argv", ["aegis-store", "inspect"])
        with pytest.raises(SystemExit):
            main()
        said.append(capsys.readouterr().err)
    assert said == [
        "aegis-store: store 'a.db' was held by another writer for 5,000 ms: try again\n",
        "aegis-store: store 'a.db' is read-only here: run this as a user who may write it, its -wal and -shm files and its"
        " directory\n",
        "aegis-store: store 'a.db' x\n",
    ]


@pytest.mark.parametrize("arguments", [("evnts",), ("events",), ("sessions", "--limit", "0"), ("sessions", "--status", "odd")])
def test_wrong_usage_is_one_line(run: Run, filled: Path, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_a_driver_that_there_is_not_is_one_line_too(filled: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from aegis_store.cli import main; main()", "inspect", "--db", str(filled)],
        env={**os.environ, driver.DRIVER_VARIABLE: "foo"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = "aegis-store: AEGIS_STORE_DRIVER must be sqlite3 or pysqlite3, not 'foo'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_a_pipe_that_closes_early_is_no_traceback(filled: Path, run: Run) -> None:
    with EventStore.open(filled, prune_on_open=False) as store:
        for number in range(600):
            store.append("run-1", "hook", {"text": "x" * 1000, "number": number})
    program = f"{sys.executable} -c 'from aegis_store.cli import main; main()'"
    command = f"{program} events run-1 --limit 900 --json --db {filled} | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a device of Linux")
def test_output_that_cannot_be_written_is_told(filled: Path) -> None:
    command = [sys.executable, "-c", "from aegis_store.cli import main; main()", "inspect", "--db", str(filled)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_in_the_middle_ends_in_one_line_and_leaves_a_store_that_opens(tmp_path: Path) -> None:
    place = tmp_path / "demo.db"
    command = [sys.executable, "-c", "from aegis_store.cli import main; main()", "demo", "--db", str(place)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not place.exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()) == (130, ["aegis-store: interrupted"])
    with EventStore.open(place) as store:
        assert sum(store.stats().sessions.values()) <= 359


CTRL_C_IN_A_DESTRUCTOR = """
import os, signal, time
import aegis_store.store

class Dropping:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)

def open_store(*_, **__):
    Dropping()
    time.sleep(20)

aegis_store.store.EventStore.open = open_store
"""
LOG_OF_SQLALCHEMY = """
import logging
import aegis_store.store

def open_store(*_, **__):
    logging.getLogger("sqlalchemy.pool.impl.QueuePool").error("Error closing cursor")
    raise KeyboardInterrupt

aegis_store.store.EventStore.open = open_store
"""
CTRL_C_AT_THE_END = """
import atexit, os, signal
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
"""
CTRL_C_AFTER_A_SLICE = """
import aegis_store.retention.prune

def interrupt(_):
    raise KeyboardInterrupt

aegis_store.retention.prune.let_writers_through = interrupt
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("before", "command", "code", "said"),
    [
        (CTRL_C_IN_A_DESTRUCTOR, ["inspect"], 130, "aegis-store: interrupted\n"),
        (LOG_OF_SQLALCHEMY, ["inspect"], 130, "aegis-store: interrupted\n"),
        (CTRL_C_AT_THE_END, ["inspect"], 0, ""),
        (
            CTRL_C_AFTER_A_SLICE,
            ["prune", "--yes"],
            130,
            "aegis-store: interrupted: removed 1 of 2 events; run it again to go on\n",
        ),
    ],
    ids=["in a destructor", "in SQLAlchemy", "at the end", "after a slice of a prune"],
)
def test_ctrl_c_is_never_lost_and_never_a_traceback(
    filled: Path, before: str, command: list[str], code: int, said: str
) -> None:
    with EventStore.open(filled, prune_on_open=False) as store:
        store.create_session("run-3")
        store.append("run-3", "hook", 1)
        store.set_status("run-3", "failed")
    program = f"{before}\nfrom aegis_store.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--db", str(filled)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_progress_is_shown_on_a_terminal_and_not_in_a_pipe(tmp_path: Path, run: Run) -> None:
    state = tmp_path / "state.json"
    state.write_text('{"version": 1, "sessions": [], "events": []}')
    assert run("import-aegis", str(state)).stderr == ""
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", "from aegis_store.cli import main; main()", "import-aegis", str(state), "--db", "b.db"]
    environment = {**os.environ, "TERM": "xterm"}
    subprocess.run(command, stderr=follower, stdout=subprocess.DEVNULL, cwd=tmp_path, env=environment, check=True)
    os.close(follower)
    assert b"Reading the file" in os.read(leader, 65536)
    os.close(leader)


def test_a_terminal_that_cannot_show_a_character_gets_its_escape(run: Run, filled: Path) -> None:
    with EventStore.open(filled, prune_on_open=False) as store:
        store.append("run-1", "日本語", {})
    done = run("events", "run-1", "--after", "25", "--db", str(filled), PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "\\u65e5" in done.stdout


def test_an_internal_error_is_one_line_unless_it_is_to_be_debugged(run: Run, tmp_path: Path) -> None:
    breaking = (
        "import aegis_store.store as s; s.EventStore.open = lambda *a, **k: 1 / 0; from aegis_store.cli import main; main()"
    )
    for debug, lines_expected in (("", 1), ("1", 2)):
        done = subprocess.run(
            [sys.executable, "-c", breaking, "inspect"],
            env={**os.environ, "AEGIS_STORE_DEBUG": debug},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert (len(done.stderr.splitlines()) == 1) == (lines_expected == 1)
