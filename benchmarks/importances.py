"""Importance of options by fANOVA and PED-ANOVA, where the answer is known, and on a study of seg.tune.

python benchmarks/importances.py [STUDY_FOLDER]

Three options are searched as in docs/tune.md: a learning rate, a width, a loss. In each case the score is a formula of
them, with noise of 0.005; the shares of its variance under a uniform search are known. Printed are the means over five
studies of 30 and of 100 trials. PED-ANOVA compares the best trials, a fraction of them, with all.
"""

import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)

from seg.multirun.search.page import include_pruned

LOSSES = {"a": 0.9, "b": 0.8, "c": 0.5}
WIDTHS = {4: 0.7, 8: 0.8, 16: 0.9}


def rate_score(rate: float) -> float:
    """Return a parabola in the logarithm of the learning rate, best at 0.005."""
    return -((math.log10(rate) + 2.3) ** 2)


BALANCE = math.sqrt(  # weight at which the learning rate makes 30 % of the variance beside the loss
    0.3 / 0.7 * np.var([*LOSSES.values()])
    / np.var([rate_score(10**x) for x in np.linspace(-4, -1, 1001)])
)  # fmt: skip
CASES: dict[str, Callable[[float, int, str], float]] = {
    "loss 100 %": lambda rate, width, loss: LOSSES[loss],
    "width 100 %": lambda rate, width, loss: WIDTHS[width],
    "rate 100 %": lambda rate, width, loss: 0.9 + 0.05 * rate_score(rate),
    "loss 70 %, rate 30 %": lambda rate, width, loss: LOSSES[loss] + BALANCE * rate_score(rate),
}
EVALUATORS: dict[str, BaseImportanceEvaluator] = {
    "fANOVA": FanovaImportanceEvaluator(seed=0),
    **{
        f"PED-ANOVA, best {share:.0%}": PedAnovaImportanceEvaluator(target_quantile=share)
        for share in (0.1, 0.25, 0.5)
    },
}


def made_study(case: str, trials: int, seed: int) -> optuna.Study:
    """Search a formula with TPE."""
    noise = np.random.default_rng(seed)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(
        lambda trial: (
            CASES[case](
                trial.suggest_float("rate", 1e-4, 1e-1, log=True),
                trial.suggest_categorical("width", [*WIDTHS]),
                trial.suggest_categorical("loss", [*LOSSES]),
            )
            + 0.005 * noise.standard_normal()
        ),
        trials,
    )
    return study


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # experimental parts of Optuna
    if sys.argv[1:]:
        storage = f"sqlite:///{Path(sys.argv[1]) / 'study.db'}"
        (name,) = optuna.get_all_study_names(storage)
        study = include_pruned(optuna.load_study(study_name=name, storage=storage))
        for label, evaluator in EVALUATORS.items():
            shares = get_param_importances(study, evaluator=evaluator)
            print(f"{label:<22}", ", ".join(f"{k} {v:.0%}" for k, v in shares.items()))
        return
    for trials in (30, 100):
        for case in CASES:
            studies = [made_study(case, trials, seed) for seed in range(5)]
            for label, evaluator in EVALUATORS.items():
                found = [get_param_importances(s, evaluator=evaluator) for s in studies]
                means = {k: np.mean([one[k] for one in found]) for k in ("loss", "rate", "width")}
                text = ", ".join(f"{name} {mean:.0%}" for name, mean in means.items())
                print(f"{trials:>3} trials  {case:<22}{label:<22}{text}", flush=True)


if __name__ == "__main__":
    main()
