"""Safe loading of untrusted run folders: plain values, size limits, and an allow-list of constructors."""

import csv
import importlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from seg.errors import RunError, missing_extra_hint
from seg.files import MIB, read_text

NETWORK_PACKAGES = (
    "seg.models",
    "segmentation_models_pytorch",
)  # packages of a checkpoint's network
SMP_PACKAGE = "segmentation_models_pytorch"
SMP_DECODERS = (
    f"{SMP_PACKAGE}.decoders"  # of its networks; constructors of its encoders may download weights
)
USER_PACKAGES = "SEG_PACKAGES"  # environment variable: trusted packages of the user, with commas
DOTTED_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*){1,9}", re.ASCII)
MAX_LEVELS = 50  # levels of nesting in a config or record
LARGEST_INT64 = 2**63 - 1
MAX_CONFIG_VALUES = 100_000  # in a config; a shared value counts at each place
MAX_YAML_TOKENS = 200_000  # in config.yaml; reading one takes 1 kB
# Largest size in bytes of each file of a run folder, several times what 100,000 images and 20 classes need
CONFIG_LIMIT = MIB  # config.yaml; mainly lists of classes and colors, 100 bytes per class
RECORD_LIMIT = 64 * MIB  # run.json with the names of all images, sweep.json, predict.json
CROSSVAL_LIMIT = 2**30  # crossval.json with a confusion matrix per image, 8 kB for 20 classes
TABLE_LIMIT = 512 * MIB  # metrics.csv; images.csv, 100 bytes per image and class
MAX_TABLE_CELLS = 40_000_000  # in a table; images.csv has 6 per row
MAX_JSON_CONTAINERS = (
    5_000_000  # lists and dicts in a record; crossval.json has one per row of a confusion matrix
)
YAML_LOADER: Any = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # that of libyaml is ten times faster


class PlainLoader(YAML_LOADER):
    """YAML loader that refuses duplicate keys, and merges, which can grow exponentially."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        names = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            raise ConstructorError(None, None, "a key stands twice", node.start_mark)
        if any(tag == "tag:yaml.org,2002:merge" for tag, _ in names):
            raise ConstructorError(None, None, "a merge of mappings", node.start_mark)


def read_yaml(text: str) -> Any:
    """Return the content of a config.yaml, untrusted.

    Raises:
        YAMLError: if it is not YAML, or has aliases, tags, duplicate keys or merges.
        RecursionError: if it nests more than 50 levels deep; libyaml would crash the process.
    """
    depth = 0
    for number, token in enumerate(yaml.scan(text, PlainLoader)):
        name = type(token).__name__
        depth += name.endswith("StartToken") - name.endswith("EndToken")
        if depth > MAX_LEVELS:
            raise RecursionError(f"it nests more than {MAX_LEVELS} levels deep")
        if number > MAX_YAML_TOKENS:
            raise ConstructorError(
                None, None, f"more than {MAX_YAML_TOKENS} words", token.start_mark
            )
        if isinstance(token, yaml.AliasToken | yaml.AnchorToken | yaml.TagToken):
            problem = "aliases, anchors or tags; seg.train writes none"
            raise ConstructorError(None, None, problem, token.start_mark)
    return yaml.load(text, PlainLoader)


def parse_json(text: str) -> Any:
    """Return the value of an untrusted JSON text.

    Raises:
        ValueError: if it is not JSON, nests more than 50 levels deep, has too many lists and dicts, a number of more
            than 64 bits, or a text that cannot be encoded.
        RecursionError: if it nests more deeply than Python's parser allows.
    """
    if text.count("{") + text.count("[") > MAX_JSON_CONTAINERS:
        raise ValueError(f"more than {MAX_JSON_CONTAINERS} lists and dicts")
    content = json.loads(text, parse_int=parse_int64)
    if re.search(r"\\ud[89a-f]", text, re.IGNORECASE) and not is_unicode(
        json.dumps(content, ensure_ascii=False), file_names=True
    ):
        raise ValueError("half a character, \\ud800 or the like")
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(MAX_LEVELS):
        inner = (value.values() if isinstance(value, dict) else value for value in level)
        level = [value for part in inner for value in part if isinstance(value, dict | list)]
        if not level:
            return content
    raise ValueError(f"it nests more than {MAX_LEVELS} levels deep")


def read_rows(file: Path) -> Iterator[list[str]]:
    """Yield the rows of a CSV table, with its header; a last line without line end is dropped.

    Raises:
        ValueError: if it is not CSV, or has more than 40,000,000 cells.
        UnsafePath: if it is not a regular file, or too large.
        OSError: if it cannot be read.
    """
    text = read_text(file, TABLE_LIMIT)
    cells = 0
    try:
        for row in csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")):
            cells += len(row) + 1
            if cells > MAX_TABLE_CELLS:
                raise ValueError(f"more than {MAX_TABLE_CELLS} cells")
            yield row
    except csv.Error as error:
        raise ValueError(str(error)) from error


def parse_int64(digits: str) -> int:
    """Return the integer that these digits spell.

    Raises:
        ValueError: if it has more than 64 bits.
    """
    if len(digits) > 20 or abs(int(digits)) > LARGEST_INT64:
        raise ValueError(f"a number of more than 64 bits, {digits[:10]}...")
    return int(digits)


def is_unicode(text: str, file_names: bool = False) -> bool:
    r"""Return True if a text has no half characters.

    Args:
        text: any text.
        file_names: allow \udc80 to \udcff, which stand for the bytes of a file name that is not UTF-8.
    """
    try:
        text.encode("utf-8", "surrogateescape" if file_names else "strict")
    except UnicodeEncodeError:
        return False
    return True


def check_plain(node: Any, file: Path) -> None:
    """Raise RunError unless a config consists of dicts, lists, texts, numbers, booleans and null alone.

    OmegaConf would convert other types, such as tuples, into these after the check. Interpolations, more than
    100,000 values and more than 50 levels are refused too.

    Args:
        node: the config.
        file: file of the config, for messages.
    """
    level, count = [node], 1
    for _ in range(MAX_LEVELS + 2):
        below: list[Any] = []
        for value in level:
            check_plain_value(value, file)
            if type(value) is dict:
                below += [*value, *value.values()]
            elif type(value) is list:
                below += value
        count += len(below)
        if count > MAX_CONFIG_VALUES:  # a checkpoint can hold one list in many places
            raise RunError(f"{file}: its config has more than {MAX_CONFIG_VALUES} values")
        if not below:
            return
        level = below
    raise RunError(f"{file}: its config nests more than {MAX_LEVELS} levels deep")


def check_plain_value(value: Any, file: Path) -> None:
    """Raise RunError for a type, interpolation, text or number that no written config contains."""
    kind = type(value)
    if kind not in (dict, list, str, int, float, bool, type(None)):
        raise RunError(
            f"{file}: its config holds a {kind.__name__}; a saved config has plain values"
        )
    if kind is str and "${" in value:
        raise RunError(
            f"{file}: its config holds the interpolation {value[:100]!r}; a saved config has none"
        )
    if kind is str and not is_unicode(value, file_names=True):
        raise RunError(f"{file}: its config holds half a character, {value[:100]!r}")
    if kind is int and abs(value) > LARGEST_INT64:
        raise RunError(f"{file}: its config holds a number of more than 64 bits")


def check_targets(node: Any, file: Path, packages: tuple[str, ...] = NETWORK_PACKAGES) -> None:
    """Raise RunError if a config names a constructor from outside the given packages, at any depth.

    The module that defines the constructor counts: one that an allowed module only imports, as in
    ``seg.models.unet.typing.Any``, is refused. Hydra's keywords for positional arguments and recursion are refused
    as well, and ``_partial_`` except for optimisers.

    Args:
        node: the config, or a group of it.
        file: file of the config, for messages.
        packages: allowed packages.
    """
    check_plain(node, file)
    for group in walk_groups(node):
        target = group.get("_target_")
        if need := missing_extra_hint(target):
            raise RunError(f"{file}: its config names {shorten_value(target)}, which {need}")
        if "_target_" in group and not is_defined_in(target, packages):
            raise RunError(
                f"{file}: its config names {shorten_value(target)}; only {', '.join(packages)} are allowed; for a class "
                f"of your own, name its package in the environment variable {USER_PACKAGES} (docs/extending.md)"
            )
        for name, value in group.items():
            partial = name == "_partial_" and packages != ("torch.optim",)
            if name in ("_args_", "_recursive_") or partial:
                raise RunError(
                    f"{file}: its config holds {name}={shorten_value(value)}; a saved config has no such keyword"
                )
            from_hub = name == "encoder_name" and ":" in str(value)  # syntax of timm
            if from_hub or name in ("checkpoint_path", "pretrained", "pretrained_cfg"):
                raise RunError(
                    f"{file}: its config reads weights from elsewhere: {name}={shorten_value(value)}"
                )


def shorten_value(value: object, length: int = 200) -> str:
    """Return a value as text, cut to a length."""
    return cut_text(repr(value), length)


def cut_text(text: str, length: int) -> str:
    """Return a text, without its end if it is longer than a length."""
    return text if len(text) <= length else f"{text[:length]}..."


def walk_groups(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every dict of a config, at any depth."""
    if isinstance(node, dict):
        yield node
    if isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from walk_groups(value)


def is_defined_in(target: object, packages: tuple[str, ...]) -> bool:
    """Return True if a dotted name is that of a class defined in one of these packages; imports no others."""
    if not isinstance(target, str) or not DOTTED_NAME.fullmatch(target):
        return False
    packages = (*packages, *user_packages())
    module, _, name = target.rpartition(".")
    if not is_inside(module, packages):
        return False
    try:
        target_class = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    homes = (SMP_DECODERS if package == SMP_PACKAGE else package for package in packages)
    return isinstance(target_class, type) and is_inside(target_class.__module__, homes)


def user_packages() -> tuple[str, ...]:
    """Return the packages that the user trusts, from the environment variable ``SEG_PACKAGES``."""
    names = (name.strip() for name in os.environ.get(USER_PACKAGES, "").split(","))
    return tuple(name for name in names if name)


def is_inside(module: str, packages: Iterable[str]) -> bool:
    """Return True if a module is one of these packages, or inside one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)
