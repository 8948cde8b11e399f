"""Group runs by recipe: the options in which runs differ, the groups, and the filter of ``where``.

The *options* of a run are the chosen file of each config group under its short name (``model``) and each key
of its config (``optim.lr``). Runs that differ only in seed or fold repeat one recipe.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from seg.cli.conf_files import listed, nearest
from seg.cli.list_arguments import words
from seg.comparison.run_files import text
from seg.comparison.run_records import Run
from seg.errors import UserError
from seg.runs.run_info import FREE

GROUPS = (
    "data",
    "model",
    "loss",
    "augment",
    "optim",
    "schedule",
)  # config groups whose choice defines a recipe
REPEATS = ("seed", "data.fold")
APART = (  # no part of a recipe: name, place and hardware of a run
    *FREE, "output", "save", "metrics", "loader.workers", "loader.cache",
    "loader.memory", "loader.check", "loader.eval_batch_size", "trainer._target_", "trainer.accelerator",
    "trainer.devices", "trainer.log_every_n_steps", "model.in_channels", "model.num_classes", *REPEATS,
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Runs of one recipe.

    Attributes:
        options: name -> value of the options that distinguish the groups.
        runs: at least one.
    """

    options: dict[str, Any]
    runs: list[Run]

    @property
    def label(self) -> str:
        """Name of the group: ``unet + dice, optim.lr=0.01``; choices of config groups without their names."""
        picks = [text(v) for k, v in self.options.items() if k in GROUPS]
        keys = [f"{k}={shown(v)}" for k, v in self.options.items() if k not in GROUPS]
        return ", ".join([" + ".join(picks), *keys] if picks else keys) or "all runs"

    @property
    def words(self) -> str:
        """Value of ``baseline=`` that selects the group."""
        return ",".join(f"{k}={shown(v)}" for k, v in self.options.items())


def value_of(run: Run, name: str) -> Any:
    """Return the value of an option of a run, by short or full name; None if it has none."""
    if name in run.choices:
        return run.choices[name]
    if name in ("name", "sweep"):
        return getattr(run, name)
    return run.seed if name == "seed" else run.options.get(name)


def names_of(runs: Iterable[Run]) -> list[str]:
    """Return the names of all options of the runs."""
    runs = list(runs)
    known = [*GROUPS, *(k for run in runs for k in run.choices), "name", "sweep"]
    known += [k for run in runs for k in run.options]
    return [n for n in dict.fromkeys(known) if any(value_of(run, n) is not None for run in runs)]


def differing(runs: list[Run]) -> list[str]:
    """Return the options in which runs differ, except seed, fold, name, place and hardware.

    Keys whose values follow from a differing choice of their config group are left out.
    """
    names = [g for g in GROUPS if varies(value_of(run, g) for run in runs)]
    for key in dict.fromkeys(key for run in runs for key in run.options):
        part = key.partition(".")[0]
        if key in GROUPS or key in APART or part in APART:
            continue
        if varies(run.options.get(key) for run in runs) and not follows(key, part, runs):
            names.append(key)
    return names


def readable(runs: list[Run]) -> list[Run]:
    """Return the runs whose config could be read, or all if none could."""
    return [run for run in runs if run.options and run.status != "damaged"] or runs


def follows(key: str, part: str, runs: list[Run]) -> bool:
    """Return whether a key follows from its config group: not typed, one value for each choice.

    Class weights of a loss may also depend on the training images of the fold.
    """
    if part not in GROUPS or any(key in run.typed for run in runs):
        return False
    values: dict[Any, list[Any]] = {}
    for run in runs:
        fold = value_of(run, "data.fold") if part == "loss" else None  # class_weights=auto
        values.setdefault((run.choices.get(part), fold), []).append(run.options.get(key))
    return len(values) > 1 and not any(map(varies, values.values()))


def varies(values: Iterable[Any]) -> bool:
    """Return whether the values differ as text."""
    return len({shown(value) for value in values}) > 1


def shown(value: Any) -> str:
    """Return a value as it is typed on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(shown(item) for item in value)}]"
    return "null" if value is None else text(value)


def same(value: Any, word: str) -> bool:
    """Return whether a word means a value; numbers in any notation: 1e-3 is 0.001."""
    if shown(value) == word:
        return True
    try:
        return not isinstance(value, bool) and math.isclose(float(value), float(word), rel_tol=1e-9)
    except (TypeError, ValueError):
        return False


def filtered(runs: list[Run], where: Iterable[str]) -> list[Run]:
    """Return the runs that have all the given values, such as ``model=unet``.

    Raises:
        UserError: if no run has such an option or value.
    """
    for word in where:
        name, _, wanted = word.partition("=")
        check_name("where", name, runs)
        kept = [run for run in runs if same(value_of(run, name), wanted)]
        if not kept:
            values = listed(sorted({shown(value_of(run, name)) for run in runs}))
            raise UserError(f"where={word}: no run has it; {name} is {values}")
        runs = kept
    return runs


def check_name(option: str, name: str, runs: list[Run]) -> None:
    """Raise UserError if no run has an option of that name."""
    names = names_of(runs)
    if name in names:
        return
    tails = [known for known in names if known.endswith(f".{name}")]
    near = f"; did you mean {tails[0]}?" if tails else nearest(name, names)
    useful = differing(runs) or [n for n in names if n in GROUPS]
    raise UserError(f"{option}={name}: the runs have no such option{near} (they differ in: {listed(useful) or 'nothing'})")  # fmt: skip


def grouped(runs: list[Run], group_by: list[str] | None) -> list[Group]:
    """Group the runs by the values of the named options; None: by all options in which they differ.

    Raises:
        UserError: if no run has an option of that name.
    """
    for name in group_by if group_by and runs else []:
        check_name("group_by", name, runs)
    names = differing(runs) if group_by is None else list(dict.fromkeys(group_by))
    groups: dict[tuple[str, ...], Group] = {}
    for run in runs:
        options = {name: value_of(run, name) for name in names}
        key = tuple(shown(value) for value in options.values())
        groups.setdefault(key, Group(options, [])).runs.append(run)
    return list(groups.values())


def named(groups: list[Group], baseline: str) -> Group:
    """Return the group that ``model=unet,loss=dice`` selects.

    Raises:
        UserError: if none or several match.
    """
    wanted = dict(word.partition("=")[::2] for word in words(baseline))
    if not groups[0].options:
        raise UserError(f"baseline={baseline}: the runs differ in no option, so there is one group")
    for name in wanted:
        if name not in groups[0].options:
            raise UserError(
                f"baseline={baseline}: the groups do not differ in {name!r}{nearest(name, groups[0].options)}"
                f" (they differ in: {', '.join(groups[0].options)})"
            )
    matches = [g for g in groups if all(same(g.options[name], v) for name, v in wanted.items())]
    if len(matches) == 1:
        return matches[0]
    problem = f"{len(matches)} groups match, name one" if matches else "no group matches"
    raise UserError(f"baseline={baseline}: {problem}: {'; '.join(g.words for g in (matches or groups)[:8])}")  # fmt: skip
