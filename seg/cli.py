"""Between the shell and a command: composes its config, checks every word typed, sets the exit code.

0: done. 1: a fault of ours. 2: a mistake of the user's, told in one line before anything is made.
130: interrupted. 143: terminated. 138, 140: ended by SIGUSR1, SIGUSR2, as a scheduler sends them.
"""

import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from seg import __version__
from seg.console import visible
from seg.data.sources import DataError
from seg.hardware import HardwareError
from seg.help import help_text
from seg.options import (
    CONF,
    UserError,
    check_choice,
    check_level,
    check_word,
    group_names,
    is_hydras,
    nearest,
)
from seg.runs import RunError
from seg.shortage import OutOfMemory, explained

MISTAKES = (UserError, DataError, RunError, HardwareError)
REFUSALS = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    ImportError,
    MisconfigurationException,
)
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
                return function(cfg)  # seg.sweep tells a job's failure, and the others go on
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


def one_line(error: BaseException) -> str:
    text = str(error)
    if "Original Traceback" in text:  # from a loader's worker: its own message comes last
        text = text.rstrip().rpartition("\n")[2].partition("Error: ")[2] or text
    return " ".join(text.split())


def build(node: DictConfig, path: str, **given: Any) -> Any:
    """What a node's ``_target_`` constructs, with ``given`` beside the node's own arguments.

    Raises:
        UserError: when the constructor refuses an argument, or memory falls short; names the option's path.
    """
    twice = [name for name in given if name in node]
    if twice:
        raise UserError(f"{path}.{twice[0]}: set by the command itself; leave it out")
    try:
        if not given:
            return hydra.utils.instantiate(node, _convert_="all")
        # partial: hydra would copy what is given into a config
        return hydra.utils.instantiate(node, _partial_=True, _convert_="all")(**given)
    except MISTAKES:
        raise
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, MISTAKES):
            raise cause from error
        full = str(error).rpartition("full_key: ")[2].strip() if "full_key: " in str(error) else ""
        where = full if full.startswith(path) else f"{path}.{full}" if full else path
        if isinstance(cause, REFUSALS):
            raise UserError(f"{where}: {one_line(cause)}") from error
        short = explained(cause or error, "building it", f"smaller numbers in {where} need less")
        if isinstance(short, OutOfMemory):
            raise UserError(f"{where}: {short}") from error
        raise
    except REFUSALS as error:
        raise UserError(f"{path}: {one_line(error)}") from error


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A config as plain dicts, lists and values, interpolations resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


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


def check_line(config_name: str, words: list[str], multirun: bool) -> DictConfig:
    """Check a command line, in a sweep each value of each option, the others at their first.

    Returns:
        The config, of a sweep that of the first values.
    """
    overrides = parse(words)
    for override in overrides:
        if override.key_or_group == "hydra.mode":
            raise UserError(f"{override.input_line}: leave it out; -m sweeps")
    sweeping = [o for o in overrides if o.is_sweep_override()]
    if sweeping and not multirun:
        raise UserError(f"{sweeping[0].input_line}: several values are a sweep; add -m")
    groups = group_names(overrides)
    choices = [swept(o, groups) for o in overrides]
    line = [values[0] for values in choices]
    cfg = checked(config_name, line)
    for i, values in enumerate(choices):
        for value in values[1:]:
            checked(config_name, [*line[:i], value, *line[i + 1 :]])
    return cfg


def swept(override: Override, groups: dict[str, list[str]]) -> list[str]:
    """A word as single overrides, one for each value of a sweep; the first 64."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    value, key = override.value(), override.get_key_element()
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}"]
    if isinstance(value, Glob):
        names = value.filter(groups.get(override.key_or_group, []))
        if not names:
            raise UserError(f"{override.input_line}: no {override.key_or_group} is so named")
        return [f"{key}={name}" for name in names]
    return [f"{key}={text}" for text in islice(override.sweep_string_iterator(), 64)]


def parse(words: list[str]) -> list[Override]:
    parser = OverridesParser.create()
    overrides = []
    for word in words:
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            remedy = "quote values with spaces, commas or brackets"
            remedy = remedy if "=" in word else "write option=value"
            raise UserError(f"{word}: can't be read as an override; {remedy}") from error
        if not override.key_or_group:
            raise UserError(f"{word}: can't be read as an override; write option=value")
        overrides.append(override)
    return overrides


def checked(config_name: str, words: list[str]) -> DictConfig:
    """The composed config, every option known and of its type.

    Raises:
        UserError: naming the first word that is wrong, and the nearest right one.
    """
    overrides = parse(words)
    groups = group_names(overrides)
    for override in overrides:
        check_choice(override, groups)
    hydras = [o.input_line or "" for o in overrides if is_hydras(o)]
    picks = [o.input_line or "" for o in overrides if o.key_or_group in groups]
    _, own, chosen = composed(config_name, hydras)
    if picks:
        _, _, chosen = composed(config_name, [*hydras, *picks])
    choose = [f"{g}={c}" for g, c in chosen.items() if c and g in groups and g != "experiment"]
    _, files, _ = composed(config_name, [*hydras, *choose])
    unchosen = [group for group, choice in chosen.items() if choice is None]
    try:
        cfg, tree, _ = composed(config_name, words)
    except UserError:
        for override in overrides:
            if not is_hydras(override) and override.key_or_group not in groups:
                check_word(override, files, unchosen, groups)
        raise
    check_level(tree, files, own, unchosen)
    return cfg


def composed(config_name: str, words: list[str]) -> tuple[DictConfig, dict[str, Any], dict]:
    """The config, the same resolved and plain, and the choice of each group."""
    outer = HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose(config_name, words, return_hydra_config=True)
            choices = dict(cfg.hydra.runtime.choices)
            if any(key not in choices and (CONF / str(key)).is_dir() for key in cfg):
                choices = several(config_name, words) | choices
        for key, value in (("job.num", 0), ("job.id", "0"), ("runtime.output_dir", ".")):
            OmegaConf.update(cfg, f"hydra.{key}", value)  # known only in a job
        HydraConfig.instance().set_config(cfg)  # for ${hydra:...}
        with flag_override(cfg, ["struct", "readonly"], [False, False]):
            del cfg["hydra"]
        tree = plain(cfg)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        said = one_line(error).partition(" Config search path:")[0]  # folders of the installation
        raise UserError(said) from error
    finally:
        HydraConfig.instance().cfg = outer
        GlobalHydra.instance().clear()
    return cfg, tree, choices


def several(config_name: str, words: list[str]) -> dict[str, str]:
    """Group -> ``[a,b]`` of all files chosen in it; Hydra's own choices leave out where there are several."""
    loader = GlobalHydra.instance().config_loader()
    chosen: dict[str, list[str]] = {}
    for entry in loader.compute_defaults_list(config_name, words, RunMode.RUN).defaults:
        group, _, name = str(entry.config_path).rpartition("/")
        chosen.setdefault(group, []).append(name)
    return {group: f"[{','.join(names)}]" for group, names in chosen.items()}
