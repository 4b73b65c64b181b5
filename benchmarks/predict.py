"""How fast `imgclf predict` goes through a folder of photographs, against the usual loop in torch.

    python benchmarks/predict.py [--folder FOLDER] [--images 1000] [--runs 3]

Both classify the same files with the same network (EfficientNet-Lite0, 224 px) in a process of their own, start-up
included. The peer is what tutorials show: Pillow, torchvision transforms, torch in float32, batches of 32.
Without --folder, photographs of 300 x 200 pixels are made. Writes benchmarks/predict.md.
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

PEER = """
import sys, torch, torchvision.transforms.v2 as T
from PIL import Image
from imgclf_nb.weights import load_network
net, mean, std = load_network("efficientnet_lite0")
prepare = T.Compose([T.Resize(256), T.CenterCrop(224), T.ToImage(), T.ToDtype(torch.float32, scale=True), T.Normalize(mean, std)])
files = open(sys.argv[1]).read().split("\\n")
with torch.inference_mode():
    for k in range(0, len(files), 32):
        batch = torch.stack([prepare(Image.open(f).convert("RGB")) for f in files[k:k + 32]])
        for file, p in zip(files[k:], net(batch).softmax(1).max(1)[0].tolist()): print(file, p)
"""


def draw_photographs(folder, count):
    """JPEGs of 300 x 200 pixels that compress like photographs: clouds of several sizes."""
    import numpy as np
    from PIL import Image
    rng = np.random.default_rng(0)
    for k in range(count):
        layers = [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)).resize((300, 200), Image.Resampling.BICUBIC)
                  for w, h in ((6, 4), (24, 16), (96, 64))]
        picture = Image.blend(Image.blend(layers[0], layers[1], 0.4), layers[2], 0.25)
        picture.save(folder / f"{k:05}.jpg", quality=85)


def write_bundle_for(folder):
    """A bundle of the pretrained network with an untrained head of ten classes: the work is the same."""
    import torch
    from imgclf_nb.backbones import LinearHead, load_backbone
    from imgclf_nb.bundle import BundleInfo, write_bundle
    from imgclf_nb.export import ServedModel, write_onnx
    backbone = load_backbone("efficientnet_lite0")
    torch.manual_seed(0)
    file = write_onnx(ServedModel(backbone.body, LinearHead(backbone.n_features, 10)), folder / "model.onnx", size_px=224)
    info = BundleInfo(name="benchmark", arch="efficientnet_lite0", labels=[str(k) for k in range(10)], image_size_px=224)
    write_bundle(folder / "model" / "bundle", info, model_file=file)


def measure(command):
    """Run a command; gives seconds and the peak of its resident memory in MB."""
    import psutil
    began, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.Error:
                break
            time.sleep(0.02)
        assert process.wait() == 0, command[:3]
    return time.perf_counter() - began, peak / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="folder of photographs, searched to the bottom")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        if options.folder is None:
            (root / "photographs").mkdir()
            draw_photographs(root / "photographs", options.images)
        files = sorted((options.folder or root / "photographs").rglob("*.jpg"))
        files = [str(path.resolve()) for path in files[::max(1, len(files) // options.images)][:options.images]]
        (root / "files.txt").write_text("\n".join(files))
        write_bundle_for(root)
        commands = {
            "`imgclf predict` (OpenVINO)": [str(Path(sys.executable).parent / "imgclf"), "predict", *files, "--model-dir",
                                            str(root / "model"), "--format", "csv"],
            "torch fp32, Pillow, batch 32": [sys.executable, "-W", "ignore", "-c", PEER, str(root / "files.txt")],
        }
        runs = {name: [] for name in commands}
        for _ in range(options.runs):   # in turn, so that a drift of the machine meets both
            for name, command in commands.items():
                runs[name].append(measure(command))
    medians = {name: [statistics.median(column) for column in zip(*results)] for name, results in runs.items()}
    from serving import describe_machine   # which imports from here
    base = medians["torch fp32, Pillow, batch 32"][0]
    lines = [f"{len(files)} photographs, EfficientNet-Lite0 at 224 px, {os.cpu_count()} cores, start-up included; median of "
             f"{options.runs} runs. {describe_machine()}. Made by `python benchmarks/predict.py`.", "",
             "| | images/s | ratio | memory, MB |", "|---|---|---|---|"]
    lines += [f"| {name} | {len(files) / seconds:.0f} | {base / seconds:.1f} | {memory:.0f} |" for name, (seconds, memory) in medians.items()]
    print("\n".join(lines))
    (HERE / "predict.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
