"""A training killed at any moment goes on as if nothing had happened."""
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from imgclf_nb.bundle import read_bundle

OPTIONS = ["--top-n", "3", "--image-size-px", "32", "--head-epochs", "2", "--fine-tune-epochs", "3"]
KILLS = 10


def start(command, folder, *options):
    """Start an `imgclf` command in `folder`."""
    program = Path(sys.executable).parent / "imgclf"
    return subprocess.Popen([program, command, *options], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(command, folder, *options):
    """Run an `imgclf` command to its end; gives the seconds it took."""
    began = time.monotonic()
    assert start(command, folder, *options).wait(300) == 0
    return time.monotonic() - began


def check_readable(folder):
    """Whatever stands under its final name can be read."""
    for path in (folder / "model").glob("*.pth"):
        torch.load(path, weights_only=True)
    for path in (folder / "results").glob("*.csv"):
        assert len(pd.read_csv(path))
    if (folder / "model" / "bundle").exists():
        read_bundle(folder / "model" / "bundle")


def result(folder):
    """History without times, and metrics without times."""
    finish("evaluate", folder)
    metrics = json.loads((folder / "results" / "metrics.json").read_text())
    return pd.read_csv(folder / "results" / "history.csv").drop(columns="seconds"), metrics


def test_kill_anywhere_and_resume(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
        finish("prepare", folder, *OPTIONS[:4])
    seconds = finish("train", straight, *OPTIONS[2:])

    moments, done = random.Random(0), 0
    for _ in range(KILLS):
        process = start("train", killed, *OPTIONS[2:], "--resume")
        try:
            done += process.wait(moments.uniform(0.3, 1) * seconds) == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        check_readable(killed)
    finish("train", killed, *OPTIONS[2:], "--resume")
    assert done < KILLS, "no run was killed: the moments come too late"

    (history, metrics), (history_again, metrics_again) = result(straight), result(killed)
    pd.testing.assert_frame_equal(history_again, history, atol=1e-6, rtol=0)
    for name in ("accuracy", "log_loss", "brier", "ece", "macro_f1"):
        assert metrics_again[name] == pytest.approx(metrics[name], abs=1e-6), name
    assert not [path for path in killed.rglob(".*.partial")]


def test_resume_refuses_other_settings(tmp_path, imgclf):
    imgclf("prepare", *OPTIONS[:4])
    assert imgclf("train", *OPTIONS[2:4], "--head-epochs", "1", "--fine-tune-epochs", "0").returncode == 0
    other = imgclf("train", *OPTIONS[2:4], "--head-epochs", "2", "--fine-tune-epochs", "0", "--resume")
    assert other.returncode == 2 and "other settings" in other.stderr and other.stderr.count("\n") == 1
