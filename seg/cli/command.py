"""Between the shell and a command: composes its config, checks every word typed, sets the exit code.

0: done. 1: a fault of ours. 2: a mistake of the user's, told in one line before anything is made.
130: interrupted. 143: terminated. 138, 140: ended by SIGUSR1, SIGUSR2, as a scheduler sends them.
"""

import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf

from seg.cli.compose import build, check_line, checked, one_line, parse, plain
from seg.cli.conf_files import CONF, group_names, nearest
from seg.cli.help import help_text
from seg.display.console import visible
from seg.errors import MISTAKES, UserError
from seg.version import __version__

FLAGS = (
    "-h", "--help", "-m", "--multirun", "-c", "--cfg", "--resolve", "-p", "--package", "--config-dir", "-i", "--info",
    "--hydra-help", "--shell-completion", "--version",
)  # fmt: skip
__all__ = ["CONF", "UserError", "build", "checked", "command", "plain"]


class FlagParser(ArgumentParser):
    """Hydra's flags; a mistake is a UserError instead of a page of usage and an exit."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found."""
        said = message.removeprefix("argument ").replace(
            "ignored explicit argument", "takes no value, and was given"
        )
        raise UserError(said)


def command(
    config_name: str,
    words: Callable[[Namespace], list[str]] | None = None,
    *,
    sweeps: bool = False,
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Makes a function of a config the main function of a command.

    Args:
        config_name: its file in conf/.
        words: what was typed -> the words as Hydra takes them, where a command has its own.
        sweeps: whether ``-m`` runs it several times.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        def job(cfg: DictConfig) -> Any:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                return function(
                    cfg
                )  # seg.multirun.sweeper tells a job's failure, and the others go on
            try:
                return function(cfg)
            except MISTAKES as error:
                fail(error)
            except Exception as error:
                fault(error)  # here, since Hydra would print a line of its own

        def main() -> None:
            try:
                arguments = in_order(config_name)
                if arguments.help:
                    print(help_text(config_name))
                    return
                if arguments.version:
                    print(f"seg {__version__}")
                    return
                if words is not None:
                    flags = len(sys.argv) - len(arguments.overrides)
                    arguments.overrides = words(arguments)
                    sys.argv[flags:] = arguments.overrides
                check_flags(config_name, arguments, sweeps)
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
                if isinstance(error.__context__, KeyboardInterrupt) and error.code == 1:
                    interrupted()  # as Lightning leaves
                if isinstance(error, SIGTERMException):
                    sys.exit(143)  # Lightning would leave with 0
                raise
            except Exception as error:
                fault(error)

        return main

    return decorate


def in_order(config_name: str) -> Namespace:
    """Return what was typed; flags may stand anywhere, and come first for Hydra.

    Raises:
        UserError: for a flag that isn't there, or has a wrong value or none.
    """
    arguments, unknown = flag_parser().parse_known_intermixed_args()
    if unknown:
        raise unknown_flag(unknown[0], config_name)
    flags = sys.argv[1:]
    for word in arguments.overrides:
        flags.remove(word)
    sys.argv[1:] = [*flags, *arguments.overrides]
    return arguments


def flag_parser() -> FlagParser:
    """Return a parser of Hydra's flags, spelt out; ``--version`` is for the command to answer."""
    parser = FlagParser(
        add_help=False, allow_abbrev=False, parents=[get_args_parser()], conflict_handler="resolve"
    )
    parser.add_argument("--version", action="store_true")
    return parser


def unknown_flag(word: str, config_name: str) -> UserError:
    """Return the error for a flag that isn't there, with the nearest one, or the option that it may mean."""
    name, _, value = word.lstrip("-").partition("=")
    options = re.findall(r"^(\w+):", (CONF / f"{config_name}.yaml").read_text("utf-8"), re.M)
    if name.split(".")[0] in {*options, *group_names()}:
        close = f"; an option is written without dashes, {name}={value or '...'}"
    else:
        long = [flag for flag in FLAGS if flag.startswith("--")]
        close = nearest(f"--{name}", long) if word.startswith("--") else ""
    return UserError(f"{word}: no such flag{close} (flags: {', '.join(FLAGS)})")


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


def check_flags(config_name: str, arguments: Namespace, sweeps: bool) -> None:
    """Check what was typed, unless Hydra is only asked for help or the like.

    Raises:
        UserError: for flags that don't go together, or that this command has no use for.
    """
    for name in ("config_path", "config_name"):
        if getattr(arguments, name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}: can't be changed; --config-dir FOLDER adds a folder")
    if arguments.experimental_rerun:
        raise UserError(
            "--experimental-rerun: a pickle may run code; python -m seg.rerun run=RUN trains a run again"
        )
    asks = ("run", "multirun", "cfg", "info", "shell_completion", "hydra_help")
    given = [f"--{name.replace('_', '-')}" for name in asks if getattr(arguments, name)]
    if given[1:]:
        raise UserError(f"{given[0]} and {given[1]}: give one of them")
    if arguments.multirun and not sweeps:
        raise UserError("-m: only seg.train sweeps; give a command for each, without -m")
    for name in ("resolve", "package"):
        if getattr(arguments, name) and not arguments.cfg:
            raise UserError(f"--{name}: goes with --cfg job")
    if arguments.shell_completion:
        check_completion(arguments.overrides)
    if not {"--info", "--shell-completion", "--hydra-help"} & set(given):
        words = [*searching(arguments.config_dir), *arguments.overrides]
        cfg = check_line(config_name, words, arguments.multirun)
        package = arguments.package if arguments.cfg == "job" else None
        if package and package != "_global_" and OmegaConf.select(cfg, package) is None:
            raise UserError(
                f"--package {package}: no such group{nearest(package, [*map(str, cfg)])}"
            )


def check_completion(words: list[str]) -> None:
    """Raise UserError unless one thing is asked of ``--shell-completion``; a shell alone asks ``query``."""
    asked = [word.partition("=")[0] for word in words]
    if len(asked) != 1 or asked[0] not in ("install", "uninstall", "query"):
        raise UserError("--shell-completion: give install=bash or uninstall=bash (or zsh, fish)")
    if asked[0] == "query" and "COMP_LINE" not in os.environ:
        raise UserError(f"{words[0]}: asked by a shell; install=bash makes it ask")


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
