"""A policy as plain values, for the header of an export."""

import os
from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from typing import Any

from aegis_store.errors import ImportRejected, InvalidPolicy, shown
from aegis_store.events import UNLIMITED, Json
from aegis_store.retention.policy import RetentionPolicy

_MICROSECOND = timedelta(microseconds=1)
_SPANS = ("max_age", "terminal_grace", "forget_sessions_after")


def policy_to_fields(policy: RetentionPolicy) -> dict[str, Json]:
    """Spans in microseconds, under the name of their knob with `_us`; no cap is "unlimited"."""
    found: dict[str, Json] = {}
    for field in fields(policy):
        value = getattr(policy, field.name)
        if field.name in _SPANS:
            found[f"{field.name}_us"] = None if value is None else value // _MICROSECOND
        else:
            found[field.name] = "unlimited" if value is UNLIMITED else value
    return found


def policy_from_fields(given: Mapping[str, Json] | None, file: str | os.PathLike[str]) -> RetentionPolicy | None:
    """What `policy_to_fields` made; None for None. `ImportRejected` if it is no policy."""
    if given is None:
        return None
    try:
        values: dict[str, Any] = dict(given)
        for name in _SPANS:
            us = values.pop(f"{name}_us")
            values[name] = None if us is None else timedelta(microseconds=us)
        if values["max_events"] == "unlimited":
            values["max_events"] = UNLIMITED
        return RetentionPolicy(**values)
    except (InvalidPolicy, KeyError, TypeError, ValueError, OverflowError) as error:
        detail = str(error) if isinstance(error, InvalidPolicy) else f"it is no policy: {shown(given)}"
        raise ImportRejected(file=os.fspath(file), place="line 1, policy", detail=detail) from None
