"""What a model does with things that it never learned: published scores compared on Caltech-101.

    python benchmarks/unknown.py DATA BUNDLE [--cache FOLDER]

DATA is a folder that `imgclf prepare caltech101` made (ten largest classes; its `images` hold the other folders too),
BUNDLE what `imgclf train` made of it. Known: the test images. Unknown: BACKGROUND_Google and the classes that are not
among the ten. Every score is fitted on training features, its limit on the validation images at 95 % answered, and no
unknown picture takes part in either. Writes benchmarks/unknown.md and unknown.png.
"""
import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from imgclf_nb.calibrate import calibrate_model, find_logits, fit_reference
from imgclf_nb.judge import LOW, UNLIKE, Judge, measure_distance
from imgclf_nb.predict import Predictor

HERE = Path(__file__).resolve().parent
ANSWERED = 0.95


def compute_outputs(data, bundle, cache):
    """Features, probabilities, mean evidence, class (-1: unknown) and part of each picture; once for a bundle."""
    predictor = Predictor(bundle)
    file = cache / f"unknown-{predictor.sha256[:16]}.npz"
    if not file.exists():
        manifest = pd.read_csv(data / "manifest.csv")
        split, group = (dict(zip(manifest.path, manifest[name])) for name in ("split", "group"))
        paths = sorted((data / "images").rglob("*.jpg"))

        def compute(path):
            outputs = predictor.run(predictor.decode(path)[None])
            return [outputs["features"][0], outputs["probabilities"][0], outputs["evidence"][0].mean((1, 2))]
        with ThreadPoolExecutor(4) as pool:
            features, probabilities, evidence = map(np.stack, zip(*pool.map(compute, paths)))
        names = [path.relative_to(data).as_posix() for path in paths]
        labels = [path.parent.name for path in paths]
        parts = [split.get(name) or ("" if label in predictor.labels else
                                     "background" if label == "BACKGROUND_Google" else "others")
                 for name, label in zip(names, labels)]   # "": a known class, but set aside by prepare
        np.savez(file, features=features, probabilities=probabilities, evidence=evidence, part=np.array(parts),
                 truth=np.array([predictor.labels.index(x) if x in predictor.labels else -1 for x in labels]),
                 group=np.array([str(group.get(name, "")) for name in names]))
    with np.load(file) as arrays:
        return dict(arrays), predictor.info


def find_scores(out, info, temperature):
    """Each published score for all pictures, larger for what is less known, and where it comes from."""
    features, truth = out["features"].astype(float), out["truth"]
    train = out["part"] == "train"
    logits = find_logits(out["probabilities"], info.temperature)
    bias = np.median((d := logits - out["evidence"]) - d[:, :1], 0)   # the head's, but for a constant
    logits = out["evidence"] + bias                                   # the head's logits, but for that constant
    weights = np.linalg.lstsq(features[train], out["evidence"][train], rcond=None)[0]
    energy = -logsumexp(logits, axis=1)
    yield "maximum softmax probability", "Hendrycks 2017", -softmax(logits / temperature, axis=1).max(1)
    yield "energy", "Liu 2020", energy

    def measure_mahalanobis(x):
        means = np.stack([x[train & (truth == c)].mean(0) for c in range(len(info.labels))])
        within = LedoitWolf(assume_centered=True).fit(x[train] - means[truth[train]]).precision_
        root = np.linalg.cholesky(within)
        return np.stack([np.square((x - mean) @ root).sum(1) for mean in means]).min(0)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    yield "Mahalanobis", "Lee 2018", measure_mahalanobis(features)
    yield "Mahalanobis, features of length 1", "Lee 2018, as above", measure_mahalanobis(unit)

    centred = features + np.linalg.pinv(weights.T) @ bias
    residual = np.linalg.norm(centred @ np.linalg.eigh(centred[train].T @ centred[train])[1][:, :-256], axis=1)
    scale = logits[train].max(1).sum() / residual[train].sum()
    yield "ViM (256 directions)", "Wang 2022", scale * residual + energy

    similar = unit @ unit[train].T
    for k in (1, 10, 50):
        yield f"{k}-th nearest neighbour" if k > 1 else "nearest neighbour", "Sun 2022", -np.sort(similar, 1)[:, -k]
    yield "nearest neighbour in 128 directions", "as kept", measure_distance(out["features"], fit_reference(out["features"][train]))


def describe(part, answered, auroc=None):
    """A row's cells: share answered of each part."""
    cells = [f"{answered[part == name].mean():.1%}" for name in ("test", "background", "others")]
    return cells + ["" if auroc is None else f"{auroc[0]:.3f}, {auroc[1]:.3f}"]


def measure_ece(confidences, right, groups, draws=1000):
    """Expected calibration error in 15 bins of equal width, and its 95 % interval over groups."""
    def compute(rows):
        bins = np.minimum((confidences[rows] * 15).astype(int), 14)
        return sum(abs((confidences[rows] - right[rows])[bins == b].sum()) for b in range(15)) / len(rows)
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    draw = np.random.default_rng(0)
    values = [compute(np.concatenate([members[k] for k in draw.integers(len(members), size=len(members))]))
              for _ in range(draws)]
    return compute(np.arange(len(right))), *np.percentile(values, [2.5, 97.5])


def plot(out, confidences, distances, limits, scores, file):
    """Left: answered unknown against answered known. Right: where known and unknown pictures lie."""
    import matplotlib.pyplot as plt
    part = out["part"]
    unknown = np.isin(part, ("background", "others"))
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6))
    for name, _, score in scores:
        cuts = np.quantile(score[part == "test"], levels := np.linspace(0.8, 1, 201))
        left.plot(100 * levels, [100 * (score[unknown] <= cut).mean() for cut in cuts], label=name)
    left.axvline(95, color="grey", lw=0.8, ls=":")
    left.set(xlabel="known test images answered, %", ylabel="unknown images answered, %", ylim=(0, 30), xlim=(80, 100))
    left.legend(fontsize=7.5, frameon=False)
    for name, colour in (("others", "#d97706"), ("background", "#7c3aed"), ("test", "#0f766e")):
        rows = part == name
        text = {"others": "other classes", "background": "BACKGROUND_Google", "test": "known (test)"}[name]
        right.scatter(distances[rows], confidences[rows], s=5, alpha=0.4, color=colour, label=f"{text}, {rows.sum():,}")
    right.axvline(limits["unlike"], color="black", lw=0.8)
    right.axhline(limits["unsure"], color="black", lw=0.8)
    right.set(xlabel="distance from the nearest training image", ylabel="calibrated confidence")
    right.text(0.1, 0.4, "answered: above the one line\nand left of the other", fontsize=8)
    right.legend(fontsize=8, frameon=False, markerscale=2, loc="lower left")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    fig.tight_layout()
    fig.savefig(file, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()))
    words = parser.parse_args()
    out, info = compute_outputs(words.data, words.bundle, words.cache)
    part, truth = out["part"], out["truth"]
    rows = {name: part == name for name in ("train", "val", "test", "background", "others")}
    val = {name: out[name][rows["val"]] for name in ("probabilities", "features", "truth")}
    fitted, reference = calibrate_model(val, {"features": out["features"][rows["train"]]}, temperature=info.temperature)
    temperature, limits = fitted["temperature"], fitted["thresholds"]

    scores, table = list(find_scores(out, info, temperature)), []
    for name, source, score in scores:
        k = int((1 - ANSWERED) * (rows["val"].sum() + 1))
        limit = np.sort(score[rows["val"]])[-k]
        auroc = [roc_auc_score(np.r_[np.zeros(rows["test"].sum()), np.ones(rows[n].sum())],
                               np.r_[score[rows["test"]], score[rows[n]]]) for n in ("background", "others")]
        table.append([name, source, *describe(part, score <= limit, auroc)])

    logits = find_logits(out["probabilities"], info.temperature)
    probabilities = np.exp(log_softmax(logits / temperature, axis=1))
    confidences, right = probabilities.max(1), probabilities.argmax(1) == truth
    judge = Judge(limits, reference, n_features=out["features"].shape[1])
    reasons = np.array([judge(*pair) or "" for pair in zip(confidences, out["features"])])
    began = time.perf_counter()
    for features in out["features"][:500]:
        judge(1.0, features)
    judge_ms = 1000 * (time.perf_counter() - began) / 500
    table.append(["**kept: nearest neighbour and confidence**", "half the share each", *describe(part, reasons == "")])
    because = {reason: [f"{(reasons[rows[name]] == reason).mean():.1%}" for name in ("test", "background", "others")]
               for reason in (UNLIKE, LOW)}
    test, groups = rows["test"], out["group"][rows["test"]]
    sure = test & (reasons == "")
    before, after = (measure_ece(p.max(1)[test], right[test], groups) for p in (softmax(logits, axis=1), probabilities))
    distances = measure_distance(out["features"], reference)
    plot(out, confidences, distances, limits, scores, HERE / "unknown.png")

    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    text = f"""{info.arch} on the ten largest classes of Caltech-101: what share of pictures is answered when each limit is set so that
95 % of the {rows['val'].sum()} validation images are. Known: {test.sum()} test images. Unknown: {rows['background'].sum()} of BACKGROUND_Google and
{rows['others'].sum():,} of the 91 other classes. No unknown picture took part in fitting anything. AUROC: known test images against
BACKGROUND_Google, and against the others. Made by `python benchmarks/unknown.py DATA BUNDLE`.

| score | from | known answered | BACKGROUND_Google answered | other classes answered | AUROC |
|---|---|---|---|---|---|
{lines}

What is kept calls {because[UNLIKE][0]} of the known, {because[UNLIKE][1]} of BACKGROUND_Google and {because[UNLIKE][2]} of the other classes unlike the training
data, and {because[LOW][0]}, {because[LOW][1]} and {because[LOW][2]} more of them too low in confidence. Of the known that it answers, {right[sure].mean():.2%} are right
(all: {right[test].mean():.2%}). It takes {judge_ms:.2f} ms a picture and {sum(a.nbytes for a in reference.values()) / 1e6:.1f} MB.

Temperature {temperature:.2f}. Expected calibration error (15 bins) on the test images: {before[0]:.1%} (95 % interval {before[1]:.1%} to {before[2]:.1%})
at temperature 1, {after[0]:.1%} ({after[1]:.1%} to {after[2]:.1%}) at the one that was fitted.

![Answered unknown against answered known, and where the pictures lie](unknown.png)
"""
    (HERE / "unknown.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
