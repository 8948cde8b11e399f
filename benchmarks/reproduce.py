"""Trains again what conf/experiment/ records, and says whether it comes out again: python benchmarks/reproduce.py.

A record is comment lines ``# key: value`` in an experiment's file; a long value goes on in lines indented by three
spaces or more:

    # command: python -m seg.train experiment=isbi2012 data.root=DATA model=unet
    # data: isbi2012                       folder below --data, which DATA stands for; left out: none is needed
    # evaluate: data.split=val tta=d4      words of a seg.evaluate afterwards, where its scores are wanted too
    # threads: 2                           of PyTorch on a CPU; other numbers come out with others
    # hardware: AMD EPYC
    # cost: 12.3 minutes                   of one seed
    # commit: 083b07c
    # result: best/val/dice 0.8180 +- 0.0040 (3 seeds), seed 0: 0.8213
    # small: trainer.max_epochs=1 model.width=4    what makes the command small enough for a CPU; on one thread
    # small cost: 0.2 minutes
    # small result: best/val/dice 0.6102 (seed 0)

A further ``command:`` begins a further record of the same file. A result is mean and standard deviation of seeds
0, 1 ..., or one seed's value, or an interval (``0.60 to 0.65``); its name is one of run.json, of the evaluation
(val/v_rand), or of crossval.json (mean/val/dice, pooled/dice). The verdict on each:

    same          the printed digits are the same
    within noise  in the interval; or nearer to the recorded mean than 95 % of new seeds would be (Student's t)
    different     anything else, also where one seed differs and no noise is recorded: exit code 1

``--record 3`` trains three seeds and prints the lines to put into the file, instead of judging.
"""

import argparse
import difflib
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from scipy import stats

from seg.errors import RunError
from seg.runs import provenance
from seg.runs.folder import CROSSVAL_FILE
from seg.runs.records import read_json

NOISE_LEVEL = 0.95  # of the interval within which a difference is noise of the seeds
MIN_DEGREES_OF_FREEDOM = 2  # that a standard deviation needs
ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "conf/experiment"
KEYS = ("command", "data", "evaluate", "threads", "hardware", "cost", "commit", "result", "small", "small cost", "small result")  # fmt: skip
COMMANDS = ("seg.train", "seg.crossval")
NUMBER = r"-?\d+(?:\.\d+)?"
FORMS = (
    rf"(?P<mean>{NUMBER}) \+- (?P<sd>{NUMBER}) \((?P<seeds>\d+) seeds\)(?:, seed 0: (?P<first>{NUMBER}))?",
    rf"(?P<first>{NUMBER})(?: \(seed 0\))?",
    rf"(?P<low>{NUMBER}) to (?P<high>{NUMBER})",
)
SHOWN = ("best/val/dice", "test/dice")  # recorded where a file names no results yet
console = Console(highlight=False)


class HeaderError(ValueError):
    """A record that can't be read, or a request that can't be met."""


@dataclass(frozen=True)
class Result:
    """What a score came to.

    Attributes:
        name: as in run.json.
        text: as it stands in the file.
        digits: behind the point.
        mean: of the seeds; None: not told.
        sd: standard deviation of the seeds.
        seeds: how many; 0, 1 ...
        first: of seed 0.
        low: of an interval.
        high: likewise.
    """

    name: str
    text: str
    digits: int
    mean: float | None = None
    sd: float | None = None
    seeds: int = 1
    first: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass
class Record:
    """A command and what came out of it.

    Attributes:
        experiment: name of the file.
        command: of a shell.
        facts: data, evaluate, threads, hardware, cost, commit, small, small cost, as far as they are told.
        results: of the command.
        small_results: of its small version.
    """

    experiment: str
    command: str
    facts: dict[str, str] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    small_results: list[Result] = field(default_factory=list)

    @property
    def module(self) -> str:
        return shlex.split(self.command)[2]

    def name(self) -> str:
        """The experiment, with what its command says beside."""
        words = shlex.split(self.command)[3:]
        own = ("experiment=", "data.root=", "seed=")
        return " ".join([self.experiment, *(word for word in words if not word.startswith(own))])


def header(file: Path) -> list[Record]:
    """The records in an experiment's file; none where it has no command line.

    Raises:
        HeaderError: naming file, line and what is needed.
    """
    records: list[Record] = []
    for number, key, value in keyed_lines(file):
        where = f"{file}:{number}"
        if key == "command":
            words = shlex.split(value)
            if words[:2] != ["python", "-m"] or words[2:3] not in [[name] for name in COMMANDS]:
                raise HeaderError(
                    f"{where}: command: {value}; python -m {' or '.join(COMMANDS)} is needed"
                )
            records.append(Record(file.stem, value))
        elif not records:
            raise HeaderError(f"{where}: {key}: stands before any command: line")
        elif key in ("result", "small result"):
            kept = records[-1].results if key == "result" else records[-1].small_results
            kept.append(result(value, where))
        elif key == "threads" and not value.isdecimal():
            raise HeaderError(f"{where}: threads: {value}; a number is needed")
        elif key in records[-1].facts:
            raise HeaderError(f"{where}: {key}: stands there already; leave one")
        else:
            records[-1].facts[key] = value
    for record in records:
        if record.small_results and "small" not in record.facts:
            raise HeaderError(
                f"{file}: small result: needs a line small:, which says how it is run"
            )
    return records


def keyed_lines(file: Path) -> list[tuple[int, str, str]]:
    """(line number, key, value) of the comment lines that have one of our keys, continuations joined.

    Raises:
        HeaderError: for a key that is nearly one of ours.
    """
    found: list[tuple[int, str, str]] = []
    open_ended = False
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        if open_ended and (more := re.fullmatch(r"#\s{3,}(\S.*)", line)):
            start, key, value = found[-1]
            found[-1] = (start, key, f"{value} {more[1]}")
            continue
        open_ended = False
        if not (match := re.fullmatch(r"# ([a-z]+(?: [a-z]+)?): (\S.*?)\s*", line)):
            continue
        if match[1] in KEYS:
            found.append((number, match[1], match[2]))
            open_ended = True
        elif close := difflib.get_close_matches(match[1], KEYS, 1, 0.8):
            raise HeaderError(f"{file}:{number}: {match[1]}: no such key; did you mean {close[0]}:")
    return found


def result(value: str, where: str) -> Result:
    """A result line's value.

    Raises:
        HeaderError: when it has none of the forms.
    """
    name, _, said = value.partition(" ")
    for form in FORMS:
        if not (match := re.fullmatch(form, said)):
            continue
        texts = {key: text for key, text in match.groupdict().items() if text is not None}
        seeds = int(texts.pop("seeds", 1))
        digits = max(len(text.partition(".")[2]) for text in texts.values())
        numbers = {key: float(text) for key, text in texts.items()}
        if seeds < 1 or numbers.get("sd", 0) < 0 or numbers.get("low", 0) > numbers.get("high", 1):
            break
        return Result(name, said, digits, seeds=seeds, **numbers)
    raise HeaderError(
        f"{where}: result: {value}; NAME 0.818 +- 0.004 (3 seeds), NAME 0.818 or NAME 0.81 to 0.83 is needed"
    )


def verdict(recorded: Result, now: Sequence[float]) -> str:
    """same, within noise or different.

    Args:
        recorded: what the file says.
        now: of the seeds 0, 1 ... trained again, one or more.
    """
    mean = statistics.fmean(now)
    if recorded.low is not None and recorded.high is not None:
        return "within noise" if recorded.low <= mean <= recorded.high else "different"
    if recorded.first is not None and alike(recorded.first, now[0], recorded.digits):
        return "same"
    if recorded.mean is None or recorded.sd is None:
        return "different"
    if len(now) == recorded.seeds and alike(recorded.mean, mean, recorded.digits):
        return "same"
    free = recorded.seeds - 1
    if free < MIN_DEGREES_OF_FREEDOM:
        return "different"
    limit = stats.t.ppf((1 + NOISE_LEVEL) / 2, free) * recorded.sd
    limit *= math.sqrt(1 / recorded.seeds + 1 / len(now))
    rounding = 0.5 * 10**-recorded.digits
    return "within noise" if abs(mean - recorded.mean) <= limit + rounding else "different"


def alike(a: float, b: float, digits: int) -> bool:
    """Whether two numbers are printed alike."""
    return f"{a:.{digits}f}" == f"{b:.{digits}f}"


def place(record: Record, data: Path | None) -> Path | None:
    """The folder of a record's data; None: it needs none.

    Raises:
        HeaderError: when it isn't there.
    """
    name = record.facts.get("data")
    if name is None:
        return None
    if data is None:
        raise HeaderError(
            f"its data ({name}) isn't given: --data FOLDER, which has {name}/, or SEG_DATA"
        )
    if not (data / name).is_dir():
        raise HeaderError(f"{data / name} isn't there")
    return data / name


def line(record: Record, small: bool, data: Path | None, seed: int, folder: Path) -> list[str]:
    """The words after ``python -m``."""
    module, *words = shlex.split(record.command)[2:]
    words = [word for word in words if not word.startswith(("data.root=", "seed=", "logger="))]
    words += [] if data is None else [f"data.root={data}"]
    words += shlex.split(record.facts["small"]) if small else []
    goal = "output" if module == "seg.crossval" else "outputs"
    return [module, *words, f"seed={seed}", "logger=none", f"{goal}={folder}"]


def trained(record: Record, small: bool, data: Path | None, seed: int) -> dict[str, float]:
    """All scores of a new run.

    Raises:
        RuntimeError: when a command fails; its last line.
    """
    threads = 1 if small else int(record.facts.get("threads", torch.get_num_threads()))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        call(line(record, small, data, seed, folder), threads)
        if record.module == "seg.crossval":
            return crossval_scores(read_json(folder / CROSSVAL_FILE))
        latest = (folder / "latest").resolve()
        found = read_json(latest / "run.json")["metrics"]
        if "evaluate" in record.facts:
            words = shlex.split(record.facts["evaluate"])
            call(
                ["seg.evaluate", f"run={latest}", f"output={folder / 'evaluated'}", *words], threads
            )
            found |= read_json(folder / "evaluated/metrics.json")["metrics"]
        return {name: math.nan if value is None else value for name, value in found.items()}


def crossval_scores(record: dict) -> dict[str, float]:
    """Those of the mean over folds, of all images together, and of the ensemble on the test split."""
    found = {f"mean/{name}": value for name, value in record["mean"].items()}
    for part in ("pooled", "test"):
        scores = record[part]["metrics"] if part in record else {}
        found |= {f"{part}/{name}": value for name, value in scores.items()}
    return {name: math.nan if value is None else value for name, value in found.items()}


def call(words: list[str], threads: int) -> None:
    """Runs a command of ours from the repository's top, with so many threads on a CPU.

    Raises:
        RuntimeError: when it fails; its last line.
    """
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing said").splitlines()[-1]
        raise RuntimeError(f"{words[0]} ended with {done.returncode}: {said}")


def machine() -> str:
    """What trains here, in words."""
    facts = provenance.describe_hardware()
    gpus = ", ".join(facts["gpus"])
    return gpus or f"{facts['cpu']}, {facts['instructions']}"


def lines_to_record(
    record: Record, small: bool, found: list[dict[str, float]], minutes: float
) -> list[str]:
    """Header lines that tell what was found, of seeds 0, 1 ..."""
    wanted = record.small_results if small else record.results
    names = [result.name for result in wanted] or [name for name in SHOWN if name in found[0]]
    commit = provenance.collect_provenance()["git"] or {"commit": "unknown", "dirty": False}
    dirty = " and changes" if commit["dirty"] else ""
    prefix = "small " if small else ""
    threads = record.facts.get("threads", torch.get_num_threads())
    lines = [] if small else [f"# threads: {threads}", f"# hardware: {machine()}"]
    lines += [f"# {prefix}cost: {minutes:.1f} minutes"]
    lines += [] if small else [f"# commit: {commit['commit'][:7]}{dirty}"]
    for name in names:
        values = [scores[name] for scores in found]
        told = f"{values[0]:.4f} (seed 0)"
        if len(values) > 1:
            mean, sd = statistics.fmean(values), statistics.stdev(values)
            told = f"{mean:.4f} +- {sd:.4f} ({len(values)} seeds), seed 0: {values[0]:.4f}"
        lines.append(f"# {prefix}result: {name} {told}")
    return lines


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        experiment: with what its command says beside.
        score: its name; empty where nothing was trained.
        recorded: as in the file.
        now: mean of the seeds trained; None: none was.
        verdict: same, within noise, different, failed or skipped.
        note: minutes that it took, or why it failed or was skipped.
    """

    experiment: str
    score: str
    recorded: str
    now: float | None
    verdict: str
    note: str


def reproduced(record: Record, options: argparse.Namespace) -> list[Row]:
    """Trains a record's command and judges its results."""
    small = options.small
    recorded = record.small_results if small else record.results

    def without(word: str, why: str) -> list[Row]:
        return [Row(record.name(), "", "", None, word, why)]

    if small and "small" not in record.facts:
        cost = record.facts.get("cost", "an unknown time")
        return without("skipped", f"has no small version; --full trains it whole ({cost})")
    if not recorded and not options.record:
        return without("skipped", f"records no {'small ' * small}result yet: --record 3")
    try:
        data = place(record, options.data)
    except HeaderError as error:
        return without("skipped", str(error))
    started = time.perf_counter()
    count = options.record or options.seeds
    try:
        found = [trained(record, small, data, seed) for seed in range(count)]
    except (RuntimeError, RunError) as error:
        return without("failed", str(error))
    minutes = (time.perf_counter() - started) / 60
    if options.record:
        told = lines_to_record(record, small, found, minutes / count)
        console.print(f"{record.name()}\n" + "\n".join(told), markup=False, soft_wrap=True)
        return []
    rows = []
    for one in recorded:
        if missing := [scores for scores in found if one.name not in scores]:
            near = difflib.get_close_matches(one.name, missing[0], 1)
            known = f"; did you mean {near[0]}" if near else ""
            rows.append(Row(record.name(), one.name, one.text, None, "failed", f"no such score{known}"))  # fmt: skip
            continue
        now = [scores[one.name] for scores in found]
        mean = statistics.fmean(now)
        rows.append(Row(record.name(), one.name, one.text, mean, verdict(one, now), f"{minutes:.1f} min"))  # fmt: skip
    return rows


def shown(rows: list[Row], title: str) -> Table:
    colors = {"same": "green", "within noise": "green", "different": "red", "failed": "red", "skipped": "yellow"}  # fmt: skip
    table = Table(title=title, title_justify="left", header_style="bold")
    for head in ("experiment", "score", "recorded", "now", "verdict", ""):
        table.add_column(head, justify="right" if head == "now" else "left", overflow="fold")
    last = ""
    for row in rows:
        now = "" if row.now is None else f"{row.now:.4f}"
        verdict = f"[{colors[row.verdict]}]{row.verdict}[/]"
        name = row.experiment if row.experiment != last else ""
        table.add_row(name, row.score, row.recorded, now, verdict, row.note)
        last = row.experiment
    return table


def asked(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these experiments; else all")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", default=not torch.cuda.is_available(), help="small versions; the default where there is no GPU")  # fmt: skip
    size.add_argument("--full", dest="small", action="store_false", help="the commands as they are")
    folder = os.environ.get("SEG_DATA")
    parser.add_argument("--data", type=Path, default=Path(folder) if folder else None, help="folder with a folder for each data set; else SEG_DATA")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=1, help="seeds trained again, 0, 1 ...")
    parser.add_argument("--record", type=int, metavar="SEEDS", help="prints header lines instead")
    parser.add_argument("--json", type=Path, help="file for the rows of the table")
    parser.add_argument("--conf", type=Path, default=EXPERIMENTS, help="folder of the experiments")
    options = parser.parse_args(words)
    if options.seeds < 1 or (options.record is not None and options.record < 1):
        parser.error("--seeds and --record: 1 or more")
    if options.data is not None:
        options.data = options.data.resolve()
    return options


def chosen(options: argparse.Namespace) -> list[Record]:
    """The records asked for.

    Raises:
        HeaderError: when there is no such experiment, or a record can't be read.
    """
    files = {file.stem: file for file in sorted(options.conf.glob("*.yaml"))}
    for name in options.only or ():
        if name not in files:
            raise HeaderError(f"--only {name}: no such file in {options.conf}; {', '.join(files)}")
    return [record for name in options.only or files for record in header(files[name])]


def main(words: Sequence[str] | None = None) -> int:
    options = asked(words)
    try:
        records = chosen(options)
    except HeaderError as error:
        print(error, file=sys.stderr)
        return 2
    rows = []
    for record in records:
        console.print(f"{record.name()} ...", style="dim", soft_wrap=True)
        rows += reproduced(record, options)
    if not options.record:
        kind = "small versions" if options.small else "as recorded"
        console.print(shown(rows, f"{kind}, on {machine()}"))
    else:
        for row in rows:
            console.print(f"{row.experiment}: {row.verdict}: {row.note}", soft_wrap=True)
    if options.json:
        options.json.write_text(json.dumps([vars(row) for row in rows], indent=2) + "\n", "utf-8")
    return 1 if {row.verdict for row in rows} & {"different", "failed"} else 0


if __name__ == "__main__":
    sys.exit(main())
