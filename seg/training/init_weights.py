"""Initial weights of a network, from ImageNet or from an earlier run."""

from torch import nn

from seg.errors import RunError
from seg.models.pretrained import load_imagenet
from seg.runs.checkpoint import find_checkpoint
from seg.runs.load import load_run


def load_initial_weights(model: nn.Module, init: str) -> str:
    """Load the initial weights of a network.

    Args:
        model: changed in place.
        init: imagenet, a run folder or a checkpoint; tensors of the same name and shape are copied.

    Returns:
        A description of the weights that were loaded, for the log.

    Raises:
        RunError: if there are no such weights, or fewer than half of the network's tensors are among them.
    """
    if init == "imagenet":
        try:
            return f"the encoder's weights from {load_imagenet(model)}"
        except ValueError as error:
            raise RunError(f"init=imagenet: {error}") from error
    if not isinstance(init, str):
        raise RunError(f"init={init}: imagenet, a run folder or a checkpoint file is needed")
    file = find_checkpoint(init, "init")
    weights = load_run(file).model.state_dict()
    own = model.state_dict()
    shared = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    if 2 * len(shared) < len(own):
        raise RunError(
            f"init={init}: only {len(shared)} of this network's {len(own)} tensors are in {file} with "
            "the same name and shape; give a run of the same model and width"
        )
    model.load_state_dict(shared, strict=False)
    missing = sorted({".".join(name.split(".")[:2]) for name in own if name not in shared})
    rest = f"; not in it, or of another shape: {', '.join(missing)}" if missing else ""
    return f"{len(shared)} of {len(own)} tensors from {file}{rest}"
