"""What other programs read of an evaluation: strict JSON, the promised keys, and nothing after a refusal."""
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from PIL import Image

from imgclf_nb.bundle import BundleInfo, read_bundle, write_bundle
from imgclf_nb.data import fingerprint_data, prepare_data, read_manifest
from imgclf_nb.evaluate import _say_in_short, evaluate, find_top_losses, summarize_metrics
from imgclf_nb.example import _NETWORK, LABELS, draw_example, write_example_bundle
from imgclf_nb.metrics import bin_confidences, count_independent, estimate_interval
from imgclf_nb.predict import Predictor
from imgclf_nb.probes import CHANGES, _make_noise, disturb, measure_robustness
from imgclf_nb.scoring import EvaluationError
from imgclf_nb.settings import Settings
from imgclf_nb.slices import find_slices, measure_brightness

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
    with pytest.raises(EvaluationError, match="does not know: sea; it knows leaf, plum, tomato"):
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
    assert measure_brightness([tmp_path / "large.png"]).tolist() == [0]


@pytest.mark.parametrize("accuracy", [0.9, 0.95, 0.98, 0.99, 0.995])
def test_the_interval_holds_the_accuracy_on_all_data(accuracy):
    """Test sets of about 400 images, one or two to a group, half of the pairs right or wrong together.

    A thousand of them: with 200, the count itself varies by 1.5 points.
    """
    random = np.random.default_rng(0)
    size, both = random.integers(1, 3, 20_000), random.random(20_000) < 0.5
    first, second = random.random((2, 20_000)) < accuracy
    right = np.stack([first, np.where(both, first, second)])
    true = (right[0].sum() + right[1][size == 2].sum()) / size.sum()

    def covers():
        k = random.integers(0, 20_000, 267)
        number = np.repeat(np.arange(267), size[k])
        answers = np.concatenate([right[: size[j], j] for j in k])
        low, high = estimate_interval(answers, number)
        return low <= true <= high
    held = np.mean([covers() for _ in range(1000)])
    assert 0.93 <= held <= 0.97


@pytest.mark.parametrize("values, groups, expected", [
    ([1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 2, 2], 3),           # three pairs vary more than their own mean shows
    (np.tile([1, 0], 50), np.arange(100) // 2, 100)])      # pairs that never agree make nothing surer than single images
def test_how_many_images_count(values, groups, expected):
    assert count_independent(np.array(values), groups) == pytest.approx(expected)


def test_a_confidence_between_two_bins_is_of_the_lower_one():
    assert list(bin_confidences(np.array([0]), np.array([[0.6, 0.4]])).index) == [9]   # 0.6 = 9/15


def test_images_of_a_group_count_as_fewer(example):
    """Rows lie in the order of their doubt, so those of a group are more often right or wrong together."""
    change_manifest(example, lambda table: table.assign(group=[str(row // 5) for row in range(len(table))]))
    metrics = evaluate(example)
    rows = pd.read_csv(example.results_dir / "predictions.csv")
    right = (rows.label == rows.prediction).to_numpy()
    assert metrics["accuracy_ci95"] == estimate_interval(right, rows.group.to_numpy())
    assert metrics["robustness"][0]["accuracy_ci95"] == metrics["accuracy_ci95"]   # of no change at all
    dark = metrics["slices"]["dark"]
    alone = np.arange(dark["images"])
    assert dark["accuracy_ci95"][0] < estimate_interval(alone < dark["accuracy"] * len(alone), alone)[0]
    assert metrics["accuracy_ci95"][0] < estimate_interval(right, np.arange(len(right)))[0]


def test_the_error_before_the_temperature_is_that_of_the_plain_network(example):
    """The same network twice, the second time with its logits halved."""
    found = []
    for temperature in (1, 2):
        write_example_bundle(example.model_dir / "bundle", temperature=temperature)
        found.append(evaluate(example.model_copy(update={"robustness": False})))
    assert found[1]["ece_before"] == pytest.approx(found[0]["ece"], abs=1e-3)
    assert abs(found[1]["ece"] - found[0]["ece"]) > 0.01


def test_in_short_it_says_what_is_clearly_worse_and_what_hurts_most():
    """A part whose interval holds the accuracy of all is not worse for certain."""
    parts = {"dark": (0.5, [0.4, 0.6]), "small": (0.88, [0.8, 0.95])}
    steps = [("none", 0, 0.9), ("blur", 1, 0.8), ("noise", 9, 0.2)]
    said = " ".join(_say_in_short({
        "accuracy": 0.9, "per_class": {"leaf": {"support": 1, "f1": 1, "f1_ci95": [0, 1]}},
        "slices": {name: {"accuracy": share, "accuracy_ci95": interval} for name, (share, interval) in parts.items()},
        "robustness": [{"change": c, "strength": s, "unit": "px", "accuracy": a, "unsure": 0.1} for c, s, a in steps]}))
    assert "clearly worse: dark (50.0%)." in said and "Hurts most: noise of 9" in said


def test_answers_are_written_image_by_image(example):
    metrics = evaluate(example)
    rows = pd.read_csv(example.results_dir / "predictions.csv", dtype={"sha256": str, "group": str})
    manifest = read_manifest(example.data_dir / "pictures")
    assert sorted(rows.sha256) == sorted(manifest.sha256[manifest.split == "test"])
    assert (rows.label == rows.prediction).mean() == metrics["accuracy"]
    assert 1 - rows.unsure.mean() == metrics["answered"]["coverage"]
    answer = Predictor(example.model_dir / "bundle").predict(example.data_dir / "pictures" / rows.path[0])
    assert (answer.label, answer.unsure) == (rows.prediction[0], rows.unsure[0])
    assert answer.probability == pytest.approx(rows.probability[0], abs=1e-6)


def test_worse_pictures_are_scored_unless_switched_off(example):
    steps = evaluate(example)["robustness"]
    assert [step["change"] for step in steps] == ["none", *np.repeat(["blur", "noise", "jpeg", "rotation"], 3)]
    assert all(step["accuracy_ci95"][0] <= step["accuracy"] <= step["accuracy_ci95"][1] for step in steps)
    assert evaluate(example.model_copy(update={"robustness": False}))["robustness"] == []


def test_the_dark_part_is_found(example):
    files = sorted((Path(path) for path in read_manifest(example.data_dir / "pictures").path), key=str)
    for path in files[::4]:
        Image.open(path).point(lambda value: value // 8).save(path)
    prepare_data(example)
    dark = evaluate(example.model_copy(update={"robustness": False}))["slices"]["dark"]
    assert dark["images"] >= 1 and "darkest quarter" in dark["rule"]


def test_unknown_things_are_counted(example, tmp_path):
    (tmp_path / "unknown").mkdir()
    for name, colour in (("red", (250, 0, 0)), ("grey", (120, 120, 120)), ("white", (255, 255, 255))):
        Image.new("RGB", (40, 40), colour).save(tmp_path / "unknown" / f"{name}.png")
    unknown = evaluate(example.model_copy(update={"unknown_dir": tmp_path / "unknown"}))["unknown"]
    assert (unknown["images"], unknown["folder"]) == (3, "unknown") and unknown["accepted"] == pytest.approx(1 / 3)


def test_a_wrong_folder_of_unknown_things_is_one_line(example, imgclf, tmp_path):
    before = listing(tmp_path)
    ran = imgclf("evaluate", example.source, "--unknown-dir", "nowhere")
    assert (ran.returncode, ran.stdout) == (2, "") and "no such folder" in ran.stderr and ran.stderr.count("\n") == 1
    assert listing(tmp_path) == before


def train(settings):
    """Make the example bundle one that was trained on this data set."""
    manifest = read_manifest(settings.data_dir / "pictures")
    bundle = read_bundle(settings.model_dir / "bundle")
    data = {"name": "pictures", "fingerprint": fingerprint_data(manifest)}
    (bundle.path / "model.onnx").rename(settings.model_dir / "model.onnx")
    write_bundle(bundle.path, bundle.info.model_copy(update={"data": data}), model_file=settings.model_dir / "model.onnx")


def test_the_card_carries_the_score(example):
    train(example)
    metrics = evaluate(example)
    bundle = read_bundle(example.model_dir / "bundle")
    card = (bundle.path / "README.md").read_text(encoding="utf-8")
    assert f"| accuracy | {metrics['accuracy']:.1%} (" in card and card.count("## Score") == 1
    for change, (unit, strengths) in CHANGES.items():   # each as strong as it was tried, and no weaker
        assert card.count(f"| {change}, ") == card.count(f"| {change}, {strengths[-1]:g} ({unit}) |") == 1
    assert metrics["model"]["sha256"] == bundle.sha256   # so that the page shows this score for this bundle
    assert {**evaluate(example), "seconds": 0} == {**metrics, "seconds": 0}
    assert read_bundle(bundle.path).sha256 == bundle.sha256


def test_the_card_of_a_model_from_other_data_stays(example):
    before = read_bundle(example.model_dir / "bundle").sha256
    assert evaluate(example)["model"]["sha256"] == before == read_bundle(example.model_dir / "bundle").sha256


def test_another_source_of_the_same_name_is_not_scored(example, imgclf, tmp_path):
    """`b/pictures` has the name of what was prepared, and was never looked at."""
    (tmp_path / "b" / "pictures" / "red").mkdir(parents=True)
    before = listing(tmp_path)
    ran = imgclf("evaluate", "b/pictures")
    assert (ran.returncode, ran.stdout) == (2, "") and "was prepared from" in ran.stderr and ran.stderr.count("\n") == 1
    assert listing(tmp_path) == before
    assert imgclf("evaluate", "--name", "pictures", "--no-robustness").returncode == 0   # who names it means it


def test_a_model_is_scored_on_pictures_for_a_test_alone(example, imgclf, tmp_path):
    """All of them count, none is for training, and who tries to train on them is told."""
    for number, label in enumerate(LABELS):
        (tmp_path / "spring" / "test" / label).mkdir(parents=True)
        for seed in range(4):
            draw_example(number, seed=100 + 10 * number + seed).save(tmp_path / "spring" / "test" / label / f"{seed}.png")
    ran = imgclf("prepare", "spring", "--no-twins")   # which network to look at the labels with, nobody has said
    assert ran.returncode == 0 and "labels not looked at: name the network with --arch" in ran.stdout and not ran.stderr.count("download")
    assert set(read_manifest(tmp_path / "data" / "spring").split) == {"test"}
    ran = imgclf("evaluate", "spring", "--no-robustness")
    assert ran.returncode == 0, ran.stderr
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert (metrics["dataset"]["name"], metrics["dataset"]["n_test"], metrics["accuracy"]) == ("spring", 4 * len(LABELS), 1)
    before = listing(tmp_path)
    ran = imgclf("train", "spring")
    assert (ran.returncode, ran.stdout) == (2, "") and "test images alone" in ran.stderr
    assert listing(tmp_path) == before


@pytest.mark.parametrize("tested", [LABELS[:2], LABELS[:1]])
def test_a_model_is_scored_on_some_of_its_classes(example, imgclf, tmp_path, tested):
    """The others are named, and count as little as they were asked for."""
    for number, label in enumerate(tested):
        (tmp_path / "spring" / "test" / label).mkdir(parents=True)
        for seed in range(4):
            draw_example(number, seed=100 + 10 * number + seed).save(tmp_path / "spring" / "test" / label / f"{seed}.png")
    assert imgclf("prepare", "spring", "--no-audit", "--no-twins").returncode == 0
    ran = imgclf("evaluate", "spring")
    assert ran.returncode == 0, ran.stderr
    missing = ", ".join(label for label in LABELS if label not in tested)
    assert re.search(f"not tested +{missing}\n", ran.stdout) and ("in 2 classes," if len(tested) == 2 else "in 1 class,") in ran.stdout
    report = (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
    assert f"no test image shows them: {missing}" in report
    assert "the score flatters" in report and "apart from the training images" not in report
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert (metrics["accuracy"], metrics["macro_f1"], metrics["weighted_f1"]) == (1, 1, 1)


@pytest.mark.parametrize("gone", [True, False])
def test_a_bundle_that_is_replaced_meanwhile_gets_no_score(example, monkeypatch, capsys, gone):
    """A training ends while the test images are asked about: its model is not the one that was scored."""
    import imgclf_nb.evaluate as module
    train(example)
    bundle, probe = read_bundle(example.model_dir / "bundle"), module.score_probes
    def replace(*args, **options):
        found = probe(*args, **options)
        if gone:
            bundle.path.rename(example.model_dir / "elsewhere")
        else:
            write_bundle(bundle.path, bundle.info.model_copy(update={"temperature": 1.5}),
                         model_file=example.model_dir / "model.onnx")
        return found
    monkeypatch.setattr(module, "score_probes", replace)
    metrics = evaluate(example)
    assert metrics["model"]["sha256"] == bundle.sha256 and read_strictly(example)["accuracy"] == metrics["accuracy"]
    assert "the model card stays as it is" in capsys.readouterr().err
    if not gone:
        assert "## Score" not in (bundle.path / "README.md").read_text(encoding="utf-8")


def test_what_is_asked_about_is_worse(example):
    """Each picture comes as it is and changed in twelve ways, of which the strongest of a kind differ from it and each other."""
    predictor, seen = Predictor(example.model_dir / "bundle"), []
    ask = predictor.predict_many
    predictor.predict_many = lambda pictures, **options: ask((seen.append(p) or p for p in pictures), **options)
    measure_robustness(predictor, read_manifest(example.data_dir / "pictures").head(9))
    assert len(seen) == 9 * 13
    for n in range(0, len(seen), 13):
        assert len({picture.tobytes() for picture in seen[n:n + 13:3]}) == 5
    steps = [(change, strength) for change, (_, strengths) in CHANGES.items() for strength in strengths]
    for picture, step in zip(seen[1:], steps):   # made of the picture as it is, not of the step before
        assert (picture == disturb(seen[0], *step)).all(), step


def test_blur_goes_with_the_size_of_the_picture():
    """As wide on a picture twice as large, or the score would depend on the model's size."""
    def measure_edge(side):
        edge = np.zeros((side, side, 3), np.uint8)
        edge[:, side // 2:] = 255
        row = disturb(edge, "blur", 2)[side // 2, :, 0]
        return ((row > 5) & (row < 250)).sum()
    assert measure_edge(400) == pytest.approx(2 * measure_edge(200), abs=2)


def test_noise_is_the_same_in_each_run_and_a_turn_brings_no_black_corners():
    grey = np.full((64, 64, 3), 128, np.uint8)
    first = disturb(grey, "noise", 50)
    _make_noise.cache_clear()   # as a new process begins
    assert (disturb(grey, "noise", 50) == first).all() and first.std() > 40
    assert (disturb(grey, "rotation", 30) == 128).all()


@pytest.mark.parametrize("rows, sources", [
    ([("one/1.png", "cat"), ("two/1.png", "dog")], []),   # each class has its folder, whatever that is called
    ([(f"{camera}/{folder}/1.png", label) for camera in "ab" for folder, label in (("cafe\u0301", "caf\u00e9"), ("tea", "tea"))],
     ["from a", "from b"])])                              # macOS writes names of folders in the other form
def test_a_source_is_no_class(tmp_path, rows, sources):
    table = pd.DataFrame([(tmp_path / path, label) for path, label in rows], columns=["path", "label"])
    found = find_slices(table.assign(width_px=40, height_px=40), np.full(len(table), 99.0))
    assert list(found) == sources
