"""benchmarks/: times are taken in turn and compared by medians, the peers compute what our networks compute, and all runs."""

import functools
import json
import math
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from seg.metrics.isbi2012 import CHALLENGE_THRESHOLDS, section_scores
from seg.models import FCN, NestedUNet, UNet

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import gpu  # noqa: E402
import isbi2012  # noqa: E402
import peers  # noqa: E402
import timing  # noqa: E402
import v_rand  # noqa: E402

sys.path.remove(str(BENCHMARKS))


class Clock:
    """A clock that only what is timed advances."""

    def __init__(self) -> None:
        self.now, self.queued = 100.0, 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: list[float]) -> None:
        """Take the first of the given times."""
        self.now += seconds.pop(0)

    def launch(self, seconds: float) -> None:
        """Give work to a GPU: the clock does not advance."""
        self.queued += seconds

    def synchronize(self) -> None:
        self.now += self.queued
        self.queued = 0.0


def test_each_round_calls_every_candidate_and_begins_with_the_next_one():
    """Order a b c, b c a, c a b; each returns the number of its call, and the first round is a warm-up."""
    order = []
    calls = {name: lambda n=name: order.append(n) or len(order) for name in "abc"}
    results = timing.call_in_turn(calls, rounds=2, warm_up=1)
    assert "".join(order) == "abcbcacab"
    assert results == {"a": [6, 8], "b": [4, 9], "c": [5, 7]}


def test_a_ratio_is_that_of_the_medians_without_the_warm_up():
    """Seconds of a: 2, 4, 9, median 4; of b: 8, 1, 30, median 8; the ratio of the means would be 15 / 39."""
    clock = Clock()
    a, b = [50.0, 2.0, 4.0, 9.0], [70.0, 8.0, 1.0, 30.0]
    calls = {"a": lambda: clock.work(a), "b": lambda: clock.work(b)}
    times = timing.time_in_turn(calls, rounds=3, warm_up=1, clock=clock)
    assert times == {"a": [2, 4, 9], "b": [8, 1, 30]}
    assert timing.compare(times, "b", "ms", 1000) == [
        timing.Row("a", "b", 4000, "ms", 0.5),
        timing.Row("b", "b", 8000, "ms", 1.0),
    ]


def test_work_of_a_gpu_is_waited_for_and_earlier_work_is_not_counted():
    """Four calls of 3 s are 3 s a call; 5 s that were launched before do not count."""
    clock = Clock()
    clock.launch(5)
    call = functools.partial(clock.launch, 3)
    assert timing.time_call(call, 4, clock, clock.synchronize) == 3


def test_medians_are_taken_of_each_quantity():
    rounds = [{"s": s, "MiB": mib} for s, mib in ((1.0, 5), (2.0, 5), (4.0, 7), (10.0, 9))]
    assert timing.medians({"a": rounds}) == {"a": {"s": 3.0, "MiB": 6}}


def test_the_table_has_a_line_for_each_candidate_of_each_benchmark():
    rows = [timing.Row("b", "a", 12.34, "ms", 0.5), timing.Row("c", "a", 0.25, "s", 2.0)]
    assert timing.table({"one": rows[:1], "two": rows[1:]}).splitlines() == [
        "| benchmark | candidate | reference | median | ratio |",
        "| --- | --- | --- | --- | --- |",
        "| one | b | a | 12.3 ms | 0.500 |",
        "| two | c | a | 0.250 s | 2.000 |",
    ]


def test_the_machine_and_the_versions_are_named():
    line = timing.describe_machine()
    assert platform.python_version() in line and torch.__version__ in line
    assert f"{os.cpu_count()} CPUs, {torch.get_num_threads()} threads" in line


def test_a_child_tells_its_own_peak_memory_or_why_it_failed(tmp_path):
    """300 MB are written and freed: the peak grows by 286 MiB, whatever the parent holds."""
    script = tmp_path / "child.py"
    script.write_text(
        f"import json, sys\nsys.path.insert(0, {str(BENCHMARKS)!r})\nimport timing\n"
        "before = timing.process_memory('VmHWM')\n"
        "block = bytearray(b'1') * int(sys.argv[1])\ndel block\n"
        "print('a line that is no JSON')\n"
        "print(json.dumps(timing.process_memory('VmHWM') - before))\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    assert timing.run_child(script, 300_000_000, env=env) == pytest.approx(286, abs=30)
    with pytest.raises(RuntimeError, match=r"(?s)child\.py many: .*invalid literal for int"):
        timing.run_child(script, "many", env=env)


def layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]


@pytest.mark.parametrize(
    ("textbook", "ours", "side"),
    [
        (peers.TextbookPaper(2), UNet(1, 1, 2, padding="valid", norm="none"), 188),
        (peers.Textbook(2), UNet(1, 1, 2), 64),
        (peers.TextbookNested(2), NestedUNet(1, 1, 2), 64),
        (peers.TextbookFCN(2), FCN(1, 1, width=2, dropout=0.0), 64),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else None,
)
@pytest.mark.parametrize("training", [True, False])
def test_a_textbook_network_computes_what_ours_does(textbook, ours, side, training):
    """With the same weights; the biases that a normalisation follows are zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for theirs, own in zip(layers(textbook), layers(ours), strict=True):
            nn.init.normal_(own.weight, std=own.weight[0].numel() ** -0.5)
            theirs.weight.copy_(own.weight)
            if theirs.bias is not None:
                theirs.bias.copy_(torch.zeros(1) if own.bias is None else own.bias.normal_())
        image = torch.randn(2, 1, side, side)
        found = [peers.heads_of(m.train(training)(image)) for m in (textbook, ours)]
    assert found[1][-1].std() > 1e-3
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_the_operations_of_a_network_are_counted():
    """A 3x3 convolution from 1 to 4 channels at 8x8 px: 2 * 9 * 4 * 64; as much again for the weights' gradient."""
    make = functools.partial(nn.Conv2d, 1, 4, 3, padding=1)
    assert gpu.count_flops(make, 8, training=False) == 4608
    assert gpu.count_flops(make, 8, training=True) == 9216


def run(script: str, *words: object) -> str:
    """Run a benchmark with one thread and return what it printed."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, BENCHMARKS / script, *map(str, words)]
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def table_rows(text: str) -> list[list[str]]:
    """Return the cells of all Markdown tables, without headers."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [cells for cells in lines if cells[0] not in ("---", "network", "benchmark")]


@pytest.mark.slow
def test_the_gpu_benchmark_trains_each_network_beside_a_textbook_one():
    rows = table_rows(run("gpu.py", "train", "--smoke"))
    networks = list(dict.fromkeys(cells[0].split(",")[0] for cells in rows))
    assert networks == ["U-Net 2 of the paper", "U-Net 2", "UNet++ 1", "FCN-8s 2"]
    for network in networks:
        own = {c[1]: c for c in rows if c[0].startswith(f"{network},")}
        assert {"ours, bf16", "textbook, bf16", "textbook, float32"} <= set(own)
        assert own["textbook, bf16"][3] == "1.000"
        for _, _, ms, ratio, speed, *_ in own.values():
            assert float(ms) * float(speed) == pytest.approx(2000, rel=0.1)  # batches of 2
            expected = float(ms) / float(own["textbook, bf16"][2])
            assert float(ratio) == pytest.approx(expected, rel=0.01, abs=0.01)


@pytest.mark.slow
def test_the_other_pieces_of_the_gpu_benchmark_run():
    text = run("gpu.py", "infer", "loader", "auto", "--smoke", "--workers", 1)
    assert re.findall(r"^## (\w+)", text, re.M) == ["infer", "loader", "auto"]
    rows = table_rows(text)
    assert sum(cells[1] == "ours as seg.predict" for cells in rows) == 4
    assert [c[1] for c in rows if c[0] == "loader"] == ["step alone", "loader alone", "step and loader"]  # fmt: skip
    trained = [c for c in rows if c[1].startswith("auto trainer.") and c[3].endswith("ms a step")]
    assert len(trained) == 3 and all(float(c[3].split()[0]) > 0 for c in trained)


def test_the_gpu_benchmark_names_its_pieces(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "trian"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "trian: the pieces are train, infer, loader, auto" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names",
    [
        ["metrics"],
        pytest.param(["start", "loop", "cpu", "models", "data", "export"], marks=pytest.mark.slow),
    ],
)
def test_the_short_benchmarks_give_one_table(names, tmp_path):
    file = tmp_path / "new" / "table.md"
    run("run_all.py", "--smoke", "--only", *names, "--output", file)
    machine, rows = file.read_text().splitlines()[0], table_rows(file.read_text())
    assert torch.__version__ in machine
    assert list(dict.fromkeys(cells[0] for cells in rows)) == names
    for benchmark, _, reference, median, ratio in rows:
        value, unit = median.split(" ", 1)
        assert math.isfinite(float(value)) and float(ratio) >= 0
        same = [c for c in rows if c[:2] == [benchmark, reference] and c[3].endswith(unit)]
        assert [c[4] for c in same] == ["1.000"]


def test_the_separation_of_cells_without_any_step_is_the_score_of_the_challenge():
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 2, (8, 8)), np.ones((6, 6))).astype(np.uint8)
    interior = (0.2 + 0.5 * truth + rng.normal(0, 0.2, truth.shape)).clip(0, 1)
    scores = section_scores(interior, truth)
    for at, threshold in enumerate(CHALLENGE_THRESHOLDS):
        found = v_rand.separation(interior, truth, threshold, 0.0, 1, None)
        assert found == pytest.approx((scores["v_rand"][at], scores["v_info"][at]))


def test_values_and_thresholds_of_a_fold_are_those_that_are_best_on_the_other_folds():
    """V_rand of two values at two thresholds in three sections, each a fold of its own; by hand."""
    folds = np.arange(3)
    v_rand_a = [[0.1, 0.9], [0.5, 0.6], [0.8, 0.1]]
    v_rand_b = [[0.7, 0.2], [0.0, 0.2], [0.3, 1.0]]
    scores = {name: np.stack([rows, np.zeros((3, 2))], axis=-1) for name, rows in (("a", v_rand_a), ("b", v_rand_b))}  # fmt: skip
    # the others' sums: fold 0: a 1.3, .7, b .3, 1.2; fold 1: a .9, 1.0, b 1.0, 1.2; fold 2: a .6, 1.5, b .7, .4
    found, taken = v_rand.choose(scores, ["a", "b"], folds)
    assert taken == ["a", "b", "a"]
    np.testing.assert_allclose(found[:, 0], [0.1, 0.2, 0.1])


def test_a_step_is_scored_only_where_it_is_asked_for():
    """With one step alone, all steps together are that step."""
    rng = np.random.default_rng(0)
    nothing, folds = (0.0, 1, None), np.arange(6) // 2
    scores = {key: rng.random((6, 11, 2)) for key in (nothing, (0.0, 100, None))}
    plain = v_rand.build_rows(scores, folds, [])
    assert list(plain) == ["best threshold", "threshold of the other folds"]
    rows = v_rand.build_rows(scores, folds, ["min_size"])
    assert list(rows) == [*plain, "min_size", "together"]
    np.testing.assert_array_equal(rows["together"], rows["min_size"])
    for name, values in plain.items():
        np.testing.assert_array_equal(rows[name], values)


@pytest.mark.parametrize(
    ("overrides", "row"),
    [
        (["trainer.max_epochs=16", "data.neighbours=0"], "U-Net"),
        (["data.neighbours=1"], "U-Net, data.neighbours=1"),
        (["data.neighbours=2"], "U-Net, data.neighbours=2"),
        (["trainer.max_epochs=50"], "U-Net, 3000 steps"),
    ],
)
def test_a_run_with_other_sections_or_more_steps_has_a_row_of_its_own(overrides, row):
    record = {"choices": {"experiment": "isbi2012_unet"}, "overrides": overrides}
    assert isbi2012.variants(record, ["none"]) == [(row, "none", None)]


def test_two_runs_of_one_row_with_the_same_seed_and_section_are_refused(tmp_path, monkeypatch):
    """Neither takes the place of the other."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(
            json.dumps(
                {
                    "status": "finished", "choices": {"experiment": "isbi2012_unet"}, "overrides": [],
                    "seed": 0, "splits": {"val": ["slice-00"]},
                }
            )
        )  # fmt: skip
    scores = {"parameters": np.array(1), "counts": np.zeros((1, 2, 3))}
    monkeypatch.setattr(isbi2012, "scored", lambda *_: dict(scores))
    line = ["isbi2012.py", str(tmp_path), "--output", str(tmp_path / "table"), "--views", "none"]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit, match="b: another run is U-Net with seed 0 and holds out slice-00 too"):  # fmt: skip
        isbi2012.main()
