"""The fast recipe from the command line: the same files as the other, less work, the same end after a kill."""
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision
from PIL import Image

from imgclf_nb import fast, features
from imgclf_nb.audit import audit_data
from imgclf_nb.backbones import cut_backbone, load_backbone
from imgclf_nb.bundle import read_bundle
from imgclf_nb.convolutions import restore_convolutions, swap_convolutions
from imgclf_nb.data import prepare_data, read_manifest
from imgclf_nb.head import solve_head
from imgclf_nb.predict import Predictor
from imgclf_nb.recipes import train_model
from imgclf_nb.settings import Settings

OPTIONS = ["--arch", "efficientnet_lite0", "--image-size-px", "64", "--recipe", "fast"]


@pytest.fixture
def shapes(tmp_path):
    """A folder with two classes, fine and coarse stripes, of which some lie in the wrong folder: no head is 99 % right."""
    random = np.random.default_rng(0)
    for label, period in (("coarse", 7), ("fine", 5)):
        (folder := tmp_path / "shapes" / label).mkdir(parents=True)
        for k in range(40):
            wave = 12 - period if random.random() < 0.2 else period
            stripes = 40 * np.sin(2 * np.pi * (np.arange(64) + random.uniform(0, 9)) / wave)[None, :, None]
            pixels = 128 + stripes + random.normal(0, 60, (64, 64, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{k}.png")
    return tmp_path / "shapes"


def run(folder, *words):
    """Run `imgclf` in a folder and expect success."""
    done = subprocess.run([Path(sys.executable).parent / "imgclf", *map(str, words)], cwd=folder, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def read_history(folder):
    return pd.read_csv(folder / "results" / "history.csv").drop(columns="seconds")


def test_it_leaves_what_the_other_recipe_leaves(tmp_path, shapes):
    run(tmp_path, "run", shapes, *OPTIONS, "--fine-tune-epochs", "2")
    history = read_history(tmp_path)
    assert history.phase[0] == "head" and len(history) <= 3
    bundle = read_bundle(tmp_path / "model" / "bundle")
    assert bundle.info.metrics["same_top1"] >= 0.995 and bundle.info.labels == ["coarse", "fine"]
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert metrics["n_test"] == 12
    torch.load(tmp_path / "model" / "efficientnet_lite0_finetuned.pth", weights_only=True)
    assert Predictor(bundle.path).predict(next(shapes.rglob("*.png"))).label in ("coarse", "fine")
    assert not list((tmp_path / "data").rglob("*-activations.npy")), "what only an interrupted training needs is left behind"


@pytest.mark.parametrize("audit", [True, False])
def test_plain_pictures_go_through_the_frozen_part_once(tmp_path, shapes, monkeypatch, audit):
    """For the audit, the head and the second phase together; after them only the training pictures' other views."""
    settings = Settings(source=str(shapes), data_dir=tmp_path / "data", model_dir=tmp_path / "model", results_dir=tmp_path / "results",
                        arch="efficientnet_lite0", image_size_px=64, fine_tune_epochs=1, views=3)
    data = prepare_data(settings)
    counts, run_frozen = [], features.run_frozen
    def count(net, number, *args, **options):
        counts.append(number)
        return run_frozen(net, number, *args, **options)
    monkeypatch.setattr(features, "run_frozen", count)
    monkeypatch.setattr(fast, "run_frozen", count)
    if audit:
        audit_data(settings, load_backbone("efficientnet_lite0", size_px=64))
        assert list((data / "cache").glob("*-activations.npy")), "the second phase has to compute them again"
    train_model(settings)
    splits = read_manifest(data).split.value_counts()
    assert counts == [splits.sum(), 2 * splits["train"]]
    assert not list((data / "cache").glob("*-activations.npy"))


def test_the_weights_keep_the_librarys_names_and_load_again(tmp_path, shapes):
    """Without the exchange of layers for the training: plain convolutions in the library's own names."""
    run(tmp_path, "run", shapes, *OPTIONS, "--fine-tune-epochs", "1", "--fine-tune-stages", "2")
    state = torch.load(tmp_path / "model" / "efficientnet_lite0_finetuned.pth", weights_only=True)
    assert not [name for name in state if ".conv.weight" in name or "patterns" in name]
    run(tmp_path, "run", shapes, *OPTIONS, "--fine-tune-epochs", "1", "--weights", tmp_path / "model" / "efficientnet_lite0_finetuned.pth")


def test_the_library_loads_a_plain_head_and_refuses_others(tmp_path, shapes):
    """Without --power-norm timm's own network gives the bundle's answers; by default, timm can't take the weights for its own."""
    file, photo = tmp_path / "model" / "efficientnet_lite0_finetuned.pth", next(shapes.rglob("*.png"))
    theirs = timm.create_model("tf_efficientnet_lite0", num_classes=2).eval()
    run(tmp_path, "run", shapes, *OPTIONS, "--fine-tune-epochs", "0", "--no-power-norm")
    theirs.load_state_dict(torch.load(file, weights_only=True))
    pixels = torch.from_numpy(np.array(Image.open(photo))).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = theirs(pixels / 127.5 - 1)[0]
    temperature = read_bundle(tmp_path / "model" / "bundle").info.temperature
    ours = dict(Predictor(tmp_path / "model" / "bundle", precision="f32").predict(photo).predictions)
    assert [ours[label] for label in ("coarse", "fine")] == pytest.approx((logits / temperature).softmax(0).tolist(), abs=1e-4)
    run(tmp_path, "train", shapes, *OPTIONS, "--fine-tune-epochs", "0")
    with pytest.raises(RuntimeError, match="classifier_of_fields_of_roots.weight"):
        theirs.load_state_dict(torch.load(file, weights_only=True))


def test_a_killed_training_goes_on(tmp_path, shapes):
    """Killed after the head and after an epoch: the history is that of an undisturbed training."""
    options = [*OPTIONS, "--fine-tune-epochs", "6", "--views", "2"]
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
        run(tmp_path / name, "prepare", shapes, "--image-size-px", "64")
    run(tmp_path / "straight", "train", shapes, *options)
    assert len(read_history(tmp_path / "straight")) > 2
    folder, checkpoint = tmp_path / "killed", tmp_path / "killed" / "model" / "checkpoint.pth"
    for epochs in (1, 2):
        process = subprocess.Popen([Path(sys.executable).parent / "imgclf", "train", str(shapes), *options, "--resume"], cwd=folder,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not checkpoint.exists() or len(torch.load(checkpoint, weights_only=True)["history"]) < epochs):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(torch.load(checkpoint, weights_only=True)["history"]) < len(read_history(tmp_path / "straight"))
    run(folder, "train", shapes, *options, "--resume")
    pd.testing.assert_frame_equal(read_history(folder), read_history(tmp_path / "straight"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("arch", ["efficientnet_lite0", "mobilenet_v2", "mnasnet0_5", "efficientnet_b0", "resnet50"])
def test_as_matrices_a_stage_gives_and_learns_the_same(tmp_path, arch):
    weights = None
    if arch != "efficientnet_lite0":   # theirs can't be had here; norms that do nothing would hide a mistake
        torch.manual_seed(0)
        net = torchvision.models.get_model(arch)
        for layer in net.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.2), layer.running_var.uniform_(0.5, 2)
                torch.nn.init.uniform_(layer.weight, 0.5, 1.5), torch.nn.init.normal_(layer.bias, 0, 0.2)
        torch.save(net.state_dict(), weights := tmp_path / "weights.pth")
    lower, upper = cut_backbone(load_backbone(arch, weights=weights, size_px=64), 1, size_px=64)
    with torch.no_grad():
        maps = lower(torch.rand(3, 3, 64, 64))
    layers = list(upper.modules())

    coarse = arch == "resnet50"   # whose 1 x 1 convolutions are products in bfloat16 alone

    def learn():
        with torch.autocast("cpu", torch.bfloat16, enabled=coarse):
            answer = upper(maps.clone()).float()
        upper.zero_grad()
        answer.square().sum().backward()
        return [answer.detach(), *(parameter.grad.clone() for layer in layers for parameter in layer.parameters(recurse=False))]

    expected, names = learn(), list(upper.state_dict())
    swapped = swap_convolutions(upper, maps[:1])
    assert {type(layer).__name__ for layer in upper.modules()} & {"DenseConv", "PointwiseConv"} == {"PointwiseConv" if coarse else "DenseConv"}
    rtol, share = (0, 0.03) if coarse else (1e-3, 1e-4)
    for ours, theirs in zip(learn(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=share * float(theirs.abs().max()) + 1e-7)
    restore_convolutions(swapped)
    assert list(upper.state_dict()) == names
    torch.testing.assert_close(learn()[0], expected[0])


def test_no_room_means_a_longer_training_not_fewer_pictures(tmp_path, shapes):
    """3.6 kB for the activations of a view: there is room for two views of each picture, or for none."""
    run(tmp_path, "prepare", shapes, "--image-size-px", "64")
    for room, said in ((0.0005, "room for 2 of 4 views"), (0.0001, "room for 0 of 4 views")):
        done = run(tmp_path, "train", shapes, *OPTIONS, "--views", "4", "--fine-tune-epochs", "1", "--cache-gb", room)
        assert said in done.stderr
        assert read_history(tmp_path).phase.tolist() == ["head", "fine-tune"]


def test_a_finished_training_is_not_done_again(tmp_path, shapes):
    run(tmp_path, "run", shapes, *OPTIONS, "--fine-tune-epochs", "1")
    before, history = (tmp_path / "model" / "bundle" / "model.onnx").read_bytes(), read_history(tmp_path)
    done = run(tmp_path, "train", shapes, *OPTIONS, "--fine-tune-epochs", "1", "--resume")
    assert "training loss" not in done.stderr, done.stderr
    pd.testing.assert_frame_equal(read_history(tmp_path), history)
    assert (tmp_path / "model" / "bundle" / "model.onnx").read_bytes() == before


def test_two_trainings_at_the_same_time(tmp_path, shapes):
    """They share the data set's cache, and neither spoils the other's."""
    run(tmp_path, "prepare", shapes, "--image-size-px", "64", "--no-audit")
    options = [*OPTIONS, "--fine-tune-epochs", "2", "--views", "16"]
    for name, rate in (("a", "1e-3"), ("b", "5e-4"), ("c", "1e-3")):
        words = [Path(sys.executable).parent / "imgclf", "train", shapes, *options, "--fine-tune-lr", rate, "--model-dir", name, "--results-dir", name]
        if name != "c":
            words = [*map(str, words)]
            started = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            both = (started,) if name == "a" else (*both, started)
            continue
        for process in both:
            assert process.wait(300) == 0, process.stderr.read()
            process.stderr.close()
        run(tmp_path, *words[1:])   # alone, like the first
    histories = [pd.read_csv(tmp_path / name / "history.csv").drop(columns="seconds") for name in "ac"]
    pd.testing.assert_frame_equal(*histories, atol=1e-5, rtol=0)


MEMORY = """
import resource, torch
from fastai.losses import CrossEntropyLossFlat
from imgclf_nb import head
peak_mb = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
features, targets = torch.rand(20_000, 5120, dtype=torch.float16), torch.arange(20_000) % 10
head._STRENGTHS = (0.3,)
few = slice(0, 2_000), slice(2_000, 2_500)
head.solve_head(features, targets, few, loss_func=CrossEntropyLossFlat(), n_classes=10)
before = peak_mb()
head.solve_head(features, targets, (slice(0, 17_000), slice(17_000, None)), loss_func=CrossEntropyLossFlat(), n_classes=10)
print(peak_mb() - before)
"""


def test_solving_the_head_takes_no_memory_for_each_picture():
    """Otherwise 100,000 pictures take gigabytes more than their features."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 60, done.stdout   # 280 to 390 when each thousand rows got memory of their own


def test_the_same_features_give_the_same_head():
    """Whatever random numbers were drawn before."""
    torch.manual_seed(0)
    features, targets, heads = torch.randn(300, 200), torch.arange(300) % 3, []
    for seed in (1, 2):
        torch.manual_seed(seed)
        rows = torch.arange(200), torch.arange(200, 300)
        heads.append(solve_head(features, targets, rows, loss_func=torch.nn.functional.cross_entropy, n_classes=3)[0])
    assert torch.equal(heads[0].weight, heads[1].weight)
