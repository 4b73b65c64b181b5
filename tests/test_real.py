"""The main job on real photographs, as the README gives it."""
import json
import re

import pandas as pd
import pytest

pytestmark = pytest.mark.real
METRICS = {"schema", "labels", "n_test", "accuracy", "accuracy_ci95", "top5_accuracy", "macro_f1", "weighted_f1", "log_loss",
           "brier", "ece", "per_class", "confusion_matrix", "dataset", "model", "versions", "seed", "seconds"}
LARGEST = ["airplanes", "Motorbikes", "Faces", "Faces_easy", "watch", "Leopards", "bonsai", "car_side", "ketch", "chandelier"]


def test_ten_largest_classes(imgclf, tmp_path, real_archive):
    """The tar as it is, the default recipe: at least 99 % on the test split, and every file of the contract."""
    result = imgclf("run", real_archive, "--top-n", "10", "--arch", "efficientnet_lite0", timeout=1500)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    print(result.stdout)
    assert METRICS <= set(metrics)
    assert metrics["accuracy"] >= 0.99
    assert sorted(metrics["labels"]) == sorted(LARGEST)
    low, high = metrics["accuracy_ci95"]
    assert low <= metrics["accuracy"] <= high

    data = tmp_path / "data" / "caltech101"
    manifest = pd.read_csv(data / "manifest.csv")
    assert list(manifest.columns) == ["path", "label", "split", "sha256", "width_px", "height_px", "group"]
    assert metrics["n_test"] == (manifest.split == "test").sum()
    assert manifest.groupby("group").split.nunique().max() == 1
    for path in ("data/caltech101/quarantine.csv", "data/caltech101/report.html", "model/efficientnet_lite0_finetuned.pth",
                 "model/bundle/model.onnx", "model/bundle/bundle.json", "model/bundle/README.md", "results/history.csv",
                 "results/history.png", "results/confusion_matrix.png", "results/report.html"):
        assert (tmp_path / path).stat().st_size > 0, path
    assert not re.search(r'(src|href)="https?://', (tmp_path / "results" / "report.html").read_text())
