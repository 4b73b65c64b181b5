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

OPTIONS = ["--top-n", "3", "--image-size-px", "32", "--head-epochs", "4", "--fine-tune-epochs", "8"]
EPOCHS, KILLS = 12, 10


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


def count_epochs(folder):
    """How many epochs the checkpoint has behind it."""
    path = folder / "model" / "checkpoint.pth"
    return len(torch.load(path, weights_only=True)["history"]) if path.exists() else 0


def kill_within(process, seconds):
    """Kill a process after some seconds, unless it ends by itself."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()


def kill_in_training(process, folder, moments):
    """Kill a training shortly after it has finished an epoch."""
    path = folder / "model" / "checkpoint.pth"
    before = path.stat().st_mtime_ns if path.exists() else 0
    while process.poll() is None and (path.stat().st_mtime_ns if path.exists() else 0) == before:
        time.sleep(0.005)
    kill_within(process, moments.uniform(0, 0.5))


def test_kill_anywhere_and_resume(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
        finish("prepare", folder, *OPTIONS[:4])
    seconds = finish("train", straight, *OPTIONS[2:])

    moments, reached = random.Random(0), set()
    for number in range(KILLS):   # first inside the training, which is the shorter part of the time; then anywhere
        process = start("train", killed, *OPTIONS[2:], "--resume")
        kill_in_training(process, killed, moments) if number < 6 else kill_within(process, moments.uniform(0.1, 1) * seconds)
        check_readable(killed)
        reached.add(count_epochs(killed))
    assert len(reached - {0, EPOCHS}) >= 3, f"the kills left {reached} epochs: too few in the middle of a training"
    finish("train", killed, *OPTIONS[2:], "--resume")

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
