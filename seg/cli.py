"""Between the shell and a command: composes its config, checks every word typed, sets the exit code.

0: done. 1: a fault of ours. 2: a mistake of the user's, told in one line before anything is made.
130: interrupted.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seg.data.sources import DataError
from seg.hardware import HardwareError
from seg.options import CONF, UserError, check_node, check_plain, explain, group_names
from seg.runs import RunError

MISTAKES = (UserError, DataError, RunError, HardwareError)
__all__ = ["CONF", "UserError", "build", "checked", "command", "plain"]


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Makes a function of a config the main function of a command."""

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        def job(cfg: DictConfig) -> Any:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                return function(cfg)  # one job's failure is told at the end, and the others go on
            try:
                return function(cfg)
            except MISTAKES as error:
                fail(error)

        def main() -> None:
            try:
                arguments = get_args_parser().parse_args()
                asks = any((arguments.help, arguments.hydra_help, arguments.info,
                            arguments.shell_completion))  # fmt: skip
                if not asks:
                    check_line(config_name, arguments.overrides, arguments.multirun)
                os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions come here as they are
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(
                    job
                )()
            except MISTAKES as error:
                fail(error)
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                sys.exit(130)
            except Exception as error:
                fault(error)

        return main

    return decorate


def fail(error: Exception) -> NoReturn:
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(2)


def fault(error: Exception) -> NoReturn:
    """Exit code 1 with one line; SEG_TRACEBACK=1 shows where."""
    if os.environ.get("SEG_TRACEBACK") == "1":
        raise error
    name = type(error).__name__
    print(f"fault: {name}: {one_line(error)} (SEG_TRACEBACK=1 shows where)", file=sys.stderr)
    sys.exit(1)


def one_line(error: Exception) -> str:
    text = str(error)
    if "Original Traceback" in text:  # from a loader's worker: its own message comes last
        text = text.rstrip().rpartition("\n")[2].partition("Error: ")[2] or text
    return " ".join(text.split())


def build(node: DictConfig, path: str, **given: Any) -> Any:
    """What a node's ``_target_`` constructs, with ``given`` beside the node's own arguments.

    Raises:
        UserError: when the constructor refuses an argument; names the option's path.
    """
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
        if isinstance(cause, ValueError | TypeError | ImportError):
            raise UserError(f"{path}: {one_line(cause)}") from error
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {one_line(error)}") from error


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A config as plain dicts, lists and values, interpolations resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def check_line(config_name: str, words: list[str], multirun: bool) -> None:
    """Checks a command line; in a sweep each value of each option, the others at their first."""
    overrides = parse(words)
    if not multirun:
        sweeping = [o for o in overrides if o.is_sweep_override()]
        if sweeping:
            raise UserError(f"{sweeping[0].input_line}: several values are a sweep; add -m")
        checked(config_name, words)
        return
    choices = [
        list(o.sweep_string_iterator())[:64] if o.is_sweep_override() else None for o in overrides
    ]
    line = [
        f"{o.get_key_element()}={c[0]}" if c else o.input_line or ""
        for o, c in zip(overrides, choices, strict=True)
    ]
    checked(config_name, line)
    for i, (override, values) in enumerate(zip(overrides, choices, strict=True)):
        for value in (values or [])[1:]:
            checked(
                config_name, [*line[:i], f"{override.get_key_element()}={value}", *line[i + 1 :]]
            )


def parse(words: list[str]) -> list[Override]:
    parser = OverridesParser.create()
    overrides = []
    for word in words:
        try:
            overrides.append(parser.parse_override(word))
        except HydraException as error:
            remedy = (
                "write option=value"
                if "=" not in word
                else "quote values with spaces, commas or brackets"
            )
            raise UserError(f"{word}: can't be read as an override; {remedy}") from error
    return overrides


def checked(config_name: str, words: list[str]) -> DictConfig:
    """The composed config, every option known and of its type.

    Raises:
        UserError: naming the first word that is wrong, and the nearest right one.
    """
    overrides = parse(words)
    groups = group_names(config_name)
    chosen = [o for o in overrides if o.key_or_group in groups]
    base = composed(config_name, [o.input_line or "" for o in chosen], overrides)
    cfg = composed(config_name, words, overrides, base)
    typed = [o.key_or_group for o in overrides if o not in chosen and not o.is_delete()]
    for key in typed:
        if key.split(".")[0] != "hydra":
            check_plain(key, cfg, base)
    for key in cfg:
        check_node(cfg, str(key), str(key), base)
    return cfg


def composed(
    config_name: str, words: list[str], overrides: list[Override], base: DictConfig | None = None
) -> DictConfig:
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose(config_name, words)
        OmegaConf.to_container(cfg, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(explain(error, config_name, overrides, base)) from error
    finally:
        GlobalHydra.instance().clear()
    return cfg
