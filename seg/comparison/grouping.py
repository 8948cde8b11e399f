"""Which runs are the same recipe: what they differ in, the groups that follow, and the filter before.

A run's *options* are the chosen file of each config group under its short name (``model``) and each key
of its config (``optim.lr``). Runs that differ in seed or fold alone repeat one recipe.
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

GROUPS = ("data", "model", "loss", "augment", "optim", "schedule")  # whose choice makes a recipe
REPEATS = ("seed", "data.fold")
APART = (  # what a run is called, where it lies, on what it runs
    *FREE, "output", "save", "metrics", "loader.workers", "loader.cache",
    "loader.memory", "loader.check", "loader.eval_batch_size", "trainer._target_", "trainer.accelerator",
    "trainer.devices", "trainer.log_every_n_steps", "model.in_channels", "model.num_classes", *REPEATS,
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Runs of one recipe.

    Attributes:
        options: name -> value of what the groups are told apart by.
        runs: at least one.
    """

    options: dict[str, Any]
    runs: list[Run]

    @property
    def label(self) -> str:
        """``unet + dice, optim.lr=0.01``; a config group's choice stands without its name."""
        picks = [text(v) for k, v in self.options.items() if k in GROUPS]
        keys = [f"{k}={shown(v)}" for k, v in self.options.items() if k not in GROUPS]
        return ", ".join([" + ".join(picks), *keys] if picks else keys) or "all runs"

    @property
    def words(self) -> str:
        """As one names it for baseline=."""
        return ",".join(f"{k}={shown(v)}" for k, v in self.options.items())


def value_of(run: Run, name: str) -> Any:
    """A run's value of an option by its short or full name; None where it has none."""
    if name in run.choices:
        return run.choices[name]
    if name in ("name", "sweep"):
        return getattr(run, name)
    return run.seed if name == "seed" else run.options.get(name)


def names_of(runs: Iterable[Run]) -> list[str]:
    """Every option that any of the runs has."""
    runs = list(runs)
    known = [*GROUPS, *(k for run in runs for k in run.choices), "name", "sweep"]
    known += [k for run in runs for k in run.options]
    return [n for n in dict.fromkeys(known) if any(value_of(run, n) is not None for run in runs)]


def differing(runs: list[Run]) -> list[str]:
    """The options in which runs differ, beside seed, fold and what a run is called or runs on.

    Where a group's choice differs, its keys that follow from the choice are left out.
    """
    found = [g for g in GROUPS if varies(value_of(run, g) for run in runs)]
    for key in dict.fromkeys(key for run in runs for key in run.options):
        part = key.partition(".")[0]
        if key in GROUPS or key in APART or part in APART:
            continue
        if varies(run.options.get(key) for run in runs) and not follows(key, part, runs):
            found.append(key)
    return found


def readable(runs: list[Run]) -> list[Run]:
    """Those whose config could be read, if any could."""
    return [run for run in runs if run.options and run.status != "damaged"] or runs


def follows(key: str, part: str, runs: list[Run]) -> bool:
    """Whether nobody typed a key, and it has one value for each choice of its config group.

    A loss's class weights may also follow from the fold's training images.
    """
    if part not in GROUPS or any(key in run.typed for run in runs):
        return False
    by: dict[Any, list[Any]] = {}
    for run in runs:
        fold = value_of(run, "data.fold") if part == "loss" else None  # class_weights=auto
        by.setdefault((run.choices.get(part), fold), []).append(run.options.get(key))
    return len(by) > 1 and not any(varies(values) for values in by.values())


def varies(values: Iterable[Any]) -> bool:
    return len({shown(value) for value in values}) > 1


def shown(value: Any) -> str:
    """As one writes it on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(shown(item) for item in value)}]"
    return "null" if value is None else text(value)


def same(value: Any, word: str) -> bool:
    """Whether a word means this value: 1e-3 is 0.001."""
    if shown(value) == word:
        return True
    try:
        return not isinstance(value, bool) and math.isclose(float(value), float(word), rel_tol=1e-9)
    except (TypeError, ValueError):
        return False


def filtered(runs: list[Run], where: Iterable[str]) -> list[Run]:
    """The runs that have all the values asked for, ``model=unet``.

    Raises:
        UserError: when no run has such an option or value.
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
    """Raises UserError unless some run has an option of that name."""
    names = names_of(runs)
    if name in names:
        return
    tails = [known for known in names if known.endswith(f".{name}")]
    near = f"; did you mean {tails[0]}?" if tails else nearest(name, names)
    useful = differing(runs) or [n for n in names if n in GROUPS]
    raise UserError(f"{option}={name}: the runs have no such option{near} (they differ in: {listed(useful) or 'nothing'})")  # fmt: skip


def grouped(runs: list[Run], group_by: list[str] | None) -> list[Group]:
    """Runs by the values of the options named; by all that differ where that is None.

    Raises:
        UserError: when no run has an option of that name.
    """
    for name in group_by if group_by and runs else []:
        check_name("group_by", name, runs)
    names = differing(runs) if group_by is None else list(dict.fromkeys(group_by))
    found: dict[tuple[str, ...], Group] = {}
    for run in runs:
        options = {name: value_of(run, name) for name in names}
        key = tuple(shown(value) for value in options.values())
        found.setdefault(key, Group(options, [])).runs.append(run)
    return list(found.values())


def named(groups: list[Group], baseline: str) -> Group:
    """The group that the words of ``model=unet,loss=dice`` mean.

    Raises:
        UserError: when none or several match.
    """
    wanted = dict(word.partition("=")[::2] for word in words(baseline))
    if not groups[0].options:
        raise UserError(f"baseline={baseline}: the runs differ in nothing, so there is one group")
    for name in wanted:
        if name not in groups[0].options:
            raise UserError(
                f"baseline={baseline}: the groups aren't told apart by {name!r}{nearest(name, groups[0].options)}"
                f" (they are by: {', '.join(groups[0].options)})"
            )
    found = [g for g in groups if all(same(g.options[name], v) for name, v in wanted.items())]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} groups match, say which" if found else "no group matches"
    raise UserError(f"baseline={baseline}: {what}: {'; '.join(g.words for g in (found or groups)[:8])}")  # fmt: skip
