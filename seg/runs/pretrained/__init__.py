"""Trained networks that the package contains, for ``run=pretrained:NAME`` and ``init=pretrained:NAME``.

Beside each checkpoint ``NAME.ckpt`` stands its model card ``NAME.md``: data and their licence, scores, limits, command.
"""

from pathlib import Path

from seg.errors import RunError

PREFIX = "pretrained:"
FOLDER = Path(__file__).parent


def list_networks() -> list[str]:
    """Return the names of the networks, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.ckpt"))


def find_network(name: str, option: str = "run") -> Path:
    """Return the checkpoint of a network of the package.

    Args:
        name: ``pretrained:NAME``.
        option: that was given, for the message.

    Raises:
        RunError: if there is no such network; the message names all.
    """
    networks = list_networks()
    if name.removeprefix(PREFIX) not in networks:
        known = ", ".join(PREFIX + network for network in networks)
        raise RunError(f"{option}={name}: no such network; there are {known}")
    return FOLDER / f"{name.removeprefix(PREFIX)}.ckpt"
