"""What is taken from a file that may be a stranger's: plain values, and constructors of these packages alone."""

import importlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from seg.errors import RunError, missing_extra

NETWORKS = (
    "seg.models",
    "segmentation_models_pytorch",
)  # where a checkpoint's network may come from
PEERS = "segmentation_models_pytorch"
DECODERS = f"{PEERS}.decoders"  # its networks; its encoders would fetch weights
DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*){1,9}", re.ASCII)
DEEPEST = 50  # levels of a config
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
    for token in yaml.scan(text, PlainLoader):
        name = type(token).__name__
        depth += name.endswith("StartToken") - name.endswith("EndToken")
        if depth > DEEPEST:
            raise RecursionError(f"it nests more than {DEEPEST} levels deep")
        if isinstance(token, yaml.AliasToken | yaml.AnchorToken | yaml.TagToken):
            said = "aliases, anchors or tags; seg.train writes none"
            raise ConstructorError(None, None, said, token.start_mark)
    return yaml.load(text, PlainLoader)


def check_plain(node: Any, file: Path, depth: int = 0) -> None:
    """Refuses a config of anything but dicts, lists, texts, numbers, booleans and null, or too deep a one.

    What else a file may hold, a tuple for one, OmegaConf would turn into such after it was looked at.

    Raises:
        RunError: naming what it found; interpolations are refused too.
    """
    if depth > DEEPEST:
        raise RunError(f"{file}: its config nests more than {DEEPEST} levels deep")
    below = node.values() if type(node) is dict else node if type(node) is list else ()
    for value in (*node, *below) if type(node) is dict else below:
        check_plain(value, file, depth + 1)
    if type(node) not in (dict, list, str, int, float, bool, type(None)):
        raise RunError(
            f"{file}: its config holds a {type(node).__name__}; a saved config has plain values"
        )
    if isinstance(node, str) and "${" in node:
        raise RunError(
            f"{file}: its config holds the interpolation {node!r}; a saved config has none"
        )


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
                f"{file}: its config names {target!r}; only {', '.join(packages)} are honoured"
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
    module, _, name = target.rpartition(".")
    if not within(module, packages):
        return False
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    homes = (DECODERS if package == PEERS else package for package in packages)
    return isinstance(found, type) and within(found.__module__, homes)


def within(module: str, packages: Iterable[str]) -> bool:
    """Whether a module is one of these packages, or lies in one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)
