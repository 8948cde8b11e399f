"""Implementation of ``python -m seg.plan``."""

import copy
import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from seg import hardware
from seg.cli.command import search_path_override
from seg.cli.command_line import (
    config_dir_words,
    quote_path,
    render_command,
    render_option,
    typed_overrides,
)
from seg.cli.compose import compose_checked, parse_overrides
from seg.cli.conf_files import format_option_value
from seg.cli.paths import complete_epochs
from seg.cli.validation import budget_seconds
from seg.display.console import configure_logging
from seg.display.tables import make_table
from seg.errors import UserError
from seg.planning.experiment_file import check_output, write_experiment
from seg.planning.fingerprint import Fingerprint, take_fingerprint
from seg.planning.rules import (
    WIDTHS,
    Machine,
    Measured,
    Setting,
    batch_size,
    candidate_sizes,
    data_remarks,
    data_settings,
    meets_needs,
    speed_settings,
)
from seg.training.build import build_data
from seg.training.demand import available_memory, measure_demand
from seg.training.run import build_parts

log = logging.getLogger("seg")
OWN_OPTIONS = ("output", "budget")  # not of seg.train
MEASURED_SECONDS = 1.0  # of steps, for each width


def plan_training(cfg: DictConfig) -> list[Setting]:
    """Choose the settings, write and print them, and return them.

    Raises:
        UserError: if the data or an option can't be used, or the file can't be written.
    """
    # Check the words, before the data is read
    configure_logging()
    folder = (config_dir_words() or [None, None])[1]
    output, budget = Path(cfg.output), budget_seconds(cfg.budget) or 0
    check_output(output, folder)
    given = given_overrides()
    words = [*search_path_override(folder), *(str(o.input_line) for o in given)]
    # Measure the data, then the speed of its networks
    complete_epochs(cfg)
    data = take_fingerprint(build_data(cfg))
    machine = this_machine(cfg)
    names = {override.key_or_group for override in given}
    settings = [s for s in data_settings(data, machine) if s.option not in names]
    composed = compose_checked("train", [*words, *map(setting_word, settings)])
    measured = measure_sizes(composed, names, data, machine, budget)
    by_speed = speed_settings(data, machine, budget, measured)
    settings += [s for s in by_speed if s.option not in names and in_config(composed, s.option)]
    # Write and print them
    header = [
        describe_data(data),
        f"command: {train_command(output)}",
        f"planned by: {plan_command()}",
    ]
    write_experiment(output, header, given, settings)
    print_plan(output, data, given, settings)
    return settings


def given_overrides() -> list[Override]:
    """Return the overrides of the command line that seg.train takes, too.

    Raises:
        UserError: if one can't be written into a file.
    """
    given = [o for o in parse_overrides(typed_overrides()) if o.key_or_group not in OWN_OPTIONS]
    for override in given:
        if override.is_delete():
            raise UserError(
                f"{override.input_line}: a file of settings can't remove an option; leave it out"
            )
        if override.key_or_group == "resume":
            raise UserError("resume: a resumed run keeps its settings; leave it out")
    return given


def this_machine(cfg: DictConfig) -> Machine:
    """Return the machine that trains."""
    accelerator = hardware.pick_accelerator(cfg.trainer.accelerator)
    bfloat16 = accelerator == "cpu" and hardware.multiplies_bfloat16("cpu")
    memory = available_memory(cfg.trainer.accelerator)
    return Machine(accelerator, os.cpu_count() or 1, memory, bfloat16)


def measure_sizes(
    config: DictConfig, given: Collection[str], data: Fingerprint, machine: Machine, budget: float
) -> list[Measured]:
    """Return speed and memory of trainings of increasing size, up to the first that does not fit.

    Args:
        config: of seg.train.
        given: options that stay as they are.
        data: fingerprint.
        machine: that trains.
        budget: s for the training.
    """
    fixed = "model.width" in given or not in_config(config, "model.width")
    sizes = candidate_sizes(data, [config.model.get("width", WIDTHS[0])] if fixed else WIDTHS)
    if "loader.crop" in given:
        side = config.loader.crop or min(data.height, data.width)
        sizes = list(dict.fromkeys((width, side) for width, _ in sizes))
    measured: list[Measured] = []
    for width, crop in sizes:
        cfg = copy.deepcopy(config)
        chosen = {"model.width": width, "loader.crop": crop, "loader.batch_size": batch_size(crop)}
        for option, value in chosen.items():
            if option not in given and in_config(cfg, option):
                OmegaConf.update(cfg, option, value)
        task, module, _ = build_parts(cfg)
        demand = measure_demand(cfg, task, module, MEASURED_SECONDS)
        speed = demand.step_seconds, demand.image_seconds, demand.peak
        measured.append(Measured(width, crop, *speed))
        if not meets_needs(measured[-1], machine, budget):
            break
    return measured


def in_config(cfg: DictConfig, name: str) -> bool:
    """Return True if a config has an option."""
    parent, _, last = name.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return OmegaConf.is_dict(node) and last in node


def setting_word(setting: Setting) -> str:
    """Return a setting as a word of the command line."""
    return render_option(setting.option, setting.value)


def train_command(output: Path) -> str:
    """Return the command that trains with a file of settings."""
    return render_command(
        "train", "--config-dir", str(output.parent.parent), f"experiment={output.stem}"
    )


def plan_command() -> str:
    """Return the command that made the file."""
    return render_command("plan", *config_dir_words(), *typed_overrides())


def describe_data(data: Fingerprint) -> str:
    """Return the fingerprint in one line."""
    images = ", ".join(f"{count} {split}" for split, count in data.images.items())
    shares = ", ".join(
        f"{name} {share:.2%}" for name, share in zip(data.classes, data.shares, strict=True)
    )
    return f"{images}; {data.height}x{data.width} px, {data.channels} channel(s) of {data.dtype}; {shares}"


def print_plan(
    output: Path, data: Fingerprint, given: Sequence[Override], settings: Sequence[Setting]
) -> None:
    """Print the data, the table of settings, what they can't mend, the file and the commands."""
    log.info(f"data       {describe_data(data)}")
    table = make_table("settings")
    table.add_column("option", style="cyan")
    table.add_column("value", style="bold green")
    table.add_column("reason")
    for setting in settings:
        table.add_row(setting.option, format_option_value(setting.value), setting.reason)
    log.info("", extra={"table": table})
    for line in data_remarks(data):
        log.info(f"note       {line}")
    words = [*(str(o.input_line) for o in given), *map(setting_word, settings)]
    log.info(f"settings are in {quote_path(output)}; next:")
    log.info(f"  {train_command(output)}")
    log.info(f"  {train_command(output)} dry=true")
    log.info("or, without the file:")
    log.info(f"  {render_command('train', *config_dir_words(), *words)}")
