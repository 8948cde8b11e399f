"""Between the shell and a command: composes its config, checks every word typed, sets the exit code.

0: done. 1: a fault of ours. 2: a mistake of the user's, told in one line before anything is made.
130: interrupted. 143: terminated. 138, 140: ended by SIGUSR1, SIGUSR2, as a scheduler sends them.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig

from seg.cli.compose import build, check_line, checked, one_line, parse, plain
from seg.cli.conf_files import CONF, group_names
from seg.cli.help import help_text
from seg.display.console import visible
from seg.errors import MISTAKES, UserError

__all__ = ["CONF", "UserError", "build", "checked", "command", "plain"]


def command(
    config_name: str, words: Callable[[Namespace], list[str]] | None = None
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Makes a function of a config the main function of a command.

    Args:
        config_name: its file in conf/.
        words: what was typed -> the words as Hydra takes them, where a command has its own.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        def job(cfg: DictConfig) -> Any:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                return function(cfg)  # one job's failure is told at the end, and the others go on
            try:
                return function(cfg)
            except MISTAKES as error:
                fail(error)
            except Exception as error:
                fault(error)  # here, since Hydra would print a line of its own

        def main() -> None:
            try:
                arguments = in_order()
                if arguments.help:
                    print(help_text(config_name))
                    return
                if words is not None:
                    flags = len(sys.argv) - len(arguments.overrides)
                    arguments.overrides = words(arguments)
                    sys.argv[flags:] = arguments.overrides
                check_flags(config_name, arguments)
                if arguments.multirun:
                    flags = len(sys.argv) - len(arguments.overrides)
                    sys.argv[flags:] = for_jobs(arguments.overrides)
                os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions come here as they are
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(
                    job
                )()
            except MISTAKES as error:
                fail(error)
            except KeyboardInterrupt:
                interrupted()
            except BrokenPipeError:  # who read our output went away, as `| head` does
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(141)
            except SystemExit as error:
                if isinstance(error.__context__, KeyboardInterrupt):
                    interrupted()  # Lightning leaves with 1
                if isinstance(error, SIGTERMException):
                    sys.exit(143)  # Lightning would leave with 0
                raise
            except Exception as error:
                fault(error)

        return main

    return decorate


def in_order() -> Namespace:
    """What was typed; flags may stand anywhere, and come first for Hydra."""
    arguments = get_args_parser().parse_intermixed_args()
    flags = sys.argv[1:]
    for word in arguments.overrides:
        flags.remove(word)
    sys.argv[1:] = [*flags, *arguments.overrides]
    return arguments


def fail(error: Exception) -> NoReturn:
    print(f"error: {visible(one_line(error))}", file=sys.stderr)
    sys.exit(2)


def fault(error: Exception) -> NoReturn:
    """Exit code 1 with one line; SEG_TRACEBACK=1 shows where."""
    if os.environ.get("SEG_TRACEBACK") == "1":
        raise error
    name = type(error).__name__
    print(
        f"fault: {name}: {visible(one_line(error))} (SEG_TRACEBACK=1 shows where)", file=sys.stderr
    )
    sys.exit(1)


def interrupted() -> NoReturn:
    print("interrupted", file=sys.stderr)
    sys.exit(130)


def check_flags(config_name: str, arguments: Namespace) -> None:
    """Checks what was typed, unless Hydra is only asked for help or the like."""
    if arguments.config_path:
        raise UserError("--config-path: can't be changed; --config-dir FOLDER adds a folder")
    asks = (arguments.hydra_help, arguments.info, arguments.shell_completion)
    if not any(asks) and not arguments.experimental_rerun:
        words = [*searching(arguments.config_dir), *arguments.overrides]
        check_line(arguments.config_name or config_name, words, arguments.multirun)


def for_jobs(words: list[str]) -> list[str]:
    """The words of a sweep; where a group is swept, options of groups are added if they aren't there.

    Hydra looks for them in the defaults too: ``experiment=a,b data.root=DATA`` has a ``data.root`` in each
    job alone. Whether they are known in each job was checked before.
    """
    overrides, groups = parse(words), group_names()
    if not any(o.is_sweep_override() and o.key_or_group in groups for o in overrides):
        return words
    single = [
        not o.is_sweep_override()
        and "." in o.key_or_group
        and o.key_or_group.split(".")[0] in groups
        for o in overrides
    ]
    return [
        f"++{word}" if alone and word[0] not in "+~" else word
        for word, alone in zip(words, single, strict=True)
    ]


def searching(folder: str | None) -> list[str]:
    """The override that ``--config-dir FOLDER`` stands for."""
    if folder is None:
        return []
    path = Path(folder).resolve()
    if not path.is_dir():
        raise UserError(f"--config-dir {folder}: no such folder")
    return [f"hydra.searchpath=['file://{path}']"]
