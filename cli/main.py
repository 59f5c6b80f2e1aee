"""The command `sortify`: its commands, its settings file, and one line for every error.

torch is imported by the commands that need it, not here, so that `sortify --help` is quick.
"""

from __future__ import annotations

import errno
import importlib.metadata
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from . import convert, evaluate, extract, inspect, order, profile, report, train, verify
from .options import Verbose
from .settings import NAME, SettingsError, known_settings, read_settings

INTERRUPTED = 130
HELP_WANTED, VERBOSE = "sortify.help", "sortify.verbose"
"""Keys of a context's `meta`."""


class Front(TyperGroup):
    """Reads the settings before a command runs, and turns what it raises into one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[HELP_WANTED] = not {"-h", "--help"}.isdisjoint(args)
        ctx.meta[VERBOSE] = not {"-v", "--verbose"}.isdisjoint(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default" if ctx.meta[VERBOSE] else "ignore")
                if not ctx.meta[HELP_WANTED]:
                    ctx.default_map = read_settings(Path(NAME), known_settings(self.commands))
                return super().invoke(ctx)
        except KeyboardInterrupt:
            _say("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if _is_the_parsers(error):
                raise
            _stop(error, verbose=ctx.meta[VERBOSE])


def _is_the_parsers(error: Exception) -> bool:
    """Whether the parser deals with it: usage errors, an early end, a reader that went away."""
    gone = isinstance(error, OSError) and error.errno == errno.EPIPE
    return gone or isinstance(error, typer.Abort) or hasattr(error, "exit_code")


def _stop(error: Exception, *, verbose: bool) -> NoReturn:
    """Print what went wrong and end with status 1."""
    if verbose:
        traceback.print_exception(error)
    _say(f"error: {describe(error)}")
    raise typer.Exit(1) from error


def describe(error: Exception) -> str:
    """One line for the user: an expected error's message, or the unexpected error's name."""
    text = " ".join(str(error).split())
    if isinstance(error, (SettingsError, *_expected())):
        return text
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    name = type(error).__name__
    return f"unexpected {name}{': ' if text else ''}{text}; run again with --verbose to see where it comes from"


def _expected() -> tuple[type[Exception], ...]:
    """sortify's own errors; where sortify has not been imported, nothing raised them."""
    loaded = sys.modules.get("sortify")
    return (loaded.SortifyError,) if loaded is not None else ()


def _say(line: str) -> None:
    typer.echo(line, err=True)


app = typer.Typer(
    cls=Front,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turn a PyTorch model into a nested family of models: convert once, train all, extract what fits a budget.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sortify {importlib.metadata.version('sortify')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Options that stand before a command."""


for _command in (convert, inspect, order, train, evaluate, profile, report, extract, verify):
    app.command(name=_command.__name__.rpartition(".")[2])(_command.run)


def main() -> None:
    """Run the command line."""
    app(prog_name="sortify")
