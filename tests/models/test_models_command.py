"""The table of layers, and the help that lists every model."""

import re

import pytest
from omegaconf import OmegaConf

from seg.cli.compose import compose_checked
from seg.cli.conf_files import CONF
from seg.cli.help import help_text
from seg.commands.models import show_network
from seg.errors import UserError


def test_the_paper_s_unet_makes_388_of_572_with_150_4_giga_multiply_adds(capsys):
    assert show_network(
        compose_checked("models", ["model=unet_paper", "data.size=572", "logits=2"])
    ) == (388, 388)
    printed = capsys.readouterr().out
    assert "31,030,658 parameters, 150.4 G multiply-adds; 572x572 -> 388x388" in printed
    assert re.search(r"down.4 .* 1024 x 28 x 28 ", printed)  # the bottom of the figure
    assert re.search(r"fuse.0 .* 512 x 52 x 52 ", printed)  # and the first step up


def test_the_same_size_unet_says_what_valid_convolutions_would_give(capsys):
    assert show_network(compose_checked("models", ["model=unet", "data.size=572"])) == (572, 572)
    assert "the same weights give 572x572 -> 388x388" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(f.stem for f in (CONF / "model").glob("*.yaml")))
def test_every_model_is_shown(name, capsys):
    if name == "smp":
        pytest.importorskip("segmentation_models_pytorch", exc_type=Exception)
    size = 188 if name == "unet_paper" else 50
    height, _ = show_network(compose_checked("models", [f"model={name}", f"data.size={size}"]))
    assert height == (4 if name == "unet_paper" else 50)
    assert "parameters" in capsys.readouterr().out


def test_a_size_of_nothing_is_told():
    with pytest.raises(UserError, match=r"data.size=0: a whole number of 1 or more is needed"):
        show_network(compose_checked("models", ["data.size=0"]))


def test_a_size_that_a_valid_unet_can_not_take_is_told():
    with pytest.raises(UserError, match=r"data.size=512: .* nearest to 512 is 508"):
        show_network(compose_checked("models", ["model=unet_paper", "data.size=512"]))


@pytest.mark.parametrize("name", ["train", "models", "check", "show"])
def test_help_lists_every_model_and_each_of_its_options(name):
    text = help_text(name)
    for file in (CONF / "model").glob("*.yaml"):
        assert f"== model={file.stem} ==" in text
        for option in OmegaConf.load(file):
            assert option == "defaults" or f"\n  {option}:" in text, option
