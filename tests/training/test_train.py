"""A run from config to metrics: what it learns, leaves behind, and repeats."""

import copy
import itertools
import json
import math
import subprocess
import sys
import traceback
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import tifffile
import torch
from cases import slow_but
from omegaconf import OmegaConf
from PIL import Image
from small_runs import TINY, config, tiny, weights

from seg.cli.conf_files import CONF
from seg.commands.evaluate import evaluate
from seg.errors import RunError, UserError
from seg.inference.file_prediction import predict_files
from seg.losses import CrossEntropy
from seg.metrics import SegmentationMetrics
from seg.models import UNet
from seg.runs import load
from seg.runs.metrics_csv import read_metrics
from seg.training.build import normalises_one_sample
from seg.training.run import train
from seg.training.task import SegmentationTask


def test_a_run_leaves_all_that_the_other_commands_read(tmp_path, capsys):
    scores, folder = tiny(tmp_path)
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {"config.yaml", "run.json", "metrics.csv", "log.txt", "checkpoints/best.ckpt",
            "checkpoints/last.ckpt", "panels/all.png"} <= names  # fmt: skip
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and record["metrics"] == scores
    assert record["splits"]["val"] == ["val-000", "val-001"] and record["versions"]["torch"]
    saved = OmegaConf.load(folder / "config.yaml")
    assert saved.model.in_channels == 1 and saved.model.num_classes == 1 and saved.seed == 0
    rows = read_metrics(folder / "metrics.csv")
    for key in (
        "train/loss",
        "train/loss/dice",
        "val/loss",
        "val/dice/membrane",
        "val/iou",
        "lr",
        "images_per_second",
    ):
        assert any(r[key] for r in rows), key
    printed = capsys.readouterr()
    assert "python -m seg.predict run=" in printed.out and "membrane" in printed.out
    assert printed.err == "" and "Warning" not in printed.out


@pytest.mark.slow
def test_wandb_gets_metrics_config_and_pictures_and_offline_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    _, folder = tiny(tmp_path, "logger=wandb")
    printed = capsys.readouterr()
    assert "wandb: offline (no API key" in printed.out and printed.err == ""
    run = next((folder / "wandb").glob("offline-run-*"))
    wandb = Path(sys.executable).with_name("wandb")
    shown = subprocess.run(
        [wandb, "leet", "inspect", "--json", run], capture_output=True, text=True, check=True
    )
    for key in (
        "train/loss",
        "val/dice/membrane",
        "val/iou",
        "lr",
        "images_per_second",
        "seg.models.UNet",
    ):
        assert key in shown.stdout, key
    assert list(run.glob("files/media/images/val/*.png")) and list(
        run.glob("files/media/images/mask/*")
    )


def test_the_loss_falls_and_four_images_are_learnt(tmp_path):
    scores, folder = tiny(
        tmp_path, "data.difficulty=0.0", "trainer.max_epochs=15", "loader.repeats=4", "model.width=8",
        "trainer.check_val_every_n_epoch=15",
    )  # fmt: skip
    losses = [
        float(r["train/loss"]) for r in read_metrics(folder / "metrics.csv") if r["train/loss"]
    ]
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:4])
    assert scores["best/val/dice"] > 0.7


@pytest.mark.parametrize(
    "model",
    [
        "unet",
        pytest.param("unetpp", marks=pytest.mark.slow),
        pytest.param("fcn", marks=pytest.mark.slow),
    ],
)
def test_the_same_seed_gives_the_same_weights_bit_for_bit_whatever_the_workers(tmp_path, model):
    kept = []
    for workers in (0, 2):
        _, folder = tiny(
            tmp_path,
            f"loader.workers={workers}",
            "augment=elastic",
            "model.dropout=0.3",
            f"model={model}",
        )
        kept.append(weights(folder))
    for other in kept[1:]:
        assert all(torch.equal(kept[0][k], other[k]) for k in kept[0])


@pytest.mark.parametrize(
    "words",
    [
        ["model=segnet"],
        ["model=fcn", "model.encoder=alexnet", "model.fixed_upsampling=none"],
        ["model=unet_e", "head_weights=[1,0,2,3]"],
        pytest.param(["model=unet_plus", "model.deep_supervision=false", "model.output=deepest"], marks=pytest.mark.slow),
        pytest.param(["model=unet_wide", "model.up=pixel_shuffle", "model.block=bottleneck"], marks=pytest.mark.slow),
        ["model=unet_paper", "model.depth=2", "two_class_logits=2"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_each_network_trains_is_scored_again_and_predicts(tmp_path, words):
    scores, folder = tiny(tmp_path, *words, "trainer.max_epochs=1")
    again = evaluate(config("evaluate", f"run={folder}", "panels=1"))
    for key, value in again.items():
        assert value == pytest.approx(scores[f"best/{key}"], abs=1e-6), key
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 71), np.uint8)).save(image)
    predict_files(
        config("predict", f"run={folder}", f"input={image}", f"output={tmp_path / 'out'}")
    )
    with Image.open(tmp_path / "out/masks/image.png") as mask:
        assert mask.size == (71, 50)


def test_a_valid_unet_is_judged_on_all_pixels_and_sees_mirrored_context(tmp_path, capsys):
    _, folder = tiny(tmp_path, "model=unet_paper", "model.depth=2", "trainer.max_epochs=1")
    # depth 2: context 20 px, sides of 44 + 4 n: a crop of 32 + 2 * 20 = 72 px, which is one of them
    assert (
        "crops      72x72 px go in, the 32x32 in their middle come out" in capsys.readouterr().out
    )
    told = json.loads((folder / "run.json").read_text())["metrics"]
    assert 0 < told["test/pixel_accuracy"] < 1
    with pytest.raises(
        UserError, match=r"loader.crop=null: a network of valid convolutions needs crops"
    ):
        tiny(tmp_path, "model=unet_paper", "model.depth=2", "loader.crop=null")


def test_a_finer_fcn_starts_from_the_coarser_one(tmp_path, capsys):
    _, coarse = tiny(tmp_path, "model=fcn", "model.stride=32", "trainer.max_epochs=1")
    capsys.readouterr()
    still = ["optim=sgd", "optim.lr=0", "optim.weight_decay=0", "trainer.max_epochs=1"]
    _, fine = tiny(tmp_path, "model=fcn", "model.stride=16", f"init={coarse}", *still)
    assert (
        "not in it, or of another shape: doubles.0, last.weight, scores.1"
        in capsys.readouterr().out
    )
    old, new = load.load_run(coarse).model, load.load_run(fine).model
    for name, value in old.named_parameters():
        if not name.startswith("last"):
            assert torch.equal(value, new.state_dict()[name]), name


def test_what_can_not_be_started_from_is_told_before_a_folder_is_made(tmp_path, trained_run):
    for words, message in (
        (["init=imagenet"], "init=imagenet: UNet has no published weights; FCN and SegNet have"),
        (["init=nothing"], "init=nothing: no such folder or file"),
        (["init=123"], "init=123: imagenet, a run folder or a checkpoint file is needed"),
        (["model=unetpp", "head_weights=[nan,1,1,1]"], "a list of numbers is needed"),
        (["head_weights=[1,2]"], r"head_weights=\[1, 2\]: this network trains 1 head"),
        (["model=unetpp", "head_weights=[1,2]"], "trains 4 heads"),
        (["model=unetpp", "head_weights=3"], "head_weights=3: a list of numbers is needed"),
        (["model=unetpp", "head_weights=[0,0,0,0]"], "not all 0"),
    ):
        with pytest.raises((UserError, RunError), match=message):
            tiny(tmp_path, *words)
    assert not (tmp_path / "outputs").exists()
    with pytest.raises(RunError, match=r"only 1 of this network's 152 tensors are in .*best.ckpt"):
        tiny(tmp_path, "model=segnet", f"init={trained_run}")


def test_another_seed_gives_other_weights(tmp_path, trained_run):
    _, other = tiny(tmp_path, "seed=1", "trainer.max_epochs=1", "data.val=4")
    a, b = weights(trained_run), weights(other)
    assert any(not torch.equal(a[k], b[k]) for k in a)


def test_evaluate_repeats_the_log_from_folder_or_file_with_any_batch(tmp_path):
    scores, folder = tiny(tmp_path, "trainer.max_epochs=3")
    best = max(float(r["val/dice"]) for r in read_metrics(folder / "metrics.csv") if r["val/dice"])
    for run, batch in ((folder, 1), (folder / "checkpoints/best.ckpt", 2)):
        output = tmp_path / f"evaluation-{batch}"
        found = evaluate(
            config("evaluate", f"run={run}", f"output={output}", f"eval_batch_size={batch}")
        )
        logged = {
            k.removeprefix("best/"): v for k, v in scores.items() if k.startswith("best/val/")
        }
        for key, value in logged.items():
            if (
                batch == 1 or "loss" not in key
            ):  # a batch of Dice loss isn't the mean of its images'
                assert math.isclose(found[key], value, abs_tol=1e-6), key
        assert abs(found["val/dice"] - best) < 1e-6
        assert json.loads((output / "metrics.json").read_text())["metrics"] == found
        assert (output / "panels/all.png").is_file()
    test = evaluate(config("evaluate", f"run={folder}", "data.split=test"))
    assert math.isclose(test["test/dice"], scores["test/dice"], abs_tol=1e-6)


def test_evaluate_takes_another_data_set(tmp_path, stack_root, trained_run):
    other = config(
        "evaluate",
        f"run={trained_run}",
        "data=isbi2012",
        f"data.root={stack_root}",
        f"output={tmp_path / 'e'}",
    )
    assert 0 <= evaluate(other)["all/dice"] <= 1


def test_predict_gives_masks_probabilities_and_overlays_of_a_stack(tmp_path, stack_root):
    options = [o for o in TINY if not o.startswith("data.")]
    train(
        config("train", *options, "data=isbi2012", f"data.root={stack_root}", f"outputs={tmp_path}")
    )
    folder = tmp_path / "latest"
    written = predict_files(
        config("predict", f"run={folder / 'checkpoints/best.ckpt'}", f"input={stack_root / 'train-volume.tif'}",
               f"output={tmp_path / 'out'}", "save=[masks,probabilities,overlays]")
    )  # fmt: skip
    masks = tifffile.imread(tmp_path / "out/masks/train-volume.tif")
    p = tifffile.imread(tmp_path / "out/probabilities/train-volume.tif")
    assert masks.shape == (10, 48, 48) and p.shape == (10, 2, 48, 48) and p.dtype == np.float32
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(masks, p.argmax(1))
    assert len(written) == 12 and (tmp_path / "out/overlays/train-volume-009.png").is_file()


def test_colour_images_of_other_sizes_with_many_classes_train_and_predict(tmp_path, folder_root):
    Image.open(folder_root / "images/1.png").resize((33, 70)).save(folder_root / "images/1.png")
    Image.open(folder_root / "masks/1.png").resize((33, 70), 0).save(folder_root / "masks/1.png")
    scores = train(
        config("train", "data=folder", f"data.root={folder_root}", "data.classes=[ground,car,tree]",
               f"outputs={tmp_path / 'o'}", "trainer=smoke", "logger=none", "model.width=4", "loader.crop=32",
               "two_class_logits=2")
    )  # fmt: skip
    assert {"best/val/dice/ground", "best/val/dice/car", "best/val/dice/tree"} <= set(scores)
    predict_files(
        config(
            "predict",
            f"run={tmp_path / 'o/latest'}",
            f"input={folder_root / 'images'}",
            f"output={tmp_path / 'p'}",
        )
    )
    mask = Image.open(tmp_path / "p/masks/1.png")
    assert mask.size == (33, 70) and mask.mode == "P" and np.array(mask).max() < 3


def test_two_logits_of_two_classes_score_the_same_way_as_one(tmp_path, trained_run):
    scores, folder = tiny(tmp_path, "two_class_logits=2", "trainer=smoke")
    assert {"best/val/dice/membrane", "best/val/dice/cell"} <= set(scores)
    for run, logits in ((folder, 2), (trained_run, 1)):
        assert load.load_run(run).config["model"]["num_classes"] == logits


@pytest.mark.parametrize("steps", ["trainer.max_steps=3", "trainer.max_epochs=0"])
def test_a_run_too_short_to_validate_is_scored_and_kept_all_the_same(tmp_path, steps):
    scores, folder = tiny(tmp_path, steps)
    found = evaluate(config("evaluate", f"run={folder}"))
    assert math.isclose(found["val/dice"], scores["best/val/dice"], abs_tol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["loss.class_weights=[1,2,3]", "loss=bce"],
            "class_weights has 3 numbers and the data 2",
        ),
        (["trainer.max_epochs=-1"], "the schedule needs an end"),
        (["loader.batch_size=0"], "batch_size is 0"),
    ],
)
def test_what_only_the_data_shows_wrong_is_told_before_anything_is_made(tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        tiny(tmp_path, *words)
    assert not list((tmp_path / "outputs").glob("*"))


@pytest.mark.slow
def test_two_processes_train_one_run_and_count_each_image_once(tmp_path):
    words = [
        *TINY,
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "data.val=3",
        "data.test=2",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "seg.train", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nmodel ") == 1
    runs_made = [p for p in (tmp_path / "outputs").iterdir() if not p.is_symlink()]
    assert len(runs_made) == 1
    together = json.loads((runs_made[0] / "run.json").read_text())["metrics"]
    output = tmp_path / "alone"
    alone = evaluate(config("evaluate", f"run={runs_made[0]}", f"output={output}"))
    for key in ("val/dice", "val/iou", "val/dice_per_image", "val/dice_per_image_sd"):
        assert math.isclose(together[f"best/{key}"], alone[key], abs_tol=1e-6), key


@pytest.mark.slow
def test_two_processes_learn_the_weights_that_one_learns(tmp_path):
    """Of a loss and a norm that know no batch, the gradient of two halves is that of the whole.

    By SGD: AdamW divides tiny gradients by their size, and with them their rounding.
    """
    words = [
        *TINY,
        "optim=sgd",
        "loss=bce",
        "model.norm=group",
        "loader.batch_size=4",
        "trainer.max_epochs=3",
        "data.test=2",
    ]
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    for outputs, more in (("one", []), ("two", two)):
        command = [sys.executable, "-m", "seg.train", *words, *more, f"outputs={outputs}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = (weights(tmp_path / outputs / "latest") for outputs in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-5)
    first, second = (
        {tuple(r.values()) for r in read_metrics(tmp_path / outputs / "latest/images.csv")}
        for outputs in ("one", "two")
    )
    assert {row[:3] for row in first} == {row[:3] for row in second} and len(first) == 4 * 2


def test_a_run_that_gets_no_better_ends_when_patience_does(tmp_path):
    _, folder = tiny(tmp_path, "optim.lr=0", "patience=2", "trainer.max_epochs=9", "panels=0")
    record = json.loads((folder / "run.json").read_text())
    assert (
        record["status"] == "finished" and record["steps"] == 3 * 2
    )  # 1 validation, and 2 no better


MODELS = sorted(p.stem for p in (CONF / "model").glob("*.yaml"))
LOSSES = sorted(p.stem for p in (CONF / "loss").glob("*.yaml"))


PAIRS = list(itertools.product(MODELS, LOSSES))
ONCE = [  # each model and each loss
    (MODELS[i % len(MODELS)], LOSSES[i % len(LOSSES)]) for i in range(max(len(MODELS), len(LOSSES)))
]


@pytest.mark.parametrize(("model", "loss"), slow_but(PAIRS, *ONCE))
def test_every_model_trains_with_every_loss(tmp_path, model, loss):
    if model == "smp":
        pytest.importorskip("segmentation_models_pytorch", exc_type=Exception)
    words = [f"model={model}", f"loss={loss}", "trainer=smoke", "panels=0"]
    if loss == "sum":
        words += ["loss.terms.lovasz.weight=1", "loss.terms.weight_map.weight=0.1"]
    scores, _ = tiny(tmp_path, *words)
    assert math.isfinite(scores["best/val/loss"])


AUGMENTS = sorted(p.stem for p in (CONF / "augment").glob("*.yaml"))
OPTIMS = sorted(p.stem for p in (CONF / "optim").glob("*.yaml"))


SCHEDULES = sorted(p.stem for p in (CONF / "schedule").glob("*.yaml"))


@pytest.mark.parametrize(
    "number", range(max(len(AUGMENTS), len(OPTIMS), len(SCHEDULES)))
)  # of the choices that train together
def test_every_augmentation_optimiser_and_schedule_trains(tmp_path, number):
    choices = {"augment": AUGMENTS, "optim": OPTIMS, "schedule": SCHEDULES}
    words = [f"{group}={names[number % len(names)]}" for group, names in choices.items()]
    scores, _ = tiny(tmp_path, *words, "trainer=smoke", "panels=0")
    assert math.isfinite(scores["best/val/loss"]), words


SINGLE = ["data.size=32", "data.val=1", "data.test=0", "model.depth=4", "loader.crop=16", "panels=0"]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loader.batch_size=1", "loader.repeats=2"], r"loader.batch_size=1: a batch has one sample \(of 8 an epoch\)"),
        (["loader.batch_size=3", "data.train=2"], r"batch_size=3: the last batch of an epoch has one sample \(of 4 "),
        (["loader.batch_size=4", "data.train=1", "loader.repeats=1"], r"the last batch of an epoch has one sample \(of 1 "),
    ],
)  # fmt: skip
def test_a_batch_of_one_whose_maps_are_one_pixel_is_told_with_numbers_that_train(
    tmp_path, words, message
):
    words = [*SINGLE, "trainer.max_epochs=1", *words]
    with pytest.raises(UserError, match=message) as error:
        tiny(tmp_path, *words)
    assert not (tmp_path / "outputs").exists()
    remedy = str(error.value).partition("; give ")[2].split()
    assert all("=" in word for word in remedy)
    tiny(tmp_path, *words, *remedy)


def test_a_limit_that_leaves_the_last_batch_out_is_seen(tmp_path):
    words = [*SINGLE, "data.train=2", "loader.batch_size=3", "trainer.limit_train_batches=1"]
    tiny(tmp_path, *words, "trainer.max_epochs=1")


def test_the_trial_of_one_sample_changes_no_weight_and_no_random_number():
    model = UNet(1, 1, width=2, depth=2)
    data = SimpleNamespace(crop=8, intensity=SimpleNamespace(channels=1), sizes={"train": {(8, 8)}})
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert normalises_one_sample(model, data)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))  # fmt: skip
    assert torch.equal(state, torch.get_rng_state())
    data.crop = 4
    assert not normalises_one_sample(model, data)


def test_an_incomplete_last_accumulation_is_divided_by_its_own_number(tmp_path):
    words = ["trainer.max_epochs=1", "optim=sgd", "optim.momentum=0", "optim.weight_decay=0", "schedule=constant",
             "augment=none", "loader.batch_size=1", "loader.repeats=1", "data.train=1", "seed=3"]  # fmt: skip
    found = [
        weights(tiny(tmp_path / str(n), *words, f"trainer.accumulate_grad_batches={n}")[1])
        for n in (1, 4)  # one batch an epoch: the step of one batch, not a quarter of it
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_weight_decay_leaves_out_biases_and_normalisation_layers_on_request():
    task = SegmentationTask(
        UNet(1, 1, width=4, depth=2), CrossEntropy(), SegmentationMetrics(["a", "b"]),
        partial(torch.optim.SGD, lr=0.1, weight_decay=0.5), weight_decay_of_all=False,
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    optimizer = task.optimizer()
    for parameter in task.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in task.model.named_parameters():
        convolution = parameter.ndim == 4
        wanted = before[name] * (1 - 0.1 * 0.5) if convolution else before[name]
        torch.testing.assert_close(parameter.detach(), wanted, rtol=0, atol=1e-6)
    assert {p.ndim for p in task.model.parameters()} == {1, 4}


def test_frozen_parameters_are_counted_apart(tmp_path, capsys):
    _, folder = tiny(tmp_path, "model=fcn", "model.fixed_upsampling=all", "trainer.max_epochs=1")
    record = json.loads((folder / "run.json").read_text())
    model = load.load_run(folder).model
    fixed = sum(
        p.numel() for name, p in model.named_parameters() if name.startswith(("last", "doubles"))
    )
    assert record["frozen_parameters"] == fixed > 0
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert f"({fixed / 1e6:.2f} M of them frozen)" in capsys.readouterr().out


def test_a_step_on_the_cpu_formats_no_traceback(tmp_path, monkeypatch):
    """PyTorch's manual_seed formats one for each kind of GPU that isn't in use."""
    formatted, steps = [], []
    original = traceback.format_stack
    monkeypatch.setattr(traceback, "format_stack", lambda *args: formatted.append(1) or original(*args))  # fmt: skip

    class Counter(L.Callback):
        def on_train_batch_end(self, *args):
            steps.append(len(formatted))

    train(config("train", *TINY, f"outputs={tmp_path}"), [Counter()])
    assert len(steps) > 2 and steps[1] == steps[0]
