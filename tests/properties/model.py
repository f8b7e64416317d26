"""A store as its documentation tells of it: sessions in a dict, events in lists, and nothing else.

`ModelStore` has methods of `EventStore`, with the same arguments, results and errors. It is written from the promises, for
reading rather than for speed, and shares with the product only the nouns that it speaks in. Of what an argument may be it
knows little: what cannot be taken at all is for the test to say.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count, takewhile
from typing import Any, NamedTuple

from aegis_store import (
    UNCHANGED,
    UNLIMITED,
    CursorAhead,
    Event,
    EventIdConflict,
    EventsMissed,
    EventsTruncated,
    EventTooLarge,
    InvalidSession,
    NewEvent,
    Page,
    RetentionPolicy,
    SequenceConflict,
    Session,
    SessionExists,
    SessionNotFound,
    Status,
)
from aegis_store.events import Json, Unchanged, Unlimited

TERMINAL = (Status.CLOSED, Status.COMPLETED, Status.FAILED)


def payload_bytes(payload: Json) -> int:
    """What it takes as JSON in UTF-8; half of a surrogate pair can only be written with escapes."""
    try:
        return len(json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode())
    except UnicodeEncodeError:
        return len(json.dumps(payload, separators=(",", ":")))


def size_of(events: Collection[Event]) -> int:
    return sum(payload_bytes(event.payload) for event in events)


def content_of(event: Event | NewEvent) -> tuple[Any, ...]:
    """What a retry has to repeat: 1 is not true there, and the order of keys is of no matter."""
    return event.type, json.dumps(event.payload, sort_keys=True), event.run_id, event.payload_ref


@dataclass
class ModelSession:
    """A session, the events that it retains, and what is known of those that went."""

    session_id: str
    tenant: str
    owner: str
    status: Status
    metadata: Mapping[str, Json]
    max_events: int | Unlimited | None
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    hold: bool = False
    last_seq: int = 0
    last_event_at: datetime | None = None
    removed_bytes: int = 0
    removed_at: datetime | None = None
    removed_reason: str | None = None
    events: list[Event] = field(default_factory=list)

    @property
    def first_seq(self) -> int:
        return self.last_seq + 1 - len(self.events)

    def record(self) -> Session:
        own = {name: value for name, value in vars(self).items() if name != "events"}
        return Session(first_seq=self.first_seq, retained_bytes=size_of(self.events), **own)

    def snapshot(self) -> "ModelSession":
        return replace(self, events=list(self.events))

    def of_id(self, event_id: str | None) -> Event | None:
        return next((each for each in self.events if event_id is not None and each.event_id == event_id), None)


@dataclass(frozen=True)
class Tombstone:
    """What is left of a session that was deleted or forgotten."""

    scope: tuple[str, str]
    last_seq: int
    removed_bytes: int
    removed_at: datetime
    removed_reason: str


class Going(NamedTuple):
    """A part of a plan: the oldest `events` of a session go."""

    session: ModelSession
    status: Status
    first_seq: int
    events: int
    bytes: int
    reason: str
    forgets: bool


class ModelPlan(NamedTuple):
    now: datetime
    policy: RetentionPolicy
    parts: list[Going]

    @property
    def takes_for_the_budget(self) -> bool:
        return any(part.reason == "max_total_bytes" for part in self.parts)


@dataclass
class Run:
    """A row of the history of prunes, and what a prune reports."""

    started_at: datetime
    now: datetime
    trigger: str
    outcome: str = "done"
    events: int = 0
    bytes: int = 0
    sessions: int = 0
    sessions_forgotten: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)

    def add(self, events: int, size: int, reason: str) -> None:
        if events:
            self.events += events
            self.bytes += size
            self.sessions += 1
            self.by_reason[reason] = self.by_reason.get(reason, 0) + events


class Exported(NamedTuple):
    """What a file of an export holds."""

    policy: RetentionPolicy | None
    sessions: list[ModelSession]
    events: list[Event]


class ModelStore:
    """See above. `now` is the clock that the store is to go by."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now
        self.policy = RetentionPolicy()
        self.sessions: dict[str, ModelSession] = {}  # in the order of their making
        self.tombstones: dict[str, Tombstone] = {}
        self.runs: list[Run] = []
        self.last_position = 0
        # The removal with the highest position: of which event, when and why.
        self.removed: tuple[int, datetime | None, str | None] = (0, None, None)

    # Sessions

    def create_session(
        self,
        session_id: str,
        *,
        tenant: str = "default",
        owner: str = "default",
        status: str = "running",
        metadata: Mapping[str, Json] | None = None,
        max_events: int | Unlimited | None = None,
    ) -> Session:
        if session_id in self.sessions:
            raise SessionExists(session_id=session_id)
        now, state = self.now(), Status(status)
        ended_at = now if state in TERMINAL else None
        made = ModelSession(session_id, tenant, owner, state, metadata or {}, max_events, now, now, ended_at)
        self._enter(made)
        return made.record()

    def _enter(self, made: ModelSession) -> None:
        """A session that was here before goes on where it ended, for the same tenant and owner."""
        grave = self.tombstones.get(made.session_id)
        if grave is not None:
            if grave.scope != (made.tenant, made.owner):
                raise SessionExists(session_id=made.session_id)
            made.last_seq, made.removed_bytes = grave.last_seq, grave.removed_bytes
            made.removed_at, made.removed_reason = grave.removed_at, grave.removed_reason
            del self.tombstones[made.session_id]
        self.sessions[made.session_id] = made

    def ensure_session(self, session_id: str, *, tenant: str = "default", owner: str = "default", **more: Any) -> Session:
        standing = self.sessions.get(session_id)
        if standing is None or (standing.tenant, standing.owner) != (tenant, owner):
            return self.create_session(session_id, tenant=tenant, owner=owner, **more)
        return standing.record()

    def standing(self, session_id: str) -> ModelSession:
        if session_id not in self.sessions:
            raise SessionNotFound(session_id=session_id)
        return self.sessions[session_id]

    def get_session(self, session_id: str) -> Session:
        return self.standing(session_id).record()

    def set_status(self, session_id: str, status: str) -> Session:
        session, state = self.standing(session_id), Status(status)
        if session.status != state:
            session.status, session.updated_at = state, self.now()
            if state not in TERMINAL:
                session.ended_at = None
            elif session.ended_at is None:
                session.ended_at = self.now()
        return session.record()

    def update_session(
        self,
        session_id: str,
        *,
        metadata: Mapping[str, Json] | Unchanged = UNCHANGED,
        max_events: int | Unlimited | Unchanged | None = UNCHANGED,
        hold: bool | Unchanged = UNCHANGED,
    ) -> Session:
        session = self.standing(session_id)
        if not isinstance(metadata, Unchanged):
            session.metadata = metadata
        if not isinstance(max_events, Unchanged):
            session.max_events = max_events
            self._hold_to_cap(session, self.now())
        if not isinstance(hold, Unchanged):
            session.hold = hold
        if any(not isinstance(given, Unchanged) for given in (metadata, max_events, hold)):
            session.updated_at = self.now()
        return session.record()

    def delete_session(self, session_id: str) -> None:
        session = self.standing(session_id)
        if session.hold:
            raise InvalidSession("on hold")
        run = Run(self.now(), self.now(), "api")
        run.add(len(session.events), size_of(session.events), "deleted")
        run.sessions_forgotten = 1
        self.runs.append(run)
        self._bury(session, "deleted")

    def _bury(self, session: ModelSession, reason: str) -> None:
        self._remove(session, len(session.events), self.now(), reason)
        scope = session.tenant, session.owner
        grave = Tombstone(scope, session.last_seq, session.removed_bytes, self.now(), reason)
        self.tombstones[session.session_id] = grave
        del self.sessions[session.session_id]

    # Events

    def append(self, session_id: str, type: str, payload: Json, *, expected_seq: int | None = None, **more: Any) -> Event:
        session, new = self.standing(session_id), NewEvent(type=type, payload=payload, **more)
        known = self._known(session, new)
        if known is None and expected_seq not in (None, session.last_seq):
            raise SequenceConflict(session_id=session_id, expected=expected_seq or 0, actual=session.last_seq)
        return known or self._append(session, new)

    def append_many(self, session_id: str, events: list[NewEvent], *, expected_seq: int | None = None) -> list[Event]:
        session = self.standing(session_id)
        known = [self._known(session, new, f"events[{index}]") for index, new in enumerate(events)]
        if expected_seq not in (None, session.last_seq) and (None in known or not events):
            raise SequenceConflict(session_id=session_id, expected=expected_seq or 0, actual=session.last_seq)
        before = copy(self), session.snapshot()
        try:
            return [
                known[index]
                or self._known(session, new, f"events[{index}]", in_batch=True)
                or self._append(session, new, f"events[{index}].payload")
                for index, new in enumerate(events)
            ]
        except (EventTooLarge, EventIdConflict):  # all or nothing
            vars(self).update(vars(before[0]))
            vars(session).update(vars(before[1]))
            raise

    def _known(self, session: ModelSession, new: NewEvent, path: str | None = None, *, in_batch: bool = False) -> Event | None:
        known = session.of_id(new.event_id)
        if known is not None and content_of(known) != content_of(new):
            seq = None if in_batch else known.seq
            raise EventIdConflict(session_id=session.session_id, event_id=new.event_id or "", seq=seq, path=path)
        return known

    def _append(self, session: ModelSession, new: NewEvent, path: str = "payload") -> Event:
        size, limit = payload_bytes(new.payload), self.policy.max_event_bytes
        if size > limit:
            raise EventTooLarge(payload_bytes=size, max_event_bytes=limit, path=path)
        event = Event(
            session_id=session.session_id,
            seq=session.last_seq + 1,
            position=0,
            type=new.type,
            payload=new.payload,
            occurred_at=(new.occurred_at or self.now()).astimezone(UTC),
            recorded_at=self.now(),
            event_id=new.event_id,
            run_id=new.run_id,
            payload_ref=new.payload_ref,
        )
        return self._put(session, event)

    def _put(self, session: ModelSession, event: Event) -> Event:
        """Positions only promise to rise. Those of a store in one file have no gaps, so that it is known what they are."""
        self.last_position += 1
        event = event._replace(position=self.last_position)
        session.events.append(event)
        session.last_seq, session.last_event_at = event.seq, event.recorded_at
        self._hold_to_cap(session, event.recorded_at)
        return event

    def cap_of(self, session: ModelSession) -> int | Unlimited:
        return self.policy.max_events if session.max_events is None else session.max_events

    def _hold_to_cap(self, session: ModelSession, at: datetime) -> None:
        cap = self.cap_of(session)
        if isinstance(cap, int):
            self._remove(session, len(session.events) - cap, at, "max_events")

    def _remove(self, session: ModelSession, number: int, at: datetime, reason: str) -> None:
        """The one way in which events go: from the oldest, and never without a word."""
        if number <= 0:
            return
        gone = session.events[:number]
        del session.events[:number]
        session.removed_bytes += size_of(gone)
        session.removed_at, session.removed_reason = at, reason
        if gone[-1].position > self.removed[0]:
            self.removed = gone[-1].position, at, reason

    # Reading

    def events(self) -> list[Event]:
        """All of the store by rising position."""
        return sorted((e for session in self.sessions.values() for e in session.events), key=lambda e: e.position)

    def read(
        self,
        session_id: str,
        *,
        after_seq: int | None = None,
        limit: int = 100,
        types: Collection[str] | None = None,
        on_gap: str = "raise",
    ) -> Page:
        session = self.standing(session_id)
        oldest = session.first_seq - 1
        after = oldest if after_seq is None else after_seq
        lost = self._lost_of(session, after)
        if lost is not None and on_gap == "raise":
            raise lost
        found = [e for e in session.events if e.seq > after and (types is None or e.type in types)][:limit]
        seen = found[-1].seq if len(found) == limit else session.last_seq
        return Page(
            events=found,
            first_seq=session.first_seq,
            last_seq=session.last_seq,
            next_after_seq=seen,
            has_more=seen < session.last_seq,
            missed=max(oldest - after, 0),
        )

    def _lost_of(self, session: ModelSession, after: int) -> EventsTruncated | None:
        """What a reader of the session is told who has seen the events up to `after`."""
        name, first, last = session.session_id, session.first_seq, session.last_seq
        if after > last:
            raise CursorAhead(session_id=name, requested_seq=after, last_seq=last)
        if after >= first - 1:
            return None
        return EventsTruncated(
            session_id=name,
            requested_seq=after,
            first_seq=first,
            last_seq=last,
            removed_at=session.removed_at,
            reason=session.removed_reason,
        )

    def read_all(self, *, after_position: int | None = None, limit: int = 100, on_gap: str = "raise") -> list[Event]:
        lost = self._lost(after_position)
        if lost is not None and on_gap == "raise":
            raise lost
        return [event for event in self.events() if event.position > (after_position or 0)][:limit]

    def _lost(self, after: int | None) -> EventsTruncated | None:
        """What a reader of the whole store is told; without a cursor he has missed nothing."""
        position, at, reason = self.removed
        if after is not None and after > self.last_position:
            raise CursorAhead(session_id=None, requested_seq=after, last_seq=self.last_position)
        if after is None or after >= position:
            return None
        return EventsTruncated(
            session_id=None,
            requested_seq=after,
            first_seq=position + 1,
            last_seq=self.last_position,
            removed_at=at,
            reason=reason,
        )

    def follow(
        self,
        session_id: str | None = None,
        *,
        after: int | None = None,
        last: int | None = None,
        timeout: float = 0,
        types: Collection[str] | None = None,
        on_gap: str = "raise",
    ) -> list[Event | EventsMissed]:
        if session_id is None:
            lost, events = self._lost(after), self.events()
        else:
            session = self.standing(session_id)
            lost = None if after is None else self._lost_of(session, after)
            events = list(session.events)
        if lost is not None and on_gap == "raise":
            raise lost
        if last is not None:
            events = events[max(len(events) - last, 0) :]
        if after is not None:
            events = [e for e in events if (e.position if session_id is None else e.seq) > after]
        wanted = [event for event in events if types is None or event.type in types]
        return [*([] if lost is None else [missed_of(lost)]), *wanted]

    # Retention

    def retention_policy(self) -> RetentionPolicy:
        return self.policy

    def plan_policy(self, policy: RetentionPolicy) -> tuple[int, int]:
        """How many sessions would lose something at once, and how many events."""
        heirs = [session for session in self.sessions.values() if session.max_events is None]
        cap = policy.max_events
        over = [] if cap is UNLIMITED else [n for s in heirs if (n := len(s.events) - cap) > 0]
        return len(over), sum(over)

    def set_retention_policy(self, policy: RetentionPolicy) -> None:
        self.policy = policy
        for session in self.sessions.values():
            self._hold_to_cap(session, self.now())

    def plan_prune(self, *, now: datetime | None = None) -> ModelPlan:
        now = now or self.now()
        going: dict[str, tuple[int, str]] = {}
        for name, session in self.sessions.items():
            decision = decide(session, self.policy, now)
            if decision is not None:
                going[name] = decision
            elif not session.events and forgets(session, self.policy, now):
                going[name] = (0, "forget_sessions_after")
        for name, number in self._over_budget({name: number for name, (number, _) in going.items()}):
            going[name] = (number, "max_total_bytes")
        parts = [self._part(name, number, reason, now) for name, (number, reason) in going.items()]
        return ModelPlan(now, self.policy, parts)

    def _part(self, name: str, number: int, reason: str, now: datetime) -> Going:
        session = self.sessions[name]
        last = number == len(session.events) and forgets(session, self.policy, now)
        return Going(session, session.status, session.first_seq, number, size_of(session.events[:number]), reason, last)

    def _over_budget(self, going: Mapping[str, int]) -> Iterator[tuple[str, int]]:
        """Over the budget, events go one by one down to 80 %: of sessions that ended first, in that order, then the oldest."""
        budget = self.policy.max_total_bytes
        left = {name: session.events[going.get(name, 0) :] for name, session in self.sessions.items()}
        retained = sum(map(size_of, left.values()))
        if budget is None or retained <= budget:
            return
        free = [session for session in self.sessions.values() if not session.hold]
        ended = sorted((s for s in free if s.ended_at is not None), key=lambda s: s.ended_at or s.created_at)
        queue = [event for session in ended for event in left[session.session_id]]
        live = [event for session in free if session.ended_at is None for event in left[session.session_id]]
        for event in queue + sorted(live, key=lambda event: event.position):
            if retained <= budget * 8 // 10:
                return
            retained -= payload_bytes(event.payload)
            yield event.session_id, event.seq + 1 - self.sessions[event.session_id].first_seq

    def prune(self, plan: ModelPlan | None = None) -> Run:
        return self._carry_out(plan or self.plan_prune(), "api")

    def _carry_out(self, plan: ModelPlan, trigger: str) -> Run:
        run = Run(self.now(), plan.now, trigger)
        for part in plan.parts:
            session = part.session
            if self.sessions.get(session.session_id) is not session:
                continue  # deleted since
            number, reason = self._due(plan, part)
            run.add(number, size_of(session.events[:number]), reason)
            self._remove(session, number, self.now(), reason)
            policies = plan.policy, self.policy
            if part.forgets and not session.events and all(forgets(session, policy, plan.now) for policy in policies):
                run.sessions_forgotten += 1
                self._bury(session, "forget_sessions_after")
        self.runs.append(run)
        return run

    def _due(self, plan: ModelPlan, part: Going) -> tuple[int, str]:
        """No more than was planned, than the policy of then asks for, and than that in force asks for.

        What goes for the sake of the budget is known only of a plan that is carried out at once: then it is what was planned.
        """
        if part.reason == "max_total_bytes":
            return part.events, part.reason
        decisions = [decide(part.session, policy, plan.now) for policy in (plan.policy, self.policy)]
        number, reason = min(decision or (0, "") for decision in decisions)
        planned = part.first_seq + part.events - part.session.first_seq
        return max(min(number, planned), 0), reason

    def open(self) -> None:
        """What the startup job does."""
        plan = self.plan_prune()
        if not plan.parts:
            return
        if self.policy.mode == "enforce":
            self._carry_out(plan, "startup")
            return
        run = Run(self.now(), plan.now, "startup", "reported")
        for part in plan.parts:
            run.add(part.events, part.bytes, part.reason)
            run.sessions_forgotten += part.forgets
        self.runs.append(run)

    # Overview

    def stats(self) -> dict[str, Any]:
        sessions, graves = self.sessions.values(), self.tombstones.values()
        states = [session.status for session in sessions]
        return {
            "sessions": {status: states.count(status) for status in states},
            "events": len(self.events()),
            "retained_bytes": size_of(self.events()),
            "removed_events": sum(s.first_seq - 1 for s in sessions) + sum(grave.last_seq for grave in graves),
            "removed_bytes": sum(s.removed_bytes for s in sessions) + sum(grave.removed_bytes for grave in graves),
        }

    # Transfer

    def export(self, session_ids: Collection[str] | None = None) -> Exported:
        if session_ids is not None:
            chosen = [self.standing(name).snapshot() for name in dict.fromkeys(session_ids)]
            return Exported(None, chosen, [event for session in chosen for event in session.events])
        return Exported(self.policy, [session.snapshot() for session in self.sessions.values()], self.events())

    def import_lines(self, file: Exported, *, hold: bool = False) -> dict[str, Any]:
        adopted = file.policy not in (None, RetentionPolicy()) and not self.sessions and self.policy == RetentionPolicy()
        if adopted and file.policy is not None:
            self.policy = file.policy
        outcomes = {session.session_id: self._outcome(session) for session in file.sessions}
        counts = {"events_added": 0, "events_capped": 0, "events_standing": 0, "events_pruned": 0}
        for session in file.sessions:
            if outcomes[session.session_id] in ("added", "unchanged") and self._bring_record(session, hold):
                outcomes[session.session_id] = "updated"
        first = {name: session.first_seq for name, session in self.sessions.items()}
        for event in file.events:
            if outcomes[event.session_id] != "refused":
                count = self._bring_event(event)
                counts[count] += 1
                if count == "events_added" and outcomes[event.session_id] == "unchanged":
                    outcomes[event.session_id] = "updated"
        counts["events_capped"] = sum(session.first_seq - first[name] for name, session in self.sessions.items())
        found = list(outcomes.values())
        return {
            **{f"sessions_{each}": found.count(each) for each in ("added", "updated", "unchanged", "deleted")},
            **counts,
            "refused": [name for name, outcome in outcomes.items() if outcome == "refused"],
            "policy_adopted": adopted,
        }

    def _outcome(self, file: ModelSession) -> str:
        """What an import makes of a session of the file, as far as its events do not change that."""
        standing, grave = self.sessions.get(file.session_id), self.tombstones.get(file.session_id)
        scope, last_seq = (file.tenant, file.owner), 0
        if standing is not None:
            theirs, last_seq = (standing.tenant, standing.owner), standing.last_seq
        elif grave is not None:
            theirs, last_seq = grave.scope, grave.last_seq
        else:
            theirs = scope
        gap = file.first_seq > last_seq + 1 and (last_seq > 0 or grave is not None)
        new = [event for event in file.events if event.seq > last_seq]
        too_large = any(payload_bytes(event.payload) > self.policy.max_event_bytes for event in new)
        if theirs != scope or gap or too_large or (standing and self._contradicts(standing, file, new)):
            return "refused"
        if standing is not None:
            return "unchanged"
        return "added" if grave is None or file.last_seq > last_seq else "deleted"

    def _contradicts(self, standing: ModelSession, file: ModelSession, new: list[Event]) -> bool:
        """Whether a newer record has a cap that does not hold, or an event comes again by its id under another seq."""
        is_newer = file.updated_at > standing.updated_at
        cap = self.cap_of(file if is_newer else standing)
        if is_newer and isinstance(cap, int) and len(standing.events) > cap:
            return True
        again = [(event.seq, known.seq) for event in new if (known := standing.of_id(event.event_id)) is not None]
        return any(cap is UNLIMITED or known > seq - 1 - cap for seq, known in again)

    def _bring_record(self, file: ModelSession, hold: bool) -> bool:
        """Whether that changed a session that stands."""
        standing = self.sessions.get(file.session_id)
        if standing is None:
            made = replace(file, events=[], last_seq=file.first_seq - 1, hold=file.hold or hold)
            if file.events:
                made.last_event_at = None
            self._enter(made)
            return False
        before = standing.snapshot()
        if standing.last_seq == 0 and file.first_seq > 1:
            standing.last_seq, standing.removed_bytes = file.first_seq - 1, file.removed_bytes
            standing.removed_at, standing.removed_reason = file.removed_at, file.removed_reason
            standing.last_event_at = None if file.events else file.last_event_at
        if file.updated_at > standing.updated_at:
            for name in ("status", "metadata", "max_events", "hold", "ended_at", "updated_at"):
                setattr(standing, name, getattr(file, name))
        standing.hold = standing.hold or hold
        return standing != before

    def _bring_event(self, event: Event) -> str:
        session = self.sessions.get(event.session_id)
        if session is None or event.seq < session.first_seq:
            return "events_pruned"
        if event.seq <= session.last_seq:
            return "events_standing"
        self._put(session, event)
        return "events_added"


# Decisions


def decide(session: ModelSession, policy: RetentionPolicy, now: datetime) -> tuple[int, str] | None:
    """How many of its oldest events a session loses, and by which knob, as often as that uncovers more."""
    number, reason = 0, ""
    while not session.hold:
        left = session.events[number:]
        gone = gone_by_limits(session, left, policy, now)
        knob = max(gone, key=gone.__getitem__)
        if not gone[knob]:
            break
        number, reason = number + gone[knob], knob
    return (number, reason) if number else None


def gone_by_limits(session: ModelSession, left: list[Event], policy: RetentionPolicy, now: datetime) -> dict[str, int]:
    """How many of the events `left` each knob takes."""
    gone = {"terminal_grace": 0}
    if session.ended_at is not None and (not policy.terminal_grace or session.ended_at <= now - policy.terminal_grace):
        gone["terminal_grace"] = len(left)
    if policy.max_age is not None:
        limit = now - policy.max_age
        gone["max_age"] = len(list(takewhile(lambda event: event.recorded_at < limit, left)))
    if policy.max_bytes is not None:
        most = policy.max_bytes
        gone["max_bytes"] = next(number for number in count() if size_of(left[number:]) <= most)
    return gone


def forgets(session: ModelSession, policy: RetentionPolicy, now: datetime) -> bool:
    """Whether the record of a session without events goes."""
    after = policy.forget_sessions_after
    return after is not None and not session.hold and session.ended_at is not None and session.ended_at <= now - after


def missed_of(lost: EventsTruncated) -> EventsMissed:
    """The same word in a stream."""
    of_session = lost.session_id is not None
    return EventsMissed(
        session_id=lost.session_id,
        after=lost.requested_seq,
        first_seq=lost.first_seq if of_session else None,
        first_position=None if of_session else lost.first_seq,
        count=lost.first_seq - 1 - lost.requested_seq if of_session else None,
        removed_at=lost.removed_at,
        reason=lost.reason,
    )
