"""What evaluate writes, the threshold that a run keeps, overlapping classes and weights from the data."""

import json
import math
import shutil
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import tifffile
import torch
from cases import slow_but
from omegaconf import OmegaConf
from PIL import Image
from small_runs import TINY, config, tiny

from seg.cli.compose import compose_checked, instantiate_node
from seg.commands.evaluate import evaluate
from seg.data.datamodule import DataModule
from seg.data.datasets.membranes import Membranes
from seg.errors import DataError, RunError, UserError
from seg.inference.file_prediction import predict_files
from seg.inference.pruning import compare_depths
from seg.losses import WeightMap
from seg.metrics.pixel_scores import ConfusionCounts, dice
from seg.metrics.significance import paired_test
from seg.runs import checkpoint, load
from seg.training.evaluation import build_trained_loss
from seg.training.run import train


def written(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def weighted(tmp_path_factory) -> tuple[dict[str, float], Path]:
    """Scores and folder of a run whose threshold and weights are of its data; read only."""
    words = ["threshold=best", "trainer.max_epochs=1", "loss=weighted_bce"]
    return tiny(tmp_path_factory.mktemp("weighted"), *words)


def test_evaluate_writes_scores_of_objects_intervals_and_a_reliability_plot(tmp_path, capsys):
    _, folder = tiny(tmp_path, "data.task=instances", "trainer.max_epochs=1")
    capsys.readouterr()
    scores = evaluate(config("evaluate", f"run={folder}", "metrics=full", "panels=1"))
    out = capsys.readouterr().out
    report = written(folder / "evaluate-val")
    known = {name: value for name, value in scores.items() if not math.isnan(value)}
    assert {k: v for k, v in report["metrics"].items() if v is not None} == known
    assert (folder / "evaluate-val/reliability.png").is_file()
    for name in ("v_rand", "v_info", "rand_error", "warping_error", "pixel_error", "object_f1", "ap", "pq"):  # fmt: skip
        assert f"val/{name}" in scores, name
        assert f"val/{name}" in report["intervals"] or math.isnan(scores[f"val/{name}"]), name
    for words in ("V_rand, after border thinning", "panoptic quality", "boundary", "Dice (F1)", "2 images"):  # fmt: skip
        assert words in out
    low, high = report["intervals"]["val/dice"]
    assert low <= scores["val/dice"] <= high
    assert report["images"] == ["val-000", "val-001"]
    assert np.load(folder / "evaluate-val" / report["confusion"])["confusion"].shape == (2, 2, 2)


def test_all_images_of_another_data_set_are_scored_whatever_splits_they_are_in(
    tmp_path, trained_run
):
    source = Membranes(size=64, train=4, val=4, test=1)
    root = tmp_path / "other"
    for split, numbers in {"val": [0, 1, 2], "test": [3]}.items():
        for part, index in (("images", 0), ("masks", 1)):
            (root / split / part).mkdir(parents=True)
            for number in numbers:
                picture = source.read(f"val-{number:03d}")[index].squeeze()
                Image.fromarray(picture).save(root / split / part / f"{number}.png")

    def found(name: str, *words: str) -> dict[str, float]:
        line = [f"run={trained_run}", "panels=0", f"output={tmp_path / name}", *words]
        return evaluate(config("evaluate", *line))

    # Two splits of folders, one of them the test: the classes are the run's.
    own, words = found("own"), ("data=folder", f"data.root={root}")
    every = found("a", *words)
    assert {f"val/{k.removeprefix('all/')}": v for k, v in every.items()} == own
    assert written(tmp_path / "a")["images"] == ["val/0", "val/1", "val/2", "test/3"]
    # A folder with only test images, and a folder of one image.
    one = found("b", *words, "data.split=test")
    shutil.rmtree(root / "val")
    assert found("c", *words)["all/dice"] == one["test/dice"]
    words = ("data=folder", f"data.root={root / 'test'}")
    assert found("d", *words)["all/dice"] == one["test/dice"]
    # A table without data.root, and lists that name only test images.
    table = root / "table.csv"
    table.write_text("image,mask,split\ntest/images/3.png,test/masks/3.png,test\n")
    assert found("e", "data=folder", f"data.table={table}")["all/dice"] == one["test/dice"]
    (root / "test.txt").write_text("3\n")
    listed = found("f", *words, f"data.lists={root}")
    assert listed["all/dice"] == one["test/dice"]
    # None of them can train.
    with pytest.raises(DataError, match="1 test images and no train and no val split"):
        words = [word for word in TINY if not word.startswith("data.")]
        train(config("train", *words, "data=folder", f"data.table={table}", "data.classes=[a,b]"))


def test_loss_and_scores_depend_on_no_batch_size(tmp_path):
    words = [
        "data.val=4",
        "trainer.max_epochs=1",
        "loss=dice_focal",
        "model=unetpp",
        "model.depth=2",
    ]
    _, folder = tiny(tmp_path, *words)
    results = [
        evaluate(config("evaluate", f"run={folder}", "panels=0", f"eval_batch_size={size}"))
        for size in (1, 3)
    ]
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    run = load.load_run(folder)
    loss, losses = build_trained_loss(run), []
    data = DataModule(Membranes(size=64, train=4, val=4, test=1), intensity=run.intensity)
    samples = data.eval_dataset("val")
    for index in range(4):  # image by image, by hand
        sample = samples[0, index]
        with torch.no_grad():
            losses.append(
                float(loss(run.model(sample["image"][None]), sample["mask"][None].long()))
            )
    assert results[0]["val/loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_no_intervals_and_no_objects_where_none_are_asked_for(tmp_path, trained_run, capsys):
    words = [f"run={trained_run}", "confidence_level=0", "panels=0", f"output={tmp_path}"]
    scores = evaluate(compose_checked("evaluate", words))
    assert written(tmp_path)["intervals"] == {} and "val/v_rand" not in scores
    assert "intervals:" not in capsys.readouterr().out


def test_two_runs_are_compared_on_the_same_images_from_what_evaluate_wrote(tmp_path, trained_run):
    rows = []
    other = tiny(tmp_path, "seed=1", "data.val=4", "trainer.max_epochs=1")[1]
    for number, folder in enumerate((trained_run, other)):
        output = tmp_path / str(number)
        evaluate(config("evaluate", f"run={folder}", "panels=0", f"output={output}"))
        rows.append(np.load(output / "confusion.npz")["confusion"])

    def mean_dice(sums):
        return dice(ConfusionCounts.from_confusion(torch.from_numpy(sums))).nanmean(-1).numpy()

    found = paired_test(*rows, mean_dice)
    alone = [float(mean_dice(r.sum(0, keepdims=True).astype(float))[0]) for r in rows]
    assert found.value == pytest.approx(alone[1] - alone[0]) and found.images == 4
    assert 1 / 16 <= found.p <= 1


def test_the_threshold_that_is_best_on_validation_is_kept_and_used(tmp_path, weighted):
    scores, folder = weighted
    kept = json.loads((folder / "run.json").read_text())["threshold"]
    run = load.load_run(folder)
    assert run.threshold == kept and 0 < kept < 1
    again = evaluate(config("evaluate", f"run={folder}", f"output={tmp_path}", "panels=0"))
    assert again["val/dice"] == pytest.approx(scores["best/val/dice"], abs=1e-6)
    for other in (0.2, 0.5, 0.8):
        line = [
            f"run={folder}",
            f"threshold={other}",
            f"output={tmp_path / str(other)}",
            "panels=0",
        ]
        assert evaluate(config("evaluate", *line))["val/dice"] <= again["val/dice"] + 1e-6
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)).save(image)
    for given, wanted in ((None, kept), (0.9, 0.9)):
        out = tmp_path / f"out-{given}"
        predict_files(
            config(
                "predict", f"run={folder}", f"input={image}", f"output={out}",
                f"threshold={'null' if given is None else given}", "save=[masks,probabilities]",
            )
        )  # fmt: skip
        p = tifffile.imread(out / "probabilities/image.tif")
        with Image.open(out / "masks/image.png") as mask:
            np.testing.assert_array_equal(np.array(mask), p[1] > wanted)


def test_a_threshold_of_ones_own_is_kept_too(tmp_path):
    scores, folder = tiny(tmp_path, "threshold=0.3", "trainer.max_epochs=1")
    assert (
        load.load_run(folder).threshold
        == load.load_run(folder / "checkpoints/last.ckpt").threshold
        == 0.3
    )
    again = evaluate(config("evaluate", f"run={folder}", "panels=0"))
    assert again["val/dice"] == pytest.approx(scores["best/val/dice"], abs=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["confidence_level=2"], "confidence_level=2: a number from 0"),
        (["panels=-1"], "panels=-1"),
        (["objects.split_neck_px=nan"], "objects.split_neck_px=nan: a finite number is needed"),
        (
            ["objects.split_neck_px=abc"],
            "objects.split_neck_px=abc: a number of 0 or more, or null is needed",
        ),
        (["+data.task=foo"], "data.task=foo: one of classes, instances, overlapping is needed"),
    ],
)
def test_what_evaluate_can_not_do_is_told_before_the_network_runs(
    tmp_path, trained_run, words, message
):
    with pytest.raises((UserError, DataError), match=message):
        line = [f"run={trained_run}", f"output={tmp_path / 'out'}", *words]
        evaluate(compose_checked("evaluate", line))
    assert not (tmp_path / "out").exists()


def test_an_older_run_is_scored_for_objects_and_a_loss_no_longer_known_is_said(
    tmp_path, trained_run
):
    folder = Path(shutil.copytree(trained_run, tmp_path / "run"))
    file = folder / "checkpoints/best.ckpt"
    content = checkpoint.read_checkpoint(file)
    card = content["seg"]
    for node, key in ((card, "task"), (card, "threshold"), (card["config"], "metrics"), (card["config"]["data"], "task")):  # fmt: skip
        del node[key]
    torch.save(content, file)
    scores = evaluate(config("evaluate", f"run={folder}", "+data.task=instances", "panels=0"))
    assert "val/v_rand" in scores and load.load_run(folder).threshold == 0.5
    card["config"]["loss"] = {"_target_": "seg.losses.Focal", "gamma": 2.0, "class_weights": None}
    torch.save(content, file)
    with pytest.raises(UserError, match=r"made by an older version, whose loss.*class_weights.*predict works"):  # fmt: skip
        evaluate(config("evaluate", f"run={folder}"))
    card["threshold"] = 7.0
    torch.save(content, file)
    with pytest.raises(RunError, match=r"its threshold is 7.0"):
        load.load_run(folder)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["threshold=2"], UserError, "threshold is 2"),
        (
            ["threshold=missed:0.1"],
            UserError,
            r"missed:0.1: needs 9 images \(1 / 0.1 - 1\), and 2 choose the threshold",
        ),
        (["threshold=bst"], UserError, "threshold is bst; one of best or a number above 0"),
        (["loss=sum"], UserError, r"every term of the sum has weight 0.*loss.terms.dice.weight=1"),
        (["data.task=overlapping"], DataError, "one class a pixel; use data=folder"),
        (["metrics.tolerance=-1"], UserError, "tolerance is -1"),
        (
            ["loss=weight_map", "loss.cells=[7]"],
            UserError,
            r"loss: cells is \[7\]; give class indices, 0..1",
        ),
    ],
)
def test_what_can_not_be_is_told_before_a_folder_is_made(tmp_path, words, error, message):
    with pytest.raises(error, match=message):
        tiny(tmp_path, *words)
    assert not list((tmp_path / "outputs").glob("*"))


FOLDER = [o for o in TINY if not o.startswith("data.")]


def overlapping(planes_root, tmp_path, *words):
    return train(
        config(
            "train", *FOLDER, "data=folder", f"data.root={planes_root}", "data.task=overlapping",
            "data.classes=[first,second]", "data.ignore=[7]", f"outputs={tmp_path / 'o'}", *words,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    "loss", slow_but(["bce_dice", "weighted_bce", "cross_entropy", "cldice"], "weighted_bce", "cross_entropy")
)  # fmt: skip
def test_each_kind_of_loss_trains_classes_that_overlap(tmp_path, planes_root, loss):
    scores = overlapping(planes_root, tmp_path, f"loss={loss}", "trainer=smoke", "panels=0")
    assert math.isfinite(scores["best/val/loss"])
    assert load.load_run(tmp_path / "o/latest").overlapping


def test_classes_that_overlap_train_evaluate_and_predict(tmp_path, planes_root):
    words = ["loss=weight_map", "threshold=best", "augment=elastic"]
    scores = overlapping(planes_root, tmp_path, *words)
    run = load.load_run(tmp_path / "o/latest")
    assert run.overlapping and run.config["model"]["num_classes"] == 2
    again = evaluate(config("evaluate", f"run={tmp_path / 'o/latest'}", "metrics=full"))
    assert again["val/dice"] == pytest.approx(scores["best/val/dice"], abs=1e-6)
    assert {"val/dice/first", "val/boundary_f/second", "val/ece"} <= set(again)
    predict_files(
        config("predict", f"run={tmp_path / 'o/latest'}", f"input={planes_root / 'images'}",
               f"output={tmp_path / 'p'}", "save=[masks,probabilities,overlays]")
    )  # fmt: skip
    masks = tifffile.imread(tmp_path / "p/masks/0.tif")
    p = tifffile.imread(tmp_path / "p/probabilities/0.tif")
    assert masks.shape == p.shape == (2, 40, 56)
    np.testing.assert_array_equal(masks, p > run.threshold)


def test_heads_of_overlapping_classes_are_not_averaged(tmp_path, planes_root):
    words = ["model=unetpp", "model.depth=2", "trainer=smoke"]
    with pytest.raises(UserError, match=r"model.output=average: heads are averaged as a softmax"):
        overlapping(planes_root, tmp_path, *words, "model.output=average")
    overlapping(planes_root, tmp_path, *words)
    levels = compare_depths(config("prune", f"run={tmp_path / 'o/latest'}", "rounds=1"))
    assert [level.name for level in levels] == ["L1", "L2"]


def test_a_run_and_data_must_agree_whether_classes_overlap(tmp_path, planes_root):
    overlapping(planes_root, tmp_path, "trainer=smoke")
    run = tmp_path / "o/latest"
    with pytest.raises(UserError, match=r"trained on data\.task=overlapping"):
        evaluate(config("evaluate", f"run={run}", "+data.task=classes", "+data.ignore=null"))  # fmt: skip
    tifffile.imwrite(
        planes_root / "masks/0.tif", np.zeros((3, 40, 56), np.uint8), photometric="minisblack"
    )
    with pytest.raises(DataError, match=r"0.tif: 3 pages of 40x56 px; data.task=overlapping needs one a class"):  # fmt: skip
        overlapping(planes_root, tmp_path, "trainer=smoke")


def test_a_threshold_of_many_classes_or_out_of_range_is_refused(tmp_path, folder_root):
    train(
        config("train", *FOLDER, "data=folder", f"data.root={folder_root}", "data.classes=[a,b,c]",
               f"outputs={tmp_path / 'o'}", "trainer=smoke")
    )  # fmt: skip
    run = tmp_path / "o/latest"
    with pytest.raises(RunError, match=r"threshold=0.3: the run has 3 classes"):
        evaluate(config("evaluate", f"run={run}", "threshold=0.3"))
    with pytest.raises(UserError, match=r"objects: split_neck_px=-1 px must be above 0"):
        evaluate(config("evaluate", f"run={run}", "objects.split_neck_px=-1"))
    with pytest.raises(RunError, match="a number between 0 and 1"):
        evaluate(config("evaluate", f"run={run}", "threshold=abc"))
    with pytest.raises(DataError, match=r"instances needs two classes.*there are 3: a, b, c"):
        evaluate(config("evaluate", f"run={run}", "+data.task=instances"))


def test_auto_weights_are_the_training_splits_and_stand_in_the_config(tmp_path, weighted):
    saved = OmegaConf.load(weighted[1] / "config.yaml")
    source = config("train", *TINY)
    made = instantiate_node(source.data, "data")
    masks = np.stack([made.read(name)[1] for name in made.splits["train"]])
    assert saved.loss.pos_weight == pytest.approx((masks == 0).sum() / (masks == 1).sum(), rel=1e-3)
    _, folder = tiny(tmp_path, "loss=cross_entropy", "trainer=smoke")
    shares = np.bincount(masks.ravel()) / masks.size
    weights = OmegaConf.load(folder / "config.yaml").loss.class_weights
    np.testing.assert_allclose(weights, 1 / (2 * shares), rtol=1e-3)
    assert float(np.dot(weights, shares)) == pytest.approx(1, rel=1e-3)  # the mean weight


def test_a_weight_map_is_made_of_the_whole_image_once_and_moves_with_it():
    source, calls = Membranes(size=96, train=2, val=1, test=0), []
    loss = WeightMap()

    def gaps(mask, objects):
        calls.append(mask)
        return loss.gaps(mask)

    data = DataModule(source, augment=A.Compose([A.D4(p=1)]), crop=48, repeats=6)
    data.set_weight_map(gaps)
    samples = data.train_dataloader().dataset
    seen = [samples[epoch, i] for epoch in range(2) for i in range(12)]
    assert len(calls) == 2  # one an image
    whole = {name: loss.gaps(source.read(name)[1]) for name in source.splits["train"]}
    for sample in seen:
        mask, found = sample["mask"].numpy(), sample["gaps"].numpy()
        assert (found[mask == 1] == 0).all()  # it still lies on the membranes
        everything = np.unique(whole[sample["name"]].round(4))
        assert np.isin(found.round(4), everything).all()
    assert any(not np.allclose(s["gaps"], loss.gaps(s["mask"].numpy()), atol=1e-2) for s in seen)
