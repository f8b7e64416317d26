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

# A page that filters by type looks at so many events at the most, found or not: as many as the largest page, 5 ms of work.
FILTERED_SCAN_EVENTS: Final = 1000

# A page of a scope looks at so many events at the most, and reads no payload of others.
SCOPED_SCAN: Final = 1000

# How long a writer waits for another before StoreBusy. Writers hold the file for well under a millisecond; ten
# seconds covers dozens of processes that start at once.
DEFAULT_BUSY_TIMEOUT_MS: Final = 10_000

# How long a deploy waits for another one that migrates the store, or for whoever else writes. A migration that builds all of
# 1,000,000 events anew would take minutes; one that takes ten is looked after by a person.
MIGRATION_PATIENCE_S: Final = 600

# On a server it asks for all tables again and again: for so long each time, for which whoever comes meanwhile waits too, and
# which is less than the second after which PostgreSQL looks for deadlocks; then it lets everybody through for so long.
DEPLOY_LOCK_MS: Final = 200
DEPLOY_PAUSE_S: Final = 0.2

# A migration tells how far it has come after so many steps of SQLite's machine, some ms. A look at one event takes 5 to 25 of
# them (a foreign key, a column that is added); building it anew takes more, and the bar then waits at the end of its part.
MIGRATION_TOLD_STEPS: Final = 100_000
MIGRATION_EVENT_STEPS: Final = 25

# A row of 2.5 KB wastes a third of a 4 KiB page: 8 KiB pages made a store of 1,000,000 such events 2.75 GB instead
# of 4.1 GB, at the same number of appends a second.
PAGE_SIZE_BYTES: Final = 8192

# A store over its budget is brought down to this part of it, so that the next event does not put it over again. Four fifths
# is what caches with a high and a low water mark leave; the work of a budget prune is then a fifth of the budget.
BUDGET_LOW_WATER_PERCENT: Final = 80

# A slice of a prune, which is one transaction, is as large as fits in this time, the longest that a writer should wait for it
# (on a disk that is busy it takes two or three times as long now and then). Never larger than so many events and bytes: a
# payload of 1 MiB lies in 130 pages, each of which is looked at when it goes.
PRUNE_SLICE_S: Final = 0.005
PRUNE_SLICE_EVENTS: Final = 500
PRUNE_SLICE_BYTES: Final = 8 * 1024 * 1024

# The first slice has so many events at the most, and none is made smaller than half of them: its fsync would not pay.
PRUNE_FIRST_SLICE_EVENTS: Final = 200

# After so many events a prune brings the log into the file itself: some hundred pages, a few ms, with the store open to
# writers, whose fsync takes longer meanwhile. Left to the checkpointer's thread, which comes every 50 ms, a writer of 200
# appends/s beside it had a p99 of 9 to 14 ms. (After every 500 the prune is a seventh slower, and the p99 6 instead of 8 ms.)
PRUNE_CHECKPOINT_EVENTS: Final = 1000

# Between two slices a prune sleeps so long that writers who wait get in.
PRUNE_PAUSE_MIN_S: Final = 0.0002
PRUNE_PAUSE_MAX_S: Final = 0.05

# A writer that finds the store in use looks again after these times. SQLite's own handler sleeps up to 100 ms and lets
# writers starve beside a busy one.
BUSY_PAUSE_MIN_S: Final = 0.0001
BUSY_PAUSE_MAX_S: Final = 0.001

# Who stands in the line for the store goes round it after this time at the latest. Beside 43 processes that write without
# a pause a turn came within 0.13 s; so late it does not come because a process that has the file lock was stopped, say.
LINE_PATIENCE_S: Final = 1.0

# Appends that wait together are carried out together: so many at the most, and so many bytes of payloads. That is some
# milliseconds of work, which is what other processes wait.
GROUP_STATEMENTS: Final = 128
GROUP_BYTES: Final = 4 * 1024 * 1024

# Of an asynchronous store so many appends wait at a time: enough for the largest groups, and little memory.
MAX_WAITING_APPENDS: Final = 1000

# Its other methods run on so many threads at a time; those that write stand in one line anyway.
THREADS_OF_ASYNC: Final = 8

# While a store writes, a thread looks at its log so often, and brings it into the file when so many pages (3 MiB) wait.
CHECKPOINT_EVERY_S: Final = 0.05
CHECKPOINT_PAGES: Final = 400

# A log longer than this (39 MiB) is begun anew when few pages wait, for which writers then wait; at the latest when it is so
# long (51 MiB). A lone writer that never pauses meets that once in 1,000 to 1,700 appends, for 20 to 30 ms, since SQLite syncs
# the file only then. From half of it on the thread looks five times as often.
LOG_PAGES_MAX: Final = 5000
LOG_PAGES_FEW: Final = 256
LOG_PAGES_LIMIT: Final = 6500

# Where that thread cannot, a writer's commit checkpoints a log of so many pages; never on a SQLite with the WAL-reset bug.
LOG_PAGES_OF_WRITERS: Final = 10_000

# Where writers wait for each checkpoint (a SQLite with the WAL-reset bug), a store that writes little has one so often.
CHECKPOINT_ALONE_MAX_S: Final = 1.0

# How long that waits for readers, who read a page and are gone.
CHECKPOINT_READERS_MS: Final = 20

# While somebody follows a store, it is asked so often whether another process has committed: some 0.1 ms of processor time
# each, and half of this is what a follower waits at the median. Commits of its own process reach it at once.
FOLLOW_POLL_S: Final = 0.05

# On a server it is that often for so many times after an event; then the next append is asked to notify. Fewer would have busy
# writers notify more often, each time at the price of a commit that others wait for; more would look for nothing for longer.
FOLLOW_AWAKE_RINGS: Final = 20

# Rung, a follower waits so long before he looks, and finds together what comes together. Otherwise he would look after each
# single commit: beside one who followed another session, a lone writer kept half of his appends/s; so it is four fifths.
FOLLOW_GATHER_S: Final = 0.001

# A follower looks so often without having been rung: where no thread could be had for that, and since on Windows Ctrl-C
# strikes only between two waits.
FOLLOW_LOOK_S: Final = 1.0

# The walk by age of a budget looks at so many positions a step: some 10 ms.
BUDGET_STEP_POSITIONS: Final = 10_000

# An overview looks at so many of the newest events of the store, or of a session: 10 ms each, as the latter lie apart. Of a
# session as many as it holds by default.
SAMPLE_EVENTS: Final = 2000
SAMPLE_EVENTS_OF_SESSION: Final = DEFAULT_MAX_EVENTS

# It names so many types and sessions, those with the most events, and tells of so many prunes.
SAMPLE_SHARES: Final = 10
OVERVIEW_PRUNES: Final = 100

# How many events came in each minute it finds to within this part of the whole hour: finer than any bar, with half of the
# look-ups.
RATE_PARTS: Final = 1000

# How many bytes were removed from a session that still holds events takes a look at one of these, 4 to 10 µs. An overview
# does not look at more sessions than this, but estimates.
SESSIONS_LOOKED_AT: Final = 1000

# The history of prunes is bounded as everything else: a run an hour makes six weeks.
MAX_PRUNE_RUNS: Final = 1000

# A verification tells of so many problems in words, and counts the rest: more than anyone reads.
MAX_PROBLEMS: Final = 1000

# An import names so many sessions that it refused, with the reason, and counts the rest.
MAX_REFUSALS: Final = 1000

# How often a process that lives long prunes. Half an hour to a day is what logs elsewhere do (Kafka: 5 minutes, journald: at
# each rotation); an hour bounds the growth and costs nothing that one would see.
DEFAULT_MAINTAIN_EVERY: Final = timedelta(hours=1)

# A maintenance that has not been heard of for so long is taken for dead. It reports at each slice.
MAINTENANCE_LEASE_S: Final = 60.0

# An archive file holds so many events of one session at the most: what is archived and not yet removed takes little room.
ARCHIVE_FILE_EVENTS: Final = 20_000

# Creating a store takes about 0.1 s. A temporary file that old was left behind by a process that died.
ORPHAN_AGE_S: Final = 600.0

# An import of gigabytes takes some minutes. A directory of notes that old was left behind by one that died.
SCRATCH_AGE_S: Final = 3600.0

# A `record` that finds events in the spool brings them in first, for so long: some thousand events. The agent waits for it.
RECORD_FLUSH_S: Final = 1.0

# A lenient `record` waits so long for what a hook sends. It is there at once; a caller that does not close its end would have
# the agent wait for ever. Below the 9 s that the README gives the hook at the end of a session, with the two waits above.
RECORD_STDIN_S: Final = 5.0

# What `record` and `append` read at once. The store takes 16 MiB for a payload; decoded, small values take thirty times the
# room of their text. What a hook sends beyond that is set aside, as far as it goes.
MAX_INPUT_BYTES: Final = 64 * 1024 * 1024

# A backup copies so many pages (4 MiB) at a time and syncs them, so that the fsync of a writer never waits for more.
BACKUP_PAGES: Final = 512
