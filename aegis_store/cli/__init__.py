"""The command `aegis-store`: each command parses, calls the library, prints. Only this floor knows of terminals."""

from typing import NoReturn


def main() -> NoReturn:
    """Run the command line, and end the process with one of the exit codes of `cli.exits`."""
    from aegis_store.cli import exits

    exits.run()
