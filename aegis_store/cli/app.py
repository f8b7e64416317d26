"""The commands, put together. Imports nothing heavy: commands import what they need when they run."""

import gc
from typing import Annotated, Any, Final, cast

import typer
from typer.core import TyperCommand, TyperGroup

from aegis_store.cli import (
    append,
    backup,
    bench,
    completion,
    copy,
    demo,
    deploy,
    doctor,
    inspect,
    look,
    policy,
    prune,
    reclaim,
    record,
    spool,
    tail,
    transfer,
    verify,
)
from aegis_store.cli.options import DEFAULT_PATH, URL_VARIABLE, Db

# What `aegis-store` alone shows, as far as there are such commands.
_FIRST_COMMANDS: Final = {
    "demo": ("", "see what it does, on a file of its own"),
    "record": ("", "store a hook event, given as JSON on stdin"),
    "append": (" SESSION TYPE", "store an event of your own"),
    "inspect": ("", "the store at a glance, or one session"),
    "events": (" SESSION", "what happened in a session"),
    "tail": (" --follow", "what happens now"),
    "policy": (" show", "what is kept, and how long"),
    "prune": ("", "what would be removed; --yes removes it"),
}


class _Root(TyperGroup):
    """`aegis-store` alone shows how to begin, before Typer imports what it reads values with."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            _show_first_commands(self)
            raise typer.Exit
        return super().parse_args(ctx, args)


class _Command(TyperCommand):
    """Its help names an argument as it names an option: by its metavar, without the type that Python knows it by."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for parameter in self.params:
            if parameter.param_type_name == "argument" and parameter.metavar:
                setattr(parameter, "display_type_rich", lambda ctx: None)  # noqa: B010 - it is a method
        super().format_options(ctx, formatter)


app = typer.Typer(
    name="aegis-store",
    cls=_Root,
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
    gc.enable()  # see `exits.run`
    if context.invoked_subcommand is None:
        _show_first_commands(cast(TyperGroup, context.command))


def _show_first_commands(root: TyperGroup) -> None:
    from aegis_store.cli.terminal import show

    known = _FIRST_COMMANDS.keys() & root.commands.keys()
    lines = {f"aegis-store {name}{rest}": told for name, (rest, told) in _FIRST_COMMANDS.items() if name in known}
    width = max(map(len, lines))
    show("Sessions and events of agent platforms in one SQLite file.", "", "To begin with:", "")
    show(*(f"  {line:<{width}}  {told}" for line, told in lines.items()), "")
    show(f"The store is what --db names, else ${URL_VARIABLE}, else {DEFAULT_PATH} here.")
    show("All commands: aegis-store --help. One of them: aegis-store COMMAND --help.")


app.command()(demo.demo)
app.command()(inspect.inspect)
app.command()(look.sessions)
app.command()(look.events)
app.command()(append.append)
app.command()(record.record)
app.add_typer(spool.app, name="spool")
app.command()(tail.tail)
app.command()(prune.prune)
app.add_typer(policy.app, name="policy")
app.command()(reclaim.reclaim)
app.command()(transfer.export)
app.command("import")(transfer.import_lines)
app.command("import-aegis")(transfer.import_aegis)
app.command()(verify.verify)
app.command()(doctor.doctor)
app.command()(backup.backup)
app.command()(backup.restore)
app.command()(copy.copy)
app.command()(deploy.upgrade)
app.command()(bench.bench)

completion.teach(app)
for command in (*app.registered_commands, *policy.app.registered_commands, *spool.app.registered_commands):
    command.cls = _Command
