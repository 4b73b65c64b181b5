"""The audit of a data set: what was planted is found, the lists can be read, and training uses the features again."""
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from imgclf_nb.audit import audit_data, find_label_errors, rate_distance
from imgclf_nb.backbones import load_backbone
from imgclf_nb.data import prepare_data
from imgclf_nb.report import write_report
from imgclf_nb.settings import Settings

CENTRES = np.eye(4, 16) * 4


def draw_features(n_images, *, seed=0):
    """Four clouds that hardly overlap, and the class of each row."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, n_images)
    return CENTRES[labels] + random.normal(size=(n_images, 16)), np.array(list("abcd"))[labels]


def test_wrong_labels_lead_the_list():
    features, labels = draw_features(800)
    wrong, planted = labels.copy(), np.arange(0, 800, 20)
    wrong[planted] = np.array(list("bcda"))[[list("abcd").index(label) for label in labels[planted]]]
    suspects = find_label_errors(features, wrong, np.arange(800))
    assert set(suspects.row) == set(range(800)) and suspects.score.is_monotonic_increasing
    assert suspects.row[:80].isin(planted).sum() >= 38
    flagged = suspects[suspects.is_error]
    assert flagged.row.isin(planted).mean() > 0.9 and (flagged.score < 0.5).all()
    found = flagged[flagged.row.isin(planted)]
    assert (found.suggested.to_numpy() == labels[found.row]).mean() > 0.9


def test_a_group_does_not_vouch_for_itself():
    """Ten copies of a picture with the same wrong label: seen while fitting, they would confirm each other."""
    features, labels = draw_features(200)
    copies, groups = np.arange(10), np.arange(200)
    features[copies] = CENTRES[0] + 30 * np.eye(16)[15]
    labels[copies], groups[copies] = "b", 0
    apart = find_label_errors(features, labels, np.arange(200)).set_index("row").score[copies]
    together = find_label_errors(features, labels, groups).set_index("row").score[copies]
    assert together.max() < 0.5 < apart.min()


def test_a_class_in_one_group_is_not_accused():
    features, labels = draw_features(200)
    groups = np.where(labels == "d", -1, np.arange(200))
    suspects = find_label_errors(features, labels, groups)
    assert set(suspects.label) == {"a", "b", "c"}
    assert find_label_errors(features[:3], np.array(list("abc")), np.arange(3)).empty


def test_features_without_any_difference_are_no_error():
    suspects = find_label_errors(np.zeros((40, 8)), np.array(list("ab") * 20), np.arange(40))
    assert len(suspects) == 40 and np.isfinite(suspects.score).all()
    assert (rate_distance(np.ones((40, 8)), np.array(["a"] * 40)) == 0).all()


@pytest.fixture
def stripes(tmp_path):
    """Three classes of stripes with the names that break tables; two wrong labels, a black picture, a long one."""
    random, folder = np.random.default_rng(0), tmp_path / "stripes"
    for period, label in ((4, "NA"), (9, "01"), (25, "with, comma")):
        (folder / label).mkdir(parents=True)
        for k in range(40):
            wave = 128 + 100 * np.sin(2 * np.pi * (np.arange(64) + random.uniform(0, 9)) / period)[None, :, None]
            pixels = (wave + random.normal(0, 12, (64, 64, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{k:02}.png")
    for k in (7, 8):
        os.rename(folder / "NA" / f"{k:02}.png", folder / "01" / f"wrong{k}.png")
    Image.fromarray(random.integers(0, 30, (64, 64, 3), np.uint8)).save(folder / "01" / "black.png")
    Image.open(folder / "01" / "00.png").resize((400, 60)).save(folder / "01" / "long.png")
    return Settings(source=str(folder), data_dir=tmp_path / "data", arch="efficientnet_lite0", image_size_px=64).resolve()


def test_lists_and_report_of_a_folder(stripes):
    data = prepare_data(stripes)
    sections, _ = audit_data(stripes, load_backbone("efficientnet_lite0", size_px=64))
    suspects = pd.read_csv(data / "suspects.csv", dtype={"label": str, "suggested": str}, keep_default_na=False)
    assert list(suspects) == ["path", "label", "suggested", "score", "is_error"]
    wrong = suspects[suspects.path.str.contains("wrong")]
    assert len(wrong) == 2 and set(wrong.suggested) == {"NA"} and set(wrong.label) == {"01"}
    odd = pd.read_csv(data / "odd.csv")
    assert list(odd) == ["path", "kind", "value"]
    assert ("black", "dark") in {(path.split("/")[-1][:-4], kind) for path, kind in zip(odd.path, odd.kind)}
    assert odd[odd.kind == "extreme aspect"].path.str.endswith("long.png").all()
    known = set(pd.read_csv(data / "manifest.csv").path)
    assert set(suspects.path) | set(odd.path) <= known
    page = write_report(data / "audit.html", "Audit", sections).read_text(encoding="utf-8")
    assert "01: rather NA?" in page and f"Extreme aspect (aspect over 3): {(odd.kind == 'extreme aspect').sum()}." in page


def test_what_the_audit_lists_can_be_dropped(stripes, tmp_path, imgclf):
    """With folders as they are by default, relative to where one is, and pictures that lie in the data folder."""
    shutil.make_archive(tmp_path / "stripes", "zip", tmp_path, "stripes")
    words = ["prepare", "stripes.zip", "--arch", "efficientnet_lite0", "--image-size-px", "64"]
    assert (first := imgclf(*words)).returncode == 0, first.stderr
    data = tmp_path / "data" / "stripes"
    lists = {name: pd.read_csv(data / f"{name}.csv").path for name in ("suspects", "odd", "manifest")}
    assert len(lists["suspects"]) and set(lists["suspects"]) | set(lists["odd"]) <= set(lists["manifest"])
    shutil.copy(data / "suspects.csv", tmp_path / "mine.csv")
    assert (second := imgclf(*words, "--drop", "mine.csv")).returncode == 0, second.stderr
    assert set(pd.read_csv(data / "manifest.csv").path) == set(lists["manifest"]) - set(lists["suspects"])
    third = imgclf(*words, "--drop", data / "suspects.csv")   # which every audit writes anew: others would be dropped each time
    assert third.returncode == 2 and "copy it to another folder" in third.stderr
    assert (data / "suspects.csv").exists() and imgclf(*words, "--no-audit").returncode == 0
    assert not (data / "suspects.csv").exists() and not (data / "odd.csv").exists()   # they were of another manifest


MEMORY = """
import resource
import numpy as np
from imgclf_nb.audit import find_label_errors
peak_mb = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
features, labels = np.random.default_rng(0).random((20_000, 1280), np.float32).astype(np.float16), np.arange(20_000) % 10
find_label_errors(features[:2_000], labels[:2_000], np.arange(2_000))
before = peak_mb()
find_label_errors(features, labels, np.arange(20_000))
print(peak_mb() - before)
"""


def test_the_audit_takes_little_memory_for_each_picture():
    """Otherwise 100,000 pictures take a gigabyte more than their features."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100, done.stdout


def test_features_are_computed_once(stripes, monkeypatch):
    """The second audit, and a training after it, read what the first has written."""
    data, backbone = prepare_data(stripes), load_backbone("efficientnet_lite0", size_px=64)
    audit_data(stripes, backbone)
    first = (data / "suspects.csv").read_bytes()

    def refuse(*_, **__):
        raise AssertionError("the features are computed again")
    monkeypatch.setattr("imgclf_nb.features.run_frozen", refuse)
    audit_data(stripes, load_backbone("efficientnet_lite0", size_px=64))
    assert (data / "suspects.csv").read_bytes() == first
    from imgclf_nb.recipes import train_model
    folder = stripes.data_dir.parent
    train_model(stripes.model_copy(update={"fine_tune_epochs": 0, "model_dir": folder / "model", "results_dir": folder / "results"}))
