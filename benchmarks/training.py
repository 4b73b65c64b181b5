"""What a trained classifier costs and how often it is right: `imgclf run` against the usual ways to fine-tune a network.

    python benchmarks/training.py [--data TAR_OR_FOLDER] [--top-n 10] [--arch efficientnet_lite0] [--weights FILE] [--size 224]
        [--recipes fast reference fastai tutorial timm ultralytics] [--rates 2e-3 6e-4 2e-4] [--seeds 42] [--max-images N]
        [--per-class TRAIN VAL TEST] [--scaling 1 2 4 8] [--out benchmarks/training.md]

One split, one architecture, the same starting weights; each recipe alone, in a process of its own, one after another.
Ours is the public command, from the archive to the scored bundle; the peers start from photographs that are already
unpacked, checked and split, decode them themselves, and end with predictions for the test images. `fast` and `reference`
are `imgclf run` with `--recipe fast` and `--recipe fastai`. --scaling makes photographs instead (--base times each number;
100,000 at 224 px want some 20 GB below TMPDIR) and trains ours on them; without any recipe, only that is done.
Plain fastai at three rates takes hours on two cores. The table is written anew after each measurement.
"""
import argparse, csv, importlib.metadata, importlib.util, json, math, os, shlex, shutil, signal, subprocess, sys, tempfile
import threading, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from serving import CORES, describe_machine

HERE = Path(__file__).resolve().parent
CALTECH = HERE.parent.parent / "shared" / "data" / "caltech101.tar"
BATCH, DEFAULT_RATE = 32, 2e-3   # the rate is fastai's own default for fine_tune

# The recipes by their names on the command line, and what the table says.
RECIPES = {
    "fast": "`imgclf run --recipe fast`",
    "reference": "`imgclf run --recipe fastai`",
    "fastai": "plain fastai `fine_tune({epochs}, freeze_epochs={frozen})`, rate {rate:g}",
    "tutorial": "PyTorch's transfer-learning tutorial, fp32: {frozen} frozen, {epochs} of last stage + classifier",
    "timm": "timm's parts as its `train.py` joins them, {total} epochs of all layers",
    "ultralytics": "Ultralytics `yolo classify train`",
}
OURS = ("fast", "reference")

# Random weights in a file, for networks whose weights can't be had: good for speed alone. Residual branches begin at nothing
# (Goyal et al. 2017, arXiv 1706.02677): otherwise bfloat16's rounding grows from block to block as in no trained network.
RANDOM_WEIGHTS = """
import sys, torch
from imgclf_nb.weights import _build, check_arch
torch.manual_seed(0)
net = _build(sys.argv[1], check_arch(sys.argv[1]))[0]
for block in net.modules():
    if hasattr(block, "bn3"): torch.nn.init.zeros_(block.bn3.weight)
torch.save(net.state_dict(), sys.argv[2])
"""


# --- the peers: each runs in a process of its own, as `training.py --run NAME JOB`, and prints one line of JSON ---

class Clock:
    """Wall seconds of each stage; the first one begins with the process, so that imports count."""

    def __init__(self):
        import psutil
        self.last, self.seconds = psutil.Process().create_time(), {}

    def mark(self, stage):
        """End a stage."""
        now = time.time()
        self.seconds[stage], self.last = now - self.last, now


def read_split(job):
    """The manifest that all peers share, and the sorted labels."""
    from imgclf_nb.data import read_manifest
    manifest = read_manifest(job["data"])
    return manifest, sorted(set(manifest.label))


def report(name, clock, manifest, named, **more):
    """Print what a peer did; `named` are its labels for the test images in the manifest's order."""
    truth = manifest.label[manifest.split == "test"]
    right = [int(a == b) for a, b in zip(truth, named, strict=True)]
    print(json.dumps(dict(name=name, seconds=clock.seconds, n_train=int((manifest.split == "train").sum()), right=right) | more))


def run_fastai(job):
    """What fastai's documentation shows, with the same squeezed pictures as ours."""
    clock = Clock()
    import torchvision
    from fastai.vision.all import (Callback, ImageDataLoaders, Normalize, Resize, ResizeMethod, accuracy, aug_transforms,
                                   create_body, model_meta, set_seed, vision_learner)
    from imgclf_nb.weights import check_arch, load_network
    manifest, labels = read_split(job)
    net, mean, std = load_network(job["arch"], weights=job["weights"])
    set_seed(job["seed"])
    seen = manifest[manifest.split != "test"].assign(valid=lambda table: table.split == "val")
    data = ImageDataLoaders.from_df(
        seen, path="/", fn_col="path", label_col="label", valid_col="valid", bs=min(64, (seen.split == "train").sum()),
        item_tfms=Resize(job["size"], ResizeMethod.Squish),
        batch_tfms=[*aug_transforms(do_flip=job["flip"]), Normalize.from_stats(mean, std)])
    if check_arch(job["arch"]) == "torchvision":
        arch = getattr(torchvision.models, job["arch"])
        body = create_body(net, cut=model_meta.get(arch, {}).get("cut"))
        learn = vision_learner(data, arch, normalize=False, pretrained=False, metrics=accuracy)
        learn.model[0].load_state_dict(body.state_dict())
    else:   # by timm's name, as fastai knows it; it takes the network without its classifier
        learn = vision_learner(data, net.default_cfg["architecture"], normalize=False, pretrained=False, metrics=accuracy)
        net.reset_classifier(0)
        learn.model[0].model.load_state_dict(net.state_dict())

    class Stages(Callback):
        def after_fit(self): clock.mark("unfrozen" if "frozen" in clock.seconds else "frozen")

    clock.mark("start")
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(job["epochs"], job["rate"], freeze_epochs=job["frozen"], cbs=Stages())
        val_accuracy = float(learn.recorder.values[-1][-1])
        probabilities, _ = learn.get_preds(dl=data.test_dl(manifest[manifest.split == "test"]))
    clock.mark("test")
    named = [data.vocab[k] for k in probabilities.argmax(1).tolist()]
    report("fastai", clock, manifest, named, val_accuracy=val_accuracy)


class Photographs:
    """A map-style data set for torch's loader: decodes and transforms a file each time it is asked for."""

    def __init__(self, rows, labels, transform):
        self.paths, self.targets, self.transform = list(rows.path), [labels.index(label) for label in rows.label], transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, k):
        from PIL import Image
        return self.transform(Image.open(self.paths[k]).convert("RGB")), self.targets[k]


def fit(net, loader, loss, optimizer, epochs, after_step=lambda number: None):
    """The plain loop of every tutorial, in fp32."""
    number = 0
    for _ in range(epochs):
        net.train()
        for images, targets in loader:
            optimizer.zero_grad()
            loss(net(images), targets).backward()
            optimizer.step()
            number += 1
            after_step(number)


def name_images(net, loader, labels):
    """The network's label for each image."""
    import torch
    net.eval()
    with torch.inference_mode():
        return [labels[k] for images, _ in loader for k in net(images).argmax(1).tolist()]


def run_tutorial(job):
    """PyTorch's transfer-learning tutorial: SGD with momentum; first the classifier alone, then the last stage with it."""
    clock = Clock()
    import torch, torchvision.transforms.v2 as T
    from torch import nn
    from torch.utils.data import DataLoader
    from imgclf_nb.backbones import load_backbone
    manifest, labels = read_split(job)
    torch.manual_seed(job["seed"])
    size, end = job["size"], [T.ToImage(), T.ToDtype(torch.float32, scale=True)]   # the body normalises
    flip = [T.RandomHorizontalFlip()] if job["flip"] else []
    views = {"train": T.Compose([T.RandomResizedCrop(size), *flip, *end]),
             "test": T.Compose([T.Resize(round(size * 256 / 224)), T.CenterCrop(size), *end])}
    loaders = {split: DataLoader(Photographs(manifest[manifest.split == split], labels, view), BATCH, shuffle=split == "train",
                                 num_workers=CORES) for split, view in views.items()}
    backbone = load_backbone(job["arch"], weights=job["weights"], size_px=size)
    classifier = nn.Linear(backbone.n_features, len(labels))
    net = nn.Sequential(backbone.body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)
    loss, rate = nn.CrossEntropyLoss(), 1e-3 * BATCH / 4   # the tutorial's 0.001 is for batches of 4
    clock.mark("start")
    net.requires_grad_(False)
    last = [parameter for layer in backbone.stages[-1] for parameter in layer.parameters(recurse=False)]
    for stage, parameters, epochs in (("frozen", [], job["frozen"]), ("last stage", last, job["epochs"])):
        parameters = [*parameters, *classifier.parameters()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        fit(net, loaders["train"], loss, torch.optim.SGD(parameters, rate, momentum=0.9), epochs)
        clock.mark(stage)
    named = name_images(net, loaders["test"], labels)
    clock.mark("test")
    report("tutorial", clock, manifest, named)


def run_timm(job):
    """What timm's train.py joins from timm's parts, at its defaults; rate as it scales it to the batch, one epoch of warm-up."""
    clock = Clock()
    import timm, torch
    from timm.data import create_loader, resolve_data_config
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from imgclf_nb.weights import load_network
    manifest, labels = read_split(job)
    torch.manual_seed(job["seed"])
    source, mean, std = load_network(job["arch"], weights=job["weights"])
    net = timm.create_model(getattr(source, "default_cfg", {}).get("architecture", job["arch"]), num_classes=len(labels))
    own = net.state_dict()   # torchvision's ResNets have timm's names
    fitting = {name: value for name, value in source.state_dict().items() if name in own and own[name].shape == value.shape}
    if len(own) - len(fitting) > 2:
        raise SystemExit(f"{job['arch']}: the weights do not fit timm's network of that name")
    net.load_state_dict(fitting, strict=False)
    config = resolve_data_config({"img_size": job["size"], "mean": mean, "std": std}, model=net)
    del config["crop_mode"]
    loaders = {}
    for split in ("train", "test"):
        photographs = Photographs(manifest[manifest.split == split], labels, None)   # create_loader sets the transform
        loaders[split] = create_loader(photographs, batch_size=min(BATCH, len(photographs)), is_training=split == "train",
                                       use_prefetcher=False, num_workers=CORES, hflip=0.5 * job["flip"],
                                       device=torch.device("cpu"), **config)
    epochs = job["frozen"] + job["epochs"]
    optimizer = create_optimizer_v2(net, opt="sgd", lr=0.1 * BATCH / 256, weight_decay=2e-5, momentum=0.9)
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=epochs, warmup_epochs=min(1, epochs - 1), step_on_epochs=False,
                                       updates_per_epoch=len(loaders["train"]))
    clock.mark("start")
    fit(net, loaders["train"], LabelSmoothingCrossEntropy(0.1), optimizer, epochs, scheduler.step_update)
    clock.mark("all layers")
    named = name_images(net, loaders["test"], labels)
    clock.mark("test")
    report("timm", clock, manifest, named)


PEERS = {"fastai": run_fastai, "tutorial": run_tutorial, "timm": run_timm}


# --- measuring ---

def watch(command, cwd):
    """Run a command; gives wall seconds, the peak memory of all its processes in MB, and its lines with their times."""
    import psutil
    lines, peak, environment = [], 0.0, {name: value for name, value in os.environ.items() if not name.startswith("IMGCLF_")}
    with (cwd / "errors.log").open("w+") as errors:
        began = time.time()
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        reader = threading.Thread(target=lambda: lines.extend((time.time(), line.rstrip()) for line in process.stdout))
        reader.start()
        top = psutil.Process(process.pid)
        try:
            while True:
                try:
                    family = [top, *top.children(recursive=True)]
                    if len(family) > 1:   # shared pages divided
                        peak = max(peak, sum(member.memory_full_info().pss for member in family) / 1e6)
                    else:                 # the kernel's own peak, which no sampling misses
                        status = Path(f"/proc/{top.pid}/status").read_text()
                        peak = max(peak, int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6)
                except (psutil.Error, OSError, IndexError):
                    pass   # a process that ended meanwhile
                try:
                    process.wait(0.5)
                    break
                except subprocess.TimeoutExpired:
                    pass
            seconds = time.time() - began
        finally:
            family = top.children(recursive=True) if process.poll() is None else []
            for member in [*family, *([process] if family or process.poll() is None else [])]:
                member.kill()
            reader.join()
        errors.seek(0)
        log = errors.read()
    if process.returncode:
        last = (log.strip().splitlines() or ["no message"])[-1]
        print(f"failed: {shlex.join(map(str, command))}\n{log[-3000:]}", file=sys.stderr, flush=True)
        return dict(failed=last[:200])
    return dict(total=seconds, mb=peak, began=began, lines=lines)


def imgclf(*words):
    """Our command line."""
    return [str(Path(sys.executable).parent / "imgclf"), *map(str, words)]


def run_ours(recipe, source, folder, options, *, seed, top_n=None):
    """`imgclf run` from the source to the scored bundle; stages from what it prints and from the files it leaves."""
    words = ["run", source, "--name", "ours", "--data-dir", folder / "data", "--model-dir", folder / "model", "--results-dir",
             folder / "results", "--arch", options.arch, "--image-size-px", options.size, "--seed", seed]
    words += ["--top-n", top_n] if top_n else []
    words += ["--weights", options.weights] if options.weights else []
    words += ["--recipe", {"fast": "fast", "reference": "fastai"}[recipe]]
    if recipe == "reference":
        words += ["--head-epochs", options.frozen, "--fine-tune-epochs", options.epochs]
    folder.mkdir()
    seen = watch(imgclf(*words, *shlex.split(options.options)), folder)
    if "failed" in seen:
        return seen
    import pandas as pd
    history, metrics = pd.read_csv(folder / "results/history.csv"), json.loads((folder / "results/metrics.json").read_text())
    epochs, clock = history.groupby("phase", sort=False).seconds.sum().to_dict(), seen["began"]
    ends = {"prepare": next((at for at, line in seen["lines"] if " pictures of " in line), None),
            "load, features": (folder / "results/history.csv").stat().st_mtime,   # ends with the training, taken off below
            "export": next((at for at, line in seen["lines"] if "validation images right" in line), None),
            "score": seen["began"] + seen["total"]}
    seconds = {}
    for stage, end in ends.items():
        if end:
            seconds[stage], clock = end - clock, end
        if stage == "load, features":
            seconds[stage] = max(0, seconds[stage] - sum(epochs.values()))
            seconds |= epochs
    result = dict(total=seen["total"], mb=seen["mb"], seconds=seconds, n_train=metrics["dataset"]["n_train"],
                  accuracy=metrics["accuracy"], interval=metrics["accuracy_ci95"])
    if recipe == "reference":   # a row of the history is a pass over the photographs only in this recipe
        result["rate"] = result["n_train"] * len(history) / sum(epochs.values())
    return result


def check_ours(result, folder, manifest):
    """Add to our result which test images are right, and make sure that the split is the peers'. Outside the measured time."""
    from imgclf_nb.data import read_manifest
    own = read_manifest(folder / "data" / "ours")
    columns = ["sha256", "label", "split"]
    if own[columns].values.tolist() != manifest[columns].values.tolist():
        raise SystemExit("our run split the photographs otherwise than the manifest that the peers share")
    test = own[own.split == "test"]
    command = imgclf("predict", *test.path, "--model-dir", folder / "model", "--format", "csv")
    output = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    named = [row["label"] for row in csv.DictReader(output.splitlines())]
    result["right"] = [int(a == b) for a, b in zip(test.label, named, strict=True)]
    if abs(sum(result["right"]) / len(test) - result["accuracy"]) > 0.5 / len(test):
        print("note: `imgclf predict` answers other than `imgclf evaluate` did", file=sys.stderr)


def run_peer(name, folder, job):
    """A peer in a process of its own."""
    if name == "ultralytics":   # no run without its weights: another network, and random, would compare nothing
        there = "installed" if importlib.util.find_spec("ultralytics") else "not installed"
        return dict(failed=f"{there}; trains its own networks only, from weights that it downloads")
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps(job))
    seen = watch([sys.executable, "-W", "ignore", Path(__file__).resolve(), "--run", name, folder / "job.json"], folder)
    if "failed" in seen:
        return seen
    result = json.loads(seen["lines"][-1][1])
    trained = sum(s for stage, s in result["seconds"].items() if stage not in ("start", "test"))
    return result | dict(total=seen["total"], mb=seen["mb"], rate=result["n_train"] * (job["frozen"] + job["epochs"]) / trained)


# --- the data ---

def prepare_split(source, root, options, seed):
    """Prepare the shared data set; gives the source for ours, the folder of the manifest, and the manifest."""
    from imgclf_nb.data import read_manifest
    common = ["--data-dir", root / "data", "--image-size-px", options.size, "--seed", seed, "--no-audit"]
    top_n = ["--top-n", options.top_n] if options.top_n else []
    subprocess.run(imgclf("prepare", source, "--name", "shared", *common, *top_n), cwd=root, check=True)
    folder = root / "data" / "shared"
    manifest = read_manifest(folder)
    if not (options.max_images or options.per_class):
        return source, folder, manifest
    if options.per_class:
        manifest = draw_per_class(manifest, options.per_class, seed)
    if options.max_images:
        share = min(1, options.max_images / len(manifest))
        parts = [rows.sample(max(1, round(share * len(rows))), random_state=seed)
                 for _, rows in manifest.groupby(["label", "split"])]
        manifest = manifest.loc[sorted(index for part in parts for index in part.index)]
    table = root / "subset.csv"
    manifest[["path", "label", "split"]].to_csv(table, index=False)
    subprocess.run(imgclf("prepare", table, "--name", "subset", *common), cwd=root, check=True)
    return table, root / "data" / "subset", read_manifest(root / "data" / "subset")


def draw_per_class(manifest, counts, seed):
    """Draw so many images of each class, whole groups, training first; of small classes a tenth each stays for the others."""
    import numpy as np
    rows, order = [], {group: k for k, group in enumerate(np.random.default_rng(seed).permutation(sorted(set(manifest.group))))}
    placed = {}   # a group that has two labels goes to one split
    for _, table in manifest.groupby("label"):
        n_train = min(counts[0], len(table) - 2 * math.ceil(len(table) / 10))
        n_val = min(counts[1], (len(table) - n_train) // 2)
        targets = [n_train, n_val, min(counts[2], len(table) - n_train - n_val)]
        left = dict(zip(("train", "val", "test"), targets))
        for group, members in sorted(table.groupby("group"), key=lambda item: order[item[0]]):
            split = placed.get(group) or next((name for name, n in left.items() if n >= len(members)), None)
            if split:
                placed[group] = split
                left[split] -= len(members)
                rows.append(members.assign(split=split))
    import pandas as pd
    return pd.concat(rows).sort_index()


def draw_photograph(job):
    """Write one JPEG of 300 x 200 pixels that compresses like a photograph; clouds, coloured by the class."""
    import colorsys
    import numpy as np
    from PIL import Image
    path, seed, shade = job
    rng = np.random.default_rng(seed)
    layers = [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)).resize((300, 200), Image.Resampling.BILINEAR)
              for w, h in ((6, 4), (24, 16), (96, 64))]
    colour = Image.new("RGB", (300, 200), tuple(int(255 * value) for value in colorsys.hsv_to_rgb(shade, 0.8, 0.8)))
    picture = Image.blend(Image.blend(layers[0], layers[1], 0.4), layers[2], 0.25)
    Image.blend(picture, colour, 0.25).save(path, quality=85)


def draw_folder(folder, count, classes=10):
    """Draw `count` photographs of ten classes; no two are alike, so that nothing is taken for a copy."""
    jobs = []
    for k in range(classes):
        (folder / f"class{k}").mkdir(parents=True)
    for number in range(count):
        k = number % classes
        jobs.append((folder / f"class{k}" / f"{number:06}.jpg", [count, number], k / classes))
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(draw_photograph, jobs, chunksize=200))


def run_scaling(root, options, results, write):
    """Ours on ever more photographs; keeps in `results` what was seen for each number of them."""
    for factor in sorted(options.scaling):
        count, place = factor * options.base, root / "scaling"   # new pictures each time: no cache may know them
        place.mkdir()
        draw_folder(place / "photographs", count)
        results[count] = run_ours("fast", place / "photographs", place / "run", options, seed=options.seeds[0])
        print(f"{count:7} photographs: {brief(results[count])}", flush=True)
        shutil.rmtree(place)
        write()


def find_exponents(results):
    """Exponents of time against images: over all sizes, and between the two largest, where the start no longer counts."""
    import numpy as np
    counts, seconds = zip(*((count, seen["total"]) for count, seen in results.items() if "failed" not in seen))
    fits = [np.polyfit(np.log(counts[k:]), np.log(seconds[k:]), 1)[0] for k in (0, len(counts) - 2)]
    return tuple(map(float, fits))


# --- the report ---

def brief(seen):
    """One result in a few words."""
    if "failed" in seen:
        return f"not run: {seen['failed']}"
    share = seen.get("accuracy", sum(seen.get("right", ())) / max(1, len(seen.get("right", ()))))
    return f"{seen['total']:.1f} s, {seen['mb']:.0f} MB, {share:.1%} right"


def summarize(runs, splits):
    """Means over the seeds; accuracy, its interval, and the answers, over the test images of all seeds."""
    import numpy as np
    import pandas as pd
    from imgclf_nb.metrics import estimate_interval
    if not runs or any("failed" in run for run in runs.values()):
        return dict(failed=next((run["failed"] for run in runs.values() if "failed" in run), "not run"))
    tests = pd.concat([splits[seed][splits[seed].split == "test"].assign(seed=seed) for seed in runs])
    tests["right"] = [value for run in runs.values() for value in run["right"]]
    first = next(iter(runs.values()))
    mean = lambda name: float(np.mean([run[name] for run in runs.values()]))
    names = dict.fromkeys(name for run in runs.values() for name in run["seconds"])   # not every seed keeps weights halfway
    stages = {name: np.mean([run["seconds"].get(name, 0) for run in runs.values()]) for name in names}
    return dict(tests=tests, total=mean("total"), mb=max(run["mb"] for run in runs.values()), stages=stages,
                accuracy=tests.right.mean(), interval=estimate_interval(tests.right.to_numpy(), tests.group.to_numpy()),
                per_class=np.mean([tests.right[tests.label == label].mean() for label in sorted(set(tests.label))]),
                rate=mean("rate") if "rate" in first else None,
                val_accuracy=mean("val_accuracy") if "val_accuracy" in first else None,
                seeds=[sum(run["right"]) / len(run["right"]) for run in runs.values()])


def say_difference(ours, theirs):
    """How many points of accuracy ours is better, on the same images, with its interval."""
    from imgclf_nb.compare import measure_difference
    ours, theirs = ours["tests"], theirs["tests"]
    ours, theirs = ours[ours.seed.isin(theirs.seed)], theirs[theirs.seed.isin(ours.seed)]   # one may be a seed behind
    found = measure_difference(ours.right.to_numpy(), theirs.right.to_numpy(), groups=ours.group.to_numpy())
    if not found["a_only"] + found["b_only"]:
        return "0.0, all the same"
    low, high = found["difference_ci95"]
    return f"{100 * found['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def name_row(key, options, best):
    """What the table calls a recipe."""
    name, rate = key
    epochs, frozen = options.epochs, options.frozen
    text = RECIPES[name].format(epochs=epochs, frozen=frozen, total=epochs + frozen, rate=rate or 0)
    remarks = ["its default"] * (rate == DEFAULT_RATE)
    remarks += ["best on the validation images"] * (key == best and len(options.rates) > 1)
    return text + (f" ({', '.join(remarks)})" if remarks else "")


def compare(results, splits, options):
    """A summary for each row's name, and ours: the first recipe of ours that ran."""
    rows = {key: summarize(runs, splits) for key, runs in results.items()}
    rates = {key: row["val_accuracy"] for key, row in rows.items() if row.get("val_accuracy") is not None}
    best = max(rates, key=rates.get) if rates else None
    ours = next((row for key, row in rows.items() if key[0] in OURS and "failed" not in row), None)
    return {name_row(key, options, best): row for key, row in rows.items()}, ours


def write_table(results, splits, scaling, options):
    """Write the tables, and give their text."""
    rows, ours = compare(results, splits, options)
    machine = f"{describe_machine()}, timm {importlib.metadata.version('timm')}"
    lines = [f"{machine}. Made by `python benchmarks/training.py {shlex.join(sys.argv[1:])}`.".replace(" `.", "`."), ""]
    if rows:
        first = next(iter(splits.values()))
        sizes = ", ".join(f"{(first.split == split).sum():,} {name}" for split, name in
                          (("train", "training"), ("val", "validation"), ("test", "test")))
        seeds = f"; mean over the splits and runs of the seeds {', '.join(map(str, splits))}" if len(splits) > 1 else ""
        kind = "random weights" if options.random else Path(options.weights).name if options.weights else "pretrained weights"
        lines += [f"{options.said}: {first.label.nunique()} classes, {sizes} images{seeds}. {options.arch} ({kind}) at "
                  f"{options.size} px. Ours goes from the source to the scored bundle; the peers begin with prepared files "
                  "and end with the test images' predictions. Intervals are 95 %, over groups of like images; "
                  "the last column compares answers to the same images.", "",
                  "| recipe | wall s | times ours | by stage, s | training images/s | peak MB | test accuracy, % | "
                  "mean per class, % | ours better by, points |", "|---|---|---|---|---|---|---|---|---|"]
    for name, row in rows.items():
        if "failed" in row:
            lines.append(f"| {name} | not run: {row['failed'].replace('|', '/')} | | | | | | | |")
            continue
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in row["stages"].items())
        low, high = (100 * value for value in row["interval"])
        ratio, difference = (f"{row['total'] / ours['total']:.1f}", say_difference(ours, row)) if ours else ("–", "–")
        difference = "–" if row is ours else difference
        rate = f"{row['rate']:.0f}" if row["rate"] else "–"
        lines.append(f"| {name} | {row['total']:.1f} | {ratio} | {stages} | {rate} | "
                     f"{row['mb']:.0f} | {100 * row['accuracy']:.1f} ({low:.1f} to {high:.1f}) | {100 * row['per_class']:.1f} | "
                     f"{difference} |")
    if len(splits) > 1:
        lines += ["", "Test accuracy seed by seed, %: " + "; ".join(
            f"{name}: {', '.join(f'{100 * share:.1f}' for share in row['seeds'])}"
            for name, row in rows.items() if "seeds" in row)]
    if scaling:
        lines += [""] * bool(rows)
        lines += [f"`imgclf run` on made photographs of 300 x 200 pixels, ten classes, {options.arch} at {options.size} px.", "",
                  "| images | wall s | images/s | by stage, s | peak MB | test accuracy, % |", "|---|---|---|---|---|---|"]
        for count, seen in scaling.items():
            figures = f"not run: {seen.get('failed')} | | | |"
            if "failed" not in seen:
                stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in seen["seconds"].items())
                figures = (f"{seen['total']:.1f} | {count / seen['total']:.0f} | {stages} | {seen['mb']:.0f} | "
                           f"{100 * seen['accuracy']:.1f}")
            lines.append(f"| {count:,} | {figures} |")
        if sum("failed" not in seen for seen in scaling.values()) > 1:
            over_all, at_end = find_exponents(scaling)
            lines += ["", f"Time grows as images to the power {over_all:.2f} over all sizes, {at_end:.2f} between the two "
                      "largest."]
    options.out.write_text("\n".join(lines) + "\n")
    return "\n".join(lines)


def draw_plot(results, splits, scaling, options):
    """Draw wall seconds with accuracy beside them, and how time and memory grow, into a PNG beside the table."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    rows = {name: row for name, row in compare(results, splits, options)[0].items() if "failed" not in row}
    grown = {count: seen for count, seen in scaling.items() if "failed" not in seen}
    if not rows and not grown:
        return
    height = max(2.2 + 0.5 * len(rows), 4 if grown else 0)
    figure, panels = plt.subplots(1, bool(rows) + 2 * bool(grown), figsize=(9 * bool(rows) + 7 * bool(grown), height),
                                  width_ratios=[2.2] * bool(rows) + [1, 1] * bool(grown), layout="constrained", squeeze=False)
    panels = list(panels[0])
    if rows:
        axes, names = panels.pop(0), [name.replace("`", "").replace(", rate", ",\nrate").replace(": ", ":\n") for name in rows]
        colours = ["#1565c0" if name.startswith("`imgclf") else "#9e9e9e" for name in rows]
        bars = axes.barh(names, [row["total"] for row in rows.values()], 0.7, color=colours)
        notes = [f" {row['total']:.0f} s, {row['accuracy']:.1%} right" for row in rows.values()]
        axes.bar_label(bars, notes, fontsize=9)
        axes.invert_yaxis()
        axes.set(xscale="log", title="wall seconds (log scale), and accuracy on the test images")
        axes.set_xlim(1, max(row["total"] for row in rows.values()) ** 1.5)   # bars from one second; room for the words
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.tick_params(axis="y", length=0)
    for axes, name, title in zip(panels, ("total", "mb"), ("wall seconds", "peak memory, MB")):
        axes.plot(list(grown), [seen[name] for seen in grown.values()], "o-", color="#1565c0")
        axes.set(xscale="log", yscale="log" if name == "total" else "linear", xlabel="photographs", title=title)
        axes.set_xticks(list(grown), [f"{count:,}" for count in grown], rotation=30)
        axes.minorticks_off()
        if name == "mb":
            axes.set_ylim(0, 1.15 * max(seen["mb"] for seen in grown.values()))
        else:
            axes.set_yticks([seen["total"] for seen in grown.values()], [f"{seen['total']:.0f}" for seen in grown.values()])
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x" if axes is figure.axes[0] and rows else "both", color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
    figure.savefig(options.out.with_suffix(".png"), dpi=110)


def run_seed(seed, source, place, options, results, splits, write):
    """Every recipe on one split, one after another."""
    place.mkdir()
    own_source, data, splits[seed] = prepare_split(source, place, options, seed)
    top_n = options.top_n if own_source == source else None
    for name in options.recipes:
        for rate in options.rates if name == "fastai" else [None]:
            folder = place / f"{name}-{rate}"
            if name in OURS:
                seen = run_ours(name, own_source, folder, options, seed=seed, top_n=top_n)
                if "failed" not in seen:
                    check_ours(seen, folder, splits[seed])
            else:
                seen = run_peer(name, folder, dict(
                    data=str(data), arch=options.arch, weights=str(options.weights) if options.weights else None, rate=rate,
                    size=options.size, epochs=options.epochs, frozen=options.frozen, seed=seed, flip=source != "digits"))
            results.setdefault((name, rate), {})[seed] = seen
            print(f"seed {seed}, {name}{f' at {rate:g}' if rate else ''}: {brief(seen)}", flush=True)
            write()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="archive or folder of photographs; by default Caltech-101 from ../shared/data, or digits")
    parser.add_argument("--top-n", type=int, default=10, help="largest classes; 0 for all")
    parser.add_argument("--arch", default="efficientnet_lite0")
    parser.add_argument("--weights", help="file of weights, or `random`")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures in pixels")
    parser.add_argument("--recipes", nargs="*", choices=RECIPES, help="by default all, or none with --scaling")
    parser.add_argument("--rates", type=float, nargs="+", default=[DEFAULT_RATE, 6e-4, 2e-4], help="of plain fastai")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of the second phase, ours fast excepted")
    parser.add_argument("--frozen", type=int, default=1, help="epochs of the first phase, ours fast excepted")
    parser.add_argument("--options", default="", help="further words for `imgclf run`, in quotes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--max-images", type=int, help="take so many images only, the same share of each class and split")
    parser.add_argument("--per-class", type=int, nargs=3, metavar=("TRAIN", "VAL", "TEST"), help="images of each class at most")
    parser.add_argument("--scaling", type=int, nargs="*", default=[], help="multiples of --base")
    parser.add_argument("--base", type=int, default=2500, help="made photographs for 1x")
    parser.add_argument("--out", type=Path, default=HERE / "training.md", help="the table; the plot goes beside it")
    parser.add_argument("--run", nargs=2, metavar=("NAME", "JOB"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        return PEERS[options.run[0]](json.loads(Path(options.run[1]).read_text()))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))   # so that no training outlives a time-out
    if options.recipes is None:
        options.recipes = [] if options.scaling else list(RECIPES)
    source = options.data or (str(CALTECH) if CALTECH.exists() else "digits")
    source = source if source == "digits" else str(Path(source).resolve())
    options.said = "scikit-learn's handwritten digits, for want of photographs" if source == "digits" else Path(source).name
    options.random, options.out = options.weights == "random", options.out.resolve()
    results, splits, scaling = {}, {}, {}
    write = lambda: write_table(results, splits, scaling, options)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        if options.random:
            options.weights = root / "random.pth"
            subprocess.run([sys.executable, "-c", RANDOM_WEIGHTS, options.arch, options.weights], check=True)
        options.weights = options.weights and Path(options.weights).resolve()
        for seed in options.seeds if options.recipes else []:
            run_seed(seed, source, root / str(seed), options, results, splits, write)
            shutil.rmtree(root / str(seed))
        if options.scaling:
            run_scaling(root, options, scaling, write)
    print(write())
    draw_plot(results, splits, scaling, options)


if __name__ == "__main__":
    main()
