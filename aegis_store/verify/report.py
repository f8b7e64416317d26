"""What a verification found."""

from dataclasses import dataclass
from typing import NamedTuple


class Problem(NamedTuple):
    """Something in the store that is not as it should be. `session_id` and `seq`: where, if it is in one session or event.

    `kind`: "structure" (pages, indexes, references), "schema" (a table, index, trigger or view that is not this library's),
    "record" (a session, tombstone, run of a prune or the policy), "range" (events are missing, or out of their order),
    "event" (what it holds is not what was written) or "note" (what a session notes for the next prune).
    """

    kind: str
    detail: str
    session_id: str | None = None
    seq: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What `EventStore.verify` found. `problems` are the first thousand, `more_problems` counts those beyond.

    `sessions` and `events` were looked at. `events_without_checksum` among them were stored by a release before schema 0003
    or by another program: that they are JSON in the right place is all that is known of them. `not_looked_at`: what a server
    could not be asked, and why; empty on SQLite.
    """

    problems: tuple[Problem, ...]
    more_problems: int
    sessions: int
    events: int
    events_without_checksum: int
    duration_s: float
    not_looked_at: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def damage(self) -> tuple[Problem, ...]:
        """The problems that are more than a changed schema, which leaves what is stored as it is."""
        return tuple(problem for problem in self.problems if problem.kind != "schema")

    @property
    def advice(self) -> str | None:
        """What to do, in words; None if nothing is wrong."""
        if self.ok:
            return None
        if not self.damage:
            return (
                "Somebody has changed the schema, so that bounds and counters may not hold. Export the store, and import the "
                "file into a new one."
            )
        return (
            "Stop the writers and copy the store as it is before anything else: the file with its -wal file, or the server's "
            "directory. Then restore a backup; or export the sessions that can still be read, one by one, and import those "
            "files into a new store."
        )
