"""Exported files that take the place of the network: int8, float16, ONNX Runtime and OpenVINO."""

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cases import slow_but
from onnx import numpy_helper
from PIL import Image
from small_runs import config, tiny
from torch import nn

import seg
from seg import errors
from seg.commands import export as commands_export
from seg.commands.evaluate import evaluate
from seg.commands.export import (
    calibration_images,
    check_losses,
    export_run,
    log_calibration,
    log_fastest,
    open_reduction,
)
from seg.data.datasets.membranes import Membranes
from seg.data.normalization import Normalization
from seg.errors import RunError, UserError
from seg.inference import ensemble
from seg.inference.engines import engine_fields, open_openvino, with_engine
from seg.inference.ensemble import Ensemble
from seg.inference.export_facts import describe_run
from seg.inference.exported_network import (
    DIGEST_KEY,
    ExportedNetwork,
    model_digest,
    open_onnxruntime,
    write_export,
)
from seg.inference.file_prediction import predict_files
from seg.inference.predictor import Predictor
from seg.inference.quantization import QUANTIZATION_OPSET, quantize_onnx
from seg.models import NestedUNet, UNet
from seg.runs.load import LoadedRun

ENGINES = {
    "onnx": open_onnxruntime,
    "openvino": lambda content: open_openvino(content, "float32"),
}
GREY = Normalization(0.0, 255.0, [0.45], [0.2])


def settled(network: nn.Module) -> nn.Module:
    """Return a network in evaluation mode with batch statistics of noise."""
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.randn(2, 1, 64, 64))
    return network.eval()


def as_run(network: nn.Module, classes: int = 2, task: str = "classes") -> LoadedRun:
    names, colors = [f"c{i}" for i in range(classes)], [(i, i, i) for i in range(classes)]
    here = Path("run")
    return LoadedRun(here, here, network, {}, names, colors, GREY, task)  # ty: ignore


NETWORKS = {
    "one logit": lambda: as_run(settled(UNet(1, 1, 4, 2))),
    "three classes": lambda: as_run(settled(NestedUNet(1, 3, 4, 2, output="average")), 3),
    "valid": lambda: as_run(settled(UNet(1, 2, 4, 2, padding="valid")), 2),
    "overlapping": lambda: as_run(settled(UNet(1, 2, 4, 2)), 2, "overlapping"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NETWORKS)
def test_an_engine_predicts_what_pytorch_does(name, engine, tmp_path):
    run, file = NETWORKS[name](), tmp_path / "m.onnx"
    write_export(ExportedNetwork(run), describe_run(run, []), file, "onnx", 12)
    model = ENGINES[engine](file.read_bytes())
    other = LoadedRun(**(vars(run) | engine_fields(run, model)))
    rng = np.random.default_rng(0)
    for height, width, options in (
        (70, 90, {}),
        (200, 150, {"tile": 128}),
        (33, 200, {"tta": "d4", "scales": [1, 0.5]}),
    ):
        image = rng.integers(0, 256, (height, width, 1), dtype=np.uint8)
        ours, theirs = (Predictor(r, 0.5, **options).probabilities(image) for r in (run, other))
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_an_engine_leaves_out_pixels_without_data(tmp_path):
    run, file = NETWORKS["one logit"](), tmp_path / "m.onnx"
    run = LoadedRun(**(vars(run) | {"intensity": Normalization(0.0, 255.0, [0.45], [0.2], dtype="uint8", nodata=[7.0])}))  # fmt: skip
    write_export(ExportedNetwork(run), describe_run(run, []), file, "onnx", 12)
    fields = engine_fields(run, open_openvino(file.read_bytes(), "float32"))
    image = np.full((64, 64, 1), 90, np.uint8)
    image[10:20] = 7
    ours, theirs = (
        Predictor(r, 0.5).probabilities(image) for r in (run, LoadedRun(**(vars(run) | fields)))
    )
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("opset", [12, 15, 18])
def test_an_ensemble_is_one_file(tmp_path, engine, opset):
    members = [settled(UNet(1, 1, 4, 2)), settled(UNet(1, 1, 4, 1))]
    run = as_run(Ensemble(members, [GREY, Normalization(0.0, 200.0, [0.3], [0.1])]))
    run = LoadedRun(**(vars(run) | {"intensity": run.model.intensity}))
    file = tmp_path / "m.onnx"
    write_export(ExportedNetwork(run), describe_run(run, []), file, "onnx", opset)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 1), dtype=np.uint8)
    other = LoadedRun(**(vars(run) | engine_fields(run, ENGINES[engine](file.read_bytes()))))
    ours, theirs = (Predictor(r, 0.5).probabilities(image) for r in (run, other))
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_weights_and_activations_have_the_ranges_of_the_data(tmp_path):
    """Scales by hand: the largest weight of each channel over 127, and the range of the normalised images over 255."""
    run = as_run(settled(UNet(1, 1, 4, 1)))
    whole, file = tmp_path / "f.onnx", tmp_path / "q.onnx"
    write_export(ExportedNetwork(run), describe_run(run, []), whole, "onnx", QUANTIZATION_OPSET)
    images = [np.full((1, 64, 64), low, np.float32) for low in (51.0, 204.0)]
    quantize_onnx(whole, file, images, tmp_path)
    model = onnx.load(file)
    arrays = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    producer = {out: node for node in model.graph.node for out in node.output}
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    activation, weight = (producer[name] for name in conv.input[:2])
    assert weight.op_type == activation.op_type == "DequantizeLinear"
    stored, scales = arrays[weight.input[0]], arrays[weight.input[1]]
    assert stored.dtype == np.int8 and scales.shape == (4,)
    conv0, norm = run.model.down[0][0], run.model.down[0][1]
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    fused = (conv0.weight.detach() * factor[:, None, None, None]).numpy()
    largest = np.abs(fused).max((1, 2, 3))
    np.testing.assert_allclose(scales, largest / 127, rtol=0.01)
    np.testing.assert_allclose(
        stored * scales[:, None, None, None], fused, atol=largest.max() / 254 + 1e-6
    )
    low, high = ((value / 255 - 0.45) / 0.2 for value in (51, 204))  # -1.25 and 1.75
    np.testing.assert_allclose(arrays[activation.input[1]], (high - low) / 255, rtol=1e-5)
    assert arrays[activation.input[2]].dtype == np.uint8


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A trained run with a float32 and an int8 file, and what the second export printed."""
    folder = tiny(tmp_path_factory.mktemp("engines"), "data.train=6", "trainer.max_epochs=3")[1]
    export_run(config("export", f"run={folder}"))
    export_run(config("export", f"run={folder}", "precision=int8", "max_loss=0.1"))
    return folder


def test_the_scores_in_the_file_are_those_of_seg_evaluate(exported):
    model = onnx.load(exported / "export/model-int8.onnx")
    facts = json.loads({p.key: p.value for p in model.metadata_props}["seg"])
    assert facts["precision"] == "int8" and set(facts["scores"]) == {"PyTorch", "ONNX Runtime", "OpenVINO"}  # fmt: skip
    words = [f"run={exported}", "panels=0", "confidence_level=0"]
    plain = evaluate(config("evaluate", *words))
    assert facts["scores"]["PyTorch"]["dice"] == pytest.approx(plain["val/dice"], abs=1e-3)
    for engine, title in (("onnx", "ONNX Runtime"), ("openvino", "OpenVINO")):
        found = evaluate(config("evaluate", *words, f"engine={engine}", "precision=int8"))
        for name in ("dice", "iou", "dice/membrane"):
            assert found[f"val/{name}"] == pytest.approx(facts["scores"][title][name], abs=1e-6)
        assert found["val/loss"] == pytest.approx(plain["val/loss"], rel=0.1)


@pytest.mark.parametrize("engine", ENGINES)
def test_seg_predict_and_seg_load_run_the_file(exported, engine, tmp_path, caplog):
    image = Membranes(size=100, train=1, val=1, test=0).read("train-000")[0][:80, :, 0]
    Image.fromarray(image).save(tmp_path / "a.png")
    plain = seg.load(exported).predict(image).probabilities
    same = seg.load(exported, engine=engine).predict(image).probabilities
    np.testing.assert_allclose(same, plain, atol=1e-4)
    int8 = seg.load(exported, engine=engine, precision="int8").predict(image)
    assert 0 < np.abs(int8.probabilities - plain).mean() < 0.02
    with caplog.at_level(logging.INFO, "seg"):
        words = [f"run={exported}", f"input={tmp_path / 'a.png'}", f"output={tmp_path / 'out'}"]
        predict_files(config("predict", *words, f"engine={engine}", "precision=int8"))
    assert f"{exported}/export/model-int8.onnx" in caplog.text
    mask = np.asarray(Image.open(tmp_path / "out/masks/a.png"))
    np.testing.assert_array_equal(mask, int8.mask)


def test_another_file_does_not_continue_a_prediction(exported, tmp_path):
    """Results of two int8 files, calibrated on other images, are not mixed."""
    Image.new("L", (64, 64), 90).save(tmp_path / "a.png")
    words = [f"run={exported}", "precision=int8", "max_loss=1", "calibration.images=1"]
    export_run(config("export", *words, f"output={tmp_path}/other.onnx"))
    common = [f"run={exported}", f"input={tmp_path / 'a.png'}", f"output={tmp_path / 'out'}", "engine=onnx", "precision=int8"]  # fmt: skip
    (tmp_path / "q.onnx").write_bytes((exported / "export/model-int8.onnx").read_bytes())
    common.append(f"exported={tmp_path / 'q.onnx'}")
    assert predict_files(config("predict", *common)) and predict_files(config("predict", *common)) == []  # fmt: skip
    (tmp_path / "other.onnx").replace(tmp_path / "q.onnx")
    with pytest.raises(UserError, match="out"):
        predict_files(config("predict", *common))


def test_bfloat16_rounds_in_openvino(exported):
    image = np.random.default_rng(0).integers(0, 256, (80, 100), dtype=np.uint8)
    plain = seg.load(exported).predict(image).probabilities
    found = seg.load(exported, engine="openvino", precision="bfloat16").predict(image).probabilities
    assert np.abs(found - plain).max() < 0.1


def test_float16_is_as_exact_as_float16(exported, tmp_path):
    file = tmp_path / "h.onnx"
    export_run(config("export", f"run={exported}", "precision=float16", f"output={file}"))
    weights = {onnx.TensorProto.DataType.Name(one.data_type) for one in onnx.load(file).graph.initializer}  # fmt: skip
    assert "FLOAT16" in weights
    run = ensemble.load_members(str(exported))
    image = np.random.default_rng(0).integers(0, 256, (1, 1, 60, 60)).astype(np.float32)
    plain = Predictor(run, 0.5).probabilities(image[0].transpose(1, 2, 0))
    np.testing.assert_allclose(open_onnxruntime(file)(image)[0], plain, atol=0.01)


def test_a_file_that_loses_too_much_is_not_written(exported, tmp_path, monkeypatch):
    """Calibrated on black images, all brighter values are cut off."""
    black = [np.zeros((1, 64, 64), np.float32)]
    monkeypatch.setattr(commands_export, "calibration_images", lambda *_: black)
    words = [f"run={exported}", "precision=int8", f"output={tmp_path}/new/q.onnx"]
    with pytest.raises(UserError, match=r"loses 0\.\d+ of .* more than max_loss=0\.005; nothing is written"):  # fmt: skip
        export_run(config("export", *words))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("value", "refused"), [(0.79, False), (0.74, True), (float("nan"), True)])
def test_each_score_counts_towards_the_largest_loss(value, refused):
    scores = {"torch": {"dice": 0.9, "dice/a": 0.8, "v_rand": float("nan")}, "onnx": {"dice": 0.95, "dice/a": value, "v_rand": float("nan")}}  # fmt: skip
    cfg = config("export", "precision=int8", "max_loss=0.05")
    if refused:
        with pytest.raises(UserError, match="of dice/a in ONNX Runtime"):
            check_losses(scores, cfg, "net", False)
    else:
        check_losses(scores, cfg, "net", False)


@pytest.mark.parametrize(("more", "remedy"), [(True, "Give more calibration.images or a larger"), (False, "Give a larger")])  # fmt: skip
def test_more_images_are_recommended_where_there_are_more(more, remedy):
    cfg = config("export", "precision=int8")
    with pytest.raises(UserError, match=f"nothing is written. {remedy} max_loss"):
        check_losses({"torch": {"dice": 0.9}, "onnx": {"dice": 0.8}}, cfg, "net", more)


def test_images_that_calibrated_and_are_scored_are_counted(exported, caplog):
    caplog.set_level(logging.INFO, "seg")
    run = ensemble.load_members(str(exported))
    for words, told in {
        "data.split=val": "calibrated on 3 images of train\n",
        "data.split=all": r"calibrated on 3 images of train; 3 of the \d+ scored images are among them",
    }.items():
        cfg = config("export", f"run={exported}", "precision=int8", "calibration.images=3", words)
        caplog.clear()
        log_calibration(open_reduction(cfg, run), cfg)
        assert re.search(told, caplog.text)


def test_the_fastest_engine_is_told(caplog):
    caplog.set_level(logging.INFO, "seg")
    log_fastest({"torch": 0.2, "onnx": 0.4, "openvino": 0.1})
    log_fastest({"torch": 0.2, "onnx": 0.4})
    first, second = (record.message for record in caplog.records)
    assert "engine=openvino precision=int8" in first and "2.00 times" in first
    assert "engine=torch precision=float32: int8 is no faster" in second


def test_calibration_reads_values_as_stored_from_the_training_split(exported):
    cfg = config("export", f"run={exported}", "precision=int8", "calibration.images=3")
    reduction = open_reduction(cfg, ensemble.load_members(str(exported)))
    assert reduction.calibration is not None and reduction.split == "val"
    source = reduction.calibration.source
    assert list(reduction.calibration.names) == list(source.splits["train"])
    found = list(calibration_images(reduction.calibration, 3))
    names = [source.splits["train"][i] for i in (0, 2, 5)]  # 0, 2.5 and 5 of 0 to 5, rounded
    for image, name in zip(found, names, strict=True):
        np.testing.assert_array_equal(image[0], source.read(name)[0][..., 0])


WRONG = {
    "engine=onnx precision=bfloat16": "engine=onnx computes in float32 or int8; take engine=torch or openvino",
    "precision=int8": "engine=torch computes in float32 or bfloat16; take engine=onnx or openvino",
    "engine=openvino accelerator=gpu": "runs on the CPU only",
    "engine=onnx exported=none.onnx": "exported=none.onnx: there is no such file",
    "engine=onnx exported={run}": "exported=.*: is a folder",
    "precision=float16": "files in float16 are for other programs",
    "exported=a.onnx": "engine=torch runs the run's own network",
    "engine=onnx exported={run}/export/model-int8.onnx": "holds a network in int8, and float32 was asked for",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_can_not_be_is_told(words, exported, tmp_path):
    given = words.format(run=exported).split()
    Image.new("L", (32, 32)).save(tmp_path / "a.png")
    common = [f"run={exported}", f"input={tmp_path / 'a.png'}", f"output={tmp_path / 'out'}"]
    with pytest.raises((UserError, RunError), match=WRONG[words]):
        predict_files(config("predict", *common, *given))
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_file_names_the_command(exported, tmp_path):
    bare = shutil.copytree(exported, tmp_path / "bare", ignore=shutil.ignore_patterns("export"))
    with pytest.raises(UserError, match=r"model-int8\.onnx: no such file; python -m seg.export run=\S+ precision=int8 writes it"):  # fmt: skip
        seg.load(bare, engine="onnx", precision="int8")
    for given, word in (([str(bare), str(bare)], r"'run=\[\S+,\S+\]'"), ("pretrained:membranes", "run=pretrained:membranes")):  # fmt: skip
        with pytest.raises(UserError, match=rf"exported is not set: python -m seg.export {word} output=FILE"):  # fmt: skip
            seg.load(given, engine="onnx")


def test_a_member_counted_twice_is_another_ensemble(exported, tmp_path):
    """The mean of A, B and A is not that of A and B."""
    other = tiny(tmp_path, "trainer.max_epochs=1", "seed=5")[1]
    a, b, file = str(exported), str(other), tmp_path / "m.onnx"
    export_run(config("export", f"run=[{a},{b}]", f"output={file}"))
    assert seg.load([b, a], engine="onnx", exported=file)
    with pytest.raises(UserError, match="exported from another network"):
        seg.load([a, b, a], engine="onnx", exported=file)


@pytest.mark.parametrize("engine", slow_but(ENGINES, "openvino"))
def test_an_ensemble_in_int8(exported, tmp_path, engine):
    other = tiny(tmp_path, "data.train=6", "trainer.max_epochs=3", "seed=5")[1]
    both, file = [str(exported), str(other)], tmp_path / "m.onnx"
    words = [f"run=[{','.join(both)}]", f"output={file}", "precision=int8", "max_loss=0.1"]
    export_run(config("export", *words, "data=membranes", "data.size=64", "data.split=val"))
    image = Membranes(size=100, train=1, val=1, test=0).read("train-000")[0][..., 0]
    plain = seg.load(both).predict(image).probabilities
    found = seg.load(both, engine=engine, precision="int8", exported=file).predict(image)
    assert 0 < np.abs(found.probabilities - plain).mean() < 0.02


def test_probabilities_in_int8_have_no_steps(exported):
    """The heads compute in float32: eight bits would give at most 256 values."""
    image = np.random.default_rng(0).integers(0, 256, (100, 100), dtype=np.uint8)
    for engine in ENGINES:
        found = seg.load(exported, engine=engine, precision="int8").predict(image).probabilities
        assert len(np.unique(found[0])) > 3000
    model = onnx.load(exported / "export/model-int8.onnx")
    head = [node for node in model.graph.node if node.op_type == "Conv"][-1]
    assert "DequantizeLinear" not in {n.op_type for n in model.graph.node if set(n.input) & set(head.output)}  # fmt: skip


def test_metrics_json_names_the_engine(exported):
    for words, wanted in (([], ("torch", None)), (["engine=onnx", "precision=int8"], ("onnx", "int8"))):  # fmt: skip
        evaluate(config("evaluate", f"run={exported}", "panels=0", *words))
        facts = json.loads((exported / "evaluate-val/metrics.json").read_text())
        assert (facts["engine"], facts["precision"]) == wanted


def test_float32_is_float32_for_a_run_of_mixed_precision(tmp_path):
    """Exported in float32 it has the scores of float32, not those of training's bfloat16."""
    run = tiny(tmp_path, "trainer.precision=bf16-mixed", "trainer.max_epochs=1")[1]
    export_run(config("export", f"run={run}"))
    loss = {}
    for name, words in {"trained": [], "float32": ["precision=float32"], "file": ["engine=onnx"]}.items():  # fmt: skip
        loss[name] = evaluate(config("evaluate", f"run={run}", "panels=0", *words))["val/loss"]
    assert loss["file"] == pytest.approx(loss["float32"], abs=1e-6)
    assert loss["trained"] != pytest.approx(loss["float32"], abs=1e-6)


def test_data_are_for_lower_precisions(exported, tmp_path):
    with pytest.raises(UserError, match=r"data\.split: only precision=int8 and float16 are scored"):  # fmt: skip
        export_run(
            config("export", f"run={exported}", "data.split=val", f"output={tmp_path}/m.onnx")
        )


def test_a_depth_needs_a_file_of_its_own(exported):
    run = ensemble.load_members(str(exported))
    with pytest.raises(UserError, match="an exported file has one head"):
        with_engine(run, str(exported), "onnx", "float32", depth=1)


def test_a_file_of_another_network_is_refused(exported, tmp_path):
    other = tiny(tmp_path, "trainer.max_epochs=1", "seed=5")[1]
    with pytest.raises(UserError, match=r"exported from another network .*; give a file of this run$"):  # fmt: skip
        seg.load(other, engine="onnx", exported=exported / "export/model.onnx")


@pytest.mark.parametrize("content", [b"", b"abc", b"\x08\x08"])
def test_a_file_that_is_none_is_told(content, exported, tmp_path):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(
        RunError,
        match=r"m\.onnx: damaged, or not an ONNX file that this version of seg.export wrote",
    ):
        seg.load(exported, engine="openvino", exported=tmp_path / "m.onnx")


@pytest.mark.parametrize("name", ["model.onnx", "model-int8.onnx"])
def test_a_file_of_which_a_byte_changed_is_damaged(name, exported, tmp_path):
    content = bytearray((exported / "export" / name).read_bytes())
    weights = max(onnx.load(exported / "export" / name).graph.initializer, key=lambda one: len(one.raw_data))  # fmt: skip
    content[content.index(weights.raw_data) + len(weights.raw_data) // 2] ^= 4
    (tmp_path / "m.onnx").write_bytes(content)
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"), full_check=True)  # nobody else sees it
    with pytest.raises(RunError, match="damaged, or changed since"):
        precision = "int8" if "int8" in name else "float32"
        seg.load(exported, engine="onnx", precision=precision, exported=tmp_path / "m.onnx")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_reads_no_other_file(exported, tmp_path, engine):
    """Weights that an ONNX file seeks in another file are not read."""
    model = onnx.load(exported / "export/model.onnx")
    weight = next(one for one in model.graph.initializer if one.raw_data and len(one.dims) == 4)
    (tmp_path / "secret").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "secret"), ("length", "288")):
        weight.external_data.add(key=key, value=value)
    model.metadata_props.add(key=DIGEST_KEY, value=model_digest(model))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(RunError, match="can't run it"):
        seg.load(exported, engine=engine, exported=tmp_path / "m.onnx")


@pytest.mark.parametrize(("engine", "extra"), [("onnx", "export"), ("openvino", "openvino")])
def test_a_missing_extra_is_named(engine, extra, exported, monkeypatch):
    real = errors.find_spec
    lacking = {"onnx": "onnxruntime"}.get(engine, engine)
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == lacking else real(name))
    run = ensemble.load_members(str(exported))
    with pytest.raises(UserError, match=f"needs the extra {extra}"):
        with_engine(run, str(exported), engine, "float32")


def test_only_onnx_is_written_in_int8(exported, tmp_path):
    words = [f"run={exported}", "format=torch", "precision=int8", f"output={tmp_path}/m.pt2"]
    with pytest.raises(UserError, match="format=torch is written in float32; take format=onnx"):
        export_run(config("export", *words))


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "Exception from src/a/core.cpp:105:\nCheck 'false' failed at src/b.cpp:151:\nAPI failed:\nNot converted.\nLog",
            "API failed: Not converted.",
        ),
        ("Exception from src/a/core.cpp:105:", "Exception from src/a/core.cpp:105:"),
        ("size mismatch:\n\tcopying a", "size mismatch: copying a"),
        ("one\ntwo", "one"),
        ("", "ValueError"),
    ],
)
def test_an_error_of_a_runtime_is_told_in_one_line(message, line):
    assert errors.first_line(ValueError(message)) == line
