"""The command `upgrade`."""

import typer

from aegis_store.cli.options import AsJson, Db, place_of, place_shown


def upgrade(context: typer.Context, db: Db = None, as_json: AsJson = False) -> None:
    """Move the store to the schema of this version.

    What deploys run. Creates the store if there is none. If another deploy moves it just now, waits until that is done.

    The same as `alembic upgrade head` in a checkout.

    Example: aegis-store upgrade --db /var/lib/agents/aegis.db
    """
    from aegis_store.cli.terminal import progress, show, show_json
    from aegis_store.store import EventStore

    with progress() as bar:
        task = bar.add_task("Looking at events", total=None)
        before, after = EventStore.upgrade(
            place_of(context, db), on_progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    place = place_shown(context, db)
    if as_json:
        show_json({"store": place, "before": before, "after": after})
    elif before is None:
        show(f"{place}: created at schema {after}")
    elif before == after:
        show(f"{place}: is at schema {after} already")
    else:
        show(f"{place}: moved from schema {before} to {after}")
