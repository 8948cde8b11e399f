"""Every option of every file of conf/, tried with values of each kind: what is right is taken, the rest refused."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from test_configs import files, leaves, read

from seg.cli.compose import check_command_line
from seg.cli.conf_files import CONF
from seg.cli.validation import OptionChecker
from seg.errors import UserError

VALUES = {
    "-1": -1, "0": 0, "nan": math.nan, "inf": math.inf, "1.5": 1.5, "1e9": 10**9, "1e30": 1e30, "true": True, "''": "",
    "' '": " ", "abc": "abc", "[]": [], "[1]": [1], "[nan]": [math.nan], "{}": {}, "null": None, "-0.5": -0.5, "1.0": 1.0,
}  # fmt: skip
COMMANDS = ("train", "evaluate", "predict", "compare", "prune", "export", "check", "show", "sync", "crossval", "tune",
            "rerun", "models", "list", "doubt", "enough", "next", "plan")  # fmt: skip
PRESETS = ("data=dsb2018", "data=nnunet")  # of data=folder, whose options they have
TAKEN = {  # those of VALUES that an option takes -> file or command -> such options
    '': {
        'data=annotations': 'unannotated task',
        'data=coco': 'boxes crowd task',
        'data=folder': 'task',
        'data=isbi2012': 'task',
        'data=membranes': 'size task',
        'loss=cldice': 'iterations',
        'model=fcn': 'encoder stride norm fixed_upsampling',
        'model=segnet': 'norm',
        'model=unet': 'depth padding norm down up fuse block',
        'model=unet_e': 'depth links norm down up fuse block',
        'optim=adam': 'betas',
        'optim=adamw': 'betas',
        'trainer=auto': 'accelerator precision',
        'train': 'two_class_logits on_nonfinite save_checkpoints loader.repeats',
        'evaluate': 'tta accelerator engine',
        'predict': 'probabilities tta accelerator engine precision',
        'compare': 'level',
        'prune': 'data.split accelerator',
        'export': 'format opset precision calibration.split',
        'doubt': 'false_alarm',
        'enough': 'seeds',
        'plan': 'budget',
        'next': 'order accelerator',
    },
    "'' ' ' abc": {  # a download, and Lightning's names, are looked at there
        'trainer=auto': 'strategy',
        'data=isbi2012': 'sha256.volume sha256.labels',
    },
    "'' ' ' abc {} null": {
        'data=annotations': 'lists',
        'data=coco': 'annotations lists',
        'data=folder': 'lists',
    },
    '-1 0 1.5 1e9 1e30 abc null -0.5 1.0': {
        'train': 'name',
        'tune': 'name',
    },
    "-1 0 1.5 1e9 1e30 true '' ' ' abc [] [1] {} null -0.5 1.0": {
        'train': 'head_weights',
        'rerun': 'data.annotations data.lists trainer.accelerator trainer.devices',
        'doubt': 'data.annotations data.lists',
    },
    '-1 0 1e9': {
        'trainer=auto': 'max_steps',
    },
    "-1 0 1e9 '' ' ' abc [] [1]": {
        'trainer=auto': 'devices',
    },
    '-1 0 1e9 null': {
        'trainer=auto': 'max_epochs',
    },
    '0': {
        'data=annotations': 'test',
        'data=coco': 'test',
        'data=folder': 'test neighbours',
        'data=isbi2012': 'neighbours',
        'model=fcn': 'dropout',
        'model=unet': 'dropout',
        'model=unet_e': 'dropout',
        'optim=sgd': 'momentum',
        'schedule=cosine': 'warmup',
        'train': 'loader.workers',
        'evaluate': 'confidence_level workers look',
        'predict': 'look',
        'prune': 'workers',
        'crossval': 'confidence_level',
        'enough': 'confidence_level',
    },
    '0 1.0': {
        'data=membranes': 'difficulty',
        'loss=cldice': 'alpha',
        'train': 'loader.rare_class_crops',
    },
    '0 1.5 1.0': {
        'train': 'loader.memory',
    },
    '0 1.5 1e9 1e30 1.0': {
        'loss=focal': 'gamma',
        'loss=bce_dice': 'terms.bce.weight terms.dice.weight',
        'loss=dice_focal': 'terms.focal.weight',
        'loss=sum': 'terms.weighted_bce.weight terms.cross_entropy.weight terms.iou.weight'
            " terms.tversky.weight terms.lovasz.weight terms.cldice.weight"
            " terms.weight_map.weight",
        'loss=tversky': 'alpha beta',
        'loss=weight_map': 'w0',
        'optim=adam': 'lr weight_decay',
        'optim=adamw': 'lr weight_decay',
        'optim=sgd': 'lr weight_decay',
        'export': 'max_loss',
    },
    '0 1.5 1e9 1e30 [] [1] 1.0': {
        'loss=weighted_bce': 'pos_weight',
    },
    '0 1.5 1e9 1e30 null 1.0': {
        'data=folder': 'mask_threshold',
        'metrics=full': 'tolerance',
        'trainer=auto': 'gradient_clip_val',
        'evaluate': 'objects.split_neck_px',
        'predict': 'objects.split_neck_px',
        'crossval': 'objects.split_neck_px',
    },
    '0 1e9': {
        'data=annotations': 'split_seed',
        'data=coco': 'split_seed',
        'data=folder': 'split_seed',
        'data=isbi2012': 'fold',
        'data=membranes': 'test data_seed',
        'train': 'seed panels save_predictions',
        'evaluate': 'panels',
        'predict': 'overlap',
        'compare': 'num_examples max_picture_mb',
        'check': 'panels',
        'show': 'epoch',
        'crossval': 'overlap',
        'doubt': 'border panels',
        'next': 'seed overlap',
    },
    '0 1e9 null': {
        'data=annotations': 'fold',
        'data=coco': 'fold',
        'data=folder': 'fold',
    },
    '0 [] [1] null 1.0': {
        'loss=focal': 'alpha',
    },
    '0 null': {
        'data=annotations': 'border',
        'data=coco': 'border',
        'data=folder': 'border',
        'rerun': 'loader.workers',
    },
    '1.5 1e9 1e30 1.0': {
        'data=isbi2012': 'timeout',
        'logger=wandb': 'wandb.timeout wandb.finish_timeout',
        'loss=cldice': 'smooth',
        'loss=dice': 'smooth',
        'loss=iou': 'smooth',
        'loss=tversky': 'smooth',
        'loss=weight_map': 'sigma',
        'schedule=poly': 'power',
        'export': 'tolerance',
    },
    '1.5 1e9 1e30 null 1.0': {
        'tune': 'timeout',
    },
    '1e9': {
        'data=annotations': 'folds',
        'data=coco': 'folds',
        'data=folder': 'folds',
        'data=isbi2012': 'folds',
        'data=membranes': 'train val',
        'logger=tensorboard': 'tensorboard.seconds',
        'model=fcn': 'width',
        'model=segnet': 'width',
        'model=unet': 'width',
        'model=unet_e': 'width output',
        'trainer=auto': 'num_nodes check_val_every_n_epoch accumulate_grad_batches'
            " log_every_n_steps",
        'train': 'loader.batch_size loader.eval_batch_size',
        'evaluate': 'objects.min_size eval_batch_size',
        'predict': 'objects.min_size batch',
        'compare': 'resamples',
        'prune': 'rounds eval_batch_size',
        'show': 'n',
        'export': 'calibration.images',
        'crossval': 'objects.min_size',
        'tune': 'trials',
        'models': 'data.size data.channels logits',
        'doubt': 'min_size',
        'next': 'n batch',
    },
    '1e9 1.0': {
        'trainer=auto': 'limit_train_batches limit_val_batches',
    },
    '1e9 null': {
        'model=fcn': 'in_channels num_classes',
        'model=segnet': 'in_channels num_classes',
        'model=unet': 'in_channels num_classes',
        'model=unet_e': 'in_channels num_classes',
        'train': 'patience tile loader.subset',
        'evaluate': 'tile',
        'predict': 'tile',
        'prune': 'depth',
        'rerun': 'threads',
        'next': 'tile',
    },
    '[]': {
        'export': 'bioimageio.authors',
        'list': 'status clean',
        'augment=d4': 'transforms',
    },
    '[1] null': {
        'enough': 'sizes',
    },
    '[] [1]': {
        'evaluate': 'scales',
        'predict': 'save scales',
        'compare': 'runs where',
        'list': 'runs where',
        'crossval': 'save',
        'tune': 'search objectives',
    },
    '[] [1] null': {
        'data=folder': 'ignore',
        'data=isbi2012': 'val',
        'loss=bce': 'class_weights',
        'loss=cldice': 'classes',
        'loss=weight_map': 'class_weights cells',
    },
    '[] null': {
        'data=annotations': 'classes colors ignore',
        'data=coco': 'classes colors',
        'data=folder': 'classes colors',
        'logger=trackio': 'trackio.tags',
        'logger=wandb': 'wandb.tags',
        'train': 'loader.skip_checks',
        'compare': 'group_by',
    },
    'abc': {
        'list': 'score',
        'data=folder': 'images masks',
        'logger=trackio': 'trackio.project',
        'logger=wandb': 'wandb.project',
        'train': 'outputs',
        'check': 'output',
        'plan': 'output',
        'show': 'output',
        'sync': 'outputs',
        'crossval': 'output outputs',
        'tune': 'outputs',
        'rerun': 'outputs',
        'enough': 'output outputs',
    },
    'abc [] null': {
        'evaluate': 'run',
        'predict': 'run',
        'prune': 'run',
        'export': 'run',
        'rerun': 'run',
        'doubt': 'run',
        'next': 'run',
    },
    'abc null': {
        'data=annotations': 'root group_by',
        'data=coco': 'root group_by',
        'data=folder': 'root table pair_by group_by',
        'data=isbi2012': 'root url',
        'logger=trackio': 'trackio.group trackio.folder',
        'logger=wandb': 'wandb.entity wandb.group',
        'train': 'resume init loader.cache',
        'evaluate': 'output exported',
        'predict': 'input output exported',
        'compare': 'baseline score output',
        'prune': 'output',
        'export': 'output bioimageio.image bioimageio.license bioimageio.name bioimageio.description',
        'tune': 'storage',
        'rerun': 'init data.root data.table loader.cache',
        'doubt': 'reviewed output data.root data.table',
        'next': 'input output',
    },
    'null': {
        'data=annotations': 'tool spacing val',
        'data=coco': 'val spacing',
        'data=folder': 'pages mask_layers val spacing',
        'data=isbi2012': 'spacing',
        'trainer=auto': 'max_time',
        'train': 'ema extend threshold loader.crop loader.percentiles',
        'evaluate': 'data.split threshold model.depth precision',
        'predict': 'threshold model.depth spacing',
        'compare': 'split',
        'export': 'data.split',
        'enough': 'split',
        'list': 'older',
        'next': 'threshold',
    },
    'true': {
        'data=annotations': 'contiguous stratify border_class',
        'data=coco': 'contiguous stratify border_class',
        'data=folder': 'contiguous stratify only_listed similar_names channel_files border_class',
        'logger=wandb': 'wandb.offline',
        'loss=dice': 'squared per_image foreground_only',
        'loss=iou': 'per_image foreground_only',
        'loss=tversky': 'per_image foreground_only',
        'loss=lovasz': 'present_only',
        'metrics=full': 'hausdorff calibration',
        'model=unet_e': 'deep_supervision pruned',
        'optim=sgd': 'nesterov',
        'trainer=auto': 'channels_last compile checkpoint_activations sync_batchnorm deterministic',
        'train': 'restart dry loader.check weight_decay_of_all',
        'predict': 'check_seams pyramid',
        'compare': 'page',
        'list': 'apply',
        'sync': 'send running',
    },
    '-1 0 nan 1.5 1e9 1e30 null -0.5 1.0': {
        'data=annotations': 'nodata',
        'data=coco': 'nodata',
        'data=folder': 'nodata',
        'predict': 'nodata',
        'next': 'nodata',
    },
    '{}': {
        'logger=csv': 'logger',
    },
    '{} null': {
        'data=coco': 'folders',
        'data=folder': 'values palette',
    },
    "'' ' ' abc null": {
        'data=annotations': 'annotations',
    },
}  # fmt: skip


def trees() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """File or command, path of an option of it, and all its options."""
    seen = set()
    for file in sorted(files(), key=lambda file: (file in PRESETS, file)):
        group, _, name = file.partition("=")
        if not name:
            continue
        tree = {group: {k: v for k, v in read(f"{group}/{name}").items() if k != "_partial_"}}
        for term in tree[group].get("terms", {}).values():
            term["loss"] = {
                "_target_": "seg.losses.Lovasz"
            }  # another file's, see its options there
        for path, value in leaves(tree[group], f"{group}."):
            key = (path, tree[group].get("_target_"))
            if key not in seen and "${" not in str(value):
                seen.add(key)
                yield file, path, tree
    for name in COMMANDS:
        tree = yaml.safe_load((CONF / f"{name}.yaml").read_text())
        tree = {k: v for k, v in tree.items() if k not in ("defaults", "hydra")}
        for path, _ in leaves(tree):
            yield name, path, tree


def taken(command: str, tree: dict[str, Any], path: str) -> str:
    """The values that pass; a refusal is one line that names the option and what it needs."""
    found = []
    for word, value in VALUES.items():
        changed = copy.deepcopy(tree)
        node, parts = changed, path.split(".")
        for part in parts[:-1]:
            node = node[part]
        node[parts[-1]] = value
        try:
            OptionChecker(command).check(changed, tree)
        except UserError as error:
            assert str(error).startswith((path, "data.sha256=")) and "\n" not in str(error)
            assert " needed" in str(error) or ": one of " in str(error), error
        else:
            found.append(word)
    return " ".join(found)


def test_each_option_takes_what_is_right_and_refuses_the_rest():
    found: dict[str, dict[str, set[str]]] = {}
    for file, path, tree in trees():
        name = path.removeprefix(f"{file.partition('=')[0]}.") if "=" in file else path
        found.setdefault(taken("" if "=" in file else file, tree, path), {}).setdefault(
            file, set()
        ).add(name)
    wanted = {k: {f: set(names.split()) for f, names in v.items()} for k, v in TAKEN.items()}
    assert found == wanted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("optim=sgd optim.momentum=2", "optim.momentum=2: a number from 0 to below 1 is needed"),
        ("optim.betas=[0.9,1]", r"optim.betas=\[0.9, 1\]: a pair of numbers from 0 to below 1 is needed"),
        ("model.depth=13", "model.depth=13: a whole number from 1 to 12 is needed"),
        ("data.size=16", "data.size=16: a whole number from 32 to 2048 is needed"),
        ("data=folder data.val=0", "data.val=0: a number above 0 to below 1 is needed"),
        ("loss.terms.bce.weight=-1", "loss.terms.bce.weight=-1: a number of 0 or more is needed"),
        ("loss.terms.dice.loss.smooth=0", "loss.terms.dice.loss.smooth=0: a number above 0 is needed"),
        ("loss=bce loss.class_weights=[1,-2]", r"one of auto or a list, each a number of 0 or more is needed"),
        ("threshold=missed:1.5", r"threshold=missed:1.5: a number between 0 and 1, or best, or missed:0.1, false:0.05"),
        ("threshold=lost:0.1", "threshold=lost:0.1: a number between 0 and 1, or best, or missed:0.1"),
        ("augment=[flips,d4]", r"augment=\[flips,d4\]: augment takes one of d4, .*, and 2 are given"),
        ("model=[unet,fcn]", "model takes one of fcn, .*, and 2 are given"),
        ("trainer=[cpu,ddp]", "trainer takes one of .*, and 2 are given"),
        ("hydra.mode=MULTIRUN", "hydra.mode=MULTIRUN: leave it out; -m sweeps"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_range(words, message):
    with pytest.raises(UserError, match=message):
        check_command_line("train", words.split(), multirun=False)


@pytest.mark.parametrize(
    ("command", "precisions"),
    [
        ("predict", "float32, bfloat16, int8 is needed"),
        ("evaluate", "float32, bfloat16, int8, or null is needed"),
        ("export", "float32, int8, float16 is needed"),
    ],
)
def test_an_option_of_several_commands_has_a_range_in_each(command, precisions):
    with pytest.raises(UserError, match=f"precision=int9: one of {precisions}"):
        check_command_line(command, ["precision=int9"], multirun=False)


@pytest.mark.parametrize("command", ["crossval", "enough"])
def test_a_value_is_refused_by_the_name_that_was_typed(command):  # outputs is ${output} there
    with pytest.raises(UserError, match=r"^output=3: a word is needed"):
        check_command_line(command, ["output=3"], multirun=False)


def test_a_sweep_refuses_a_value_before_it_begins():
    with pytest.raises(UserError, match=r"model\.width=0: a whole number of 1 or more is needed"):
        check_command_line("train", ["model.width=4,0"], multirun=True)


@pytest.mark.parametrize("words", ["logger=[csv,wandb]", "augment=[d4]", "optim=sgd optim.momentum=0", "threshold=missed:0.1", "threshold=false:.05"])  # fmt: skip
def test_what_may_be_several_or_at_the_end_of_its_range_passes(words):
    check_command_line("train", words.split(), multirun=False)
