"""docs/python.md: its blocks, one after another, as a reader would run them."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

PAGE = Path(__file__).parent.parent / "docs/python.md"


def test_each_block_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save("images/a.png")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 5 and names["logits"].shape == (1, 5, 100, 70)
    assert 0 <= names["scores"].compute()["dice"] <= 1
