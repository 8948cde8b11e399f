"""Activation checkpointing: the same training, in less memory."""

import copy
from collections.abc import Callable

import pytest
import torch
from small_runs import config, tiny

from seg.errors import UserError
from seg.models import FCN, NestedUNet, Network, Peer, SegNet, UNet
from seg.models.profiling import measure_peak_memory
from seg.training.build import check_trainer_options

NETWORKS: dict[str, Callable[[], Network]] = {
    "fcn": lambda: FCN(1, 2, width=4, stride=8, norm="batch"),
    "segnet": lambda: SegNet(1, 2, width=4),
    "unet": lambda: UNet(1, 2, width=4, depth=2, dropout=0.5),
    "unet valid": lambda: UNet(1, 2, width=4, depth=1, padding="valid"),
    "unet residual": lambda: UNet(1, 2, width=4, depth=2, block="residual", up="unpool"),
    "unetpp": lambda: NestedUNet(1, 2, width=4, depth=2, dropout=0.5),
    "unet_e": lambda: NestedUNet(1, 2, width=4, depth=2, links="none"),
}


def train_step(network: Network) -> dict[str, torch.Tensor]:
    """Gradients and buffers after two steps' backward passes."""
    torch.manual_seed(1)
    for image in torch.rand(2, 2, 1, 36, 36):
        logits = network(image)
        heads = logits if isinstance(logits, list) else [logits]
        torch.stack([head.square().mean() for head in heads]).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return gradients | dict(network.named_buffers())


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_and_running_statistics_are_the_same(name):
    torch.manual_seed(0)
    plain = NETWORKS[name]()
    network = copy.deepcopy(plain)
    network.checkpoint_activations = True
    expected, found = train_step(plain), train_step(network)
    assert expected.keys() == found.keys() and len(found) > 10
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_block_is_computed_twice_in_training_and_once_in_evaluation(name):
    """Once more in the backward pass; blocks that were left out would keep their activations."""
    network = NETWORKS[name]()
    network.checkpoint_activations = True
    calls = {}
    for key, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(
                lambda *_, key=key: calls.update({key: calls.get(key, 0) + 1})
            )
    logits = network(torch.rand(2, 1, 36, 36))
    sum(head.sum() for head in (logits if isinstance(logits, list) else [logits])).backward()
    assert set(calls.values()) == {2}
    calls.clear()
    network.eval()(torch.rand(2, 1, 36, 36))
    assert set(calls.values()) == {1}


def test_a_step_takes_less_memory():
    """A U-Net of two levels: without checkpointing ten maps of full size are kept, with it two."""
    network = UNet(1, 1, width=16, depth=2)
    image = torch.rand(2, 1, 256, 256)
    peaks = {}
    for network.checkpoint_activations in (False, True):
        peaks[network.checkpoint_activations] = measure_peak_memory(
            lambda: network(image).sum().backward()
        )
    assert peaks[True] < 0.75 * peaks[False], peaks


def test_a_training_with_it_is_the_same_run(tmp_path):
    plain, _ = tiny(tmp_path / "plain")
    found, _ = tiny(tmp_path / "less", "trainer.checkpoint_activations=true")
    assert plain == found


def test_a_network_without_parts_is_refused():
    trainer = config("train", "trainer=cpu", "trainer.checkpoint_activations=true").trainer
    model = Peer(1, 1, UNet(1, 1, width=2, depth=1))
    with pytest.raises(UserError, match=r"trainer.checkpoint_activations=true: UNet keeps its"):
        check_trainer_options(trainer, None, model)  # refused before the data are looked at
