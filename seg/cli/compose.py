"""Hydra composition: parse, validate and build a config from the words of a command line."""

from itertools import islice
from typing import Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from seg.cli.conf_files import CONF, group_names, is_hydra_override
from seg.cli.paths import complete_values
from seg.cli.renamed_options import rename_composed
from seg.cli.resource_errors import OutOfMemory, explain_error
from seg.cli.validation import check_group_choice, check_option_group, check_override_name
from seg.errors import USER_ERRORS, UserError

CONSTRUCTOR_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    ImportError,
    MisconfigurationException,
)


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
        if isinstance(cause, CONSTRUCTOR_ERRORS):
            raise UserError(f"{where}: {one_line(cause)}") from error
        short = explain_error(
            cause or error, "building it", f"smaller numbers in {where} need less"
        )
        if isinstance(short, OutOfMemory):
            raise UserError(f"{where}: {short}") from error
        raise
    except CONSTRUCTOR_ERRORS as error:
        raise UserError(f"{path}: {one_line(error)}") from error


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as dicts, lists and plain values, with interpolations resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def check_command_line(config_name: str, words: list[str], multirun: bool) -> DictConfig:
    """Check a command line; in a sweep, each value of each option together with the first values of the others.

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
    cfg = compose_checked(config_name, line)
    for i, values in enumerate(choices):
        for value in values[1:]:
            compose_checked(config_name, [*line[:i], value, *line[i + 1 :]])
    return cfg


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
    # choices of groups, before anything is composed
    overrides = parse_overrides(words)
    groups = group_names(overrides)
    for override in overrides:
        check_group_choice(override, groups)
    # the files as they are: with the chosen groups, without the typed options
    hydras = [o.input_line or "" for o in overrides if is_hydra_override(o)]
    picks = [o.input_line or "" for o in overrides if o.key_or_group in groups]
    _, own, chosen = compose_config(config_name, hydras)
    if picks:
        _, _, chosen = compose_config(config_name, [*hydras, *picks])
    choose = [f"{g}={c}" for g, c in chosen.items() if c and g in groups and g != "experiment"]
    _, files, _ = compose_config(config_name, [*hydras, *choose])
    # with the typed options
    unchosen = [group for group, choice in chosen.items() if choice is None]
    try:
        cfg, tree, _ = compose_config(config_name, words)
    except UserError:
        for override in overrides:
            if not is_hydra_override(override) and override.key_or_group not in groups:
                check_override_name(override, files, unchosen, groups)
        raise
    check_option_group(tree, files, own, unchosen)
    return cfg


def compose_config(config_name: str, words: list[str]) -> tuple[DictConfig, dict[str, Any], dict]:
    """Compose a config; return it, the same as resolved plain values, and the chosen file of each group."""
    # Hydra's state is global: keep the outer one and restore it at the end
    outer = HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose(config_name, words, return_hydra_config=True)
            choices = dict(cfg.hydra.runtime.choices)
            if any(key not in choices and (CONF / str(key)).is_dir() for key in cfg):
                choices = multiple_choices(config_name, words) | choices
        # Values that exist only inside a job, needed to resolve the interpolations
        for key, value in (("job.num", 0), ("job.id", "0"), ("runtime.output_dir", ".")):
            OmegaConf.update(cfg, f"hydra.{key}", value)  # known only in a job
        HydraConfig.instance().set_config(cfg)  # for ${hydra:...}
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
        GlobalHydra.instance().clear()
    return cfg, tree, choices


def multiple_choices(config_name: str, words: list[str]) -> dict[str, str]:
    """Return group -> ``[a,b]``, all files chosen in it; Hydra's own choices omit groups with several."""
    loader = GlobalHydra.instance().config_loader()
    chosen: dict[str, list[str]] = {}
    for entry in loader.compute_defaults_list(config_name, words, RunMode.RUN).defaults:
        group, _, name = str(entry.config_path).rpartition("/")
        chosen.setdefault(group, []).append(name)
    return {group: f"[{','.join(names)}]" for group, names in chosen.items()}
