"""What Tab completes: ids of sessions, statuses, and the words that a value can be. Which, the metavar says.

Silent whatever happens, since what it says would stand in the middle of the line that somebody is typing.
"""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import typer

from aegis_store.cli.options import place_of

VARIABLE: Final = "_AEGIS_STORE_COMPLETE"
"""Set by the shell's function that `--install-completion` installs: this call is to complete a line."""

_MOST: Final = 50
_SEPARATORS: Final = frozenset(":=")

# An id goes into the line as it is: one that a shell could take for something else (a space, a quote, `$(…)`) stays out of it.
_PLAIN: Final = re.compile(r"[\w/.][\w./@%+:=-]*")

_kept = ""
"""What bash leaves standing before the word that it completes: it begins a new one after each ":" and "="."""


def teach(app: typer.Typer) -> None:
    """Tell every argument and option how it is completed."""
    for command in app.registered_commands:
        for annotation in getattr(command.callback, "__annotations__", {}).values():
            for parameter in getattr(annotation, "__metadata__", ()):
                parameter.autocompletion = _completer_of(parameter.metavar or "") or parameter.autocompletion
    for group in app.registered_groups:
        if group.typer_instance is not None:
            teach(group.typer_instance)


def _completer_of(metavar: str) -> Callable[..., list[str]] | None:
    if metavar == "SESSION":
        return _sessions
    if metavar == "STATUS":
        return _statuses
    words = [word for word in metavar.split("|") if word.islower()]  # as in N|unlimited
    return (lambda: words) if words else None


def _statuses() -> list[str]:
    from aegis_store.events import Status

    return list(Status)


def _sessions(context: typer.Context, incomplete: str) -> list[str]:
    try:
        place = place_of(context, context.params.get("db"))
        found = _newest(place, _kept + incomplete)
    except Exception:  # noqa: BLE001 - no store, or a broken one: there is nothing to complete
        return []
    return [session_id.removeprefix(_kept) for session_id in found if _PLAIN.fullmatch(session_id)]


def _newest(place: str, prefix: str) -> list[str]:
    from aegis_store import session_ids

    if "://" not in place:
        return session_ids.newest(Path(place), prefix, _MOST)
    from aegis_store.any_database import place_at
    from aegis_store.target import Target

    named = place_at(place)
    if isinstance(named, Target):
        return session_ids.newest(named.path, prefix, _MOST)
    from aegis_store.postgres import session_ids as ids_on_server

    return ids_on_server.newest(named, prefix, _MOST)


def prepare() -> None:
    """Before Typer reads the line from the environment."""
    if os.environ[VARIABLE].startswith("complete_"):
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    if os.environ[VARIABLE] == "complete_bash":
        _mend_line_of_bash()


def _mend_line_of_bash() -> None:
    """Join what bash has split, and put a `--db` that stands behind the cursor before it."""
    global _kept
    words, at = os.environ.get("COMP_WORDS", "").split("\n"), int(os.environ.get("COMP_CWORD", "0"))
    before, after = _joined(words[: at + 1]), _joined(words[at + 1 :])
    if at >= len(words):
        before.append("")
    last = "" if at >= len(words) or _separates(words[at]) else words[at]
    *line, word = before
    _kept = word.removesuffix(last)
    if _kept.startswith("-"):  # --option=value
        option, _, _kept = _kept.partition("=")
        line.append(option)
    for option, value in zip(after, [*after[1:], ""], strict=False):
        if option == "--db" or option.startswith("--db="):
            line[1:1] = [option] if "=" in option else [option, value]
    os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join([*line, last]), str(len(line))


def _joined(words: list[str]) -> list[str]:
    joined: list[str] = []
    for word, before in zip(words, ["", *words], strict=False):
        if joined and (_separates(word) or _separates(before)):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def _separates(word: str) -> bool:
    return bool(word) and set(word) <= _SEPARATORS
