"""`imgclf export`: int8 only where it decides as float does, and the way back."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import openvino
import pytest
import torch
from torch import nn

from imgclf_nb.backbones import LinearHead, load_backbone
from imgclf_nb.bundle import read_bundle
from imgclf_nb.cli import main
from imgclf_nb.data import prepare_data, read_manifest
from imgclf_nb.example import LABELS, draw_example
from imgclf_nb.export import ServedModel, export_bundle, write_onnx
from imgclf_nb.loaders import cache_pixels
from imgclf_nb.predict import Predictor
from imgclf_nb.quantize import quantize_network
from imgclf_nb.reproduce import record_run
from imgclf_nb.settings import Settings

SPLITS = {"train": range(0, 60), "val": range(60, 100), "test": range(100, 104)}


def draw(folder, dark=False):
    """Pictures of three classes; `dark` draws the training pictures as if the lens cap was on."""
    for split, seeds in SPLITS.items():
        for index, label in enumerate(LABELS):
            (folder / split / label).mkdir(parents=True)
            for seed in seeds:
                picture = draw_example(index, seed=seed, size_px=32)
                if dark and split == "train":
                    picture = picture.point(lambda value: value // 40)
                picture.save(folder / split / label / f"{seed}.png")


def layer(n, m):
    return nn.Sequential(nn.Conv2d(n, m, 3, 2, 1, bias=False), nn.BatchNorm2d(m), nn.ReLU())


def train(model, pixels, truth):
    """Train a network on uint8 [N,S,S,3] until it has seen everything 15 times."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for part in (part for _ in range(15) for part in torch.randperm(len(images)).split(36)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[part]), torch.tensor(truth)[part]).backward()
        optimizer.step()
    return model.eval()


def make(root, dark):
    """A folder with pictures, data/ and model/bundle; the network learned from bright pictures in either case."""
    draw(root / "colours", dark)
    settings = Settings(source=str(root / "colours"), data_dir=root / "data", model_dir=root / "model",
                        image_size_px=32, arch="resnet18").resolve()
    data = prepare_data(settings)
    manifest = read_manifest(data)
    pixels = cache_pixels(manifest, data, settings=settings)
    bright = np.flatnonzero(manifest.split == ("val" if dark else "train"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(layer(3, 8), layer(8, 16), layer(16, 32)), LinearHead(32, 3))
    model = train(model, np.array(pixels[bright]), manifest.label.iloc[bright].map(LABELS.index).to_numpy())
    export_bundle(model, manifest, pixels, settings=settings, name=data.name)
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return {dark: make(tmp_path_factory.mktemp("dark" if dark else "bright"), dark) for dark in (False, True)}


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Like the fixture `imgclf`, but in this process, which has loaded torch already."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        capsys.readouterr()
        return SimpleNamespace(returncode=main(list(words)), **dict(zip(("stdout", "stderr"), capsys.readouterr())))
    return run


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


def copy(made, tmp_path, dark=False):
    for name in ("colours", "data", "model"):
        shutil.copytree(made[dark] / name, tmp_path / name)
    return contents(tmp_path / "model")


def refuse(ran, *words):
    """The command failed in one line that contains the words (progress lines stand before it)."""
    assert ran.returncode == 2 and ran.stdout == "", ran.stdout + ran.stderr
    lines = [line for line in ran.stderr.splitlines() if not line.startswith("quantising on ")]
    assert len(lines) == 1 and lines[0].startswith("imgclf: "), ran.stderr
    for word in words:
        assert word in lines[0], ran.stderr


@pytest.mark.parametrize("options", [{}, {"power_norm": True}, {"power_norm": True, "pool_grid": 2}])
def test_the_network_whose_weights_are_installed_can_be_quantised(tmp_path, options):
    """EfficientNet-Lite computes its padding from the size of its input, with nodes that NNCF does not keep."""
    model = ServedModel(load_backbone("efficientnet_lite0", size_px=64).body, LinearHead(1280, 3, **options)).eval()
    network = onnx.load(write_onnx(model, tmp_path / "model.onnx", size_px=64))
    pictures = np.stack([np.asarray(draw_example(seed % 3, seed=seed, size_px=64)) for seed in range(30)])
    features = [openvino.compile_model(openvino.Core().read_model(graph.SerializeToString(), b""), "CPU")(pictures)["features"]
                for graph in (network, quantize_network(network, pictures))]
    assert np.corrcoef(*(values.ravel() for values in features))[0, 1] > 0.95


def test_int8_and_back(made, tmp_path, imgclf, here):
    before = copy(made, tmp_path)
    pixels = np.stack([np.asarray(draw_example(i % 3, seed=200 + i, size_px=32)) for i in range(30)])
    floats = Predictor(tmp_path / "model" / "bundle").run(pixels)

    ran = imgclf("export", "colours", "--precision", "int8")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.splitlines() == ["quantising on 180 training images"]
    assert len(ran.stdout.splitlines()) == 1
    for word in ("model/bundle: int8", "times as fast", "images/s", "MB instead of", "bundle_float", "100.00%"):
        assert word in ran.stdout

    predictor = Predictor(tmp_path / "model" / "bundle")
    assert (predictor.precision, predictor.info.precision) == ("int8", "int8")
    assert predictor.info.metrics["same_top1"] >= 0.99 and predictor.info.metrics["accuracy"] > 0.9
    assert "nncf" in predictor.info.versions and "| arithmetic | int8 |" in (predictor_card(tmp_path))
    answers = predictor.run(pixels)
    assert (answers["probabilities"].argmax(1) == np.arange(30) % 3).all()
    for name, values in floats.items():
        assert answers[name].shape == values.shape and not np.array_equal(answers[name], values)
        assert np.corrcoef(answers[name].ravel(), values.ravel())[0, 1] > 0.98

    ours, theirs = (read_bundle(tmp_path / "model" / name) for name in ("bundle", "bundle_float"))   # fitted anew
    assert set(ours.info.thresholds) == {"unsure", "unlike"} and ours.info.thresholds != theirs.info.thresholds
    assert not np.array_equal(ours.read_reference()["points"], theirs.read_reference()["points"])

    kept = contents(tmp_path / "model" / "bundle_float")
    assert {f"bundle/{name}": value for name, value in kept.items()} == before
    assert here("export", "colours", "--precision", "int8").returncode == 0   # again, from the float bundle
    assert contents(tmp_path / "model" / "bundle_float") == kept

    ran = here("export")
    assert ran.returncode == 0 and "float bundle" in ran.stdout, ran.stderr
    assert contents(tmp_path / "model") == before


def test_the_record_of_the_training_outlives_int8(made, tmp_path, here):
    """Or `imgclf reproduce` would copy the bundle, and find no difference to itself."""
    copy(made, tmp_path)
    record_run(Settings(source="colours", data_dir=tmp_path / "data", model_dir=tmp_path / "model", results_dir=tmp_path / "results"), "train")
    assert here("export", "colours", "--precision", "int8").returncode == 0
    assert here("evaluate", "--name", "colours", "--no-robustness").returncode == 0
    parts = json.loads((tmp_path / "results" / "run.json").read_text())["parts"]
    assert [part["steps"] for part in parts] == [["train"], ["export", "evaluate"]] and parts[0]["network"] != parts[1]["network"]


def predictor_card(folder):
    return (folder / "model" / "bundle" / "README.md").read_text()


def test_a_bundle_that_int8_spoils_stays_as_it_was(made, tmp_path, here):
    before = copy(made, tmp_path, dark=True)
    refuse(here("export", "colours", "--precision", "int8"), "validation images right", "choices differ for",
           "nothing was written", "try again")
    assert contents(tmp_path / "model") == before


def test_another_data_set_is_refused(made, tmp_path, here):
    before = copy(made, tmp_path)
    refuse(here("export", "--precision", "int8"), "trained on 'colours', not on 'digits'", "SOURCE")
    for file in sorted((tmp_path / "colours" / "train" / "sea").iterdir())[:10]:
        file.unlink()
    shutil.rmtree(tmp_path / "data")
    assert here("prepare", "colours").returncode == 0
    refuse(here("export", "colours", "--precision", "int8"), "other pictures or another split", "train again")
    assert contents(tmp_path / "model") == before


@pytest.mark.parametrize("words", [(), ("--precision", "int8")])
def test_without_a_bundle(here, tmp_path, words):
    refuse(here("export", *words), "train a model first")
    assert os.listdir(tmp_path) == []


def test_int8_without_its_float_bundle(made, tmp_path, here):
    copy(made, tmp_path)
    file = tmp_path / "model" / "bundle" / "bundle.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "precision": "int8"}))
    refuse(here("export"), "is int8", "bundle_float", "train again")


def test_training_does_not_take_int8(here, tmp_path):
    for command in ("train", "run"):
        refuse(here(command, "--precision", "int8"), "imgclf export --precision int8")
    assert os.listdir(tmp_path) == []


def test_no_look_up(made, tmp_path):
    copy(made, tmp_path)
    code = """
import sys
calls = []
names = ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect")
sys.addaudithook(lambda event, args: calls.append((event, args)) if event in names else None)
from imgclf_nb.cli import main
assert main(["export", "colours", "--precision", "int8"]) == 0
import time; time.sleep(1)   # telemetry would go out in a thread of its own
assert "nncf" in sys.modules
print("calls:", calls, "telemetry:", sys.modules["openvino_telemetry"])   # which may ask from a process of its own
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert ran.stdout.splitlines()[-1] == "calls: [] telemetry: None", ran.stdout + ran.stderr
    assert read_bundle(tmp_path / "model" / "bundle").info.precision == "int8"
