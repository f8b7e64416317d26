"""What the command line teaches: help with examples that run, and where to begin."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from aegis_store import EventStore
from aegis_store.cli.app import app
from tests.cli.conftest import Run

PROGRAMS = Path(sys.executable).parent


def commands(group: Any, *before: str) -> Iterator[tuple[str, str]]:
    """Every command there is, groups too, by its words; and what its help says."""
    for name, command in group.commands.items():
        yield " ".join((*before, name)), command.help or ""
        if hasattr(command, "commands"):
            yield from commands(command, *before, name)


HELP = dict(commands(typer.main.get_command(app)))
EXAMPLES = {command: told.partition("Example: ")[2].partition("\n")[0] for command, told in HELP.items()}


@pytest.mark.parametrize(("command", "example"), EXAMPLES.items(), ids=EXAMPLES)
def test_every_command_has_help_with_an_example_of_it(run: Run, command: str, example: str) -> None:
    assert example.startswith("aegis-store") or "| aegis-store" in example
    assert f"aegis-store {command}" in example
    done = run(*command.split(), "--help")
    assert done.returncode == 0
    assert f"\n  Example: {example}\n\n" in done.stdout  # not broken, so that it can be copied
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not re.search(r"<(str|path|list\[.*|.* range)>", done.stdout)  # no types of Python


@pytest.mark.parametrize("command", [[], ["policy"]], ids=["all", "policy"])
def test_no_summary_of_a_command_is_cut_off(run: Run, command: list[str]) -> None:
    summaries = run(*command, "--help").stdout.partition("Commands:")[2]
    assert summaries
    assert "..." not in summaries


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with all that the examples name."""
    place = tmp_path_factory.mktemp("examples")
    for name in ("aegis.db", "agents.db", "aegis-demo.db"):
        with EventStore.open(place / name) as store:
            store.create_session("run-42")
            for number in range(130):
                store.append("run-42", "hook", {"number": number})
            store.create_session("run-43")
            store.append("run-43", "hook", {})
            store.set_status("run-43", "failed")
            (place / "old-events").mkdir(exist_ok=True)
            if name == "agents.db":
                store.export(place / "old-events/1.jsonl.gz")
                store.backup(place / "saved.backup")
    (place / "aegis-state.json.gz").write_bytes(gzip.compress(b'{"version": 1, "sessions": [], "events": []}'))
    (place / "event.json").write_text('{"session_id": "run-42", "hook_event_name": "Stop"}')
    (place / "bin").mkdir()
    jq = place / "bin/jq"  # which not every machine has
    jq.write_text("#!/bin/sh\ncat\n")
    jq.chmod(0o755)
    return place


@pytest.mark.skipif(sys.platform == "win32", reason="written for a POSIX shell")
@pytest.mark.parametrize("example", [EXAMPLES[command] for command in HELP if command != "demo"])  # (`test_commands` runs that)
def test_the_example_in_the_help_of_each_command_runs(place: Path, example: str) -> None:
    example = example.replace("/var/lib/agents", str(place))
    environment = {**os.environ, "PATH": f"{PROGRAMS}{os.pathsep}{place / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("AEGIS_STORE_URL", None)
    process = subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", f"exec {example}" if "|" not in example else example],
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first, code = "", 0
    if "--follow" in example or "--watch" in example:
        assert process.stdout is not None
        first, code = process.stdout.readline(), 130
        process.send_signal(signal.SIGINT)
    said, told = process.communicate(timeout=120)
    assert process.returncode == code, f"{example}: {told}"
    assert first + said
    if "--json" in example:
        assert all(json.loads(line) is not None for line in said.splitlines())


# Where to begin


def test_alone_it_shows_the_few_commands_to_begin_with(run: Run) -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) <= 16
    assert max(map(len, done.stdout.splitlines())) <= 80
    for command in ("demo", "inspect", "events SESSION", "prune", "policy show"):
        assert f"  aegis-store {command}  " in done.stdout
    assert "aegis-store --help" in done.stdout


def test_every_command_that_it_shows_is_there(run: Run) -> None:
    shown = re.findall(r"^  aegis-store ([a-z]+)", run().stdout, re.MULTILINE)
    assert len(shown) >= 6
    assert set(shown) <= HELP.keys()


def test_with_a_store_but_no_command_it_shows_the_same(run: Run, path: Path) -> None:
    assert run("--db", str(path)).stdout == run().stdout


def test_alone_it_imports_no_more_than_the_help() -> None:
    code = (
        "import sys; sys.argv = ['aegis-store']\n"
        "from aegis_store.cli import main\n"
        "try: main()\n"
        "except SystemExit: print([m for m in ('sqlalchemy', 'pydantic', 'rich.console', 'sqlite3') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
