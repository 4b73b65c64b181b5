"""How many photographs `imgclf serve` answers in a second, against the usual ways to serve a network.

    python benchmarks/serving.py [--seconds 8] [--clients 1 8 32] [--servers bf16 int8 torch fastai litserve]

Every server has the same ResNet50 at 224 px and runs alone, in a process of its own, under the same load: 16 JPEGs of
300 x 200 pixels (made, or taken from --folder), sent in turn as multipart POST /predict over connections that are
kept. The network is random but for its last layer, which is fitted to name the 16 photographs: so the speed is that
of any ResNet50, and every server's answers can be checked. The peers need fastai, and `pip install litserve`; int8
needs `pip install nncf onnxruntime`; the load comes from wrk (Debian), or without it from a small client in Python.
Writes benchmarks/serving.md and benchmarks/serving.png.
"""
import argparse, importlib.metadata, importlib.util, json, os, shutil, signal, socket, statistics, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from predict import draw_photographs

HERE = Path(__file__).resolve().parent
PHOTOGRAPHS, BOUNDARY = 16, "imgclf-benchmark"
CORES = len(os.sched_getaffinity(0))

# The servers by their names on the command line: what the table says, and the package that a peer needs.
SERVERS = {
    "bf16": ("`imgclf serve`, bf16", None),
    "int8": ("`imgclf serve`, int8", "nncf"),
    "torch": ("FastAPI, torch fp32, Pillow", "fastapi"),
    "fastai": ("FastAPI, fastai `learn.predict`", "fastai"),
    "litserve": ("LitServe, torch, batches of 16", "litserve"),
}

# Makes weights.pt (the network, for the peers) and bf16/bundle. BatchNorm gets the statistics of the photographs, and
# the last layer is a ridge regression from their features to their names, as each server's preprocessing shows them.
BUILD = """
import sys, torch, torchvision.transforms.v2 as T
from pathlib import Path
from PIL import Image
from torchvision.models import resnet50
from imgclf_nb.backbones import LinearHead, load_backbone
from imgclf_nb.bundle import BundleInfo, write_bundle
from imgclf_nb.export import ServedModel, write_onnx
from imgclf_nb.images import load_pixels
root, files = Path(sys.argv[1]), sorted(Path(sys.argv[1], "photographs").iterdir())
stats = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
convert = T.Compose([T.ToImage(), T.ToDtype(torch.float32, scale=True), T.Normalize(*stats)])
crop = lambda f, side: T.CenterCrop(224)(T.Resize(side)(Image.open(f).convert("RGB")))
views = lambda f: load_pixels(f, size_px=224), lambda f: crop(f, 256), lambda f: crop(f, 224)   # ours, tutorials', fastai's
images, count = torch.stack([convert(view(f)) for view in views for f in files]), len(files)
torch.manual_seed(0)
net = resnet50(weights=None, num_classes=count)
for layer in net.modules():
    if isinstance(layer, torch.nn.BatchNorm2d): layer.momentum = None   # the plain mean of all batches
with torch.inference_mode():
    net.train()(images)
    linear, net.fc = net.fc, torch.nn.Identity()
    features = net.eval()(images).double()
    centred = features - features.mean(0)
    kernel = centred @ centred.T
    ridge = 1e-3 * kernel.diagonal().mean() * torch.eye(len(kernel))
    weight = torch.linalg.solve(kernel + ridge, 12 * torch.eye(count).double().repeat(len(views), 1)).T @ centred
    linear.weight.copy_(weight); linear.bias.copy_(-weight @ features.mean(0))
    net.fc = linear
torch.save(net.state_dict(), root / "weights.pt")
backbone, head = load_backbone("resnet50", weights=root / "weights.pt"), LinearHead(2048, count)
head.linear.load_state_dict(linear.state_dict())
file = write_onnx(ServedModel(backbone.body, head), root / "model.onnx", size_px=224)
info = BundleInfo(name="benchmark", arch="resnet50", labels=[f.stem for f in files], image_size_px=224)
write_bundle(root / "bf16" / "bundle", info, model_file=file)
"""

# Makes int8/bundle, as `imgclf export --precision int8` does but for its proof: this network has no accuracy to guard.
QUANTISE = """
import sys, numpy as np, onnx
from pathlib import Path
from imgclf_nb.bundle import read_bundle, write_bundle
from imgclf_nb.images import load_pixels
from imgclf_nb.quantize import quantize_network
root = Path(sys.argv[1])
bundle = read_bundle(root / "bf16" / "bundle")
pixels = np.stack([load_pixels(f, size_px=224) for f in sorted((root / "calibration").iterdir())])
onnx.save(quantize_network(onnx.load(bundle.model_file), pixels), root / "int8.onnx")
info = bundle.info.model_copy(update={"precision": "int8"})
write_bundle(root / "int8" / "bundle", info, model_file=root / "int8.onnx")
"""

# CPU time of the very code that serves: decoding in one thread, the network at full load.
LIMIT = """
import sys, time, numpy as np
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from imgclf_nb.images import load_pixels
from imgclf_nb.predict import Predictor
def cpu_ms(work, images, seconds):
    count, until, began = 0, time.perf_counter() + seconds, getrusage(RUSAGE_SELF)
    while time.perf_counter() < until:
        work(); count += images
    end = getrusage(RUSAGE_SELF)
    return 1000 * (end.ru_utime + end.ru_stime - began.ru_utime - began.ru_stime) / count
contents = [f.read_bytes() for f in sorted(Path(sys.argv[1], "photographs").iterdir())]
predictor, seconds = Predictor(Path(sys.argv[1], sys.argv[2], "bundle")), float(sys.argv[3])
decode = lambda: [load_pixels(c, size_px=224) for c in contents]
pixels = np.stack(decode() * 8)
predictor.run(pixels)
print(cpu_ms(decode, len(contents), seconds / 2), cpu_ms(lambda: predictor.run(pixels), len(pixels), seconds))
"""

# What the peers share: the network with the same weights, the transforms of most tutorials, and FastAPI as they use it.
COMMON = """
import io, sys, torch, uvicorn, torchvision.transforms.v2 as T
from fastapi import FastAPI, UploadFile
from pathlib import Path
from PIL import Image
from torchvision.models import resnet50
root, port = Path(sys.argv[1]), int(sys.argv[2])
files = sorted((root / "photographs").iterdir())
labels = [f.stem for f in files]
stats = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
prepare = T.Compose([T.Resize(256), T.CenterCrop(224), T.ToImage(), T.ToDtype(torch.float32, scale=True), T.Normalize(*stats)])
def load_net():
    net = resnet50(weights=None, num_classes=len(labels))
    net.load_state_dict(torch.load(root / "weights.pt"))
    return net.eval()
def answer(probability, index): return {"label": labels[int(index)], "probability": float(probability)}
def serve(classify):
    app = FastAPI()
    @app.post("/predict")
    async def predict(file: UploadFile): return classify(await file.read())
    uvicorn.run(app, host="127.0.0.1", port=port, access_log=False)
"""

PEERS = {
    "torch": """
net = load_net()
def classify(content):
    image = prepare(Image.open(io.BytesIO(content)).convert("RGB"))
    with torch.inference_mode(): return answer(*net(image[None]).softmax(1)[0].max(0))
serve(classify)
""",
    "fastai": """
from fastai.vision.all import CrossEntropyLossFlat, ImageDataLoaders, Learner, Normalize, PILImage, Resize
data = ImageDataLoaders.from_path_func(root, files, lambda f: f.stem, valid_pct=0, bs=8, num_workers=0, item_tfms=Resize(224),
                                       batch_tfms=Normalize.from_stats(*stats))
learn = Learner(data, load_net(), loss_func=CrossEntropyLossFlat())
def classify(content):
    with learn.no_bar(): _, index, probabilities = learn.predict(PILImage.create(content))
    return answer(probabilities[index], index)
serve(classify)
""",
    "litserve": """
import litserve
class Classifier(litserve.LitAPI):
    def setup(self, device): self.net = load_net()
    def decode_request(self, request): return prepare(Image.open(request["file"].file).convert("RGB"))
    def batch(self, images): return torch.stack(images)
    def predict(self, images):
        with torch.inference_mode(): return self.net(images).softmax(1)
    def unbatch(self, probabilities): return list(probabilities)
    def encode_response(self, probabilities): return answer(*probabilities.max(0))
if __name__ == "__main__":
    litserve.server._MCP_AVAILABLE = False   # 0.2.19 looks for mcp, but then needs fastmcp
    api = Classifier(max_batch_size=16, batch_timeout=0.005)
    litserve.LitServer(api, accelerator="cpu").run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
""",
    # No peer: HTTP, multipart and JSON alone, for the physical limit.
    "http": """
serve(lambda content: {"label": str(len(content)), "probability": 1.0})
""",
}

WRK = """
local requests, turn = {}, 0
function init(files)
  for k, name in ipairs(files) do
    local file = io.open(name, "rb")
    requests[k] = wrk.format("POST", "/predict", {["Content-Type"] = "multipart/form-data; boundary=%s"}, file:read("*a"))
    file:close()
  end
end
function request() turn = turn + 1; return requests[turn %% #requests + 1] end
function done(summary, latency, _)
  local e = summary.errors
  print(string.format('{"n": %%d, "s": %%f, "p50": %%f, "p99": %%f, "failed": %%d}', summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, e.connect + e.read + e.write + e.status + e.timeout))
end
""" % BOUNDARY

CLIENT = """
import asyncio, itertools, json, statistics, sys, time
port, clients, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
lines = "POST /predict HTTP/1.1", "Host: x", "Content-Type: multipart/form-data; boundary=%s", "Content-Length: {}", "", ""
bodies = [open(name, "rb").read() for name in sys.argv[4:]]
turn, times, statuses = itertools.cycle(["\\r\\n".join(lines).format(len(body)).encode() + body for body in bodies]), [], []
async def drive(until):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (began := time.perf_counter()) < until:
        writer.write(next(turn))
        answer = (await reader.readuntil(b"\\r\\n\\r\\n")).lower()
        await reader.readexactly(int(answer.split(b"content-length:")[1].split(b"\\r\\n")[0]))
        if time.perf_counter() < until:
            times.append(1000 * (time.perf_counter() - began)); statuses.append(answer.split()[1])
async def main(): await asyncio.gather(*[drive(time.perf_counter() + seconds) for _ in range(clients)])
asyncio.run(main())
cuts = statistics.quantiles(times, n=100, method="inclusive")
print(json.dumps(dict(n=len(times), s=seconds, p50=cuts[49], p99=cuts[98], failed=len(times) - statuses.count(b"200"))))
""" % BOUNDARY


def prepare_work(root, folder, servers):
    """Write the photographs, their multipart bodies, the network and its bundles into `root`."""
    from PIL import Image
    photographs, bodies = root / "photographs", root / "bodies"
    for path in (photographs, bodies, root / "calibration"):
        path.mkdir()
    draw_photographs(photographs, PHOTOGRAPHS)
    draw_photographs(root / "calibration", 64)
    if folder:
        found = sorted(folder.rglob("*.jpg"))
        for k, path in enumerate(found[::max(1, len(found) // PHOTOGRAPHS)][:PHOTOGRAPHS]):
            shutil.copy(path, photographs / f"{k:05}.jpg")
    with Image.open(photographs / "00000.jpg") as small:   # and one of 12 megapixels, with the grain of a real one
        large, grain = small.convert("RGB").resize((4000, 3000)), Image.effect_noise((4000, 3000), 100).convert("RGB")
        Image.blend(large, grain, 0.1).save(root / "large.jpg", quality=85)
    for path in (*sorted(photographs.iterdir()), root / "large.jpg"):
        head = (f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n'
                "Content-Type: image/jpeg\r\n\r\n")
        (bodies / path.stem).write_bytes(head.encode() + path.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode())
    (root / "load.lua").write_text(WRK)
    for script in (BUILD, QUANTISE)[:1 + ("int8" in servers)]:
        subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(root)], check=True, stdout=subprocess.DEVNULL)


def ask(port, body):
    """Send one photograph; give the answer as a dictionary, or None if nobody answers yet."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/predict", body.read_bytes(), {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
        reply = connection.getresponse()
        return json.loads(reply.read()) if reply.status == 200 else None
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


class Server:
    """A running server: started on entry, stopped on exit; knows its processes, their CPU time and their memory."""

    def __init__(self, key, root):
        self.key, self.root, self.peak_mb = key, root, 0.0
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def __enter__(self):
        import psutil
        if self.key in PEERS:   # from a file, for LitServe starts further processes from it
            script = self.root / f"server_{self.key}.py"
            script.write_text(COMMON + PEERS[self.key])
            command = [sys.executable, "-W", "ignore", str(script), str(self.root), str(self.port)]
        else:
            command = [str(Path(sys.executable).parent / "imgclf"), "serve", "--port", str(self.port),
                       "--model-dir", str(self.root / self.key), "--precision", "auto"]
        self.log = self.root / f"{self.key}.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("IMGCLF_")}
        began = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=self.root, env=environment, stdout=log, stderr=log)
        self.top = psutil.Process(self.process.pid)
        try:
            while ask(self.port, self.root / "bodies" / "00000") is None:
                if self.process.poll() is not None or time.perf_counter() - began > 90:
                    raise SystemExit(f"{self.key} does not answer:\n{self.log.read_text()[-2000:]}")
                time.sleep(0.02)
        except BaseException:
            self.__exit__()
            raise
        self.start_s = time.perf_counter() - began
        return self

    def __exit__(self, *_):
        import psutil
        family = self.processes() if self.process.poll() is None else []
        self.process.terminate()
        _, left = psutil.wait_procs(family, 15 if len(family) == 1 else 3)
        for process in left:
            process.kill()
        self.process.wait()
        psutil.wait_procs(left, 10)
        with socket.socket() as free:   # fails if somebody still listens
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", self.port))

    def processes(self):
        """The server's process and its descendants."""
        return [self.top, *self.top.children(recursive=True)]

    def cpu_s(self):
        """CPU seconds of all processes so far."""
        return sum(sum(process.cpu_times()[:4]) for process in self.processes())

    def note_memory(self):
        """Keep the peak: resident memory as the kernel counted it, or shared pages divided if there are several processes."""
        processes = self.processes()
        if len(processes) > 1:
            now = sum(process.memory_full_info().pss for process in processes) / 1e6
        else:
            status = Path(f"/proc/{self.top.pid}/status").read_text()
            now = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
        self.peak_mb = max(self.peak_mb, now)

    def wait_idle(self):
        """Wait until requests whose clients have gone are worked off, 20 s at most."""
        for _ in range(40):
            before = self.cpu_s()
            time.sleep(0.5)
            if self.cpu_s() - before < 0.05:
                return

    def check(self):
        """Send all photographs at once; give how many got another label than their own."""
        bodies = sorted((self.root / "bodies").glob("0*"))
        with ThreadPoolExecutor(len(bodies)) as pool:
            answers = list(pool.map(lambda body: ask(self.port, body), bodies))
        return sum(answer is None or answer["label"] != body.name for answer, body in zip(answers, bodies))

    def drive(self, clients, seconds, files):
        """Load the server; give requests n in s seconds, p50 and p99 in ms, failed ones, and CPU ms for each request."""
        if shutil.which("wrk"):
            command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "60s", "-s", str(self.root / "load.lua"),
                       f"http://127.0.0.1:{self.port}/predict", "--", *map(str, files)]
        else:
            command = [sys.executable, "-c", CLIENT, str(self.port), str(clients), str(seconds), *map(str, files)]
        before = self.cpu_s()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
            while load.poll() is None:
                self.note_memory()
                time.sleep(0.5)
            cpu_s, output = self.cpu_s() - before, load.stdout.read()
        self.wait_idle()
        result = json.loads(output.strip().splitlines()[-1])
        return result | {"rate": result["n"] / result["s"], "cpu_ms": 1000 * cpu_s / max(1, result["n"])}


def measure(key, root, options):
    """Start a server, check its answers, load it, stop it; give what was seen."""
    bodies, starts, loads = sorted((root / "bodies").glob("0*")), [], {}
    for _ in range(2):
        with Server(key, root) as server:
            starts.append(server.start_s)
    with Server(key, root) as server:
        wrong = server.check()
        for clients in options.clients:
            server.drive(clients, max(1, options.seconds // 4), bodies)
            loads[clients] = server.drive(clients, options.seconds, bodies)
            print(f"{key:9} {clients:3} clients: {loads[clients]['rate']:7.1f}/s", flush=True)
        wrong += server.check()
        large = server.drive(1, max(1, options.seconds // 2), [root / "bodies" / "large"])
    return dict(start_s=statistics.median([*starts, server.start_s]), loads=loads, large_ms=large["p50"], mb=server.peak_mb,
                wrong=wrong, failed=sum(load["failed"] for load in (*loads.values(), large)))


def find_limit(key, root, seconds, http_ms):
    """What two cores could answer at most in a second, and of which CPU ms for each photograph that is made."""
    command = [sys.executable, "-c", LIMIT, str(root), key, str(seconds)]
    decode, network = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    return dict(decode_ms=decode, network_ms=network, rate=1000 * CORES / (decode + network + http_ms))


def describe_machine():
    """Processor, cores and the versions that matter, in one line."""
    text = Path("/proc/cpuinfo").read_text().replace("\n", " \n")
    model = text.split("model name")[1].split(":")[1].split("\n")[0].strip()
    flags = [flag for flag in ("avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8") if f" {flag} " in text]
    versions = []
    for package in ("openvino", "nncf", "torch", "pillow", "fastapi", "fastai", "litserve"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            pass
    return f"{model}, {CORES} cores ({' '.join(flags) or 'no AMX'}), Python {sys.version.split()[0]}, {', '.join(versions)}"


def write_table(results, limits, http_ms, options):
    """Print the tables and write them to serving.md."""
    torch = results.get("torch", {}).get("loads", {})
    generator = "wrk" if shutil.which("wrk") else "a client in Python in a process of its own"
    source = f"photographs of {options.folder.name}" if options.folder else "made photographs of 300 x 200 pixels"
    lines = [f"ResNet50 at 224 px, {PHOTOGRAPHS} {source}; {options.seconds} s for each line, load from {generator} on the same "
             f"cores. {describe_machine()}. Made by `python benchmarks/serving.py`.", "",
             "| server | clients | requests/s | ratio | p50, ms | p99, ms | CPU ms per request |",
             "|---|---|---|---|---|---|---|"]
    for key, result in results.items():
        for clients, seen in result["loads"].items():
            base = torch.get(clients, {}).get("rate")
            ratio = f"{seen['rate'] / base:.1f}" if base else "–"
            figures = f"{seen['rate']:.1f} | {ratio} | {seen['p50']:.1f} | {seen['p99']:.1f} | {seen['cpu_ms']:.1f}"
            lines.append(f"| {SERVERS[key][0]} | {clients} | {figures} |")
    for key, limit in limits.items():
        share = results[key]["loads"][max(options.clients)]["rate"] / limit["rate"]
        total = f"decoding {limit['decode_ms']:.2f} + network {limit['network_ms']:.2f} + HTTP {http_ms:.2f}"
        lines.append(f"| physical limit, {key} ({share:.0%} reached) | | {limit['rate']:.1f} | | | | {total} |")
    lines += ["", "Memory is resident memory at its peak, for several processes with shared pages counted once.", "",
              "| server | first answer after, s (median of 3 starts) | JPEG of 4000 x 3000, p50 in ms | memory, MB | failed | wrong labels |",
              "|---|---|---|---|---|---|"]
    for key in options.servers:
        seen = results.get(key)
        figures = f"{SERVERS[key][1]} is not installed | | | |"
        if seen:
            figures = f"{seen['start_s']:.1f} | {seen['large_ms']:.0f} | {seen['mb']:.0f} | {seen['failed']} | {seen['wrong']}"
        lines.append(f"| {SERVERS[key][0]} | {figures} |")
    print("\n".join(lines))
    (HERE / "serving.md").write_text("\n".join(lines) + "\n")


def draw_plot(results, limits, clients):
    """Draw requests/s and latencies of every server into serving.png."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    colours = dict(zip(SERVERS, ("#1565c0", "#00897b", "#9e9e9e", "#bf8f4d", "#8e6c9e")))
    figure, (rates, times) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    width = 0.84 / len(results)
    for k, (key, result) in enumerate(results.items()):
        places = [c + (k - (len(results) - 1) / 2) * width for c in range(len(clients))]
        loads = [result["loads"][c] for c in clients]
        name = SERVERS[key][0].replace("`", "")
        bars = rates.bar(places, [load["rate"] for load in loads], width, color=colours[key], label=name)
        rates.bar_label(bars, fmt="%.0f", fontsize=8)
        low, high = [load["p50"] for load in loads], [load["p99"] for load in loads]
        times.vlines(places, low, high, color=colours[key], lw=2.5)
        times.scatter(places, low, color=colours[key], s=36, zorder=3)
        times.scatter(places, high, color=colours[key], s=60, marker="_", zorder=3)
    for key, limit in limits.items():
        rates.axhline(limit["rate"], color=colours[key], ls=":", lw=1.2)
    rates.set(title="requests/s (dotted: physical limit)", xlabel="clients")
    times.set(title="latency in ms (log scale): p50 (dot) to p99 (bar)", xlabel="clients", yscale="log")
    for axes in (rates, times):
        axes.set_xticks(range(len(clients)), clients)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(HERE / "serving.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=8, help="length of each measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--servers", nargs="+", default=list(SERVERS), choices=SERVERS)
    parser.add_argument("--folder", type=Path, help="folder of real photographs, searched to the bottom")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))   # so that no server outlives a time-out
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        prepare_work(root, options.folder, options.servers)
        with Server("http", root) as server:
            http_ms = server.drive(max(options.clients), options.seconds, sorted((root / "bodies").glob("0*")))["cpu_ms"]
        results, limits = {}, {}
        for key in options.servers:
            if SERVERS[key][1] is None or importlib.util.find_spec(SERVERS[key][1]):
                results[key] = measure(key, root, options)
                if key in ("bf16", "int8"):
                    limits[key] = find_limit(key, root, options.seconds, http_ms)
    write_table(results, limits, http_ms, options)
    draw_plot(results, limits, options.clients)
    if any(result["failed"] or result["wrong"] for result in results.values()):
        raise SystemExit("some requests failed or were answered wrongly: see the table")


if __name__ == "__main__":
    main()
