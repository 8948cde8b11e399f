"""What an option may be, where no constructor of ours says so, or says it only after a run was begun."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

WORD_64 = 2**63 - 1  # the largest whole number that an array can be counted by


class Limit(NamedTuple):
    """What is needed, in words, and whether a value is that."""

    needed: str
    holds: Callable[[Any], bool]


def whole(low: int, high: int = WORD_64) -> Limit:
    """A whole number from ``low`` to ``high``, both included."""
    span = f"{low} or more" if high == WORD_64 else f"{low} to {high}"
    return Limit(f"a whole number of {span}", lambda v: type(v) is int and low <= v <= high)


def real(low: float, high: float = math.inf, *, open_: bool = False) -> Limit:
    """A number from ``low`` to ``high``; ``open_``: neither of them itself."""
    if open_:
        span = f"above {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        return Limit(f"a number {span}", lambda v: is_number(v) and low < v < high)
    span = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
    return Limit(f"a number of {span}", lambda v: is_number(v) and low <= v <= high)


def either(*limits: Limit) -> Limit:
    """Any of them."""
    needed = ", or ".join(limit.needed for limit in limits)
    return Limit(needed, lambda v: any(limit.holds(v) for limit in limits))


def words(*choices: str) -> Limit:
    """One of these."""
    return Limit(f"one of {', '.join(choices)}", lambda v: v in choices)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and one.strip() for one in value)


def is_duration(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value) is not None


def share(of_none: str = "") -> Limit:
    """A number from 0 to below 1; ``of_none``: what 0 means."""
    return Limit(f"a number from 0{of_none} to below 1", lambda v: is_number(v) and 0 <= v < 1)


def one(word: str) -> Limit:
    """This word."""
    return Limit(word, lambda v: v == word)


NULL = Limit("null", lambda v: v is None)
WORD = Limit("a word", lambda v: isinstance(v, str) and v.strip() != "")
NAME = Limit("a name", lambda v: is_number(v) or WORD.holds(v))
PLACE = either(WORD, NULL)
MANY = whole(1)
BATCHES = either(
    Limit("a number of batches, 1 or more", lambda v: type(v) is int and v >= 1),
    Limit("a share above 0, to 1.0", lambda v: isinstance(v, float) and 0 < v <= 1),
)
SPLITS = words("train", "val", "test")
SHARE = share()
PAIR = Limit(
    "a pair of numbers from 0 to below 1",
    lambda v: isinstance(v, list) and len(v) == 2 and all(map(SHARE.holds, v)),
)
WORKERS = whole(0, 1024)  # where a run is typed may be another machine than where it trains
LIMITS = {
    "seed": whole(0, 2**32 - 1),
    "name": either(NAME, NULL),
    "outputs": WORD,
    "init": either(WORD, NULL),
    "resume": either(WORD, NULL),
    "two_class_logits": either(Limit("1", lambda v: v == 1), Limit("2", lambda v: v == 2)),
    "patience": either(Limit("a number of validations, 1 or more", MANY.holds), NULL),
    "ema": either(real(0, 1, open_=True), NULL),
    "bad_steps": words("stop", "skip"),
    "panels": whole(0),
    "kept": whole(0),
    "optim.lr": real(0),
    "optim.weight_decay": real(0),
    "optim.momentum": SHARE,
    "optim.dampening": real(0, 1),
    "optim.betas": PAIR,
    "optim.eps": real(0),
    "threshold": either(real(0, 1, open_=True), one("best"), NULL),
    "loader.batch_size": MANY,
    "loader.repeats": whole(1, 10**6),
    "loader.eval_batch_size": MANY,
    "loader.crop": either(whole(1, 2**15), NULL),
    "loader.workers": Limit(WORKERS.needed, lambda v: v is None or WORKERS.holds(v)),  # null: in seg.rerun
    "workers": WORKERS,
    "accelerator": words("auto", "cpu", "gpu", "mps"),
    "run": either(WORD, Limit("a list of them", lambda v: isinstance(v, list) and all(map(WORD.holds, v))), NULL),
    "input": either(WORD, NULL),
    "output": either(WORD, NULL),
    "loader.cache": PLACE,
    "data.root": PLACE,
    "data.table": PLACE,
    "data.images": WORD,
    "data.masks": WORD,
    "data.url": PLACE,
    "data.pair_by": PLACE,
    "data.group_by": PLACE,
    "data.split": SPLITS,
    "model.depth": either(whole(1, 12), NULL),
    "tta": words("none", "flips", "d4"),
    "confidence": share(" (no intervals)"),
    "objects.neck": either(real(0, open_=True), NULL),
    "objects.min_size": MANY,
    "eval_batch_size": MANY,
    "tile": MANY,
    "overlap": either(one("auto"), whole(0)),
    "batch": MANY,
    "probabilities": words("float32", "uint16", "uint8"),
    "depth": either(MANY, NULL),
    "rounds": MANY,
    "format": words("onnx", "torch"),
    "tolerance": real(0, open_=True),
    "opset": whole(12, 20),  # 20: the last that PyTorch's TorchScript exporter writes
    "n": MANY,
    "epoch": whole(0),
    "group_by": either(Limit("a list of options", is_words), NULL),
    "level": real(0, 1, open_=True),
    "resamples": MANY,
    "images": whole(0),
    "megabytes": whole(0),
    "split": either(words("val", "test"), NULL),
    "score": either(WORD, NULL),
    "baseline": either(WORD, NULL),
    "trials": MANY,
    "timeout": either(real(0, open_=True), NULL),
    "storage": either(WORD, NULL),
    "sampler.n_startup_trials": whole(0),
    "sampler.population_size": whole(2),
    "pruner.n_startup_trials": whole(0),
    "pruner.n_warmup_steps": whole(0),
    "pruner.min_resource": MANY,
    "pruner.reduction_factor": whole(2),
    "seeds": whole(0),
    "threads": either(MANY, NULL),
    "data.channels": MANY,
    "data.size": MANY,
    "logits": MANY,
    "loader.memory": real(0, 2**20),  # GiB
    "trainer.num_nodes": MANY,
    "trainer.precision": words("auto", "32-true", "bf16-mixed", "16-mixed"),
    "trainer.max_epochs": either(whole(0), Limit("-1", lambda v: v == -1), NULL),
    "trainer.max_steps": either(whole(0), Limit("-1", lambda v: v == -1)),
    "trainer.max_time": either(Limit("days:hours:minutes:seconds, 00:01:30:00", is_duration), NULL),
    "trainer.check_val_every_n_epoch": MANY,
    "trainer.accumulate_grad_batches": MANY,
    "trainer.gradient_clip_val": either(real(0), NULL),
    "trainer.limit_train_batches": BATCHES,
    "trainer.limit_val_batches": BATCHES,
    "trainer.log_every_n_steps": MANY,
    **{f"logger.{name}.project": WORD for name in ("wandb", "trackio", "mlflow")},
    **{f"logger.{name}.group": PLACE for name in ("wandb", "trackio", "mlflow")},
    "logger.wandb.entity": PLACE,
    "logger.trackio.folder": PLACE,
}  # fmt: skip


def refusal(path: str, value: Any) -> str | None:
    """What is needed instead of a value, in words; None where it will do."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            return "a finite number"
        if type(number) is int and abs(number) > WORD_64:
            return "a number of at most 64 bits"
    limit = LIMITS.get(path)
    return None if limit is None or limit.holds(value) else limit.needed
