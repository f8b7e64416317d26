"""What a store holds, as a plain shell sees it: to compare with what it should hold."""

from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from aegis_store import driver
from aegis_store.schema import HEAD
from tests.crash.checks import assert_sound, assert_whole, rows

_SESSIONS = "SELECT session_id, first_seq, last_seq, tenant, owner, status, max_events, hold, metadata FROM session"
_EVENTS = """
    SELECT session_id, seq, type, event_id, run_id, event.payload FROM event JOIN session ON session.id = event.session
"""


class Content(NamedTuple):
    """The content of one store, times and positions aside. What was deleted and is still going does not count."""

    revision: str
    policy: tuple[Any, ...]
    sessions: dict[str, tuple[Any, ...]]
    ranges: dict[str, tuple[int, int]]
    events: dict[tuple[str, int], tuple[Any, ...]]


Contents = dict[str, Content]
"""By the name of the file."""


def contents(directory: Path) -> Contents:
    """Of each store in the directory. Raises `AssertionError` if one is not sound."""
    return {path.name: content(path) for path in sorted(directory.glob("*.db"))}


def content(path: Path) -> Content:
    is_at_head = rows(path, "SELECT version_num FROM alembic_version") == [(HEAD,)]
    (assert_sound if is_at_head else assert_whole)(path)
    with closing(driver.dbapi.connect(str(path), isolation_level=None)) as connection:
        connection.execute("BEGIN")
        named = [row for row in connection.execute(_SESSIONS) if row[0] is not None]
        return Content(
            revision=connection.execute("SELECT version_num FROM alembic_version").fetchone()[0],
            policy=connection.execute("SELECT max_events, max_event_bytes, terminal_grace_us FROM store").fetchone(),
            sessions={row[0]: row[3:] for row in named},
            ranges={row[0]: row[1:3] for row in named},
            events={row[:2]: row[2:] for row in connection.execute(_EVENTS) if row[0] is not None},
        )


def is_between(found: Contents, before: Contents, after: Contents) -> bool:
    """Whether `found` is a state on the way from one to the other, in which no event is there that neither has."""
    return before.keys() & after.keys() <= found.keys() <= before.keys() | after.keys() and all(
        _is_between(found[name], before.get(name), after.get(name)) for name in found
    )


def _is_between(found: Content, before: Content | None, after: Content | None) -> bool:
    states = [state for state in (before, after) if state is not None]
    return (
        found.revision in {state.revision for state in states}
        and found.policy in {state.policy for state in states}
        and _lies_between(found.sessions, [state.sessions for state in states])
        and _lies_between(found.events, [state.events for state in states])
    )


def _lies_between(found: dict[Any, Any], states: list[dict[Any, Any]]) -> bool:
    """Each is as in one of the states, and what both have is there."""
    common = set.intersection(*(set(state) for state in states))
    return common <= found.keys() and all(
        any(key in state and state[key] == value for state in states) for key, value in found.items()
    )
