"""The entry points keep their promise for the files of the corpus, and for what a few edits make of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile import fuzz
from tests.hostile.entries import ENTRIES
from tests.hostile.world import of_files

SLOW = {"lines", "state_file", "store_file", "schema", "spool_file", "arguments", "appended_lines"}
"""Those that open a store each time."""

PIECES = (
    *(
        b"",
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\x1b[2J",
        b"\n",
        b"\r",
        "\u202e".encode(),
        b"'",
        b'"',
        b"\\u0000",
    ),
    *(
        b"\\ud800",
        b"-",
        b"1e400",
        b"NaN",
        b"9" * 5000,
        b"[" * 2000,
        b"null",
        b"true",
        b"{}",
        b"/",
        b"..",
        b"%s",
        b"--",
        b"=",
        b"2",
    ),
)


def files_of(entry: str) -> list[bytes]:
    return [file.read_bytes() for file in sorted((fuzz.CORPUS / entry).iterdir())]


@pytest.fixture(scope="module", autouse=True)
def _world() -> Iterator[None]:
    yield
    of_files().close()
    of_files.cache_clear()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_each_entry_has_a_corpus() -> None:
    assert sorted(ENTRIES) == sorted(each.name for each in fuzz.CORPUS.iterdir())


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_corpus(entry: str) -> None:
    for content in files_of(entry):
        ENTRIES[entry](content)


def edited(contents: list[bytes]) -> st.SearchStrategy[bytes]:
    """A file, in which up to three stretches are other ones."""
    places = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 8), st.sampled_from(PIECES) | st.binary(max_size=4))

    def edit(content: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
        for where, length, piece in edits:
            at = int(where * (len(content) + 1))
            content = content[:at] + piece + content[at + length :]
        return content

    return st.builds(edit, st.sampled_from(contents), st.lists(places, max_size=3))


def try_edited(entry: str, examples: int) -> None:
    @given(edited(files_of(entry)))
    @settings(deadline=None, max_examples=examples, suppress_health_check=list(HealthCheck))
    def try_one(content: bytes) -> None:
        ENTRIES[entry](content)

    try_one()


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_a_few_edits_make_of_it(entry: str) -> None:
    try_edited(entry, 10 if entry in SLOW else 100)


@pytest.mark.torture
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_many_edits_make_of_it(entry: str) -> None:
    try_edited(entry, 500 if entry in SLOW else 10_000)


@pytest.mark.torture
@pytest.mark.timeout(900)
def test_what_a_fuzzer_makes_of_it_in_half_a_minute_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("atheris")
    monkeypatch.setattr("sys.argv", ["fuzz", "--seconds", "30", "--found", str(tmp_path / "found")])
    assert fuzz.main() == 0
