"""What `imgclf prepare` finds of copies, crops and broken files that were planted among photographs, and how it grows.

    python benchmarks/twins.py [--data TAR] [--top-n 10] [--seeds 0 1 2] [--scaling 10000 30000 100000] [--out benchmarks/twins.md]

A copy of the data gets 5 % copies that were saved anew and resized, 2 % crops and 1 % files that were cut short. The yardstick is
ImageHash's perceptual hash (Hamming distance of at most 8) where that package is installed. --scaling makes photographs
instead (100,000 want 2 GB below TMPDIR), 5 % of them copies. The table is written anew after each measurement.
"""
import argparse, shlex, sys, tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from serving import CORES, describe_machine
from training import CALTECH, draw_photograph, imgclf, watch

HERE = Path(__file__).resolve().parent
SHARES = {"copy": 0.05, "crop": 0.02, "broken": 0.01}


def plant(job):
    """Write one changed file beside a photograph."""
    kind, source, target, seed = job
    random = np.random.default_rng(seed)
    if kind == "broken":
        content = source.read_bytes()
        target.write_bytes(content[:int(len(content) * random.uniform(0.3, 0.9))])
        return
    picture = Image.open(source).convert("RGB")
    if kind == "crop":   # 40 to 90 % of the area, anywhere
        scale = np.sqrt(random.uniform(0.4, 0.9))
        width, height = (round(scale * side) for side in picture.size)
        left, top = random.integers(0, picture.width - width + 1), random.integers(0, picture.height - height + 1)
        picture = picture.crop((left, top, left + width, top + height))
    else:
        scale = random.uniform(0.5, 1.5)
        picture = picture.resize([max(32, round(scale * side)) for side in picture.size])
    picture.save(target, quality=int(random.integers(40, 91)))


def plant_all(folder, seed):
    """Plant faults in a folder of classes; gives kind, source and file of each."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    random, jobs = np.random.default_rng(seed), []
    chosen = random.permutation(len(files))
    for kind, share in SHARES.items():
        count = round(share * len(files))
        for number in chosen[:count]:
            source = files[number]
            jobs.append((kind, source, source.with_name(f"{kind} {source.stem}.jpg"), [seed, int(number)]))
        chosen = chosen[count:]
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(plant, jobs, chunksize=20))
    return pd.DataFrame([job[:3] for job in jobs], columns=["kind", "source", "file"])


def prepare(source, root, name, *options):
    """`imgclf prepare`; gives what `watch` saw, the manifest and the quarantine."""
    from imgclf_nb.data import read_manifest
    seen = watch(imgclf("prepare", source, "--name", name, "--data-dir", root / "data", *options), root)
    if "failed" in seen:
        raise SystemExit(seen["failed"])
    folder = root / "data" / name
    return seen, read_manifest(folder), pd.read_csv(folder / "quarantine.csv")


def measure_planted(options, seed, root):
    """Share of each kind that was found, and what was found besides."""
    clean, folder = prepare(options.data, root, "clean", "--top-n", options.top_n)[1], root / "planted"
    for row in clean.itertuples():
        (folder / row.label).mkdir(parents=True, exist_ok=True)
        (folder / row.label / Path(row.path).name).hardlink_to(row.path)
    planted = plant_all(folder, seed)
    _, manifest, quarantine = prepare(folder, root, "planted-data")
    group, result = manifest.set_index("path").group, {}
    for kind, rows in planted.groupby("kind"):
        if kind == "broken":
            result[kind] = rows.file.astype(str).isin(quarantine.path).mean()
        else:
            result[kind] = np.mean([group.get(str(row.file)) == group[str(row.source)] for row in rows.itertuples()])
    before, after = clean.group.nunique(), manifest[~manifest.path.isin(planted.file.astype(str))].group.nunique()
    return result | {"twins before planting": len(clean) - before, "false alarms": before - after, "images": len(manifest),
                     "hash": find_by_hash(planted)}


def find_by_hash(planted):
    """The share of copies and crops that a perceptual hash alone finds."""
    try:
        import imagehash
    except ImportError:
        return {}
    near = lambda row: imagehash.phash(Image.open(row.source)) - imagehash.phash(Image.open(row.file)) <= 8
    return {kind: np.mean([near(row) for row in rows.itertuples()]) for kind, rows in planted.groupby("kind") if kind != "broken"}


def measure_size(count, root):
    """Time and memory of `imgclf prepare` on made photographs, 5 % of them copies."""
    folder, jobs = root / "made", []
    for k in range(10):
        (folder / f"class{k}").mkdir(parents=True)
    for number in range(count):
        jobs.append((folder / f"class{number % 10}" / f"{number:06}.jpg", [count, number], number % 10 / 10))
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(draw_photograph, jobs, chunksize=200))
        sources = [job[0] for job in jobs[::20]]
        copies = [("copy", source, source.with_name(f"copy {source.stem}.jpg"), [count, k]) for k, source in enumerate(sources)]
        list(pool.map(plant, copies, chunksize=50))
    seen, manifest, _ = prepare(folder, root, "made-data")
    group = manifest.set_index("path").group
    found = np.mean([group[str(copy[2])] == group[str(copy[1])] for copy in copies])
    extra = len(manifest) - manifest.group.nunique() - round(found * len(copies))
    return dict(images=len(manifest), seconds=seen["total"], mb=seen["mb"], found=found, extra=extra)


def write_table(planted, sizes, options):
    """Write what has been measured so far."""
    lines = [f"{describe_machine()}. Made by `python benchmarks/twins.py {shlex.join(sys.argv[1:])}`.".replace(" `.", "`."), ""]
    if planted:
        lines += ["Planted among the photographs of the data set, and found by `imgclf prepare` (perceptual hash alone in brackets):", "",
                  "| seed | images | copies, % | crops, % | broken files, % | twins before planting | false alarms |",
                  "|---|---|---|---|---|---|---|"]
        for seed, seen in planted.items():
            told = {kind: f"{100 * seen[kind]:.1f}" + (f" ({100 * seen['hash'][kind]:.1f})" if kind in seen["hash"] else "")
                    for kind in SHARES}
            lines.append(f"| {seed} | {seen['images']:,} | {told['copy']} | {told['crop']} | {told['broken']} | "
                         f"{seen['twins before planting']} | {seen['false alarms']} |")
    if sizes:
        lines += ["", "`imgclf prepare` on made photographs of 300 x 200 pixels, 5 % of them copies:", "",
                  "| images | wall s | images/s | peak MB | copies found, % | false alarms |", "|---|---|---|---|---|---|"]
        lines += [f"| {seen['images']:,} | {seen['seconds']:.1f} | {seen['images'] / seen['seconds']:.0f} | {seen['mb']:.0f} | "
                  f"{100 * seen['found']:.1f} | {seen['extra']} |" for seen in sizes]
        if len(sizes) > 1:
            first, last = sizes[0], sizes[-1]
            power = np.log(last["seconds"] / first["seconds"]) / np.log(last["images"] / first["images"])
            lines += ["", f"Time grows as images to the power {power:.2f}."]
    options.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=CALTECH)
    parser.add_argument("--top-n", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--scaling", type=int, nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=HERE / "twins.md")
    options = parser.parse_args()
    planted, sizes = {}, []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as root:
            planted[seed] = measure_planted(options, seed, Path(root))
        write_table(planted, sizes, options)
    for count in options.scaling:
        with tempfile.TemporaryDirectory() as root:
            sizes.append(measure_size(count, Path(root)))
        write_table(planted, sizes, options)


if __name__ == "__main__":
    main()
