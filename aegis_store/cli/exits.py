"""How a command ends: one line for people, an exit code for programs, never a traceback."""

import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from typer.exceptions import TyperException

    from aegis_store.errors import AegisStoreError

DEBUG_VARIABLE: Final = "AEGIS_STORE_DEBUG"
"""Set it to see the traceback of an internal error."""

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
NO_SUCH_SESSION: Final = 3
CURSOR_LOST: Final = 4
STORE_UNUSABLE: Final = 5
TRY_AGAIN: Final = 6
NOT_ALL_IMPORTED: Final = 7
INTERRUPTED: Final = 130

_CTRL_C_AGAIN_AFTER_S: Final = 0.01
_RULES: Final = {
    "int_parsing": "must be a whole number",
    "float_parsing": "must be a number",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than_equal": "must be {le:g} or less",
}
"""What a value must be, by pydantic's names of what can be wrong."""


class Interrupted(Exception):
    """Ctrl-C, and what the command has done until then."""


def run() -> NoReturn:
    """Run the application and exit."""
    gc.disable()  # until the command begins: what is imported stays, and looking for garbage in it is a fifth of the time
    if sys.stdout is None:  # closed by who started us
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its escape instead of a failure.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    _lose_no_ctrl_c()
    if "_AEGIS_STORE_COMPLETE" in os.environ:
        from aegis_store.cli import completion

        completion.prepare()
    try:
        code = _flushed(_outcome())
    except KeyboardInterrupt:
        _ignore_ctrl_c()
        code = _say("interrupted", INTERRUPTED)
    _ignore_ctrl_c()
    gc.enable()
    sys.exit(code)


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _pipe_closed()
    except OSError as error:
        return _say(_output_problem(error.strerror or str(error)), FAILED)
    return code


def _lose_no_ctrl_c() -> None:
    """Where Python drops what is raised (in a destructor, say), Ctrl-C comes once more, a moment later."""
    if not hasattr(signal, "setitimer"):  # Windows
        return
    told = sys.unraisablehook

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, _CTRL_C_AGAIN_AFTER_S)
        else:
            told(dropped)

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    sys.unraisablehook = hook


def _ignore_ctrl_c() -> None:
    """The command has ended: while the interpreter ends as well, Ctrl-C would kill it, and its code would be lost."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_IGN)


def _outcome() -> int:
    import logging

    from typer.exceptions import TyperException

    from aegis_store.cli.app import app
    from aegis_store.errors import AegisStoreError

    # What SQLAlchemy logs of connections that Ctrl-C has cut off is nothing to act on, and would come as a traceback.
    logging.getLogger("sqlalchemy").addHandler(logging.NullHandler())
    try:
        result = app(prog_name="aegis-store", standalone_mode=False)
        if result == INTERRUPTED:  # Typer's own, on Ctrl-C
            return _say("interrupted", INTERRUPTED)
        return result if isinstance(result, int) else DONE
    except Interrupted as interrupted:
        return _say(str(interrupted), INTERRUPTED)
    except TyperException as error:
        return _say(f"{_usage_problem(error)} (see --help)", error.exit_code)
    except AegisStoreError as error:
        return _say(_said(error), _code_of(error))
    except BrokenPipeError:
        return _pipe_closed()
    except OSError as error:
        said = error.strerror or str(error)
        return _say(f"{said}: {error.filename}" if error.filename else _output_problem(said), FAILED)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        return _say(f"internal error, {type(error).__name__}: {error!s:.200} (set {DEBUG_VARIABLE}=1 to see where)", FAILED)


def _usage_problem(error: "TyperException") -> str:
    """The message, which names the value too where pydantic, by which Typer reads values, says only what it should be."""
    problems = getattr(error.__cause__, "errors", None)
    if problems:
        error.message = _wrong_value(problems()[0])
    return " ".join(error.format_message().split()).removesuffix(".")


def _wrong_value(problem: dict[str, Any]) -> str:
    from aegis_store.errors import shown

    details = problem.get("ctx", {})
    if "error" in details:  # says which value it is
        return str(details["error"])
    return f"{_RULES.get(problem['type'], problem['msg']).format(**details)}, not {shown(problem['input'])}"


def _said(error: "AegisStoreError") -> str:
    """The message, with what an operator can do where its hint is for a program."""
    from aegis_store import errors

    advice = {
        errors.SessionNotFound: "`aegis-store sessions` lists those that there are",
        errors.EventsTruncated: "--skip-gap goes on with what is retained",
        errors.CursorAhead: "read again from the start, without --after",
        errors.StoreBusy: "try again",
        errors.ReadOnlyStore: "run this as a user who may write it, its -wal and -shm files and its directory",
    }.get(type(error))
    return f"{error.what}: {advice}" if error.hint and advice else str(error)


def _code_of(error: Exception) -> int:
    from aegis_store import errors

    codes: tuple[tuple[tuple[type[Exception], ...], int], ...] = (
        ((errors.InvalidInput,), WRONG_USAGE),
        ((errors.SessionNotFound,), NO_SUCH_SESSION),
        ((errors.EventsTruncated, errors.CursorAhead), CURSOR_LOST),
        ((errors.StoreBusy, errors.StoreFull), TRY_AGAIN),
        ((errors.ImportRejected,), NOT_ALL_IMPORTED),
        (
            (
                *(errors.StoreUnavailable, errors.NotAnAegisStore, errors.StoreCorrupt),
                *(errors.SchemaMismatch, errors.ReadOnlyStore, errors.StoreClosed),
            ),
            STORE_UNUSABLE,
        ),
    )
    return next((code for kinds, code in codes if isinstance(error, kinds)), FAILED)


def _output_problem(said: str) -> str:
    return f"the output cannot be written: {said}"


def _say(message: str, code: int) -> int:
    from aegis_store.cli.terminal import printable

    print(f"aegis-store: {printable(message)}", file=sys.stderr)  # noqa: T201
    return code


def _pipe_closed() -> int:
    # What was piped to `head` has seen enough. Python would complain once more when it closes stdout: give it another one.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED
