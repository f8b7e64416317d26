"""Coverage-guided fuzzing of the entry points, for as long as you like: `python -m tests.hostile.fuzz --seconds 60 [ENTRY …]`.

Needs atheris (`pip install -e '.[fuzz]'`), which has wheels for Linux and some versions of Python. Each entry runs in a process
of its own, begins with its files in `corpus`, and goes on after what it has found: an input for each place that raised is left
in the directory that `--found` names. What takes over 20 s or 2 GiB ends its process, and is found too. The exit code is 1
then.

With `--url` the entries that ask a store do so in a file and in databases that are made on that server, and dropped: what they
tell must be the same.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from hashlib import sha256
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
DATABASES = "AEGIS_FUZZ_DATABASES"
_LIMITS = ("-timeout=20", "-rss_limit_mb=2048", "-max_len=4096", "-print_final_stats=1", "-verbosity=0")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz", description=__doc__)
    parser.add_argument("entry", nargs="*", help="the entry points, by default all")
    parser.add_argument("--seconds", type=int, default=60, help="how long each is run")
    parser.add_argument("--found", type=Path, default=Path("found"), help="where what is found is left")
    parser.add_argument("--grown", type=Path, help="where inputs that reach something new are kept for the next time")
    parser.add_argument("--url", help="a PostgreSQL, whose user may make databases: compare stores there with stores in files")
    given = parser.parse_args()
    from tests.hostile.entries import AT_A_STORE, ENTRIES  # not in `fuzz_one`, which watches how this is imported

    entries = given.entry or sorted(AT_A_STORE if given.url else ENTRIES)
    for entry in entries:
        with _surroundings(given.url) as environment:
            grown = given.grown or Path(environment["TMPDIR"])
            _run(entry, given.seconds, given.found / entry, grown / entry, environment)
    found = [file for entry in entries for file in sorted((given.found / entry).glob("*"))]
    print(*(f"found: {file}" for file in found), sep="\n")
    return 1 if found else 0


@contextmanager
def _surroundings(url: str | None) -> Iterator[dict[str, str]]:
    """The environment of a process that libFuzzer ends, with what is to be removed after it."""
    with ExitStack() as stack:
        in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="aegis-fuzz-", dir=in_memory))
        environment = {**os.environ, "TMPDIR": directory, "XDG_STATE_HOME": directory}
        if url:
            from sqlalchemy import make_url

            from tests.postgres.server import Postgres

            server = stack.enter_context(closing(Postgres(make_url(url))))
            environment[DATABASES] = " ".join(stack.enter_context(server.database()) for _ in range(2))
        yield environment


def _run(entry: str, seconds: int, found: Path, grown: Path, environment: dict[str, str]) -> None:
    for directory in (found, grown):
        directory.mkdir(parents=True, exist_ok=True)
    words = {word for file in (CORPUS / entry).iterdir() for word in re.findall(rb"[\w.-]{2,40}", file.read_bytes())}
    dictionary = grown.with_suffix(".words")
    dictionary.write_bytes(b"".join(b'"%s"\n' % word for word in sorted(words)))
    here = [sys.executable, "-m", f"{__package__}.fuzz_one", entry, str(found)]
    limits = (*_LIMITS, f"-max_total_time={seconds}", f"-dict={dictionary}", f"-artifact_prefix={found}/")
    command = [*here, *limits, str(grown), str(CORPUS / entry)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", env=environment)
    stats = re.findall(r"stat::(number_of_executed_units|peak_rss_mb):\s+(\d+)", done.stderr)
    print(f"{entry}: {', '.join(f'{name} {value}' for name, value in stats) or done.stderr[-2000:]}", flush=True)


def keeping_on(run: Callable[[bytes], None], found: Path) -> Callable[[bytes], None]:
    """`run`, but what it raises is noted in `found`, an input for each place, and not raised."""
    known: set[str] = set()

    def one(data: bytes) -> None:
        try:
            run(data)
        except Exception as error:  # noqa: BLE001 - this is what we are looking for
            at = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-4:]]
            place = sha256(f"{type(error)} {at}".encode()).hexdigest()[:12]
            if place not in known:
                known.add(place)
                (found / place).write_bytes(data)
                (found / f"{place}.txt").write_text("".join(traceback.format_exception(error)), errors="backslashreplace")

    return one


if __name__ == "__main__":
    sys.exit(main())
