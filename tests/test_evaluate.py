"""What other programs read of an evaluation: strict JSON, the promised keys, and nothing after a refusal."""
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from PIL import Image

from imgclf_nb.bundle import BundleInfo, write_bundle
from imgclf_nb.data import prepare_data, read_manifest
from imgclf_nb.evaluate import EvaluationError, evaluate, find_top_losses, summarize_metrics
from imgclf_nb.example import _NETWORK, LABELS, draw_example, write_example_bundle
from imgclf_nb.settings import Settings

KEYS = ("schema, labels, n_test, accuracy, accuracy_ci95, top5_accuracy, macro_f1, weighted_f1, log_loss, brier, ece, "
        "ece_ci95, per_class, confusion_matrix, ece_before, answered, unknown, slices, robustness, dataset, model, versions, seed, seconds").split(", ")


def listing(folder):
    return {str(path): path.is_file() and path.read_bytes() for path in Path(folder).rglob("*")}


def read_strictly(settings):
    """metrics.json as a parser reads it that knows no NaN and no Infinity."""
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")
    text = (settings.results_dir / "metrics.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def draw(tmp_path):
    """Prepare drawn pictures, `labels` for the classes numbered by `indices`; gives the settings."""
    def run(labels=LABELS, indices=(0, 1, 2), images=20, doubt=0.6):
        for label, index in zip(labels, indices):
            (tmp_path / "pictures" / label).mkdir(parents=True)
            for seed in range(images):
                picture = draw_example(index, seed=seed, doubt=doubt * seed / images, size_px=32)
                picture.save(tmp_path / "pictures" / label / f"{seed:02}.png")
        settings = Settings(source=str(tmp_path / "pictures"), data_dir=tmp_path / "data", test_share=0.4,
                            model_dir=tmp_path / "model", results_dir=tmp_path / "results")
        prepare_data(settings)
        return settings
    return run


@pytest.fixture
def example(draw):
    """Settings of a data set with some doubtful pictures, and the example bundle."""
    settings = draw()
    write_example_bundle(settings.model_dir / "bundle")
    return settings


def change_manifest(settings, change):
    """Rewrite manifest.csv as `change` gives it."""
    file = settings.data_dir / "pictures" / "manifest.csv"
    change(pd.read_csv(file, dtype=str)).to_csv(file, index=False)


def test_keys_are_those_that_are_promised(example):
    metrics = evaluate(example)
    assert list(read_strictly(example)) == KEYS
    assert read_strictly(example) == metrics
    assert list(metrics["per_class"]) == metrics["labels"] == LABELS
    for scores in metrics["per_class"].values():
        assert list(scores)[:4] == ["precision", "recall", "f1", "support"]
        assert all(scores[f"{name}_ci95"][0] <= scores[name] <= scores[f"{name}_ci95"][1] for name in list(scores)[:3])
    assert np.shape(metrics["confusion_matrix"]) == (3, 3) and np.sum(metrics["confusion_matrix"]) == metrics["n_test"]
    assert metrics["accuracy_ci95"][0] <= metrics["accuracy"] <= metrics["accuracy_ci95"][1]


def test_a_class_without_a_test_image(example):
    change_manifest(example, lambda table: table[(table.split != "test") | (table.label != "sea")])
    metrics = evaluate(example)
    assert read_strictly(example) == metrics
    assert metrics["per_class"]["sea"]["support"] == 0 and metrics["labels"] == LABELS
    assert "weakest class" in summarize_metrics(metrics)


def test_all_right(draw):
    settings = draw(doubt=0)
    write_example_bundle(settings.model_dir / "bundle")
    metrics = evaluate(settings)
    assert read_strictly(settings) == metrics
    assert metrics["accuracy"] == metrics["macro_f1"] == 1
    assert 0.8 < metrics["accuracy_ci95"][0] < 0.9 and metrics["accuracy_ci95"][1] == 1   # 24 images prove no more
    assert "no error in" in summarize_metrics(metrics)


def test_two_classes(draw, tmp_path):
    settings, text = draw(["leaf", "tomato"], (0, 2)), _NETWORK
    for old, new in (("float[3, 3, 1, 1] weight = {-4, 8, -4, -4, -4, 8, 8, -4, -4}",
                      "float[2, 3, 1, 1] weight = {-4, 8, -4, 8, -4, -4}"),
                     ("float[3] bias = {0.2, -0.1, -0.1}", "float[2] bias = {0.1, -0.1}"),
                     ("float[N, 3] probabilities", "float[N, 2] probabilities"),
                     ("float[N, 3, TILES, TILES] evidence", "float[N, 2, 4, 4] evidence"),
                     ("SIZE, SIZE", "32, 32"), ("TEMPERATURE", "1.0")):
        assert old in text
        text = text.replace(old, new)
    onnx.save(onnx.parser.parse_model(text), tmp_path / "two.onnx")
    info = BundleInfo(name="two", arch="by hand", labels=["leaf", "tomato"], image_size_px=32)
    write_bundle(settings.model_dir / "bundle", info, model_file=tmp_path / "two.onnx")
    metrics = evaluate(settings)
    assert read_strictly(settings) == metrics
    assert np.shape(metrics["confusion_matrix"]) == (2, 2) and metrics["top5_accuracy"] == 1 and metrics["accuracy"] > 0.5


def test_same_seed_same_metrics(draw):
    settings = draw(images=50, doubt=0.9)
    write_example_bundle(settings.model_dir / "bundle")
    change_manifest(settings, lambda table: table.assign(group=[str(int(n ** 0.85)) for n in range(len(table))]))
    first, again, other = (evaluate(settings.model_copy(update={"seed": seed})) for seed in (1, 1, 2))
    for metrics in (first, again, other):
        assert set(metrics.pop("seconds")) == {"load", "predict", "probe", "score"}
    assert first == again
    assert first["ece_ci95"] != other["ece_ci95"] and first["accuracy"] == other["accuracy"]


def test_other_labels_are_refused(example, tmp_path):
    write_example_bundle(example.model_dir / "bundle", labels=["leaf", "plum", "tomato"])
    before = listing(tmp_path)
    with pytest.raises(EvaluationError, match="only the model has plum; only the data has sea"):
        evaluate(example)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("content", [None, b"", b"no picture", "half"])
def test_an_unreadable_test_image_is_refused(example, tmp_path, content):
    manifest = read_manifest(example.data_dir / "pictures")
    lost = Path(manifest[manifest.split == "test"].path.iloc[-1])
    if content is None:
        lost.unlink()
    else:
        lost.write_bytes(lost.read_bytes()[:200] if content == "half" else content)
    before = listing(tmp_path)
    with pytest.raises(EvaluationError, match=f"{lost.name}.*imgclf prepare"):
        evaluate(example)
    assert listing(tmp_path) == before


def test_report_needs_nothing_else(example):
    evaluate(example)
    html = (example.results_dir / "report.html").read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href|srcset|action)\s*=\s*["']?([^"'>\s]{0,40})""", html, re.I)
    assert len(links) > 5 and all(link.startswith("data:image/") for link in links)
    assert not re.search(r"<(?:link|script|iframe)\b|@import|url\(|https?://", html, re.I)


def test_names_that_look_like_formulas_or_are_long(draw):
    labels = ["$^$", "<b>bold", "a_very_long_name_of_a_class_" * 3]   # sorted, as the manifest has them
    settings = draw(labels)
    write_example_bundle(settings.model_dir / "bundle", labels=labels)
    metrics = evaluate(settings)
    assert metrics["labels"] == labels and read_strictly(settings) == metrics
    assert "<b>" not in (settings.results_dir / "report.html").read_text(encoding="utf-8")


def test_pictures_beyond_the_usual_limit_are_shown(tmp_path):
    Image.new("L", (6000, 5000)).save(tmp_path / "large.png")
    test = pd.DataFrame({"path": [str(tmp_path / "large.png")], "label": ["leaf"]})
    [(picture, caption)] = find_top_losses(test, np.array([[0.2, 0.5, 0.3]]), labels=LABELS)
    assert picture.size == (160, 160) and caption == "large.png: leaf, named sea with 50.0%"
