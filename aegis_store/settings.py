"""Every number that the store works with: unit last in the name, default, and the reason for it."""

from datetime import timedelta
from typing import Final

# Retention: the defaults of the policy that a new store begins with. The database holds the values in force.
DEFAULT_MAX_EVENTS: Final = 1000
DEFAULT_MAX_EVENT_BYTES: Final = 1024 * 1024
DEFAULT_TERMINAL_GRACE: Final = timedelta(0)

# No policy may allow larger payloads than this. It also bounds what validation will look at, so that a payload
# that contains the same list twice, a hundred levels deep, is refused after about as many steps.
MAX_EVENT_BYTES_LIMIT: Final = 16 * 1024 * 1024

# A session's row is written anew with each append, and its metadata with it: 64 KiB keeps that to a few pages.
MAX_METADATA_BYTES: Final = 64 * 1024

# What a payload may be (promise 7). 200 levels stay far below the 1,000 at which SQLite's JSON functions of some
# versions stop, 4,300 digits is where Python's own int() stops by default (sys.int_info).
MAX_DEPTH: Final = 200
MAX_INT_DIGITS: Final = 4300

# Ids, types, tenants and owners; and payload_ref, which may hold a signed URL.
MAX_TEXT_BYTES: Final = 512
MAX_PAYLOAD_REF_BYTES: Final = 4096

# Pages of read, read_all and list_sessions.
DEFAULT_PAGE_EVENTS: Final = 100
MAX_PAGE_EVENTS: Final = 1000

# A page filters by so many types at the most.
MAX_TYPES: Final = 100

# A page that filters by type looks at so many events at the most, found or not: about 30 ms of work.
FILTERED_SCAN_EVENTS: Final = 10_000

# How long a writer waits for another before StoreBusy. Writers hold the file for well under a millisecond; ten
# seconds covers dozens of processes that start at once.
DEFAULT_BUSY_TIMEOUT_MS: Final = 10_000

# A row of 2.5 KB wastes a third of a 4 KiB page: 8 KiB pages made a store of 1,000,000 such events 2.75 GB instead
# of 4.1 GB, at the same number of appends a second.
PAGE_SIZE_BYTES: Final = 8192

# A prune removes so many events a transaction: about 5 ms of work at 2.5 KB each, which is what a writer may wait.
PRUNE_SLICE_EVENTS: Final = 500

# Between two slices the prune sleeps as long as the slice took, within these bounds, so that writers that poll for
# the lock (SQLite's busy handler does) find it free about half of the time.
PRUNE_PAUSE_MIN_S: Final = 0.0005
PRUNE_PAUSE_MAX_S: Final = 0.05

# Creating a store takes about 0.1 s. A temporary file that old was left behind by a process that died.
ORPHAN_AGE_S: Final = 600.0
