"""Initial weights of a network from an earlier run."""

from torch import nn

from seg.errors import RunError
from seg.models.pretrained import load_published
from seg.runs.checkpoint import find_checkpoint
from seg.runs.load import load


def start_from(model: nn.Module, init: str) -> str:
    """Gives a network its first weights, and says which.

    Args:
        model: changed in place.
        init: imagenet, or a run folder or checkpoint: what has the same name and shape is taken.

    Raises:
        RunError: when there are no such weights, or most of the network would get none.
    """
    if init == "imagenet":
        try:
            return f"the encoder's weights from {load_published(model)}"
        except ValueError as error:
            raise RunError(f"init=imagenet: {error}") from error
    if not isinstance(init, str):
        raise RunError(f"init={init}: imagenet, a run folder or a checkpoint file is needed")
    try:
        file = find_checkpoint(init)
    except RunError as error:
        raise RunError(str(error).replace("run=", "init=", 1)) from error
    weights = load(file).model.state_dict()
    own = model.state_dict()
    same = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    if 2 * len(same) < len(own):
        raise RunError(
            f"init={init}: only {len(same)} of this network's {len(own)} tensors are in {file} with "
            "the same name and shape; take a run of the same model and width"
        )
    model.load_state_dict(same, strict=False)
    fresh = sorted({".".join(name.split(".")[:2]) for name in own if name not in same})
    rest = f"; not in it, or of another shape: {', '.join(fresh)}" if fresh else ""
    return f"{len(same)} of {len(own)} tensors from {file}{rest}"
