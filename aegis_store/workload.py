"""The load of the incident, made up: what the demo plays and the benchmarks measure with. The same on every run."""

import random
from collections.abc import Iterator
from typing import Final, NamedTuple

from aegis_store.events import Json, Status

SESSIONS: Final = 359
LIVE_SESSIONS: Final = 220
EVENTS: Final = 8614
"""Sessions, live ones among them, and events of the state file at which the old design fell over."""

_TYPES: Final = ("hook.pre_tool_use", "hook.post_tool_use", "session.status", "agent.message", "tool.output")
_WORDS: Final = (
    *("patch", "async", "schema", "return", "index", "config", "tool", "stream", "hook", "flush", "write", "function"),
    *("export", "session", "event", "promise", "commit", "branch", "merge", "naïve", "café", "日本語", "🚀", "debounce"),
    *("lease", "buffer", "trace", "snapshot", "agent", "prompt", "queue", "retry", "timeout", "cache", "שלום", "diff"),
)


class PlayedEvent(NamedTuple):
    """What to append to the session of that number."""

    session: int
    type: str
    payload: Json


def statuses() -> list[Status]:
    """The status of each session at the end of the incident: 220 running, 65 ended, the rest in between."""
    rest = (Status.IDLE,) * 50 + (Status.PAUSED,) * 8 + (Status.INITIALIZING,) * 6 + (Status.CLOSING,) * 6
    ended = (Status.CLOSED,) * 50 + (Status.FAILED,) * 15
    return [Status.RUNNING] * LIVE_SESSIONS + [*ended, *rest, *(Status.INTERVENING,) * 4]


def incident() -> Iterator[PlayedEvent]:
    """The events of the incident, all sessions taking turns as chance has it."""
    chance = random.Random(595)
    for number in range(EVENTS):
        yield PlayedEvent(chance.randrange(SESSIONS), _TYPES[number % len(_TYPES)], payload(number))


def aftermath(sessions: int, events_each: int) -> Iterator[PlayedEvent]:
    """More events for the first few live sessions, in turn, until their caps bite."""
    for number in range(sessions * events_each):
        yield PlayedEvent(number % sessions, _TYPES[number % len(_TYPES)], payload(number))


def payload(number: int) -> Json:
    """What a hook of a coding agent reports: about 2.5 KB of JSON, nested, with floats and text that is not ASCII."""
    return {
        "toolCallId": f"toolu_{number:010d}",
        "ok": number % 7 != 0,
        "exitCode": 0,
        "durationMs": number % 9973 + 0.16,
        "content": [{"type": "text", "text": _text(number)}],
        "nested": {"a": {"b": {"c": [1, 2.5, -3e-10, True, None, 'x"y\\z']}}},
    }


_TEXTS: Final = [" ".join(random.Random(seed).choices(_WORDS, k=330)) for seed in range(64)]


def _text(number: int) -> str:
    return f"{number} {_TEXTS[number % len(_TEXTS)]}"
