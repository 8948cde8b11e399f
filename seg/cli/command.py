"""Entry point of the commands: compose the config, check every word of the command line, set the exit code.

Exit codes: 0 success; 1 internal error; 2 user error, reported in one line before anything is written;
130 interrupted (SIGINT); 143 terminated (SIGTERM); 138, 140 ended by SIGUSR1, SIGUSR2 of a scheduler.
"""

import os
import re
import sys
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from seg.cli.completion import check_completion, print_shell_code
from seg.cli.compose import (
    CheckedConfig,
    check_command_line,
    no_further_check,
    one_line,
    parse_overrides,
)
from seg.cli.conf_files import CONF, did_you_mean, group_names, is_hydra_override
from seg.cli.help import help_text
from seg.cli.paths import check_data_root, complete_values, expand_path
from seg.cli.renamed_options import rename_composed, rename_words
from seg.display.console import escape_controls
from seg.errors import USER_ERRORS, UserError
from seg.version import __version__

HYDRA_FLAGS = (
    "-h", "--help", "-m", "--multirun", "-c", "--cfg", "--resolve", "-p", "--package", "--config-dir", "-i", "--info",
    "--hydra-help", "--shell-completion", "--version",
)  # fmt: skip


def accept_lazy_help() -> None:
    """Let the argparse of Python 3.14 and later check only help texts that are strings.

    Hydra 1.3 gives ``--shell-completion`` an object that becomes its text when printed; Hydra 1.4 does the same.
    """
    check: Callable[[ArgumentParser, Action], None] | None
    check = getattr(ArgumentParser, "_check_help", None)
    if check is None:  # before Python 3.14
        return

    def check_text(parser: ArgumentParser, action: Action) -> None:
        if isinstance(action.help, str):
            check(parser, action)

    setattr(ArgumentParser, "_check_help", check_text)  # noqa: B010  # unknown to type checkers


accept_lazy_help()


class FlagParser(ArgumentParser):
    """Parser of Hydra's flags; raises UserError instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the message of argparse."""
        message = message.removeprefix("argument ")
        raise UserError(
            message.replace("ignored explicit argument", "takes no value, and was given")
        )


class Command:
    """A command: calling it runs the command line of the process, and ends the process with an exit code.

    Args:
        config_name: name of the command's file in conf/.
        function: function of the config.
        words: conversion of the parsed command line to Hydra's overrides, for a command with its own syntax.
        sweeper: module that registers Hydra's sweeper; it allows ``-m``, which runs the function once per combination
            of values.
    """

    def __init__(
        self,
        config_name: str,
        function: Callable[[DictConfig], Any],
        words: Callable[[Namespace], list[str]] | None = None,
        sweeper: str | None = None,
    ) -> None:
        self.config_name, self.function = config_name, function
        self.words, self.sweeper = words, sweeper

    def __call__(self) -> None:
        """Run the command line; report an error in one line and exit with its code."""
        try:
            self.run()
        except USER_ERRORS as error:
            exit_user_error(error)
        except KeyboardInterrupt:
            exit_interrupted()
        except BrokenPipeError:  # the reader of stdout closed, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt) and error.code == 1:
                exit_interrupted()  # Lightning exits with 1
            if type(error).__name__ == "SIGTERMException":
                sys.exit(143)  # Lightning exits with 0
            raise
        except Exception as error:
            exit_internal_error(error)

    def run(self) -> None:
        """Run the command line; raise its errors.

        Raises:
            UserError: for a wrong word, before anything heavy is imported.
        """
        # help and version need no config
        arguments = parse_arguments(self.config_name)
        if arguments.help:
            print(help_text(self.config_name))
            return
        if arguments.version:
            print(f"seg {__version__}")
            return
        # check everything typed before Hydra starts a job
        flags = len(sys.argv) - len(arguments.overrides)
        arguments.overrides = rename_words(arguments.overrides)
        if self.words is not None and not arguments.shell_completion:
            arguments.overrides = self.words(arguments)
        sys.argv[flags:] = arguments.overrides
        checked = check_flags(self.config_name, arguments, self.sweeper is not None)
        if arguments.shell_completion and not arguments.overrides[0].startswith("query="):
            print_shell_code(*arguments.overrides[0].split("="))
            return
        if checked is not None and self.config_name != "train" and checked.cfg.get("dry"):
            raise UserError("dry=true: goes with a single run of seg.train; leave it out")
        if checked is not None and runs_directly(arguments):
            run_composed(self.function, checked)
            return
        if arguments.multirun:
            import_module(str(self.sweeper))
            flags = len(sys.argv) - len(arguments.overrides)
            sys.argv[flags:] = allow_job_options(arguments.overrides)
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # raise exceptions unchanged
        start = hydra.main(version_base="1.3", config_path=str(CONF), config_name=self.config_name)
        start(self.job)()

    def job(self, cfg: DictConfig) -> Any:
        """Run the function as a job of Hydra."""
        rename_composed(cfg, HydraConfig.get().overrides.task)
        complete_values(cfg)
        # In a multirun errors go to the sweeper, else they end the process
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return self.function(
                cfg
            )  # seg.multirun.sweeper reports failures and runs the other jobs
        try:
            return self.function(cfg)
        except USER_ERRORS as error:
            exit_user_error(error)
        except Exception as error:
            exit_internal_error(error)  # handled here, before Hydra prints its own message


def command(
    config_name: str,
    words: Callable[[Namespace], list[str]] | None = None,
    *,
    sweeper: str | None = None,
) -> Callable[[Callable[[DictConfig], Any]], Command]:
    """Decorate a function of a config as a command; arguments as of ``Command``."""
    return lambda function: Command(config_name, function, words, sweeper)


def runs_directly(arguments: Namespace) -> bool:
    """Return True if the function runs once, with the config that was checked; otherwise Hydra composes it again.

    Options of Hydra itself, and its flags other than ``-h``, are its own business.
    """
    flags = ("multirun", "cfg", "info", "shell_completion", "hydra_help", "config_dir", "run")
    given = any(getattr(arguments, flag) for flag in flags)
    return not given and not any(map(is_hydra_override, parse_overrides(arguments.overrides)))


def run_composed(function: Callable[[DictConfig], Any], checked: CheckedConfig) -> Any:
    """Run a function of a config as ``hydra.main`` does, without composing the config again."""
    outer = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(checked.hydra)
    try:
        return function(checked.cfg)
    finally:
        HydraConfig.instance().cfg = outer


def parse_arguments(config_name: str) -> Namespace:
    """Parse the command line and reorder ``sys.argv``: flags, which may stand anywhere, first, as Hydra needs.

    Raises:
        UserError: for an unknown flag, or one with a wrong or missing value.
    """
    arguments, unknown = flag_parser().parse_known_intermixed_args()
    if unknown:
        raise unknown_flag(unknown[0], config_name)
    flags = sys.argv[1:]
    for word in arguments.overrides:
        flags.remove(word)
    if (typed := arguments.config_dir) is not None:
        arguments.config_dir = expand_path("--config-dir", typed)
        flags = [re.sub(f"{re.escape(typed)}$", lambda _: arguments.config_dir, w) for w in flags]
    sys.argv[1:] = [*flags, *arguments.overrides]
    return arguments


def flag_parser() -> FlagParser:
    """Return a parser of Hydra's flags without abbreviations; the command itself handles ``--version``."""
    parser = FlagParser(
        add_help=False, allow_abbrev=False, parents=[get_args_parser()], conflict_handler="resolve"
    )
    parser.add_argument("--version", action="store_true")
    return parser


def unknown_flag(word: str, config_name: str) -> UserError:
    """Return the error for an unknown flag, with the most similar flag or option."""
    name, _, value = word.lstrip("-").partition("=")
    options = re.findall(r"^(\w+):", (CONF / f"{config_name}.yaml").read_text("utf-8"), re.M)
    if name.split(".")[0] in {*options, *group_names()}:
        close = f"; an option is written without dashes, {name}={value or '...'}"
    else:
        long = [flag for flag in HYDRA_FLAGS if flag.startswith("--")]
        close = did_you_mean(f"--{name}", long) if word.startswith("--") else ""
    return UserError(f"{word}: no such flag{close} (flags: {', '.join(HYDRA_FLAGS)})")


def exit_user_error(error: Exception) -> NoReturn:
    """Report a user error in one line and exit with code 2."""
    print(f"error: {escape_controls(one_line(error))}", file=sys.stderr)
    sys.exit(2)


def exit_internal_error(error: Exception) -> NoReturn:
    """Report an internal error in one line and exit with code 1; SEG_TRACEBACK=1 shows the traceback."""
    if os.environ.get("SEG_TRACEBACK") == "1":
        raise error
    name = type(error).__name__
    print(
        f"fault: {name}: {escape_controls(one_line(error))} (SEG_TRACEBACK=1 shows where)",
        file=sys.stderr,
    )
    sys.exit(1)


def exit_interrupted() -> NoReturn:
    """Report an interruption and exit with code 130."""
    print("interrupted", file=sys.stderr)
    sys.exit(130)


def check_flags(config_name: str, arguments: Namespace, sweeps: bool) -> CheckedConfig | None:
    """Check flags and overrides; overrides only if the command will run or print its config.

    Returns:
        The composed config; None if the overrides were not checked.

    Raises:
        UserError: for flags that exclude each other or do not apply to this command, or a wrong override.
    """
    # flags of Hydra that this package does not support
    for name in ("config_path", "config_name"):
        if getattr(arguments, name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}: can't be changed; --config-dir FOLDER adds a folder")
    if arguments.experimental_rerun:
        raise UserError(
            "--experimental-rerun: a pickle may run code; python -m seg.rerun run=RUN trains a run again"
        )
    # one action at a time
    actions = ("run", "multirun", "cfg", "info", "shell_completion", "hydra_help")
    given = [f"--{name.replace('_', '-')}" for name in actions if getattr(arguments, name)]
    if given[1:]:
        raise UserError(f"{given[0]} and {given[1]}: give one of them")
    if arguments.multirun and not sweeps:
        raise UserError("-m: only seg.train sweeps; give a command for each, without -m")
    for name in ("resolve", "package"):
        if getattr(arguments, name) and not arguments.cfg:
            raise UserError(f"--{name}: goes with --cfg job")
    if arguments.shell_completion:
        check_completion(arguments.overrides)
    # overrides
    if not {"--info", "--shell-completion", "--hydra-help"} & set(given):
        words = [*search_path_override(arguments.config_dir), *arguments.overrides]
        also = no_further_check if arguments.cfg or arguments.info else check_data_root
        checked = check_command_line(config_name, words, arguments.multirun, also)
        package = arguments.package if arguments.cfg == "job" else None
        if package and package != "_global_" and OmegaConf.select(checked.cfg, package) is None:
            names = [*map(str, checked.cfg)]
            raise UserError(f"--package {package}: no such group{did_you_mean(package, names)}")
        return checked
    return None


def allow_job_options(words: list[str]) -> list[str]:
    """Return the overrides of a sweep; if a group is swept, ``++`` is added to options of groups.

    Hydra checks overrides against the defaults as well, and in ``experiment=a,b data.root=DATA`` only the jobs have
    ``data.root``. Each job's options were checked before.
    """
    overrides, groups = parse_overrides(words), group_names()
    # Only a sweep over a group makes options of the others unknown in some jobs
    if not any(o.is_sweep_override() and o.key_or_group in groups for o in overrides):
        return words
    # Options inside a group that are given once, for all jobs
    single = [
        not o.is_sweep_override()
        and "." in o.key_or_group
        and o.key_or_group.split(".")[0] in groups
        for o in overrides
    ]
    # The prefix ++ sets an option whether or not the chosen file has it
    return [
        f"++{word}" if is_single and word[0] not in "+~" else word
        for word, is_single in zip(words, single, strict=True)
    ]


def search_path_override(folder: str | None) -> list[str]:
    """Return the override that is equivalent to ``--config-dir FOLDER``."""
    if folder is None:
        return []
    path = Path(folder).resolve()
    if not path.is_dir():
        raise UserError(f"--config-dir {folder}: no such folder")
    return [f"hydra.searchpath=['file://{path}']"]
