"""What the data gate finds of planted faults: `python benchmarks/data_gate.py ../shared/data/caltech101.tar`.

Label errors: 5 % of the labels of real photographs are exchanged for another class at random, three times with other seeds. It prints
a Markdown table, for the ten largest classes and for all with 30 images or more. `--growth` measures time and memory of the
same search on 10,000 and 100,000 generated rows of 1,280 features and 100 classes, each in a process of its own.
"""
import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", category=FutureWarning, module="torch")

import numpy as np

from imgclf_nb.audit import find_label_errors

FACES = {"Faces", "Faces_easy"}   # the same photographs, whole and cropped


def plant(labels, *, share, seed):
    """Exchange a share of the labels for another class, drawn at random; gives the labels and the rows."""
    random, names = np.random.default_rng(seed), np.unique(labels)
    rows, wrong = random.choice(len(labels), round(len(labels) * share), replace=False), labels.copy()
    for row in rows:
        wrong[row] = random.choice(names[names != labels[row]])
    return wrong, rows


def score_list(features, labels, groups, *, seed, share=0.05):
    """What of the planted errors the list holds where, in shares; counts of what confident learning flags."""
    wrong, rows = plant(labels, share=share, seed=seed)
    suspects = find_label_errors(features, wrong, groups)
    planted, first = suspects.row.isin(rows).to_numpy(), np.arange(len(suspects)) < len(labels) // 10
    now, before = wrong[suspects.row], labels[suspects.row]
    plain = planted & ~(np.isin(now, list(FACES)) & np.isin(before, list(FACES)))
    return {"planted": planted.sum(), "in the first 10 %": planted[first].sum() / planted.sum(),
            "so without Faces/Faces_easy": plain[first].sum() / plain.sum(), "flagged": suspects.is_error.sum(),
            "planted among them": (planted & suspects.is_error).sum(),
            "not planted": (~planted & suspects.is_error).sum(),
            "right suggestion": (suspects.suggested.to_numpy() == before)[planted].mean()}


def read_features(archive, folder, arch):
    """Manifest and features of all photographs of an archive."""
    from imgclf_nb.backbones import load_backbone
    from imgclf_nb.data import prepare_data, read_manifest
    from imgclf_nb.features import pool_features
    from imgclf_nb.loaders import cache_pixels
    from imgclf_nb.settings import Settings
    settings = Settings(source=str(archive), data_dir=folder, image_size_px=224, arch=arch).resolve()
    data = prepare_data(settings)
    manifest = read_manifest(data)
    pixels = cache_pixels(manifest, data, settings=settings)
    return manifest, pool_features(load_backbone(arch), pixels, manifest=manifest, folder=data / "cache", settings=settings)


def print_label_errors(manifest, features):
    """A Markdown table, a row for each choice of classes and each seed."""
    counts, header = manifest.label.value_counts(), None
    for name, kept in (("ten largest", counts.index[:10]), ("30 images or more", counts.index[counts >= 30])):
        rows = np.flatnonzero(manifest.label.isin(kept))
        labels, groups = manifest.label.to_numpy(object)[rows], manifest.group.to_numpy(object)[rows]
        for seed in range(3):
            began = time.perf_counter()
            found = score_list(features[rows], labels.astype(str), groups.astype(str), seed=seed)
            if not header:
                header = ["classes", "images", "seed", *found, "seconds"]
                print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
            cells = [f"{len(kept)} ({name})", len(rows), seed, *(f"{v:.1%}" if isinstance(v, float) else v for v in found.values()),
                     f"{time.perf_counter() - began:.1f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


def grow(n_rows):
    """Time and peak memory of one search on generated features, as a line of a table."""
    import resource
    random, n_classes = np.random.default_rng(0), 100
    labels = random.integers(0, n_classes, n_rows)
    centres, features = random.standard_normal((n_classes, 1280), np.float32), np.empty((n_rows, 1280), np.float16)
    for start in range(0, n_rows, 5000):
        part = slice(start, start + 5000)
        features[part] = centres[labels[part]] + 4 * random.standard_normal((len(labels[part]), 1280), np.float32)
    began = time.perf_counter()
    find_label_errors(features, labels, np.arange(n_rows))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f"| {n_rows:,} | {time.perf_counter() - began:.0f} | {peak_mb:,.0f} |", flush=True)


def main():
    """Read the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path, nargs="?", help="Caltech-101 as it is distributed")
    parser.add_argument("--arch", default="efficientnet_lite0")
    parser.add_argument("--growth", action="store_true", help="time and memory on generated features")
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rows:
        return grow(given.rows)
    if given.growth:
        print("| images | seconds | peak memory, MB |\n|---|---|---|", flush=True)
        for n_rows in (10_000, 100_000):
            subprocess.run([sys.executable, __file__, "--rows", str(n_rows)], check=True)
    if given.archive:
        with tempfile.TemporaryDirectory() as folder:
            print_label_errors(*read_features(given.archive, Path(folder), given.arch))


if __name__ == "__main__":
    main()
