"""The commands, put together. Imports nothing heavy: commands import what they need when they run."""

from typing import Annotated

import typer

from aegis_store.cli import bench, demo, deploy, look, policy, prune, reclaim, tail, transfer, verify
from aegis_store.cli.options import Db, print_help_without_command

app = typer.Typer(
    name="aegis-store",
    help="Sessions and events of agent platforms in one SQLite file, bounded by retention policies.",
    epilog="Try: aegis-store demo. Then: aegis-store inspect --db aegis-demo.db. Exit codes are in the README.",
    rich_markup_mode=None,  # plain help comes up in half of the time
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from aegis_store import driver
        from aegis_store.cli.terminal import show

        show(f"aegis-store {version('aegis-store')}, SQLite {driver.VERSION}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    db: Db = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the versions and exit.")
    ] = False,
) -> None:
    # `--db` is looked up by `options.place_of`.
    print_help_without_command(context)


app.command()(demo.demo)
app.command()(look.inspect)
app.command()(look.sessions)
app.command()(look.events)
app.command()(tail.tail)
app.command()(prune.prune)
app.add_typer(policy.app, name="policy")
app.command()(reclaim.reclaim)
app.command()(transfer.export)
app.command("import")(transfer.import_lines)
app.command("import-aegis")(transfer.import_aegis)
app.command()(verify.verify)
app.command()(deploy.upgrade)
app.command()(bench.bench)
