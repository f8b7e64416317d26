"""The tables and indexes of a store; `triggers` has their triggers, `views` what people read. Nothing runs here.

`migrations/` is what makes them in a store; a test proves that both arrive at the same schema.

What the store needs to know of removed events costs no bookkeeping: `first_seq - 1` counts them, and `bytes_before` (the
payload bytes of all earlier events of the session) of the first retained one says how large they were.

So that a prune finds its work without looking at sessions that have none, a session carries three notes. `oldest_at`: no
retained event was recorded before. `unsorted_seq`: from this seq on, `recorded_at` only rises (a clock may go back).
`oversize`: it grew past the policy's `max_bytes`. They change once in many appends, and their indexes with them.

So that damage to a row is seen, which SQLite does not notice, an event has a `checksum` (see `checksum`), and each record
says what it holds a second time, whoever writes it (see `record_copy`).
"""

from typing import Any, Final

from sqlalchemy import (
    DDL,
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy import (
    event as sa_event,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex

from aegis_store.triggers import SQLITE_TRIGGERS
from aegis_store.views import SQLITE_VIEWS

HEAD: Final = "0005"
"""The revision that this library works with."""

REVISION_SQL: Final = "SELECT version_num FROM alembic_version"
"""The revision of the store. Alembic writes it anew in the transaction of each revision, so whatever a later one changes, it
changes this: each transaction looks at it, and an append, which is one statement, by `AT_HEAD_SQL`."""

AT_HEAD_SQL: Final = f"EXISTS (SELECT 1 FROM alembic_version WHERE version_num = '{HEAD}')"

APPLICATION_ID: Final = 0x41454753
"""`PRAGMA application_id` of a store: "AEGS"."""

NO_CAP: Final = 2**63 - 1
"""UNLIMITED as `max_events` in the database: the largest number needs no special case in the triggers."""

_Int64 = BigInteger().with_variant(Integer, "sqlite")  # STRICT tables know INTEGER alone, always 64 bits there

_TERMINAL = "status IN ('closed', 'completed', 'failed')"

metadata = MetaData(
    naming_convention={
        "ix": "%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

store = Table(
    "store",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("max_events", _Int64, nullable=False),
    Column("max_event_bytes", _Int64, nullable=False),
    Column("terminal_grace_us", _Int64, nullable=False),
    Column("max_bytes", _Int64),
    Column("max_age_us", _Int64),
    Column("max_total_bytes", _Int64),
    Column("forget_sessions_after_us", _Int64),
    Column("mode", Text, nullable=False, server_default="enforce"),
    # The payload bytes of all sessions, counted only while there is a budget (max_total_bytes); NULL otherwise.
    Column("retained_bytes", _Int64),
    # Maintenance: when it was last at work, and in which process, while it is.
    Column("maintained_at", _Int64),
    Column("maintainer", Text),
    # The highest position that was ever removed: a reader of the whole store below it has missed something.
    Column("removed_position", _Int64, nullable=False, server_default="0"),
    Column("removed_at", _Int64),
    Column("removed_reason", Text),
    Column("record_copy", Text, nullable=False, server_default=""),
    Column("counter_sum", _Int64, nullable=False, server_default="0"),
    CheckConstraint("id = 1", name="one_row"),
    CheckConstraint("max_events >= 1", name="max_events"),
    CheckConstraint("max_event_bytes >= 1", name="max_event_bytes"),
    CheckConstraint("terminal_grace_us >= 0", name="terminal_grace_us"),
    CheckConstraint("max_bytes >= 1", name="max_bytes"),
    CheckConstraint("max_age_us >= 1", name="max_age_us"),
    CheckConstraint("max_total_bytes >= 1", name="max_total_bytes"),
    CheckConstraint("forget_sessions_after_us >= 0", name="forget_sessions_after_us"),
    CheckConstraint("mode IN ('enforce', 'warn')", name="mode"),
    CheckConstraint("(max_total_bytes IS NULL) = (retained_bytes IS NULL)", name="retained_bytes"),
    sqlite_strict=True,
)

# The store's number, drawn when the schema is made; see `record_copy`.
identity = Table(
    "identity",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("number", _Int64, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
    sqlite_strict=True,
)

session = Table(
    "session",
    metadata,
    Column("id", _Int64, primary_key=True),
    # NULL: the session was deleted, and its events are going; its tombstone has the name.
    Column("session_id", Text),
    Column("tenant", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("max_events", _Int64),
    Column("hold", Integer, nullable=False, server_default="0"),
    Column("first_seq", _Int64, nullable=False, server_default="1"),
    Column("last_seq", _Int64, nullable=False, server_default="0"),
    Column("total_bytes", _Int64, nullable=False, server_default="0"),
    Column("created_at", _Int64, nullable=False),
    Column("updated_at", _Int64, nullable=False),
    Column("ended_at", _Int64),
    Column("last_event_at", _Int64),
    Column("removed_at", _Int64),
    Column("removed_reason", Text),
    Column("oldest_at", _Int64),
    Column("unsorted_seq", _Int64, nullable=False, server_default="0"),
    Column("oversize", Integer, nullable=False, server_default="0"),
    Column("metadata", Text, nullable=False, server_default="{}"),
    Column("record_copy", Text, nullable=False, server_default=""),
    Column("counter_sum", _Int64, nullable=False, server_default="0"),
    UniqueConstraint("session_id"),
    CheckConstraint(
        "status IN ('initializing', 'idle', 'running', 'paused', 'intervening', 'closing', 'closed', 'completed', 'failed')",
        name="status",
    ),
    CheckConstraint(f"({_TERMINAL}) = (ended_at IS NOT NULL)", name="ended_at"),
    CheckConstraint("max_events >= 1", name="max_events"),
    CheckConstraint("hold IN (0, 1)", name="hold"),
    CheckConstraint("first_seq >= 1 AND first_seq <= last_seq + 1 AND last_seq <= 1000000000000", name="range"),
    CheckConstraint("total_bytes >= 0", name="total_bytes"),
    CheckConstraint("oversize IN (0, 1)", name="oversize"),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)

# Lists leave out what was deleted: as a condition of the indexes, it costs them nothing.
NAMED: Final = text("session_id IS NOT NULL")
Index("session_by_update", session.c.updated_at, session.c.id, sqlite_where=NAMED)
_BY_STATUS: Final = (session.c.status, session.c.updated_at, session.c.id)
Index("session_by_status", *_BY_STATUS, sqlite_where=NAMED)
Index("session_by_owner", session.c.tenant, session.c.owner, *_BY_STATUS, sqlite_where=NAMED)

# Where a prune finds its work: each index holds just the sessions that a limit may concern, in the order of what it asks.
# An append changes none of the columns in their conditions or keys, but for those of sessions that have ended.
# Sessions without a name are found by the unique index of `session_id`.
# (`ended_at` and not the status in the conditions: by a CHECK they are the same, and the planner prefers this form.)
PRUNABLE: Final = text("ended_at IS NOT NULL AND hold = 0 AND first_seq <= last_seq")
FORGETTABLE: Final = text("ended_at IS NOT NULL AND hold = 0 AND first_seq > last_seq")
AGEING: Final = text("oldest_at IS NOT NULL AND hold = 0")
OVERSIZE: Final = text("oversize = 1 AND hold = 0")
Index("session_prunable", session.c.ended_at, sqlite_where=PRUNABLE)
Index("session_forgettable", session.c.ended_at, sqlite_where=FORGETTABLE)
Index("session_ageing", session.c.oldest_at, sqlite_where=AGEING)
Index("session_oversize", session.c.id, sqlite_where=OVERSIZE)

# What is left of a session that was deleted or forgotten: its id goes on where it ended, for the same tenant and owner.
tombstone = Table(
    "tombstone",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("last_seq", _Int64, nullable=False),
    Column("total_bytes", _Int64, nullable=False),
    Column("removed_at", _Int64),
    Column("removed_reason", Text),
    Column("record_copy", Text, nullable=False, server_default=""),
    sqlite_strict=True,
)

Index("tombstone_by_owner", tombstone.c.tenant, tombstone.c.owner)

# A row for each run of a prune that had something to do, kept to the newest thousand.
prune_run = Table(
    "prune_run",
    metadata,
    Column("id", _Int64, primary_key=True),
    Column("started_at", _Int64, nullable=False),
    Column("now", _Int64, nullable=False),
    Column("trigger", Text, nullable=False),
    Column("events", _Int64, nullable=False, server_default="0"),
    Column("bytes", _Int64, nullable=False, server_default="0"),
    Column("sessions", _Int64, nullable=False, server_default="0"),
    Column("sessions_forgotten", _Int64, nullable=False, server_default="0"),
    Column("reasons", Text, nullable=False, server_default="{}"),
    Column("duration_us", _Int64, nullable=False, server_default="0"),
    # NULL: at work, or killed.
    Column("outcome", Text),
    Column("record_copy", Text, nullable=False, server_default=""),
    CheckConstraint("trigger IN ('startup', 'maintenance', 'api', 'cli')", name="trigger"),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)

event = Table(
    "event",
    metadata,
    Column("position", _Int64, primary_key=True),
    Column("session", _Int64, ForeignKey("session.id"), nullable=False),
    Column("seq", _Int64, nullable=False),
    Column("type", Text, nullable=False),
    Column("occurred_at", _Int64, nullable=False),
    Column("recorded_at", _Int64, nullable=False),
    Column("event_id", Text),
    Column("run_id", Text),
    Column("payload_ref", Text),
    Column("bytes_before", _Int64, nullable=False),
    # TEXT on PostgreSQL too: JSONB refuses U+0000 and drops the sign of -0.0. Late, since it overflows.
    Column("payload", Text, nullable=False),
    Column("checksum", _Int64),
    UniqueConstraint("session", "seq"),
    CheckConstraint("position >= 1", name="position"),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)


class _PayloadBytes(ColumnElement[bytes]):
    inherit_cache = True
    type = LargeBinary()


@compiles(_PayloadBytes)
def _payload_bytes(element: _PayloadBytes, compiler: Any, **_: Any) -> str:
    return "CAST(event.payload AS BLOB)"


@compiles(_PayloadBytes, "postgresql")
def _payload_bytes_on_postgresql(element: _PayloadBytes, compiler: Any, **_: Any) -> str:
    return "convert_to(event.payload, 'UTF8')"


PAYLOAD_BYTES: Final = _PayloadBytes().label("payload")
"""The payload of an event as the bytes of which the checksum is one."""

_HAS_EVENT_ID = text("event_id IS NOT NULL")
Index(
    "event_by_event_id",
    event.c.session,
    event.c.event_id,
    unique=True,
    sqlite_where=_HAS_EVENT_ID,
)

for _statement in (*SQLITE_TRIGGERS.values(), *SQLITE_VIEWS.values()):
    _ddl = DDL(_statement.strip().replace("%", "%%"))  # type: ignore[no-untyped-call]
    sa_event.listen(metadata, "after_create", _ddl.execute_if(dialect="sqlite"))


@compiles(CreateIndex, "postgresql")
def _create_index(element: CreateIndex, compiler: Any, **options: Any) -> str:
    """The same conditions there. Named at each index, they would have its dialect imported by all who open a store: 20 ms."""
    index: Any = element.element
    index.dialect_options["postgresql"]["where"] = index.dialect_options["sqlite"]["where"]
    return str(compiler.visit_create_index(element, **options))
