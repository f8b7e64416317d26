"""What others send to a store on PostgreSQL: the entry points keep their promise, and tell the same as of a store in a file."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.hostile.entries import AT_A_STORE, ENTRIES
from tests.hostile.test_corpus import SLOW, edited, files_of
from tests.hostile.world import Both
from tests.postgres.server import Postgres


@pytest.fixture(scope="module")
def worlds(postgres: Postgres) -> Iterator[Both]:
    with postgres.database() as of_all, postgres.database() as of_one, closing(Both(of_all, of_one)) as both:
        yield both


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.mark.parametrize("entry", AT_A_STORE)
def test_the_corpus_makes_the_same_of_both(entry: str, worlds: Both) -> None:
    both = worlds.compared(ENTRIES[entry])
    for content in files_of(entry):
        both(content)


def try_edited(entry: str, worlds: Both, examples: int) -> None:
    both = worlds.compared(ENTRIES[entry])

    @given(edited(files_of(entry)))
    @settings(deadline=None, max_examples=examples, suppress_health_check=list(HealthCheck))
    def try_one(content: bytes) -> None:
        both(content)

    try_one()


@pytest.mark.parametrize("entry", AT_A_STORE)
def test_what_a_few_edits_make_of_it(entry: str, worlds: Both) -> None:
    try_edited(entry, worlds, 5 if entry in SLOW else 30)


@pytest.mark.torture
@pytest.mark.parametrize("entry", AT_A_STORE)
def test_what_many_edits_make_of_it(entry: str, worlds: Both) -> None:
    try_edited(entry, worlds, 200 if entry in SLOW else 5_000)
