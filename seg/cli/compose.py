"""Hydra composition: parse, validate and build a config from the words of a command line."""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from seg.cli.conf_files import CONF, group_names, is_hydra_override
from seg.cli.paths import complete_values
from seg.cli.renamed_options import rename_composed
from seg.cli.resource_errors import OutOfMemory, explain_error
from seg.cli.validation import (
    OptionChecker,
    check_group_choice,
    check_override_name,
    is_new_option,
)
from seg.errors import USER_ERRORS, UserError

CONSTRUCTOR_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    ImportError,
)


def is_constructor_error(error: BaseException | None) -> bool:
    """Return True for an error with which a constructor refuses its arguments, also for Lightning's own."""
    name = "MisconfigurationException"  # by name, since importing Lightning takes seconds
    return isinstance(error, CONSTRUCTOR_ERRORS) or type(error).__name__ == name


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line, without the traceback of a DataLoader worker."""
    text = str(error)
    if "Original Traceback" in text:  # of a DataLoader worker, with the message at the end
        text = text.rstrip().rpartition("\n")[2].partition("Error: ")[2] or text
    return " ".join(text.split())


def instantiate_node(node: DictConfig, path: str, **given: Any) -> Any:
    """Instantiate the ``_target_`` of a node.

    Args:
        node: constructor and arguments.
        path: dotted name of the node, for messages.
        **given: arguments set by the command, in addition to those of the node.

    Raises:
        UserError: naming the option, if the constructor refuses an argument or memory runs out.
    """
    # Arguments of the command must not be set in the config as well
    twice = [name for name in given if name in node]
    if twice:
        raise UserError(f"{path}.{twice[0]}: set by the command itself; leave it out")
    try:
        if not given:
            return hydra.utils.instantiate(node, _convert_="all")
        # partial: Hydra would copy the given objects into a config
        return hydra.utils.instantiate(node, _partial_=True, _convert_="all")(**given)
    except USER_ERRORS:
        raise
    except InstantiationException as error:
        # Name the option at fault: Hydra wraps the cause and puts the path at the end of its text
        cause = error.__cause__
        if isinstance(cause, USER_ERRORS):
            raise cause from error
        full = str(error).rpartition("full_key: ")[2].strip() if "full_key: " in str(error) else ""
        where = full if full.startswith(path) else f"{path}.{full}" if full else path
        if is_constructor_error(cause):
            assert cause is not None
            raise UserError(f"{where}: {one_line(cause)}") from error
        short = explain_error(
            cause or error, "building it", f"smaller numbers in {where} need less"
        )
        if isinstance(short, OutOfMemory):
            raise UserError(f"{where}: {short}") from error
        raise
    except Exception as error:
        if is_constructor_error(error):
            raise UserError(f"{path}: {one_line(error)}") from error
        raise


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as dicts, lists and plain values, with interpolations resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


@dataclass(frozen=True)
class ComposedConfig:
    """Composed config.

    Attributes:
        cfg: the config, without Hydra's own node.
        tree: the same as plain values, with interpolations resolved.
        choices: chosen file of each group.
        hydra: the config with Hydra's own node.
    """

    cfg: DictConfig
    tree: dict[str, Any]
    choices: dict[str, Any]
    hydra: DictConfig


def no_further_check(cfg: DictConfig) -> None:
    """Accept a config."""


@dataclass(frozen=True)
class CheckedConfig(ComposedConfig):
    """Composed config whose options and values were checked against the files.

    Attributes:
        files: the config of the files alone, without typed options, as plain values.
        config_name: the command's own file.
        tested_files: True if all files are of this package.
    """

    files: dict[str, Any]
    config_name: str
    tested_files: bool

    def check(self, tree: dict[str, Any]) -> None:
        """Raise UserError unless a config with the same choice of files has valid options and values."""
        unchosen = [group for group, choice in self.choices.items() if choice is None]
        OptionChecker(self.config_name, unchosen, tested_files=self.tested_files).check(
            tree, self.files
        )

    def check_values(
        self, overrides: list[Override], also: Callable[[DictConfig], None] = no_further_check
    ) -> None:
        """Check each override in place of the option's present value; the values are plain.

        This takes milliseconds where composing takes tenths of a second.

        Args:
            overrides: one option each.
            also: further check of each config.
        """
        cfg = copy.deepcopy(self.cfg)
        for override in overrides:
            with flag_override(cfg, ["struct", "readonly"], [False, False]):
                OmegaConf.update(cfg, override.key_or_group, override.value())
            complete_values(cfg)
            self.check(plain_config(cfg))
            also(cfg)


def check_command_line(
    config_name: str,
    words: list[str],
    multirun: bool,
    also: Callable[[DictConfig], None] = no_further_check,
) -> CheckedConfig:
    """Check a command line; in a sweep, each value of each option together with the first values of the others.

    Args:
        config_name: name of the command's config.
        words: overrides.
        multirun: whether it is a sweep.
        also: further check of each config.

    Returns:
        The config; in a sweep that of the first values.

    Raises:
        UserError: for the first wrong word.
    """
    # Refuse what would start or hide a sweep
    overrides = parse_overrides(words)
    for override in overrides:
        if override.key_or_group == "hydra.mode":
            raise UserError(f"{override.input_line}: leave it out; -m sweeps")
    sweeping = [o for o in overrides if o.is_sweep_override()]
    if sweeping and not multirun:
        raise UserError(f"{sweeping[0].input_line}: several values are a sweep; add -m")
    # Compose the first value of each sweep, then vary one option at a time
    groups = group_names(overrides)
    choices = [expand_sweep(o, groups) for o in overrides]
    line = [values[0] for values in choices]
    first = compose_and_check(config_name, line)
    also(first.cfg)
    for i, values in enumerate(choices):
        varied = parse_overrides(values[1:])
        if overrides[i].key_or_group not in groups and all(map(sets_plain_value, varied)):
            first.check_values(varied, also)
            continue
        for value in values[1:]:
            also(compose_and_check(config_name, [*line[:i], value, *line[i + 1 :]]).cfg)
    return first


def sets_plain_value(override: Override) -> bool:
    """Return True if an override sets an option of the files, neither in Hydra's node nor to a list or dict."""
    adds = override.is_add() or override.is_force_add() or override.is_delete()
    return not (adds or is_hydra_override(override) or isinstance(override.value(), list | dict))


def expand_sweep(override: Override, groups: dict[str, list[str]]) -> list[str]:
    """Return an override as single overrides, one per value of a sweep, at most 64."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    value, key = override.value(), override.get_key_element()
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}"]
    if isinstance(value, Glob):
        names = value.filter(groups.get(override.key_or_group, []))
        if not names:
            raise UserError(f"{override.input_line}: no {override.key_or_group} matches")
        return [f"{key}={name}" for name in names]
    return [f"{key}={text}" for text in islice(override.sweep_string_iterator(), 64)]


def parse_overrides(words: list[str]) -> list[Override]:
    """Parse overrides.

    Raises:
        UserError: for a word that is not ``option=value``.
    """
    # Parse one word at a time, so that the message names the wrong one
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


def compose_checked(config_name: str, words: list[str]) -> DictConfig:
    """Compose a config and check that every option exists and has its type.

    Raises:
        UserError: naming the first wrong word, and the most similar right one.
    """
    return compose_and_check(config_name, words).cfg


def compose_and_check(config_name: str, words: list[str]) -> CheckedConfig:
    """Compose a config and check it, as ``compose_checked``; return it with what it was checked against."""
    # choices of groups, before anything is composed
    overrides = parse_overrides(words)
    groups = group_names(overrides)
    for override in overrides:
        check_group_choice(override, groups)
    # the files as they are: with the chosen groups, without the typed options and those of an experiment
    hydras = [o.input_line or "" for o in overrides if is_hydra_override(o)]
    named = [o for o in overrides if o.key_or_group in groups and not o.is_delete()]
    chosen = [o for o in named if not isinstance(o.value(), dict)]
    picks = [o.input_line or "" for o in chosen]
    composed = files = compose_config(config_name, [*hydras, *picks])
    if composed.choices.get("experiment"):
        files_of = composed.choices.items()
        choose = [f"{g}={c}" for g, c in files_of if c and g in groups and g != "experiment"]
        files = compose_config(config_name, [*hydras, *choose])
    # with the typed options
    unchosen = [group for group, choice in composed.choices.items() if choice is None]
    words = [
        f"+{word}" if is_new_option(override, files.tree, unchosen) else word
        for word, override in zip(words, overrides, strict=True)
    ]
    if len(hydras) + len(picks) < len(words):
        grouped = [o for o in overrides if o.key_or_group in groups]
        known = composed.choices if len(grouped) == len(chosen) else None  # no other word chooses
        try:
            composed = compose_config(config_name, words, known)
        except UserError:
            for override in overrides:
                if not is_hydra_override(override) and override.key_or_group not in groups:
                    check_override_name(override, files.tree, unchosen, groups)
            raise
    checked = CheckedConfig(
        **vars(composed),
        files=files.tree,
        config_name=config_name,
        tested_files=not any(o.key_or_group == "hydra.searchpath" for o in overrides),
    )
    checked.check(checked.tree)
    return checked


def compose_config(
    config_name: str, words: list[str], choices: dict[str, str] | None = None
) -> ComposedConfig:
    """Compose a config.

    Args:
        config_name: its file.
        words: of the command line.
        choices: the file of each group, where an earlier composition has found it.

    Raises:
        UserError: with Hydra's message.
    """
    # Hydra's state is global: keep the outer one and restore it at the end
    outer, outer_hydra = HydraConfig.instance().cfg, GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose(config_name, words, return_hydra_config=True)
            if choices is None:
                choices = dict(cfg.hydra.runtime.choices)
                if any(key not in choices and (CONF / str(key)).is_dir() for key in cfg):
                    choices = multiple_choices(config_name, words) | choices
        # Values that exist only inside a job, needed to resolve the interpolations
        for key, value in (("job.num", 0), ("job.id", "0"), ("runtime.output_dir", os.getcwd())):
            OmegaConf.update(cfg, f"hydra.{key}", value)  # known only in a job
        HydraConfig.instance().set_config(cfg)  # for ${hydra:...}
        with_hydra = copy.copy(cfg)
        # Drop Hydra's own node and resolve the rest
        with flag_override(cfg, ["struct", "readonly"], [False, False]):
            del cfg["hydra"]
        rename_composed(cfg, words)
        complete_values(cfg)
        tree = plain_config(cfg)
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        problem = one_line(error).partition(" Config search path:")[0]  # of the installation
        raise UserError(problem) from error
    finally:
        HydraConfig.instance().cfg = outer
        GlobalHydra.instance().hydra = outer_hydra
    return ComposedConfig(cfg, tree, choices, with_hydra)


def multiple_choices(config_name: str, words: list[str]) -> dict[str, str]:
    """Return group -> ``[a,b]``, all files chosen in it; Hydra's own choices omit groups with several."""
    loader = GlobalHydra.instance().config_loader()
    chosen: dict[str, list[str]] = {}
    for entry in loader.compute_defaults_list(config_name, words, RunMode.RUN).defaults:
        group, _, name = str(entry.config_path).rpartition("/")
        chosen.setdefault(group, []).append(name)
    return {group: f"[{','.join(names)}]" for group, names in chosen.items()}
