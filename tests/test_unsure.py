"""What the model does not know it says: the same reason at every door, and probabilities that can be taken at their word."""
import asyncio
import csv
import io
import json

import httpx
import numpy as np
import pytest
from gradio_client import handle_file
from PIL import Image
from serving import running_server
from test_quantize import make
from test_serve import call_tool, connect

from imgclf_nb.bundle import BundleError, read_bundle, write_bundle
from imgclf_nb.calibrate import fit_reference
from imgclf_nb.example import draw_example, write_example_bundle
from imgclf_nb.judge import UNLIKE, Judge, measure_distance
from imgclf_nb.predict import Predictor

REASONS = {"sea.png": None, "grey.png": "low confidence", "lime.png": "unlike the training data"}


def write_pictures(folder):
    """One picture for each reason: muted blue as learned, grey, and a green that nothing learned from has."""
    draw_example(1, seed=3).save(folder / "sea.png")
    Image.new("RGB", (64, 64), (110, 115, 112)).save(folder / "grey.png")
    Image.new("RGB", (64, 64), (0, 255, 0)).save(folder / "lime.png")
    return [folder / name for name in REASONS]


def write_bundle_with_reference(path):
    """The example bundle, which knows what 300 of its pictures look like."""
    bundle = write_example_bundle(path.with_name("plain"))
    predictor = Predictor(bundle.path)
    pixels = np.stack([predictor.decode(draw_example(k % 3, seed=k)) for k in range(300)])
    features = predictor.run(pixels)["features"]
    reference = fit_reference(features)
    grey = predictor.run(np.full((1, 32, 32, 3), (110, 115, 112), np.uint8))["features"]   # inside, by its distance
    limit = max(measure_distance(part, reference).max() for part in (features, grey)) + 1e-3
    info = bundle.info.model_copy(update={"thresholds": {"unsure": 0.5, "unlike": float(limit)}})
    return write_bundle(path, info, model_file=bundle.model_file, reference=reference)


@pytest.fixture
def bundle(tmp_path):
    return write_bundle_with_reference(tmp_path / "model" / "bundle")


def test_the_same_reason_through_every_door(tmp_path, bundle, imgclf):
    files = write_pictures(tmp_path)
    expected = list(REASONS.values())
    predictor, found = Predictor(bundle.path), {}
    found["predict"] = [(a.unsure, a.reason) for a in map(predictor.predict, files)]
    found["many"] = [(a.unsure, a.reason) for a in predictor.predict_many(files)]

    ran = imgclf("predict", *files, "--format", "json")
    found["json"] = [(row["unsure"], row["reason"]) for row in json.loads(ran.stdout)]
    rows = list(csv.DictReader(io.StringIO(imgclf("predict", *files, "--format", "csv").stdout)))
    found["csv"] = [(row["unsure"] == "yes", row["reason"] or None) for row in rows]
    lines = imgclf("predict", *files).stdout.splitlines()
    found["table"] = [("unsure: " in line, line.partition("unsure: ")[2] or None) for line in lines]

    with running_server(tmp_path, "--mcp", bundle=False) as server:
        def post(route, **options):
            return httpx.post(server.url + route, **options).raise_for_status().json()
        answers = {"form": [post("/predict", files={"file": ("a", file.read_bytes())}) for file in files],
                   "batch": post("/predict/batch", files=[("files", ("a", file.read_bytes())) for file in files]),
                   "tool": [asyncio.run(call_tool(server.url, file.read_bytes())).structured_content for file in files]}
        page = connect(server)
        answers["page"] = [page.predict(handle_file(str(file)), api_name="/predict") for file in files]
    found |= {door: [(answer["unsure"], answer["reason"]) for answer in given] for door, given in answers.items()}
    for door, given in found.items():
        assert given == [(reason is not None, reason) for reason in expected], door


def test_without_a_reference_confidence_alone_decides(tmp_path, bundle):
    info = bundle.info.model_copy(update={"files": {}})
    plain = Predictor(write_bundle(tmp_path / "b", info, model_file=bundle.model_file).path)
    reasons = [plain.predict(file).reason for file in write_pictures(tmp_path)]
    assert reasons == [None, "low confidence", None]


@pytest.mark.parametrize("harm, words", [
    (lambda file: file.write_bytes(file.read_bytes()[:-9]), "wrong checksum"),
    (lambda file: file.unlink(), "reference.npz is missing")])
def test_a_harmed_reference_is_refused(bundle, harm, words):
    harm(bundle.path / "reference.npz")
    with pytest.raises(BundleError, match=words):
        Predictor(bundle.path)


@pytest.mark.parametrize("wrong", [{"directions": np.eye(4, 2), "points": np.ones((5, 2))}, {"points": np.ones((5, 3))},
                                   {"directions": np.eye(3), "points": np.ones(3)}])
def test_a_reference_of_another_network_is_refused(tmp_path, bundle, wrong):
    made = write_bundle(tmp_path / "b", bundle.info, model_file=bundle.model_file, reference=wrong)
    with pytest.raises(BundleError, match="does not suit the network.*export the bundle again"):
        Predictor(made.path)


def test_features_that_are_no_numbers_are_unlike_anything():
    judge = Judge({"unlike": 0.5}, {"directions": np.eye(2), "points": np.eye(2)}, n_features=2)
    assert judge(1.0, np.array([0, 1])) is None and judge(1.0, np.array([np.nan, 1])) == UNLIKE


def test_the_same_features_give_the_same_reference():
    features = np.random.default_rng(0).random((400, 300))
    assert (fit_reference(features)["points"] == fit_reference(features)["points"]).all()


def test_a_trained_bundle_is_calibrated(tmp_path):
    """A small network that learned from the example's pictures; its unknown is noise."""
    make(tmp_path, dark=False)
    made = read_bundle(tmp_path / "model" / "bundle")
    assert made.info.temperature != 1 and set(made.info.thresholds) == {"unsure", "unlike"}
    card = (made.path / "README.md").read_text()
    assert f"| softmax temperature | {made.info.temperature:.3f} |" in card and "`low confidence`" in card
    predictor, random = Predictor(made.path), np.random.default_rng(0)
    def ask(pictures):
        return np.mean([answer.unsure for answer in predictor.predict_many(pictures)])
    assert ask([draw_example(k % 3, seed=500 + k, size_px=32) for k in range(120)]) < 0.2
    assert ask(list(random.integers(0, 256, (20, 32, 32, 3), np.uint8))) > 0.9
