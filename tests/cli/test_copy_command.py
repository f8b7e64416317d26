"""The command `copy`, run as a user runs it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from aegis_store import EventStore
from tests.cli.conftest import Run
from tests.copies import all_of, live


def test_a_copy_is_told_and_goes_on_when_it_is_run_again(run: Run, path: Path, tmp_path: Path) -> None:
    live(path)
    done = run("copy", path.name, "to\x1b[1m.db")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "each compared" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert all_of(tmp_path / "to\x1b[1m.db") == all_of(path)
    again = json.loads(run("copy", path.name, "to\x1b[1m.db", "--json").stdout)
    assert again["events_standing"] == again["events"] > 0
    assert again["from"] == path.name


def test_what_cannot_be_copied_is_told_in_one_line_with_its_exit_code(run: Run, path: Path, tmp_path: Path) -> None:
    live(path)
    with EventStore.open(tmp_path / "other.db") as store:
        store.create_session("mine")
    (tmp_path / "text").write_text("no store")
    cases = {
        ("missing.db", "to.db"): (5, "no store there"),
        (path.name, path.name): (2, "the same store"),
        (path.name, "other.db"): (2, "it holds session 'mine', and the source does not"),
        (path.name, "text"): (5, "text"),
        (path.name, "."): (5, "directory"),
        ("postgresql+psycopg://me:geheim@127.0.0.1:1/x", "to.db"): (5, "***"),
    }
    for (source, target), (code, told) in cases.items():
        done = run("copy", source, target)
        assert done.returncode == code, (source, target, done.stderr)
        assert told in done.stderr or told == "no store there"
        assert done.stderr.count("\n") == 1
        assert "geheim" not in done.stderr + done.stdout
    assert not (tmp_path / "to.db").exists()


def test_ctrl_c_says_how_far_it_came_and_running_it_again_goes_on(path: Path, tmp_path: Path) -> None:
    live(path)
    code = (
        "import os, signal\n"
        "from aegis_store.cli import main\n"
        "from aegis_store.copying import records, run\n"
        "records.BATCH_LINES = 10\n"
        "written = run._Progress.written\n"
        "def count(self, events):\n"
        "    written(self, events)\n"
        "    if self.done >= 30: os.kill(os.getpid(), signal.SIGINT)\n"
        "run._Progress.written = count\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "copy", str(path), str(tmp_path / "to.db")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGINT
    assert "interrupted: 30 of" in done.stderr
    assert EventStore.copy(path, tmp_path / "to.db").events_standing >= 30
    assert all_of(tmp_path / "to.db") == all_of(path)
