"""Taking secrets out of payloads: a hook of the caller's sees each before it is checked and stored.

What it raises never leads to the payload: the error says where it was raised, not what was said.
"""

import inspect
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from aegis_store.errors import InvalidInput, RedactionFailed, shown
from aegis_store.events import Json

Redact = Callable[[str, str, Json], Json]
"""Called with (session_id, type, payload), gives the payload to store. It must leave alone what it was given, give the same for
the same, and leave what it gave before as it is: retries, imports and the spool bring payloads to it again. It runs in the
caller's thread (for an awaited append in the event loop), of several callers at once, and holds no lock."""


def checked(redact: Redact | None) -> Redact | None:
    """Raises `InvalidInput` for what cannot be called, or would have to be awaited."""
    if redact is not None and (not callable(redact) or inspect.iscoroutinefunction(redact)):
        kind = "an async one" if callable(redact) else type(redact).__name__
        raise InvalidInput(f"redact must be a plain function of (session_id, type, payload), or None, not {kind}")
    return redact


def redacted(redact: Redact, session_id: str, type: str, payload: Json) -> Json:
    """What the hook gives. Raises `RedactionFailed`."""
    try:
        return redact(session_id, type, payload)
    except Exception as error:  # noqa: BLE001 - it is somebody else's code
        detail = _where(error)
    # Out here the new error has no context: a traceback would end with the words of the hook, which may quote the payload.
    raise RedactionFailed(session_id=session_id, type=type, detail=detail)


def _where(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{error.__class__.__name__} in {Path(frame.filename).name}, line {frame.lineno}"


def named(path: str) -> Redact:
    """The hook at `package.module:function`. Raises `InvalidInput` if there is none."""
    module, _, name = path.partition(":")
    if not module or not name:
        raise InvalidInput(f"a redact hook is named as package.module:function, not {shown(path)}")
    try:
        found = import_module(module)
    except Exception as error:  # noqa: BLE001 - whatever it does when it is imported
        raise InvalidInput(
            f"the redact hook {shown(path)} cannot be imported ({type(error).__name__}: {error}): "
            "install its package where aegis-store is, or name its directory in PYTHONPATH"
        ) from None
    hook = getattr(found, name, None)
    if hook is None:
        raise InvalidInput(f"the redact hook {shown(path)} is not there: module {shown(module)} has no {shown(name)}")
    return checked(hook)  # type: ignore[return-value]  # it is not None
