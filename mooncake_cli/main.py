"""The command tree. Nothing heavy is imported before a command is chosen."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Any, Final

import click

from mooncake_cli import console, exits

COMMANDS: Final = {
    "start": "Start a cluster, or one role of it.",
    "stop": "Stop what was started on this host.",
    "status": "Show the members of a running cluster.",
    "complete": "Complete a prompt.",
    "inspect": "Look into the cache, the nodes, the scheduler's decisions.",
    "admin": "Drain nodes, copy, evict and pin objects.",
    "bench": "Measure a running cluster.",
    "plan": "Find the smallest cluster that serves a trace.",
    "trace": "Convert and generate traces.",
    "config": "Show, validate and write configurations.",
    "auth": "Make the key that members of a cluster share.",
    "doctor": "Examine this machine, and say what to correct.",
    "plugins": "List transports, engines, policies and other plugins.",
    "exit-codes": "List the exit codes.",
}

HELP: Final = """KVCache-centric, disaggregated serving of large language models.

\b
Examples:
  mooncake start --role all -c configs/local.yaml
  mooncake complete "In the beginning"
"""


class _PipeBroke(Exception):
    """A BrokenPipeError that click must not see: it would end any of them silently with code 1."""

    def __init__(self, error: BrokenPipeError) -> None:
        super().__init__(str(error))
        self.error = error


class LazyGroup(click.Group):
    """Knows its commands' names and short helps; imports a command's module when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"mooncake_cli.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _PipeBroke(error) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            ctx.fail(f"no such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mooncake-toolkit", prog_name="mooncake")
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
def cli(debug: bool) -> None:
    """The group; `run` looks for --debug itself, since errors may come before any option is parsed."""


def main() -> None:
    """The entry point: runs a command and turns whatever it raises into a message and an exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of a command."""
    try:
        result: Any = cli.main(arguments, standalone_mode=False)
        return result if isinstance(result, int) else exits.DONE
    except click.exceptions.Abort:
        return exits.INTERRUPTED
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return exits.USAGE
    except click.exceptions.Exit as error:
        return error.exit_code
    except _PipeBroke as broke:
        return exits.DONE if console.nobody_reads() else _failed(broke.error, "--debug" in arguments)
    except SystemExit:  # how click ends when nobody reads the help
        return exits.DONE
    except Exception as error:
        return _failed(error, "--debug" in arguments)


def _failed(error: Exception, debug: bool) -> int:
    from mooncake_core.errors import MooncakeError

    if debug:
        import traceback

        console.note(traceback.format_exc())
    if isinstance(error, MooncakeError):
        console.error(str(error))
        return exits.code_of(error)
    if isinstance(error, OSError):
        console.error(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
        return exits.FAILED
    console.error(f"this is a bug in mooncake: {type(error).__name__}: {error}", f"the report is in {_save_report()}")
    return exits.BUG


def _save_report() -> str:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="mooncake-bug-", suffix=".txt", delete=False) as file:
        file.write(f"{sys.argv}\n{sys.version}\n{traceback.format_exc()}")
    return file.name


if __name__ == "__main__":
    main()
