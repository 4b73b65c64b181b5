"""Two runs compared, and one repeated, as a user does it: what is said, what is refused, what is left alone."""
import json
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from imgclf_nb.compare import compare_runs, say_difference
from imgclf_nb.data import prepare_data
from imgclf_nb.evaluate import evaluate
from imgclf_nb.example import write_example_bundle, write_example_pictures
from imgclf_nb.reproduce import _place, read_git_state, record_run, reproduce_run
from imgclf_nb.settings import Settings


def write_run(folder, right, groups=None, first=0):
    """A results folder of a model that is right on the images where `right` says so."""
    folder.mkdir()
    n = len(right)
    rows = pd.DataFrame({"path": [f"{i}.jpg" for i in range(n)], "sha256": [f"{first + i:064x}" for i in range(n)],
                         "group": np.arange(n) if groups is None else groups, "label": "cat"})
    rows.assign(prediction=np.where(right, "cat", "dog"), probability=0.9, unsure=False).to_csv(
        folder / "predictions.csv", index=False)
    scores = {"accuracy": float(np.mean(right)), "model": {"name": folder.name, "arch": "resnet18"}}
    (folder / "metrics.json").write_text(json.dumps(scores))
    return folder


@pytest.fixture
def scored(tmp_path):
    """Settings of a small data set that the example bundle was scored on."""
    write_example_pictures(tmp_path / "pictures", images=14, doubt=0.04)
    settings = Settings(source=str(tmp_path / "pictures"), data_dir=tmp_path / "data", model_dir=tmp_path / "model",
                        results_dir=tmp_path / "results", robustness=False)
    prepare_data(settings)
    write_example_bundle(settings.model_dir / "bundle")
    return settings


def test_a_real_difference_and_luck(imgclf, tmp_path):
    n = np.arange(400)
    write_run(tmp_path / "good", n >= 8)
    write_run(tmp_path / "poor", n >= 40)
    write_run(tmp_path / "lucky", (n >= 10) | (n < 3))   # 3 right that `good` has wrong, 2 the other way
    ran = imgclf("compare", "good", "poor")
    assert ran.returncode == 0 and "The difference is real: A is better; A has +8.00 points" in ran.stdout
    assert imgclf("compare", "poor", "good").stdout.splitlines()[-1].startswith("The difference is real: B is better")
    assert imgclf("compare", "good", "lucky").stdout.splitlines()[-1].startswith("Can't tell")


def test_the_score_of_an_earlier_model_is_not_compared(imgclf, scored, tmp_path):
    """After `train` alone, the folder still holds the score of the model before it."""
    for name in ("results", "before"):
        evaluate(scored.model_copy(update={"results_dir": tmp_path / name}))
        record_run(scored.model_copy(update={"results_dir": tmp_path / name}), "evaluate")
    assert imgclf("compare", "before", "results").returncode == 0
    write_example_bundle(scored.model_dir / "bundle", temperature=2)
    record_run(scored, "train")
    ran = imgclf("compare", "before", "results")
    assert ran.returncode == 2 and "results was trained anew since; run `imgclf evaluate` first" in ran.stderr
    evaluate(scored)
    file = record_run(scored, "evaluate")
    part = json.loads(file.read_text())["parts"][-1]   # an int8 model's record begins with the training of the float one
    file.write_text(json.dumps({"schema": 1, "parts": [{**part, "steps": ["train"], "network": "0" * 64}, part]}))
    assert imgclf("compare", "before", "results").returncode == 0


def test_test_images_that_changed_are_no_test_images(imgclf, scored, tmp_path):
    """The new file may be one that the model has learned from."""
    manifest = pd.read_csv(tmp_path / "data" / "pictures" / "manifest.csv")
    there = scored.data_dir / "pictures"
    test, train = (there / manifest.path[manifest.split == split].iloc[0] for split in ("test", "train"))
    test.write_bytes(train.read_bytes())
    ran = imgclf("evaluate", scored.source, "--no-robustness")
    assert ran.returncode == 2 and f"{test.name} has changed since" in ran.stderr and not (tmp_path / "results").exists()


def test_copies_of_one_photograph_are_no_evidence(tmp_path):
    n, groups = np.arange(400), np.arange(400) // 20   # one photograph twenty times makes the difference
    single = compare_runs(write_run(tmp_path / "a", n >= 0), write_run(tmp_path / "b", n >= 20))[0]
    copies = compare_runs(write_run(tmp_path / "c", n >= 0, groups), write_run(tmp_path / "d", n >= 20, groups))[0]
    assert "The difference is real" in single and "Can't tell" in copies


def test_images_are_the_same_whatever_they_are_called(tmp_path):
    """The data set of the second run has them under other names, in another order."""
    a, b = (write_run(tmp_path / name, np.arange(40) >= 4) for name in "ab")
    rows = pd.read_csv(b / "predictions.csv", dtype=str)
    rows.assign(path=rows.path.to_numpy()[::-1]).to_csv(b / "predictions.csv", index=False)
    assert compare_runs(a, b)[0].splitlines()[-1].startswith("No difference")


def test_a_small_p_with_an_interval_over_0_is_no_real_difference():
    found = {"images": 50, "a_only": 9, "b_only": 1, "group_wins": [9, 1], "difference": 0.05, "p_value": 0.03}
    assert say_difference({**found, "difference_ci95": [-0.01, 0.1]}, "A", "B").startswith("The difference may be luck")
    assert say_difference({**found, "difference_ci95": [0.01, 0.1]}, "A", "B").startswith("The difference is real: A")


@pytest.mark.parametrize("words, said", [
    (["a"], "takes two results folders"), (["a", "b", "a"], "takes two results folders"),
    (["a", "nowhere"], "nowhere/predictions.csv is in no folder"), (["a", "other"], "0 are the same"),
    (["a", "empty"], "predictions.csv is missing"), (["a", "broken"], "has no column")])
def test_what_can_not_be_compared_is_one_line(imgclf, tmp_path, words, said):
    write_run(tmp_path / "a", np.ones(20, bool))
    write_run(tmp_path / "other", np.ones(20, bool), first=100)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "predictions.csv").write_text("a,b\n1,2\n")
    ran = imgclf("compare", *words)
    assert (ran.returncode, ran.stdout) == (2, "") and said in ran.stderr and ran.stderr.count("\n") == 1


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"model": 3}'])
def test_records_of_another_shape_are_one_line(imgclf, tmp_path, text):
    for name in "ab":
        write_run(tmp_path / name, np.ones(20, bool))
    (tmp_path / "b" / "metrics.json").write_text(text)
    (tmp_path / "b" / "run.json").write_text(text)
    for words in (["compare", "a", "b"], ["reproduce", "b"]):
        ran = imgclf(*words)
        assert (ran.returncode, ran.stdout) == (2, "") and "evaluate" in ran.stderr and ran.stderr.count("\n") == 1


def test_differences_that_cancel_out_are_differences(tmp_path):
    n = np.arange(40)
    said, found = compare_runs(write_run(tmp_path / "a", n != 0, n // 2), write_run(tmp_path / "b", n != 1, n // 2))
    assert (found["a_only"], found["b_only"]) == (1, 1) and said.splitlines()[-1].startswith("Can't tell")
    said, found = compare_runs(write_run(tmp_path / "c", n >= 0, n * 0), write_run(tmp_path / "d", n < 0, n * 0))
    assert found["difference_ci95"] == [-1, 1] and said.splitlines()[-1].startswith("Can't tell")


def test_an_evaluation_is_recorded_and_repeated(imgclf, scored, tmp_path):
    places = ["--data-dir", scored.data_dir, "--model-dir", scored.model_dir, "--no-robustness"]
    ran = imgclf("evaluate", scored.source, *places)
    assert ran.returncode == 0, ran.stderr
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    [part] = json.loads((tmp_path / "results" / "run.json").read_text())["parts"]
    assert part["steps"] == ["evaluate"] and part["seed"] == 42 and part["settings"]["robustness"] is False
    assert part["versions"]["openvino"] and part["hardware"]["cores"] and len(part["data"]["fingerprint"]) == 64

    ran = imgclf("reproduce", "results", "again")
    assert ran.returncode == 0, ran.stderr
    found = dict(line.strip().split(maxsplit=1) for line in ran.stdout.splitlines()[1:])
    assert [found[name] for name in ("settings", "versions", "hardware", "data", "network", "metrics")] == ["the same"] * 6
    assert "the bundle was copied" in found["training"]   # or "the same" would seem to speak of a training
    assert before.items() <= {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}.items()

    ran = imgclf("reproduce", "results", "again")
    assert ran.returncode == 2 and "exists already" in ran.stderr and ran.stderr.count("\n") == 1


def test_a_training_is_repeated_with_the_defaults_of_its_day(scored):
    """Defaults are recorded; a record from before there were roots and fields trains without them."""
    lite = scored.model_copy(update={"arch": "efficientnet_lite0"})
    [part] = json.loads(record_run(lite, "train").read_text())["parts"]
    assert [part["settings"][name] for name in ("power_norm", "pool_grid", "fine_tune_lr", "recipe")] == [True, 2, 2e-4, "fast"]
    old = {**part, "settings": {**part["settings"], "fine_tune_lr": None, "recipe": None}}
    before = {name: value for name, value in old["settings"].items() if name not in ("power_norm", "pool_grid")}
    for settings, *expected in ((old["settings"], True, 2, 2e-4), (before, False, 1, 1e-4)):
        again = _place({**old, "settings": settings}, [part], scored.data_dir.parent / "again").resolve()
        assert [again.power_norm, again.pool_grid, again.fine_tune_lr, again.recipe] == [*expected, "fast"]


def test_each_part_is_repeated_with_its_own_data(scored, tmp_path):
    """A model that was also scored on a data set that another command prepared."""
    evaluate(scored)
    [part] = json.loads(record_run(scored, "prepare", "evaluate").read_text())["parts"]
    other = {**part, "steps": ["evaluate"], "settings": {**part["settings"], "name": "other"}}
    (scored.data_dir / "other").mkdir()
    places = [_place(each, [part, other], tmp_path / "again").data_dir for each in (part, other)]
    assert places == [tmp_path / "again" / "data", scored.data_dir]


def test_a_step_that_is_done_again_takes_the_place_of_the_first(scored):
    """A repetition of the run would otherwise evaluate twice."""
    for steps in (["prepare", "evaluate"], ["evaluate"]):
        file = record_run(scored, *steps)
    assert [part["steps"] for part in json.loads(file.read_text())["parts"]] == [["prepare"], ["evaluate"]]


def test_a_source_is_recorded_so_that_it_is_found_from_anywhere(scored, monkeypatch):
    monkeypatch.chdir(scored.data_dir.parent)
    [part] = json.loads(record_run(scored.model_copy(update={"source": "pictures"}), "prepare").read_text())["parts"]
    assert part["settings"]["source"] == scored.source


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_files_that_git_does_not_know_change_no_code(tmp_path):
    for words in (["init", "-q"], ["add", "code"], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "x"]):
        (tmp_path / "code").write_text("1")
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    (tmp_path / "results").write_text("")
    assert read_git_state(tmp_path)["dirty"] is False
    (tmp_path / "code").write_text("2")
    assert read_git_state(tmp_path)["dirty"] is True


def test_other_data_are_noticed(scored, tmp_path):
    evaluate(scored)
    record_run(scored, "evaluate")
    manifest = pd.read_csv(scored.data_dir / "pictures" / "manifest.csv", dtype=str)
    lost = manifest[manifest.split == "test"].index[0]
    manifest.drop(index=lost).to_csv(scored.data_dir / "pictures" / "manifest.csv", index=False)
    _, found = reproduce_run(scored.results_dir, tmp_path / "again")
    assert "fingerprint" in found["data"] and "n_test" in found["metrics"] and found["first choices"] == "other test images"


def test_secrets_stay_secret_and_git_may_be_missing(scored, monkeypatch):
    monkeypatch.setenv("PATH", "")
    evaluate(scored)
    text = record_run(scored.model_copy(update={"api_key": "very secret key"}), "evaluate").read_text()
    assert "very secret" not in text and json.loads(text)["parts"][0]["git"] is None


def test_a_record_of_a_later_version_is_refused(imgclf, scored, tmp_path):
    scored.results_dir.mkdir()
    (scored.results_dir / "run.json").write_text('{"schema": 2, "parts": [{}]}')
    ran = imgclf("reproduce", "results")
    assert ran.returncode == 2 and "schema 1" in ran.stderr and not (tmp_path / "results_reproduced").exists()
