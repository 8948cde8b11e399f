"""Classes of a data set in nnU-Net's layout, from its dataset.json."""

from pathlib import Path
from typing import Any

from seg.data.datasets.tools.parsing import read_json
from seg.data.masks import ColourList
from seg.errors import DataError

DATASET_FILE = "dataset.json"


def read_dataset_json(
    file: Path, values: dict[int, int] | None, ignore: list[int] | list[ColourList] | None
) -> tuple[list[str] | None, dict[int, int] | None, list[int] | list[ColourList] | None]:
    """Return the classes of nnU-Net's dataset.json in the order of their values, and the options of the values.

    Args:
        file: dataset.json, whose ``labels`` are name -> value, or value -> name as in version 1.
        values: option ``data.values``; None: those of the file, unless they count from 0.
        ignore: option ``data.ignore``; if empty, the value of the file's label ``ignore``.

    Returns:
        classes, values and ignore; classes is None if the file has no labels.

    Raises:
        DataError: if the labels are regions, or no numbers.
    """
    content: Any = read_json(file)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or not labels:
        return None, values, ignore
    first = next(iter(labels))
    try:
        numbers = {
            str(name): int(value)
            for name, value in (
                ((v, k) for k, v in labels.items()) if str(first).isdigit() else labels.items()
            )
        }
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{file}: labels {labels} are not one value each; name the classes by data.classes, and map values by "
            "data.values"
        ) from error
    unknown = numbers.pop("ignore", None)
    classes = sorted(numbers, key=lambda name: numbers[name])
    stored = {numbers[name]: index for index, name in enumerate(classes)}
    if values is None and list(stored) != list(range(len(classes))):
        values = stored
    return classes, values, ignore or ([unknown] if unknown is not None else ignore)
