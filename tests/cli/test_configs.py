"""Whatever is typed: a command line trains, or is refused in one line that names the option, and leaves nothing."""

import itertools
import json
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from forked import Outcome, seg
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from seg.cli.compose import check_command_line, compose_checked
from seg.cli.conf_files import CONF, HYDRA_KEYS, format_option_value, group_names
from seg.cli.validation import COMMAND_RANGES, FURTHER_TYPES, OPTION_RANGES, range_violation
from seg.errors import UserError
from seg.runs.run_info import RunInfo
from seg.training.run import train

GROUPS = ("data", "model", "loss", "metrics", "augment", "optim", "schedule", "trainer", "logger")  # fmt: skip
LACKING = {
    file
    for file, package in (("smp", "segmentation_models_pytorch"), ("mlflow", "mlflow"))
    if not find_spec(package)
}
TINY = {
    "data.size": 32, "data.train": 2, "data.val": 1, "data.test": 0, "model.width": 2, "model.depth": 1,
    "loader.crop": 32, "loader.repeats": 1, "loader.batch_size": 2, "augment": "none", "logger": "none",
    "trainer": "smoke", "trainer.accelerator": "cpu", "trainer.max_epochs": 1, "trainer.max_steps": 2,
    "panels": 1, "save_predictions": 1, "name": "fuzz",
}  # fmt: skip
ELSEWHERE = {  # what a fork can't do: other processes and machines, a compiler, the network, the user's own files
    "trainer.devices": ("3", "[1,2]"),
    "trainer.num_nodes": ("3", "1000000"),
    "trainer.compile": ("true",),
    "trainer.strategy": (),
    "init": (),
    "data": ("isbi2012",),
}
ODD = (
    "0", "-1", "1", "3", "7", "1000000", "1000000000", "99999999999999999999999", "0.5", "-0.5", "1e-3", "1.5", "1e30",
    "1e400", "nan", "inf", "-inf", "null", "true", "false", "''", "' '", "auto", "none", "abc", "'1'", "[]", "[1]",
    "[1,2]", "[0.5,0.9]", "[a,b]", "[nan]", "[[1],[2]]", "{}", "{a:1}", "{_target_:seg.losses.Dice}",
    "{_target_:nowhere.At}", "ü", "日本語", "'a b'", "'a=b'", "a/b", "../up", "x" * 300, "${seed}", "${nothing}",
    "${now:%Y}", "${odd:1}", "${oc.env:NOTHING}", "???", "'${'", "$", "1:30", "on", "0x10", "1_000", "-", "'#'",
)  # fmt: skip
BOUNDED = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@cache
def files() -> dict[str, dict[str, Any]]:
    """``model=unet`` -> its options by path with the file's values; the command's own stand under ``""``."""
    own = {k: v for k, v in read("train").items() if k != "hydra"}
    found = {"": dict(leaves(own))}
    for group in GROUPS:
        for name in group_names()[group]:
            if name not in LACKING:
                found[f"{group}={name}"] = dict(leaves(read(f"{group}/{name}"), f"{group}."))
    return found


def read(name: str) -> dict[str, Any]:
    """A file of conf/ with those of its own group that it builds on."""
    content = yaml.safe_load((CONF / f"{name}.yaml").read_text()) or {}
    group = name.rpartition("/")[0]
    for base in content.pop("defaults", []):
        if group and isinstance(base, str) and (CONF / group / f"{base}.yaml").is_file():
            content = read(f"{group}/{base}") | content
    return content


@cache
def said() -> dict[str, list[str]]:
    """Name of an option -> the words that a comment beside it lists, ``max | average | strided``."""
    found: dict[str, list[str]] = {}
    for file in (CONF / "train.yaml", *CONF.glob("*/*.yaml")):
        for name, comment in re.findall(r"^ *(\w+):[^#\n]*# (.*)$", file.read_text(), re.M):
            found.setdefault(name, []).extend(
                re.findall(r"[\w.-]+(?= \| )|(?<= \| )[\w.-]+", comment)
            )
    return found


def leaves(node: Any, path: str = "") -> list[tuple[str, Any]]:
    """Paths and values of all that is no group."""
    if not isinstance(node, dict) or (path and not node):
        return [(path[:-1], node)] if path else []
    below = [
        leaves(value, f"{path}{name}.") for name, value in node.items() if name not in HYDRA_KEYS
    ]
    return list(itertools.chain(*below))


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """One to three words, each wrong or right in its own way, with the choices of files that they are about."""
    words: list[str] = []
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        file = draw(st.sampled_from(sorted(files())))
        path, value = draw(st.sampled_from(sorted(files()[file].items(), key=str) or [("seed", 0)]))
        group = draw(st.sampled_from(GROUPS))
        given_ = draw(
            st.sampled_from(ODD)
            | st.text(st.characters(exclude_characters="/"), max_size=8)
            | st.just(written(value))
            | st.sampled_from(said().get(path.rpartition(".")[2]) or ["1"])
        )
        odd = [f"~{path}", f"+{path}={given_}", f"++{path}={given_}", f"{path}x={given_}", path]
        odd += [f"{path}.below={given_}", f"{group}={given_}", f"~{group}", f"+x={given_}"]
        odd += [f"{group}={draw(st.sampled_from(group_names()[group]))}"]
        typed = draw(st.sampled_from([f"{path}={given_}"] * 15 + odd))
        words += [file, typed] if file and draw(st.integers(0, 4)) else [typed]
    return words


def written(value: Any) -> str:
    """A file's value as it is typed."""
    return (
        re.sub(r"['\" ]", "", format_option_value(value))
        if isinstance(value, list | dict)
        else format_option_value(value)
    )


def elsewhere(words: list[str]) -> bool:
    """Whether a line asks for what a fork can't do."""
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        if key in ELSEWHERE and (not ELSEWHERE[key] or value in ELSEWHERE[key]):
            return True
    return False


def small(words: list[str]) -> list[str]:
    """What keeps a line's run small, of options that it doesn't set and its files have."""
    keys = {word.lstrip("+~").partition("=")[0] for word in words}
    chosen = {word.partition("=")[0]: word for word in words if word in files()}
    base = {"data": "data=membranes", "model": "model=unet"} | chosen
    kept = []
    for option, value in TINY.items():
        group = option.partition(".")[0]
        there = group not in base or option in files().get(base[group], {})
        if option not in keys and there:
            kept.append(f"{option}={value}")
    return kept


def fault_of(words: list[str], done: Outcome) -> str | None:
    """What is wrong with how a line ended; None: nothing."""
    if done.code == 0:
        return "half-made" if done.err or done.status not in (None, "finished") else None
    if done.code == 1 and done.err.startswith(("fault: NonFiniteError", "fault: OutOfMemory")):
        return None if done.status == "failed" and done.err.count("\n") == 1 else "half-made"
    if done.code != 2:
        return f"exit code {done.code}"
    if done.left:
        return "something was left"
    if not done.err.startswith("error: ") or done.err.count("\n") != 1:
        return "not one line"
    parts = {p for word in words for p in word.lstrip("+~").partition("=")[0].split(".") if p}
    named = any(p in done.err for p in parts) or any(word in done.err for word in words)
    return None if named else "the option isn't named"


NONSENSE = {
    "seed": ("-1", str(2**32), str(2**70)), "name": ("''", "[1]"), "outputs": ("''",), "patience": ("0", "1.5", "x"),
    "ema": ("0", "1", "x"), "two_class_logits": ("0", "3"), "on_nonfinite": ("maybe",), "panels": ("-1", "1.5"),
    "save_predictions": ("-1",), "head_weights": ("[nan,1]",), "optim.lr": ("-1", "nan", "inf"), "optim.weight_decay": ("-1",),
    "optim.betas": ("[0.9]", "[]", "[2,0.9]"), "model.depth": ("0", "30"), "model.width": ("0", "-3", "100000"),
    "loader.batch_size": ("0", "-1", str(10**30)), "loader.crop": ("0", "1000000"), "loader.repeats": ("0", "1000000000"),
    "loader.workers": ("-1", "100000"), "loader.memory": ("-1", "inf", "1e300"), "loader.percentiles": ("[nan,1]", "5"),
    "trainer.max_epochs": ("-5",), "trainer.max_steps": ("-5",), "trainer.max_time": ("abc", "''"),
    "trainer.check_val_every_n_epoch": ("0", "-1"), "trainer.accumulate_grad_batches": ("0",),
    "trainer.gradient_clip_val": ("-1", "nan"), "trainer.limit_train_batches": ("0", "-1", "1.5", "0.01"),
    "trainer.limit_val_batches": ("0", "0.01"), "trainer.log_every_n_steps": ("0",), "trainer.num_nodes": ("0",),
    "trainer.devices": ("0", "-1", "abc", "[]", "100000"), "trainer.strategy": ("abc",),
    "trainer.precision": ("64-true",), "trainer.accelerator": ("tpu",), "metrics.tolerance": ("-1", "inf"),
    "schedule.warmup": ("1", "nan"), "loss.terms.bce.weight": ("-1", "inf"), "data.data_seed": ("-1",),
    "optim.nesterov": ("true optim=sgd optim.momentum=0",), "loss.iterations": ("100000 loss=cldice",),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "option", [o for o in NONSENSE if o not in OPTION_RANGES or "0.01" in NONSENSE[o]] + ["seed"]
)
def test_a_number_that_makes_no_sense_is_refused_before_there_is_a_folder(tmp_path, option):
    for i, value in enumerate(NONSENSE[option]):
        words = f"{option}={value}".split(" ")
        place = tmp_path / str(i)
        place.mkdir()
        done = seg("train", *small(words), *words, cwd=place)
        assert done.code == 2 and not done.left, (value, done)
        assert re.fullmatch(r"error: [^\n]+\n", done.err)
        group, _, name = option.partition(".")
        assert group in done.err and (name in done.err or done.err.startswith(f"error: {group}: "))


@pytest.mark.parametrize("option", [option for option in NONSENSE if option in OPTION_RANGES])
def test_limits_refuse_nonsense_and_take_what_the_file_says(option):
    for typed in NONSENSE[option]:
        value = yaml.safe_load(typed.replace("nan", ".nan").replace("inf", ".inf"))
        shares = (option, typed) in {
            (f"trainer.limit_{s}_batches", "0.01") for s in ("train", "val")
        }
        assert bool(range_violation(option, value)) != shares, (
            typed
        )  # of how many batches shows later


def test_limits_are_of_options_that_there_are_and_their_files_keep_to_them():
    commands = [(f.stem, read(f.stem)) for f in CONF.glob("*.yaml")]
    groups = [
        ("", {group: read(f"{group}/{name}")})
        for group, names in group_names().items()
        for name in names
        if group != "experiment"
    ]
    there = [(command, dict(leaves({k: v for k, v in tree.items() if k != "hydra"}))) for command, tree in commands + groups]  # fmt: skip
    for command, options in there:
        for path, value in options.items():
            resolved = None if "${" in str(value) else range_violation(path, value, command)
            assert resolved is None, (path, value)
            if command and "." not in path and value is not None and path not in FURTHER_TYPES:
                assert range_violation(path, None, command) or path not in OPTION_RANGES, path
    named = {path for _, options in there for path in options}
    assert set(COMMAND_RANGES) <= {(command, path) for command, tree in there for path in tree}
    of_pytorch = {"optim.eps", "optim.dampening"}  # arguments that no file names
    assert set(OPTION_RANGES) - of_pytorch <= named


@given(lines())
@settings(max_examples=6, derandomize=True, **BOUNDED)
def test_any_line_composes_or_is_refused_in_one_line(words):
    try:
        check_command_line("train", words, multirun=False)
    except UserError as error:
        assert str(error) and "\n" not in str(error)


@pytest.mark.slow
def test_any_line_trains_or_is_refused_by_name_and_leaves_nothing(tmp_path_factory):
    tries(40, True, tmp_path_factory)


def tries(count: int, fixed: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    @given(lines().filter(lambda words: not elsewhere(words)))
    @settings(max_examples=count, derandomize=fixed, **BOUNDED)
    def one(words):
        done = seg("train", *small(words), *words, cwd=tmp_path_factory.mktemp("fuzz"))
        event(f"exit code {done.code}")
        assert (wrong := fault_of(words, done)) is None, f"{words}: {wrong}\n{done.err}"

    one()


BASES = {
    "evaluate": ["run=RUN", "output=o"], "predict": ["run=RUN", "input=image.png", "output=o"],
    "compare": ["runs=[RUN]", "output=o"], "prune": ["run=RUN", "output=o"],
    "models": ["model.width=2", "data.size=64"],
    "check": ["data.size=32", "output=o"], "show": ["data.size=32", "output=o.png", "loader.crop=32"],
    "sync": ["outputs=RUN"], "list": ["runs=[RUN]"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", BASES)
def test_any_option_of_any_other_command_does_or_is_refused(tmp_path_factory, trained, command):
    options = sorted({k: v for k, v in leaves(read(command)) if not k.startswith("hydra.")})

    @given(st.sampled_from(options), st.sampled_from(ODD))
    @settings(max_examples=4, derandomize=True, **BOUNDED)
    def one(option, value):
        place = tmp_path_factory.mktemp(command)
        picture = trained.parent / "image.png"
        base = [
            w.replace("RUN", str(trained)).replace("image.png", str(picture))
            for w in BASES[command]
        ]
        base = [word for word in base if word.partition("=")[0] != option]
        words = [f"{option}={value}"]
        done = seg(command, *base, *words, cwd=place)
        assert (wrong := fault_of([*base, *words], done)) is None, f"{words}: {wrong}\n{done.err}"

    one()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["tune", "crossval", "rerun", "export"])  # these take long
def test_any_option_of_a_long_command_composes_or_is_refused(command):
    @given(st.sampled_from(sorted(dict(leaves(read(command))))), st.sampled_from(ODD))
    @settings(max_examples=6, derandomize=True, **BOUNDED)
    def one(option, value):
        try:
            check_command_line(command, [f"{option}={value}"], multirun=False)
        except UserError as error:
            assert str(error) and "\n" not in str(error)

    one()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run folder of UNet++ with heads, and an image beside it."""
    place = tmp_path_factory.mktemp("trained")
    words = ["model=unetpp", "model.depth=2"]
    assert seg("train", *small(words), *words, cwd=place).code == 0
    pixels = np.random.default_rng(3).integers(0, 255, (48, 48), np.uint8)
    Image.fromarray(pixels).save(place / "image.png")
    folder = (place / "outputs/latest").resolve()
    return folder.rename(place / "run")


# All pairs: each value of a factor meets each value of every other, in a run that trains or one that is refused.

DEEP = ("unetpp", "unet_plus", "unet_e")
FACTORS = {
    "model": {
        "fcn": ["model=fcn"], "segnet": ["model=segnet"], "unet": ["model=unet", "model.depth=2"],
        "unet_paper": ["model=unet_paper", "model.depth=1"], "unet_wide": ["model=unet_wide", "model.depth=1"],
        **{name: [f"model={name}", "model.depth=2"] for name in DEEP},
    },
    "loss": {
        name: [f"loss={name}"] + ["loss.terms.lovasz.weight=1", "loss.terms.iou.weight=1"] * (name == "sum")
        for name in group_names()["loss"]
    },
    "augment": {name: [f"augment={name}"] for name in group_names()["augment"]},
    "data": {
        "membranes": ["data=membranes", "data.size=32", "data.train=2", "data.val=1", "data.test=0"],
        "instances": ["data=membranes", "data.size=32", "data.train=2", "data.val=1", "data.test=0", "data.task=instances"],
        "isbi2012": ["data=isbi2012", "data.root=stack"],
        "folder": ["data=folder", "data.root=folder", "data.classes=[a,b,c]"],
        "voc": ["data=voc", "data.root=voc", "data.classes=[a,b,c]", "data.colors=null"],
        "coco": ["data=coco", "data.root=coco", "data.annotations=coco.json"],
        "overlapping": ["data=folder", "data.root=planes", "data.classes=[a,b]", "data.task=overlapping", "data.ignore=[7]"],
    },
    "head": {
        "one logit": ["two_class_logits=1"],
        "two logits": ["two_class_logits=2"],
        "weighed heads": ["head_weights=[1,2]"],
        "average": ["model.output=average"],
        "alone": ["model.deep_supervision=false", "model.output=deepest"],
    },
}  # fmt: skip
REFUSED = {  # docs/losses.md, docs/models.md: pair -> what is said; no other may be refused
    **{frozenset({("loss", "weighted_bce"), ("data", many)}): "loss: pos_weight is for two classes" for many in ("folder", "voc", "coco")},
    **{frozenset({("data", "overlapping"), other}): "model.output=average: heads are averaged as a softmax"
       for other in (("head", "average"), ("model", "unet_e"))},
    **{frozenset({("model", model), ("head", head)}): said
       for model in FACTORS["model"] if model not in DEEP
       for head, said in (("weighed heads", "head_weights=[1, 2]: this network trains 1 head"),
                          ("average", "model.output: no such option"),
                          ("alone", "model.deep_supervision: no such option"))},
}  # fmt: skip
Row = dict[str, str]


def pairs(row: Row) -> set[frozenset[tuple[str, str]]]:
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}


def covering(rows_begun_with: set[frozenset[tuple[str, str]]]) -> list[Row]:
    """Rows without a refused pair that hold all of these pairs: greedily, each row as many new ones as it can."""
    left, rows = set(rows_begun_with), []
    while left:
        row = dict(sorted(min(left, key=sorted)))
        for factor in FACTORS:
            if factor in row:
                continue
            fitting = [{**row, factor: v} for v in FACTORS[factor]]
            fitting = [r for r in fitting if not pairs(r) & set(REFUSED)]
            row = max(fitting, key=lambda r: len(pairs(r) & left))
        left -= pairs(row)
        rows.append(row)
    return rows


def every_pair() -> set[frozenset[tuple[str, str]]]:
    values = [[(factor, value) for value in values] for factor, values in FACTORS.items()]
    return {
        frozenset(p) for a, b in itertools.combinations(values, 2) for p in itertools.product(a, b)
    }


def words_of(row: Row) -> list[str]:
    chosen = [word for factor in FACTORS for word in FACTORS[factor][row[factor]]]
    width = 3 if row["model"] == "unet_wide" else 2
    return [*chosen, f"model.width={width}", "trainer=smoke", "trainer.accelerator=cpu", "trainer.max_steps=1",
            "loader.crop=32", "loader.repeats=1", "loader.batch_size=2", "logger=none", "panels=0", "save_predictions=0", "name=pair"]  # fmt: skip


@pytest.fixture
def data_sets(tmp_path, stack_root, folder_root, planes_root) -> Path:
    """A folder with the data that FACTORS names."""
    stack_root.rename(tmp_path / "stack")
    rng = np.random.default_rng(2)
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / "voc" / part).mkdir(parents=True)
    (tmp_path / "coco").mkdir()
    images, annotations = [], []
    for i in range(5):  # four to train on: two whole batches
        mask = np.kron(rng.integers(0, 3, (5, 5)), np.ones((8, 8))).astype(np.uint8)
        mask[0] = 255
        image = (mask[..., None] // 3 * 200 + rng.integers(0, 50, (40, 40, 3))).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"voc/JPEGImages/{i}.jpg")
        Image.fromarray(mask).save(tmp_path / f"voc/SegmentationClass/{i}.png")
        Image.fromarray(image[::-1]).save(tmp_path / f"coco/{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 40, "height": 40})
        for j, (x, y) in enumerate(((4 + i, 6), (20, 18 + i))):
            outline = [[x, y, x + 14, y, x + 14, y + 14, x, y + 14]]
            annotations.append({"id": 2 * i + j, "image_id": i, "category_id": j + 1, "segmentation": outline,
                                "area": 196, "bbox": [x, y, 14, 14], "iscrowd": 0})  # fmt: skip
    for split, names in (("train", "0\n1\n2\n3\n"), ("val", "4\n")):
        (tmp_path / f"voc/ImageSets/Segmentation/{split}.txt").write_text(names)
    categories = [{"id": 1, "name": "square"}, {"id": 2, "name": "other"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.slow
def test_each_pair_of_choices_trains_but_for_those_that_the_guide_excludes(data_sets, monkeypatch):
    monkeypatch.chdir(data_sets)
    wrong = {}
    for row in covering(every_pair() - set(REFUSED)):
        try:
            scores = train(compose_checked("train", words_of(row)), asked=RunInfo("pair"))
            assert np.isfinite(scores["best/val/loss"])
        except Exception as error:
            wrong[tuple(row.values())] = f"{type(error).__name__}: {error}"
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("pair", REFUSED, ids=lambda pair: "-".join(v for _, v in sorted(pair)))
def test_a_pair_that_the_guide_excludes_is_refused_with_the_reason(data_sets, pair):
    plain = {
        "model": "unetpp",
        "loss": "dice",
        "augment": "none",
        "data": "membranes",
        "head": "one logit",
    }
    place = data_sets / "here"
    place.mkdir()
    for name in ("stack", "folder", "planes", "voc", "coco", "coco.json"):
        (data_sets / name).rename(place / name)
    before = {str(path) for path in place.rglob("*")}
    done = seg("train", *words_of(plain | dict(pair)), cwd=place)
    assert done.code == 2 and REFUSED[pair] in done.err and done.err.count("\n") == 1
    assert set(done.left) == before


def test_the_rows_cover_every_pair_and_are_few():
    wanted = every_pair() - set(REFUSED)
    rows = covering(wanted)
    assert set().union(*map(pairs, rows)) >= wanted
    assert not any(pairs(row) & set(REFUSED) for row in rows)
    assert len(rows) < 1.5 * len(FACTORS["loss"]) * len(
        FACTORS["augment"]
    )  # the two with the most values
