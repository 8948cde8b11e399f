"""Values completed when a config is composed: paths, NaN as a word, and the number of epochs."""

import math
import os
import re
from typing import Any

from omegaconf import DictConfig, OmegaConf, flag_override

from seg.errors import UserError

PATH_OPTIONS = (  # dotted names of all options that hold a path, a list of paths, or a path for each key
    "output",  # before options that refer to it
    "outputs",
    "run",
    "runs",
    "init",
    "resume",
    "reviewed",
    "exported",
    "bioimageio.image",
    "loader.cache",
    "data.root",
    "data.table",
    "data.images",
    "data.masks",
    "data.annotations",
    "data.folders",
    "data.lists",
    "logger.trackio.folder",
)
URL_OPTIONS = (
    "input",
    "storage",
    "logger.mlflow.uri",
)  # a path, or an address: of a store, a database or a server
SQLITE_PREFIX = "sqlite:///"  # followed by the path of a file
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


DEFAULT_EPOCHS = 20
NODATA_OPTIONS = ("data.nodata", "nodata")  # a number, or nan


def complete_values(cfg: DictConfig) -> None:
    """Expand the paths of a config, spell NaN, which equals nothing, as the word nan, and give ``trainer.max_epochs``.

    Raises:
        UserError: naming the option, if an environment variable is not set or a path is an address.
    """
    expand_paths(cfg)
    for name in NODATA_OPTIONS:
        value = OmegaConf.select(cfg, name)
        if isinstance(value, float) and math.isnan(value):
            with flag_override(cfg, ["struct", "readonly"], [False, False]):
                OmegaConf.update(cfg, name, "nan")
    complete_epochs(cfg)


def complete_epochs(cfg: DictConfig) -> None:
    """Replace ``trainer.max_epochs=null``: by -1 if ``max_steps`` or ``max_time`` ends the training, else by 20."""
    trainer = cfg.get("trainer")
    if OmegaConf.is_dict(trainer) and "_target_" in trainer and trainer.get("max_epochs") is None:
        limited = trainer.get("max_steps", -1) != -1 or trainer.get("max_time") is not None
        with flag_override(cfg, ["struct", "readonly"], [False, False]):
            OmegaConf.update(cfg, "trainer.max_epochs", -1 if limited else DEFAULT_EPOCHS)


def check_data_root(cfg: DictConfig) -> None:
    """Raise UserError if ``data.root`` is no folder, before what reads the data is imported."""
    root, target = (OmegaConf.select(cfg, f"data.{name}") for name in ("root", "_target_"))
    if root is not None and str(target).startswith("seg.") and not os.path.isdir(root):
        problem = "a file, and a folder is needed" if os.path.exists(root) else "no such folder"
        raise UserError(f"data.root={root}: {problem}; give the folder of the data")


def expand_paths(cfg: DictConfig) -> None:
    """Expand ``~`` and ``$NAME`` in every option of a config that is a path.

    Raises:
        UserError: naming the option, if an environment variable is not set or a path is an address.
    """
    for name in (*PATH_OPTIONS, *URL_OPTIONS):
        value = OmegaConf.select(cfg, name)
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        expanded = expand_value(name, plain)
        if expanded != plain:
            with flag_override(cfg, ["struct", "readonly"], [False, False]):
                OmegaConf.update(cfg, name, expanded, merge=False)


def expand_value(name: str, value: Any) -> Any:
    """Return the value of an option with each path in it expanded."""
    if isinstance(value, list):
        return [expand_value(name, item) for item in value]
    if isinstance(value, dict):
        return {key: expand_value(f"{name}.{key}", item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    if name in URL_OPTIONS and "://" in value:
        path = value.removeprefix(SQLITE_PREFIX)
        return value if path == value else SQLITE_PREFIX + expand_path(name, path)
    return expand_path(name, value)


def expand_path(name: str, text: str) -> str:
    """Return a path with ``~`` and environment variables expanded, as a shell does.

    A name with ``$`` that exists as typed stays.
    """
    # Addresses of remote storage are not paths
    if "://" in text:
        raise UserError(f"{name}={text}: a path on this machine is needed, not an address")

    def variable(match: re.Match[str]) -> str:
        key = match[1] or match[2]
        if key not in os.environ and match[2]:
            return match[0]  # refused later, since a run cannot store it
        if key not in os.environ:
            raise UserError(
                f"{name}={text}: there is no environment variable {key}; set it, or write the path out"
            )
        return os.environ[key]

    # A file that exists under the typed name is taken literally, with its $
    try:
        typed = os.path.lexists(text)
    except ValueError:  # a null byte
        typed = False
    return os.path.expanduser(text if typed else VARIABLE.sub(variable, text))
