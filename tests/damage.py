"""Damage to the files of a run folder, drawn at random: for the tests of the commands that read one."""

import copy
import csv
import io
import json
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

DEEP: Any = 1
for _ in range(200):
    DEEP = [DEEP]
ODD: list[Callable[[], Any]] = [  # values that stand nowhere in a run folder
    lambda value=value: copy.deepcopy(value)
    for value in (
        None, True, False, 0, -1, 1, 3, 10**30, -(10**30), 2**63, 10**9, 1e300, -1e300, float("inf"), float("nan"), 0.5,
        "", "x", "\x00", "\ud800", "\u202e\x1b[31m", "../../outside", "/dev/zero", "1", "nan", "a" * 10_000, "${seed}",
        [], {}, [1, 2, 3], ["x"], [[]], {"x": 1}, {"_target_": "os.mkdir"}, {"_target_": "seg.models.UNet"}, DEEP,
    )
]  # fmt: skip


def damage(file: Path, rng: random.Random) -> str:
    """Damages a file, and says how."""
    kinds = [in_bytes, in_bytes, as_special]
    kinds += {".json": [in_json] * 6, ".yaml": [in_yaml] * 6, ".csv": [in_csv] * 6, ".ckpt": [in_values] * 5 + [in_archive] * 3}.get(file.suffix, [])  # fmt: skip
    return rng.choice(kinds)(file, rng)


def in_bytes(file: Path, rng: random.Random) -> str:
    """Cuts, empties, flips, inserts or encodes otherwise."""
    content = file.read_bytes()
    at = rng.randrange(len(content) + 1)
    kind = rng.choice(["cut", "empty", "flip", "insert", "encode", "twice", "zeros"])
    if kind == "flip" and content:
        at = min(at, len(content) - 1)
        content = content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
    elif kind == "encode":
        content = content.decode("latin1").encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"]))
    else:
        word = rng.choice([b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"[" * 2000, b"9" * 5000, b'"', b",", b"\n", b"{", b"PK\x05\x06"])  # fmt: skip
        content = {
            "cut": content[:at],
            "empty": b"",
            "insert": content[:at] + word + content[at:],
            "twice": content + content,
            "zeros": bytes(len(content)),
            "flip": content,
        }[kind]
    replace(file, content)
    return f"{kind} at {at}"


def as_special(file: Path, rng: random.Random) -> str:
    """Puts what is no regular file, or a much too large one, in its place."""
    kind = rng.choice(["fifo", "zero", "folder", "broken link", "loop", "huge", "gone"])
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "huge":
        with file.open("wb") as stream:
            stream.truncate(2**40)  # takes no room
    elif kind != "gone":
        file.symlink_to({"zero": "/dev/zero", "broken link": "nowhere", "loop": file.name}[kind])
    return kind


def replace(file: Path, content: bytes) -> None:
    file.unlink()
    file.write_bytes(content)


def places(node: Any, path: tuple = ()) -> list[tuple]:
    """Each place in a tree of dicts and lists."""
    below = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()  # fmt: skip
    return [place for key, value in below for place in ((*path, key), *places(value, (*path, key)))]


def in_tree(tree: Any, rng: random.Random) -> tuple[Any, str]:
    """A tree with one place changed, left out, renamed, doubled or moved."""
    tree = copy.deepcopy(tree)
    if not (there := places(tree)) or rng.random() < 0.05:
        return rng.choice(ODD)(), "whole"
    depth = rng.choice(sorted({len(place) for place in there}))
    path = rng.choice([place for place in there if len(place) == depth])
    node = tree
    for key in path[:-1]:
        node = node[key]
    key = path[-1]
    kind = rng.choice(["odd", "odd", "odd", "odd", "gone", "renamed", "nested", "swapped"])
    if kind == "odd":
        node[key] = rng.choice(ODD)()
        kind = f"{node[key]!r:.40}"
    elif kind == "gone":
        del node[key]
    elif kind == "renamed" and isinstance(node, dict):
        node[f"{key}x"] = node.pop(key)
    elif kind == "swapped":
        other = tree
        *rest, last = rng.choice(there)
        try:
            for step in rest:
                other = other[step]
            node[key] = copy.deepcopy(other[last])
        except (KeyError, IndexError, TypeError):
            node[key] = None
    else:
        node[key] = [node[key]]
    return tree, f"{'.'.join(map(str, path))}: {kind}"


def in_json(file: Path, rng: random.Random) -> str:
    tree, how = in_tree(json.loads(file.read_text()), rng)
    replace(file, json.dumps(tree).encode("utf-8", "surrogatepass"))
    return how


def in_yaml(file: Path, rng: random.Random) -> str:
    tree, how = in_tree(yaml.safe_load(file.read_text()), rng)
    try:
        replace(file, yaml.safe_dump(tree, sort_keys=False).encode("utf-8", "surrogatepass"))
    except (yaml.YAMLError, RecursionError):
        replace(file, b"a: [")
    return how


def in_csv(file: Path, rng: random.Random) -> str:
    rows = list(csv.reader(io.StringIO(file.read_text(), newline="")))
    kind = rng.choice(["cell", "cell", "cell", "header", "row", "column", "twice"])
    at = rng.randrange(len(rows))
    column = rng.randrange(len(rows[0]))
    if kind in ("cell", "header"):
        row = rows[0 if kind == "header" else at]
        row[min(column, len(row) - 1)] = str(rng.choice(ODD)())
    elif kind == "row":
        del rows[at]
    elif kind == "twice":
        rows.insert(at, rows[at])
    else:
        rows = [row[:column] + row[column + 1 :] for row in rows]
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    replace(file, text.getvalue().encode("utf-8", "surrogatepass"))
    return f"{kind} {at}, {column}"


TENSORS: list[Callable[[torch.Tensor], Any]] = [
    lambda t: torch.zeros(1).expand(10**6),
    lambda t: t.double(),
    lambda t: t.long(),
    lambda t: t[None],
    lambda t: t.flatten()[:1],
    lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else t - 10**6,
    lambda t: torch.full_like(t, 1e30) if t.is_floating_point() else t + 10**12,
    lambda t: t.to(torch.complex64),
    lambda t: t.to_sparse() if t.ndim else t,
    lambda t: t.tolist(),
    lambda t: torch.empty(0),
]


def in_values(file: Path, rng: random.Random) -> str:
    """Changes a value, or a tensor, of a checkpoint."""
    tree, how = in_tree(torch.load(file, weights_only=True), rng)
    if isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict) and rng.random() < 0.3:
        name = rng.choice(list(tree["state_dict"]))
        number = rng.randrange(len(TENSORS))
        if isinstance(tree["state_dict"][name], torch.Tensor):
            tree["state_dict"][name] = TENSORS[number](tree["state_dict"][name])
        how += f", {name} by {number}"
    file.unlink()
    try:
        torch.save(tree, file)
    except (UnicodeEncodeError, RuntimeError):
        file.write_bytes(b"")
    return how


def in_archive(file: Path, rng: random.Random) -> str:
    """Removes, renames, swaps, doubles, packs or cuts records of a checkpoint."""
    with zipfile.ZipFile(file) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    one, other = rng.choice(list(records)), rng.choice(list(records))
    kind = rng.choice(["gone", "renamed", "swapped", "twice", "packed", "cut", "flip", "longer"])
    method = zipfile.ZIP_DEFLATED if kind == "packed" else zipfile.ZIP_STORED
    if kind == "gone":
        del records[one]
    elif kind == "renamed":
        records[f"{one}x"] = records.pop(one)
    elif kind == "swapped":
        records[one], records[other] = records[other], records[one]
    elif kind == "cut":
        records[one] = records[one][: rng.randrange(len(records[one]) + 1)]
    elif kind == "flip":
        at = rng.randrange(max(1, len(records[one])))
        records[one] = records[one][:at] + bytes([rng.randrange(256)]) + records[one][at + 1 :]
    elif kind == "longer":
        records[one] += bytes(100)
    file.unlink()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
        if kind == "twice":
            archive.NameToInfo.pop(one)  # else it would warn
            archive.writestr(one, records[one])
    return f"{kind} {one}"
