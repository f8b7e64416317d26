"""The checksum of an event, which shows damage that SQLite does not notice: a flipped bit inside of a row, a wrong row.

    checksum = CRC-32 of its texts + 3 * seq + 5 * position + 7 * bytes_before + 11 * occurred_at + 13 * recorded_at
               + the store's number

The writer computes the CRC; the store's numbers, which are only known inside of the statement that appends, are added there.
A change of up to 32 neighbouring bits in the texts is always seen, and so is one of a number; any other with a probability of
all but 1 in 2^32. And so is a row that stands in another one's place, or came in with another store's write-ahead log. It
proves damage, not malice: who can write the file can write a checksum.

Events of a store before schema 0003, or written with a plain SQL shell, have none and are not checked.
"""

from typing import Any, Final
from zlib import crc32

from sqlalchemy import Integer, literal_column

from aegis_store.record_copy import STORE_NUMBER_SQL

STORE_NUMBER: Final = literal_column(STORE_NUMBER_SQL, Integer).label("store_number")

# The greater of the two, as SQLite takes it: INSERT OR FAIL that fails at its second row leaves sqlite_sequence behind.
LAST_POSITION_SQL: Final = (
    "max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'event'), 0), coalesce((SELECT max(position) FROM event), 0))"
)
"""The highest position that was ever given; 0 before the first event."""

NEXT_SUM_SQL: Final = f":checksum + 3 * (last_seq + 1) + 5 * ({LAST_POSITION_SQL} + 1) + 7 * total_bytes + {STORE_NUMBER_SQL}"
"""The checksum of a session's next event, in a statement over the session's row that gives it the next position."""


_NONE: Final = "\1"


def content_sum(
    session_id: str,
    type_: str,
    payload: str,
    occurred_us: int,
    recorded_us: int,
    event_id: str | None,
    run_id: str | None,
    payload_ref: str | None,
) -> int:
    """The part that does not depend on the place; `payload` as it is stored. Ids hold no control characters."""
    if event_id is None and run_id is None and payload_ref is None:  # as most have it, and a page has hundreds of them
        head = session_id + "\0" + type_
    else:
        head = "\0".join((session_id, type_, *(_NONE if text is None else text for text in (event_id, run_id, payload_ref))))
    return crc32(payload.encode(), crc32(head.encode())) + 11 * occurred_us + 13 * recorded_us


def row_sum(
    session_id: str,
    seq: int,
    position: int,
    type_: str,
    payload: str,
    occurred_us: int,
    recorded_us: int,
    event_id: str | None,
    run_id: str | None,
    payload_ref: str | None,
    bytes_before: int,
    store_number: int,
) -> int | None:
    """What the checksum of a stored event must be. None where a column holds another type than is ever written."""
    try:
        content = content_sum(session_id, type_, payload, occurred_us, recorded_us, event_id, run_id, payload_ref)
        return content + 3 * seq + 5 * position + 7 * bytes_before + store_number
    except (TypeError, AttributeError):
        return None


def sum_of(session_id: str, row: Any) -> int | None:
    """The same of a row of the table `event`, read together with `STORE_NUMBER`."""
    words = (row.event_id, row.run_id, row.payload_ref, row.bytes_before, row.store_number)
    return row_sum(session_id, row.seq, row.position, row.type, row.payload, row.occurred_at, row.recorded_at, *words)
