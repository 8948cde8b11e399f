"""metrics.csv and the choice between W&B online and offline."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from seg import tracking
from seg.tracking import MetricsCSV, answers, offline_reason, read_metrics


def test_rows_keep_their_columns_when_new_ones_come(tmp_path):
    csv = MetricsCSV(tmp_path / "metrics.csv")
    csv.log_metrics({"train/loss": 0.5}, step=1)
    csv.log_metrics({"val/dice": 0.7}, step=1)
    csv.log_metrics({"train/loss": 0.25}, step=2)
    assert read_metrics(tmp_path / "metrics.csv") == [
        {"step": "1", "train/loss": "0.5", "val/dice": ""},
        {"step": "1", "train/loss": "", "val/dice": "0.7"},
        {"step": "2", "train/loss": "0.25", "val/dice": ""},
    ]


def test_every_row_written_survives_a_kill(tmp_path):
    script = f"""
import os, signal
from pathlib import Path
from seg.tracking import MetricsCSV
csv = MetricsCSV(Path({str(tmp_path / "metrics.csv")!r}))
for step in range(50):
    csv.log_metrics({{"loss": step / 2, **({{"dice": 1.0}} if step > 40 else {{}})}}, step)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [float(r["loss"]) for r in rows] == [s / 2 for s in range(50)] and rows[-1][
        "dice"
    ] == "1.0"


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def test_without_a_key_w_and_b_is_offline_and_says_why(no_key):
    assert offline_reason(4.0) == "no API key; wandb login makes one known"


def test_the_environment_can_ask_for_offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert offline_reason(4.0) == "WANDB_MODE=offline"


@pytest.mark.parametrize("kind", ["refuses", "never answers", "name unknown"])
def test_a_server_that_is_not_there_is_given_up_in_time(no_key, monkeypatch, kind):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        if kind == "refuses":
            server.close()
        elif kind == "name unknown":
            url = "http://nowhere.invalid"
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", url)
        started = time.perf_counter()
        assert "doesn't answer within 1 s" in str(offline_reason(1.0))
        assert time.perf_counter() - started < 3


def test_a_server_that_answers_is_heard():
    import http.server
    import threading

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler
    ) as server:
        server.RequestHandlerClass.log_message = lambda *a: None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert answers(f"http://127.0.0.1:{server.server_port}", 4.0)
        server.shutdown()


def test_an_offline_run_is_recorded_with_config_metrics_and_pictures(no_key, tmp_path, caplog):
    import json

    import numpy as np
    import wandb

    caplog.set_level("INFO", "seg")
    logger = tracking.wandb_logger("a-run", tmp_path, "a-sweep", {"seed": 3}, tags=["t"])
    for step in range(3):
        logger.log_metrics({"val/dice": 0.5 + step / 10, "val/loss": 1.0 - step / 10}, step=step)
    picture = wandb.Image(
        np.zeros((8, 8, 3), np.uint8), masks={"truth": {"mask_data": np.zeros((8, 8), int)}}
    )
    logger.experiment.log({"val/images": [picture], "trainer/global_step": 2})
    logger.experiment.finish()
    assert "wandb: offline (no API key" in caplog.text
    folder = next((tmp_path / "wandb").glob("offline-run-*"))
    inspect = subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), "wandb"), "leet", "inspect", "--json", str(folder)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    records = [json.loads(line) for line in inspect.stdout.splitlines() if line.startswith("{")]
    text = json.dumps(records)
    assert '"a-run"' in text and '"a-sweep"' in text and "val/dice" in text
    assert len(list(folder.glob("files/media/images/val/*.png"))) == 1
