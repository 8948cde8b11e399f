"""Group runs by recipe: the options in which runs differ, the groups, and the filter of ``where``.

The *options* of a run are the chosen file of each config group under its short name (``model``) and each key
of its config (``optim.lr``). Runs that differ only in seed or fold repeat one recipe.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from seg.cli.conf_files import did_you_mean, join_some
from seg.cli.list_arguments import split_words
from seg.cli.renamed_options import rename_option
from seg.comparison.run_files import printable_line
from seg.comparison.run_records import ComparedRun
from seg.errors import UserError
from seg.runs.run_info import NEUTRAL_OPTIONS

RECIPE_GROUPS = (
    "data",
    "model",
    "loss",
    "augment",
    "optim",
    "schedule",
)  # config groups whose choice defines a recipe
REPEAT_OPTIONS = ("seed", "data.fold")
NEUTRAL_RUN_OPTIONS = (  # no part of a recipe: name, place and hardware of a run
    *NEUTRAL_OPTIONS, "output", "save", "metrics", "loader.workers", "loader.cache",
    "loader.memory", "loader.check", "loader.eval_batch_size", "trainer._target_", "trainer.accelerator",
    "trainer.devices", "trainer.log_every_n_steps", "model.in_channels", "model.num_classes", *REPEAT_OPTIONS,
)  # fmt: skip


@dataclass(frozen=True)
class RunGroup:
    """Runs of one recipe.

    Attributes:
        options: name -> value of the options that distinguish the groups.
        runs: at least one.
    """

    options: dict[str, Any]
    runs: list[ComparedRun]

    @property
    def label(self) -> str:
        """Name of the group: ``unet + dice, optim.lr=0.01``; choices of config groups without their names."""
        picks = [printable_line(v) for k, v in self.options.items() if k in RECIPE_GROUPS]
        keys = [
            f"{k}={format_option(v)}" for k, v in self.options.items() if k not in RECIPE_GROUPS
        ]
        return ", ".join([" + ".join(picks), *keys] if picks else keys) or "all runs"

    @property
    def words(self) -> str:
        """Value of ``baseline=`` that selects the group."""
        return ",".join(f"{k}={format_option(v)}" for k, v in self.options.items())


def option_value(run: ComparedRun, name: str) -> Any:
    """Return the value of an option of a run, by short or full name; None if it has none."""
    if name in run.choices:
        return run.choices[name]
    if name in ("name", "sweep"):
        return getattr(run, name)
    return run.seed if name == "seed" else run.options.get(name)


def compared_option_names(runs: Iterable[ComparedRun]) -> list[str]:
    """Return the names of all options of the runs."""
    runs = list(runs)
    known = [*RECIPE_GROUPS, *(k for run in runs for k in run.choices), "name", "sweep"]
    known += [k for run in runs for k in run.options]
    return [
        n for n in dict.fromkeys(known) if any(option_value(run, n) is not None for run in runs)
    ]


def differing_options(runs: list[ComparedRun]) -> list[str]:
    """Return the options in which runs differ, except seed, fold, name, place and hardware.

    Keys whose values follow from a differing choice of their config group are left out.
    """
    # Choices of config groups first, then single keys that do not follow from them
    names = [g for g in RECIPE_GROUPS if values_differ(option_value(run, g) for run in runs)]
    for key in dict.fromkeys(key for run in runs for key in run.options):
        part = key.partition(".")[0]
        if key in RECIPE_GROUPS or key in NEUTRAL_RUN_OPTIONS or part in NEUTRAL_RUN_OPTIONS:
            continue
        if values_differ(run.options.get(key) for run in runs) and not follows_from_group(
            key, part, runs
        ):
            names.append(key)
    return names


def listed_options(runs: list[ComparedRun]) -> list[str]:
    """Return the options in which the runs with a readable config differ; of all runs if none has one."""
    readable = [run for run in runs if run.options and run.status != "damaged"] or runs
    return [name for name in differing_options(readable) if name not in ("name", "sweep")]


def follows_from_group(key: str, part: str, runs: list[ComparedRun]) -> bool:
    """Return whether a key follows from its config group: not typed, one value for each choice.

    Class weights of a loss may also depend on the training images of the fold.
    """
    if part not in RECIPE_GROUPS or any(key in run.typed for run in runs):
        return False
    # Values of the key for each choice of its group
    values: dict[Any, list[Any]] = {}
    for run in runs:
        fold = option_value(run, "data.fold") if part == "loss" else None  # class_weights=auto
        values.setdefault((run.choices.get(part), fold), []).append(run.options.get(key))
    return len(values) > 1 and not any(map(values_differ, values.values()))


def values_differ(values: Iterable[Any]) -> bool:
    """Return whether the values differ as text."""
    return len({format_option(value) for value in values}) > 1


def format_option(value: Any) -> str:
    """Return a value as it is typed on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(format_option(item) for item in value)}]"
    return "null" if value is None else printable_line(value)


def means_value(value: Any, word: str) -> bool:
    """Return whether a word means a value; numbers in any notation: 1e-3 is 0.001."""
    if format_option(value) == word:
        return True
    try:
        return not isinstance(value, bool) and math.isclose(float(value), float(word), rel_tol=1e-9)
    except (TypeError, ValueError):
        return False


def filter_runs(runs: list[ComparedRun], where: Iterable[str]) -> list[ComparedRun]:
    """Return the runs that have all the given values, such as ``model=unet``.

    Raises:
        UserError: if a word has no value, or no run has such an option or value.
    """
    for word in where:
        name, equals, wanted = word.partition("=")
        if not equals:
            raise UserError(f"where={word}: an option and its value are needed, where=model=unet")
        name = rename_option(name)
        check_option_name("where", name, runs)
        kept = [run for run in runs if means_value(option_value(run, name), wanted)]
        if not kept:
            values = join_some(sorted({format_option(option_value(run, name)) for run in runs}))
            raise UserError(f"where={word}: no run has it; {name} is {values}")
        runs = kept
    return runs


def check_option_name(option: str, name: str, runs: list[ComparedRun]) -> None:
    """Raise UserError if no run has an option of that name."""
    names = compared_option_names(runs)
    if name in names:
        return
    tails = [known for known in names if known.endswith(f".{name}")]
    near = f"; did you mean {tails[0]}?" if tails else did_you_mean(name, names)
    useful = differing_options(runs) or [n for n in names if n in RECIPE_GROUPS]
    raise UserError(f"{option}={name}: the runs have no such option{near} (they differ in: {join_some(useful) or 'nothing'})")  # fmt: skip


def group_runs(runs: list[ComparedRun], group_by: list[str] | None) -> list[RunGroup]:
    """Group the runs by the values of the named options; None: by all options in which they differ.

    Raises:
        UserError: if no run has an option of that name.
    """
    # Accept the old names of options, and check that some run has each
    group_by = None if group_by is None else [rename_option(name) for name in group_by]
    for name in group_by if group_by and runs else []:
        check_option_name("group_by", name, runs)
    names = differing_options(runs) if group_by is None else list(dict.fromkeys(group_by))
    # Values are compared as text, so that lists and nulls can be keys
    groups: dict[tuple[str, ...], RunGroup] = {}
    for run in runs:
        options = {name: option_value(run, name) for name in names}
        key = tuple(format_option(value) for value in options.values())
        groups.setdefault(key, RunGroup(options, [])).runs.append(run)
    return list(groups.values())


def find_group(groups: list[RunGroup], baseline: str) -> RunGroup:
    """Return the group that ``model=unet,loss=dice`` selects.

    Raises:
        UserError: if none or several match.
    """
    # Only options that distinguish the groups can select one
    pairs = [word.partition("=") for word in split_words(baseline)]
    wanted = {rename_option(name): value for name, _, value in pairs}
    if not groups[0].options:
        raise UserError(f"baseline={baseline}: the runs differ in no option, so there is one group")
    for name in wanted:
        if name not in groups[0].options:
            raise UserError(
                f"baseline={baseline}: the groups do not differ in {name!r}{did_you_mean(name, groups[0].options)}"
                f" (they differ in: {', '.join(groups[0].options)})"
            )
    # Exactly one group must match
    matches = [
        g for g in groups if all(means_value(g.options[name], v) for name, v in wanted.items())
    ]
    if len(matches) == 1:
        return matches[0]
    problem = f"{len(matches)} groups match, name one" if matches else "no group matches"
    raise UserError(f"baseline={baseline}: {problem}: {'; '.join(g.words for g in (matches or groups)[:8])}")  # fmt: skip
