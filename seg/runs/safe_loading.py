"""What is taken from a file that may be a stranger's: plain values, and constructors of these packages alone."""

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

from seg.errors import RunError, missing_extra
from seg.files import MIB, read_text

NETWORKS = (
    "seg.models",
    "segmentation_models_pytorch",
)  # where a checkpoint's network may come from
PEERS = "segmentation_models_pytorch"
DECODERS = f"{PEERS}.decoders"  # its networks; its encoders would fetch weights
USER_PACKAGES = (
    "SEG_PACKAGES"  # environment variable: packages of the user's own, separated by commas
)
DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*){1,9}", re.ASCII)
DEEPEST = 50  # levels of a config, or of a record
WORD_64 = 2**63 - 1
VALUES = 100_000  # of a config, each counted wherever it stands
TOKENS = 200_000  # of config.yaml; reading one takes a kilobyte
# bytes of a run folder's files, several times what 100,000 images and 20 classes need:
# config.yaml, of which lists of classes and colours are the largest part, 100 bytes a class
CONFIG_LIMIT = MIB
# run.json, which names each image, sweep.json, predict.json and the like
RECORD_LIMIT = 64 * MIB
# crossval.json, which has a confusion matrix an image, 8 kB for 20 classes
CROSSVAL_LIMIT = 2**30
# metrics.csv, and images.csv, which has a row an image and class, 100 bytes
TABLE_LIMIT = 512 * MIB
CELLS = 40_000_000  # of such a table: images.csv has 6 a row
# lists and groups of a record: crossval.json has one for each row of a confusion matrix
CONTAINERS = 5_000_000
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, ten times faster


class PlainLoader(LOADER):
    """Refuses what no config that was written has: a key twice, and merges, which grow without bound."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        names = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            raise ConstructorError(None, None, "a key stands twice", node.start_mark)
        if any(tag == "tag:yaml.org,2002:merge" for tag, _ in names):
            raise ConstructorError(None, None, "a merge of mappings", node.start_mark)


def read_yaml(text: str) -> Any:
    """What ``write_config`` wrote, of a file that may be a stranger's.

    Raises:
        YAMLError: when it is no YAML, has aliases or tags, names a key twice, or merges.
        RecursionError: when it nests too deeply; libyaml would end the process.
    """
    depth = 0
    for number, token in enumerate(yaml.scan(text, PlainLoader)):
        name = type(token).__name__
        depth += name.endswith("StartToken") - name.endswith("EndToken")
        if depth > DEEPEST:
            raise RecursionError(f"it nests more than {DEEPEST} levels deep")
        if number > TOKENS:
            raise ConstructorError(None, None, f"more than {TOKENS} words", token.start_mark)
        if isinstance(token, yaml.AliasToken | yaml.AnchorToken | yaml.TagToken):
            said = "aliases, anchors or tags; seg.train writes none"
            raise ConstructorError(None, None, said, token.start_mark)
    return yaml.load(text, PlainLoader)


def json_value(text: str) -> Any:
    """Return the value of a JSON text, which may come from a stranger.

    Raises:
        ValueError: if it is no JSON, nests too deeply, has too many parts, or holds a number of more than 64 bits
            or a text that no file can hold; no run writes such.
        RecursionError: if it nests much too deeply.
    """
    if text.count("{") + text.count("[") > CONTAINERS:
        raise ValueError(f"more than {CONTAINERS} lists and groups")
    content = json.loads(text, parse_int=whole_number)
    if re.search(r"\\ud[89a-f]", text, re.IGNORECASE):
        try:  # a file's name that is not UTF-8 is kept as Python has it, with \udc80 to \udcff for its bytes
            json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise ValueError("half a character, \\ud800 or the like") from error
    level = [content]
    for _ in range(DEEPEST):
        inner = (value.values() if isinstance(value, dict) else value for value in level)
        level = [value for part in inner for value in part if isinstance(value, dict | list)]
        if not level:
            return content
    raise ValueError(f"it nests more than {DEEPEST} levels deep")


def read_rows(file: Path) -> Iterator[list[str]]:
    """Yield the rows of a table that a run wrote, the header too; a last line without an end is none.

    Raises:
        ValueError: if it is no such table, or has too many cells.
        UnsafePath: if it is no regular file, or too large.
        OSError: if it cannot be read.
    """
    text = read_text(file, TABLE_LIMIT)
    cells = 0
    try:
        for row in csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")):
            cells += len(row) + 1
            if cells > CELLS:
                raise ValueError(f"more than {CELLS} cells")
            yield row
    except csv.Error as error:
        raise ValueError(str(error)) from error


def whole_number(digits: str) -> int:
    """Return the number that these digits are.

    Raises:
        ValueError: if it has more than 64 bits.
    """
    if len(digits) > 20 or abs(int(digits)) > WORD_64:
        raise ValueError(f"a number of more than 64 bits, {digits[:10]}...")
    return int(digits)


def is_text(text: str) -> bool:
    """Return whether a text can be written into a file: it has no half characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_plain(node: Any, file: Path) -> None:
    """Refuses a config of anything but dicts, lists, texts, numbers, booleans and null, or too deep a one.

    What else a file may hold, a tuple for one, OmegaConf would turn into such after it was looked at.

    Raises:
        RunError: naming what it found; interpolations are refused too.
    """
    level, seen = [node], 1
    for _ in range(DEEPEST + 2):
        below: list[Any] = []
        for value in level:
            check_value(value, file)
            if type(value) is dict:
                below += [*value, *value.values()]
            elif type(value) is list:
                below += value
        seen += len(below)
        if seen > VALUES:  # a checkpoint can hold one list in many places
            raise RunError(f"{file}: its config has more than {VALUES} values")
        if not below:
            return
        level = below
    raise RunError(f"{file}: its config nests more than {DEEPEST} levels deep")


def check_value(value: Any, file: Path) -> None:
    """Raise RunError for a value of a config that none has which was written."""
    kind = type(value)
    if kind not in (dict, list, str, int, float, bool, type(None)):
        raise RunError(
            f"{file}: its config holds a {kind.__name__}; a saved config has plain values"
        )
    if kind is str and "${" in value:
        raise RunError(
            f"{file}: its config holds the interpolation {value[:100]!r}; a saved config has none"
        )
    if kind is str and not is_text(value):
        raise RunError(f"{file}: its config holds half a character, {value[:100]!r}")
    if kind is int and abs(value) > WORD_64:
        raise RunError(f"{file}: its config holds a number of more than 64 bits")


def check_targets(node: Any, file: Path, packages: tuple[str, ...] = NETWORKS) -> None:
    """Refuses a config that names a constructor from outside these packages, however deep.

    What counts is where the constructor was written: a foreign one that a module of ours imports, as in
    ``seg.models.unet.typing.Any``, is refused too. So are Hydra's words by which an argument could stand
    without its name; ``_partial_`` alone may be there, for optimisers.

    Raises:
        RunError: naming file and constructor.
    """
    check_plain(node, file)
    for group in groups(node):
        target = group.get("_target_")
        if need := missing_extra(target):
            raise RunError(f"{file}: its config names {target}, which {need}")
        if "_target_" in group and not written_in(target, packages):
            raise RunError(
                f"{file}: its config names {target!r}; only {', '.join(packages)} are honoured; for a class "
                f"of your own, name its package in the environment variable {USER_PACKAGES} (docs/extending.md)"
            )
        for name, value in group.items():
            partial = name == "_partial_" and packages != ("torch.optim",)
            if name in ("_args_", "_recursive_") or partial:
                raise RunError(
                    f"{file}: its config holds {name}={value!r}; a saved one has no such word"
                )
            elsewhere = name == "encoder_name" and ":" in str(value)  # timm's way to a hub
            if elsewhere or name in ("checkpoint_path", "pretrained", "pretrained_cfg"):
                raise RunError(f"{file}: its config reads weights from elsewhere: {name}={value!r}")


def groups(node: Any) -> Iterator[dict[str, Any]]:
    """Every dict of a config, however deep."""
    if isinstance(node, dict):
        yield node
    if isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from groups(value)


def written_in(target: object, packages: tuple[str, ...]) -> bool:
    """Whether a dotted name is that of a class written in one of these packages; imports no others."""
    if not isinstance(target, str) or not DOTTED.fullmatch(target):
        return False
    packages = (*packages, *user_packages())
    module, _, name = target.rpartition(".")
    if not within(module, packages):
        return False
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    homes = (DECODERS if package == PEERS else package for package in packages)
    return isinstance(found, type) and within(found.__module__, homes)


def user_packages() -> tuple[str, ...]:
    """Return the packages that the user trusts, from the environment variable ``SEG_PACKAGES``."""
    names = (name.strip() for name in os.environ.get(USER_PACKAGES, "").split(","))
    return tuple(name for name in names if name)


def within(module: str, packages: Iterable[str]) -> bool:
    """Whether a module is one of these packages, or lies in one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)
