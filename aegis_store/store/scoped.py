"""`ScopedStore`: the surface of `EventStore` for the sessions of one tenant and one owner.

A method that names a session first looks whether the scope has it, and is `SessionNotFound` then and there if not. So what
belongs to others takes the same way as what does not exist, and no method can forget it: those that are not listed here are
not there. That it looks first, and acts in a transaction of its own, is no gap: an id that is a scope's stays the scope's.
(An append asks in its one statement.)
"""

import functools
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Any, Concatenate, Literal, NoReturn, ParamSpec, Self, TypeVar, overload

from aegis_store import append, follow, read, sessions
from aegis_store.database import Database
from aegis_store.errors import InvalidInput, InvalidSession, OutOfScope, shown
from aegis_store.events import Event, EventsMissed, Json, Session, SessionPage, StorePage, Unlimited
from aegis_store.follow import Following
from aegis_store.metrics import now_ns
from aegis_store.read import OnGap
from aegis_store.retention import find, limits
from aegis_store.retention.plan import PrunePlan
from aegis_store.retention.policy import RetentionPolicy
from aegis_store.retention.prune import OnProgress, PruneReport
from aegis_store.scope import Scope
from aegis_store.settings import DEFAULT_PAGE_EVENTS
from aegis_store.store.events import Events
from aegis_store.store.overview import Overview
from aegis_store.store.retention import Retention
from aegis_store.store.sessions import Sessions
from aegis_store.store.transfer import Transfer
from aegis_store.transfer.export import ExportReport, OnEvents, checked_ids, export

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Parts(Sessions, Events, Retention, Transfer, Overview):
    """All parts of an open store."""


def _of_session(method: Callable[Concatenate[Parts, _P], _R]) -> Callable[Concatenate["ScopedStore", _P], _R]:
    """The method, whose first argument is a `session_id`, for sessions of the scope."""

    @functools.wraps(method)
    def call(self: "ScopedStore", /, *args: Any, **kwargs: Any) -> _R:
        if args:
            args = (self._own(args[0]), *args[1:])
        elif "session_id" in kwargs:
            kwargs["session_id"] = self._own(kwargs["session_id"])
        return method(self._store, *args, **kwargs)

    return call


def _of_all(method: Callable[Concatenate[Parts, _P], _R]) -> Callable[Concatenate["ScopedStore", _P], _R]:
    """The method as it is, since what it says concerns everybody."""

    @functools.wraps(method)
    def call(self: "ScopedStore", /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return method(self._store, *args, **kwargs)

    return call


def _refused(method: Callable[Concatenate[Parts, _P], object]) -> Callable[Concatenate["ScopedStore", _P], NoReturn]:
    """The method is for the whole store: `OutOfScope`."""

    @functools.wraps(method)
    def call(self: "ScopedStore", /, *args: _P.args, **kwargs: _P.kwargs) -> NoReturn:
        raise OutOfScope(method=method.__name__)

    return call


class ScopedStore:
    """The surface of `EventStore` for the sessions of one tenant and one owner: made by `EventStore.scoped`.

    Each method is that of `EventStore`, its text holds here too, but:

    - A session of another tenant or owner is `SessionNotFound`, as one that there never was. `create_session` and
      `ensure_session` make sessions of this scope; an id that another has taken is `SessionExists`, which says no more.
    - `list_sessions`, `read_all`, `follow`, `plan_prune`, `prune` and `export` concern the sessions of the scope.
    - `retention_policy` is that of the store, which holds here too.
    - `OutOfScope` is raised by what concerns the whole store: `set_retention_policy`, `plan_policy`, `prune_history`,
      `reclaim`, `import_lines`, `import_aegis`, `backup`, `overview`, `stats`, `health`, `verify`, and `scoped`
      for another scope.
    - `close`, and leaving it as a context manager, does nothing: it ends with the store that it is of.

    Positions, and cursors, are those of the store: they tell how much others write, and when, but not what. Damage to what
    is of others is not met here, unless it is the whole file's.
    """

    def __init__(self, store: Parts, scope: Scope) -> None:
        """Not for callers: see `EventStore.scoped`."""
        self._store = store
        self._scope = scope

    @property
    def _db(self) -> Database:
        return self._store._db

    def _own(self, session_id: str) -> str:
        """The id, if the scope has such a session; `SessionNotFound` otherwise."""
        with self._db.read() as conn:
            return sessions.known_in_scope(conn, self._scope, session_id)

    def scoped(self, *, tenant: str, owner: str) -> "ScopedStore":
        """This store for its own tenant and owner. Raises `OutOfScope` for others."""
        if Scope.of(tenant, owner) != self._scope:
            raise OutOfScope(method="scoped")
        return self

    # Sessions

    def create_session(
        self,
        session_id: str | None = None,
        *,
        tenant: str | None = None,
        owner: str | None = None,
        status: str = "running",
        metadata: Mapping[str, Json] | None = None,
        max_events: int | Unlimited | None = None,
    ) -> Session:
        """As `EventStore.create_session`, in this scope. Raises `InvalidSession` for another tenant or owner."""
        self._check_names(tenant, owner)
        mine = self._scope._asdict()
        return self._store.create_session(session_id, **mine, status=status, metadata=metadata, max_events=max_events)

    def ensure_session(
        self,
        session_id: str,
        *,
        tenant: str | None = None,
        owner: str | None = None,
        status: str = "running",
        metadata: Mapping[str, Json] | None = None,
        max_events: int | Unlimited | None = None,
    ) -> Session:
        """As `EventStore.ensure_session`, in this scope. Raises `InvalidSession` for another tenant or owner."""
        self._check_names(tenant, owner)
        mine = self._scope._asdict()
        return self._store.ensure_session(session_id, **mine, status=status, metadata=metadata, max_events=max_events)

    def _check_names(self, tenant: str | None, owner: str | None) -> None:
        for name, given, own in (("tenant", tenant, self._scope.tenant), ("owner", owner, self._scope.owner)):
            if given is not None and given != own:
                raise InvalidSession(f"{name} must be that of the scope, {shown(own)}, or left out, not {shown(given)}")

    get_session = _of_session(Parts.get_session)

    def list_sessions(
        self,
        *,
        statuses: Collection[str] | None = None,
        updated_after: datetime | None = None,
        limit: int = DEFAULT_PAGE_EVENTS,
        cursor: str | None = None,
    ) -> SessionPage:
        """As `EventStore.list_sessions`, of this scope."""
        with self._db.read() as conn:
            return sessions.page(
                conn, statuses=statuses, updated_after=updated_after, limit=limit, cursor=cursor, scope=self._scope
            )

    set_status = _of_session(Parts.set_status)
    update_session = _of_session(Parts.update_session)
    delete_session = _of_session(Parts.delete_session)

    # Events

    def append(
        self,
        session_id: str,
        type: str,
        payload: Json,
        *,
        event_id: str | None = None,
        expected_seq: int | None = None,
        occurred_at: datetime | None = None,
        run_id: str | None = None,
        payload_ref: str | None = None,
    ) -> Event:
        """As `EventStore.append`, in as much time: the one statement says whose session it must be."""
        began_ns = now_ns()
        db = self._db
        given = (session_id, type, payload, event_id, expected_seq, occurred_at, run_id, payload_ref)
        event = append.append(db, append.prepare(*given, redact=db.redact, scope=self._scope))
        db.metrics.appended(began_ns)
        return event

    append_many = _of_session(Parts.append_many)
    read = _of_session(Parts.read)

    def read_all(
        self, *, after_position: int | None = None, limit: int = DEFAULT_PAGE_EVENTS, on_gap: OnGap = "raise"
    ) -> StorePage:
        """As `EventStore.read_all`, of this scope.

        A page looks at 1,000 events of the store at the most: it may come back short, even empty, with `has_more`; go on from
        its `next_after_position`.

        Only for events of this scope that were removed is `EventsTruncated` raised. The store does not keep where each of them
        lay: once something was removed behind the cursor, sessions of this scope that have lost events count as well, up to
        their oldest retained one. So it is never silent, but may be raised for events that were read before they went.
        """
        settled = self._db.settled_position()
        with self._db.read() as conn:
            page = read.page_of_all(
                conn, after_position=after_position, limit=limit, on_gap=on_gap, settled=settled, scope=self._scope
            )
        if page.is_truncated:
            self._db.metrics.read_truncated()
        return page.events

    @overload
    def follow(
        self,
        session_id: str | None = None,
        *,
        after: int | None = None,
        last: int | None = None,
        timeout: float | None = None,
        types: Collection[str] | None = None,
        on_gap: Literal["raise"] = "raise",
    ) -> Iterator[Event]: ...

    @overload
    def follow(
        self,
        session_id: str | None = None,
        *,
        after: int | None = None,
        last: int | None = None,
        timeout: float | None = None,
        types: Collection[str] | None = None,
        on_gap: Literal["skip"],
    ) -> Iterator[Event | EventsMissed]: ...

    def follow(
        self,
        session_id: str | None = None,
        *,
        after: int | None = None,
        last: int | None = None,
        timeout: float | None = None,
        types: Collection[str] | None = None,
        on_gap: OnGap = "raise",
    ) -> Iterator[Event | EventsMissed]:
        """As `EventStore.follow`, of a session of this scope or, without one, of all of them."""
        timeout_s = follow.checked_timeout_s(timeout)
        follower = self._following(session_id, after=after, last=last, types=types, on_gap=on_gap)
        return follow.stream(self._db, follower, timeout_s)

    def _following(self, session_id: str | None, **how: Any) -> Following:
        own = None if session_id is None else self._own(session_id)
        return follow.following(self._db, own, **how, scope=self._scope)

    # Retention

    retention_policy = _of_all(Parts.retention_policy)
    set_retention_policy = _refused(Parts.set_retention_policy)
    plan_policy = _refused(Parts.plan_policy)

    def plan_prune(self, *, now: datetime | None = None, policy: RetentionPolicy | None = None) -> PrunePlan:
        """As `EventStore.plan_prune`, of this scope. The budget of the store (`max_total_bytes`) is not looked at."""
        with self._db.read() as conn:
            return find.plan(conn, now, None if policy is None else limits.checked(policy), self._scope)

    def prune(
        self,
        plan: PrunePlan | None = None,
        *,
        archive_dir: str | os.PathLike[str] | None = None,
        on_progress: OnProgress | None = None,
        trigger: Literal["api", "cli"] = "api",
    ) -> PruneReport:
        """As `EventStore.prune`: of a plan, what concerns this scope. The report has no `run_id` and no `reclaimable_bytes`."""
        self._db.check_writable()
        if plan is None:
            plan = self.plan_prune()
        elif isinstance(plan, PrunePlan):
            with self._db.read() as conn:
                plan = find.within_scope(conn, plan, self._scope)
        report = self._store.prune(plan, archive_dir=archive_dir, on_progress=on_progress, trigger=trigger)
        return replace(report, run_id=None, reclaimable_bytes=0)

    prune_history = _refused(Parts.prune_history)
    reclaim = _refused(Parts.reclaim)

    # Transfer

    def export(
        self,
        file: str | os.PathLike[str],
        *,
        session_ids: Collection[str] | None = None,
        on_progress: OnEvents | None = None,
    ) -> ExportReport:
        """As `EventStore.export`, of all sessions of this scope or of some of them, one after the other; without the policy.

        Raises `InvalidInput` when the scope has none.
        """
        with self._db.read() as conn:
            if session_ids is not None:
                ids = [sessions.known_in_scope(conn, self._scope, session_id) for session_id in checked_ids(session_ids)]
            else:
                ids = sessions.ids_in_scope(conn, self._scope)
                if not ids:
                    raise InvalidInput("the scope holds no session, so there is nothing to export")
            return export(conn, file, ids, on_progress=on_progress)

    import_lines = _refused(Parts.import_lines)
    import_aegis = _refused(Parts.import_aegis)
    backup = _refused(Parts.backup)

    # Overview

    session_overview = _of_session(Parts.session_overview)
    overview = _refused(Parts.overview)
    stats = _refused(Parts.stats)
    health = _refused(Parts.health)
    verify = _refused(Parts.verify)

    # The end

    def close(self) -> None:
        """Nothing: what is of the scope stays open as long as the store that it is of."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ScopedStore tenant={shown(self._scope.tenant)} owner={shown(self._scope.owner)} of {self._store!r}>"
