"""`muloco-sweep`: plans, launches and watches many runs."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from muloco_runner.config import ConfigError
from muloco_runner.paths import announce, take_config_path, use_config_path
from muloco_runner.record import ExitCode
from sweeps.cli.command_line import parse

_INTERRUPTED = 130
"""Exit code after Ctrl-C, as in a shell."""


def main() -> None:
    """The console script. Never returns: exits with one of `ExitCode`."""
    from sweeps.node.disk_space import is_disk_full, words_for
    from sweeps.store.lease import LeaseLost

    try:
        words, path = take_config_path(sys.argv[1:])
        use_config_path(path)
        arguments = parse(words)
        if line := announce(path):
            print(line, file=sys.stderr)
        code = _run(arguments)
    except LeaseLost as error:
        _fail(f"{error}; this one has stopped; the sweep continues under the other", ExitCode.CRASH)
    except ConfigError as error:
        _fail(str(error), ExitCode.USAGE)
    except KeyboardInterrupt as interrupt:
        _fail(str(interrupt) or "stopped; the same command continues", _INTERRUPTED, "\n")
    except BrokenPipeError:
        # The reader of our output, such as `head`, has closed it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.FINISHED)
    except OSError as error:
        # A full disk, or a folder that disappeared. Running jobs continue; nothing on disk is lost.
        what = f"disk full: {words_for(error)}" if is_disk_full(error) else str(error)
        _fail(f"{what}; fix it, then run the same command to continue", ExitCode.CRASH)
    except Exception as error:
        # A defect of ours: a person gets the traceback, a program also a line that it can read.
        _tell_program(f"{type(error).__name__}: {error}", ExitCode.CRASH)
        raise
    sys.exit(code)


def _fail(words: str, code: int, prefix: str = "muloco-sweep: ") -> NoReturn:
    """Exit with one line on standard error, and as JSON where that was asked for."""
    print(f"{prefix}{words}", file=sys.stderr)
    _tell_program(words, code)
    sys.exit(code)


def _tell_program(words: str, code: int) -> None:
    # The command line itself is looked at: it may be what could not be parsed.
    if "--json" in sys.argv[1:]:
        with contextlib.suppress(OSError):
            print(json.dumps({"error": words, "exit_code": int(code)}), flush=True)


def _run(arguments: argparse.Namespace) -> ExitCode:
    """Carry a command out, with the imports that it needs alone."""
    match arguments.name:
        case "launch":
            from sweeps.cli.launch_sweep import launch

            return launch(arguments)
        case "init":
            from sweeps.cli.init import init

            return init(arguments)
        case "plan" | "simulate":
            from sweeps.cli.plan import plan, simulate_sweep

            return plan(arguments) if arguments.name == "plan" else simulate_sweep(arguments)
    from sweeps.cli import control, queries

    commands: dict[str, Callable[[argparse.Namespace], ExitCode]] = {
        "status": queries.status,
        "watch": queries.watch,
        "explain": queries.explain_run,
        "logs": queries.logs,
        "pause": control.pause,
        "resume": control.resume,
        "quota": control.quota,
        "cancel": control.cancel,
        "hold": control.hold,
        "retry": control.retry,
        "clean": control.clean,
    }
    return commands[arguments.name](arguments)


def multirun(overrides: Sequence[str], detached: bool, allow_large: bool) -> ExitCode:
    """`muloco-train --multirun`: the same sweep as `muloco-sweep launch` (see `hydra.sweeper.launch_with`)."""
    flags = [*(["--detach"] if detached else []), *(["--allow-large"] if allow_large else [])]
    if not overrides:
        raise ConfigError("--multirun: name a sweep (+sweep=NAME), or give a key several values, such as seed=0,1")
    return _run(parse(["launch", *flags, *overrides]))


if __name__ == "__main__":
    main()
