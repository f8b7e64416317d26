"""Coverage-guided fuzzing of the entry points, for as long as you like: `python -m tests.hostile.fuzz --seconds 60 [ENTRY …]`.

Needs atheris (`pip install -e '.[fuzz]'`), which has wheels for Linux and some versions of Python. Each entry runs in a process
of its own, begins with its files in `corpus`, and goes on after what it has found: an input for each place that raised is left
in the directory that `--found` names. What takes over 20 s or 2 GiB ends its process, and is found too. The exit code is 1
then.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
_LIMITS = ("-timeout=20", "-rss_limit_mb=2048", "-max_len=4096", "-print_final_stats=1", "-verbosity=0")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz", description=__doc__)
    parser.add_argument("entry", nargs="*", help="the entry points, by default all")
    parser.add_argument("--seconds", type=int, default=60, help="how long each is run")
    parser.add_argument("--found", type=Path, default=Path("found"), help="where what is found is left")
    parser.add_argument("--grown", type=Path, help="where inputs that reach something new are kept for the next time")
    given = parser.parse_args()
    entries = given.entry or sorted(each.name for each in CORPUS.iterdir())
    with tempfile.TemporaryDirectory() as directory:
        for entry in entries:
            _run(entry, given.seconds, given.found / entry, (given.grown or Path(directory)) / entry)
    found = [file for entry in entries for file in sorted((given.found / entry).glob("*"))]
    print(*(f"found: {file}" for file in found), sep="\n")
    return 1 if found else 0


def _run(entry: str, seconds: int, found: Path, grown: Path) -> None:
    for directory in (found, grown):
        directory.mkdir(parents=True, exist_ok=True)
    words = {word for file in (CORPUS / entry).iterdir() for word in re.findall(rb"[\w.-]{2,40}", file.read_bytes())}
    dictionary = grown.with_suffix(".words")
    dictionary.write_bytes(b"".join(b'"%s"\n' % word for word in sorted(words)))
    here = [sys.executable, "-m", f"{__package__}.fuzz_one", entry, str(found)]
    limits = (*_LIMITS, f"-max_total_time={seconds}", f"-dict={dictionary}", f"-artifact_prefix={found}/")
    done = subprocess.run(
        [*here, *limits, str(grown), str(CORPUS / entry)], stderr=subprocess.PIPE, text=True, errors="replace"
    )
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
