"""Put a trained network into the package: ``python benchmarks/pretrained.py outputs/latest isbi2012``.

Copies the weights of the best checkpoint to seg/runs/pretrained/NAME.ckpt, without paths of this machine. The model
card NAME.md beside it is written by hand, from the scores that are printed.
"""

import argparse
from pathlib import Path

from seg.runs import pretrained
from seg.runs.checkpoint import WEIGHTS_ONLY, find_checkpoint, read_checkpoint, write_checkpoint

MAX_BYTES = 3_000_000


def pack(run: str, name: str) -> Path:
    """Write the checkpoint of a run into the package and return its file."""
    content = read_checkpoint(find_checkpoint(run))
    content = {part: content[part] for part in WEIGHTS_ONLY if part in content}
    config = content["seg"]["config"]
    config["outputs"], config["loader"]["cache"] = "outputs", None
    if config["data"].get("root") is not None:
        config["data"]["root"] = None
    file = pretrained.FOLDER / f"{name}.ckpt"
    write_checkpoint(file, content)
    if file.stat().st_size > MAX_BYTES:
        file.unlink()
        raise SystemExit(
            f"{run}: a checkpoint of more than {MAX_BYTES / 1e6:g} MB; train a smaller network"
        )
    return file


def main() -> None:
    """Parse the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="run folder")
    parser.add_argument("name", help="of the network")
    options = parser.parse_args()
    file = pack(options.run, options.name)
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
