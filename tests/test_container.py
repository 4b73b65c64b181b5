"""The serving image, built from Dockerfile and started as docker-compose.yml starts it."""
import ast
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from configparser import ConfigParser
from io import BytesIO
from pathlib import Path

import httpx
import pytest
import yaml

from imgclf_nb.example import LABELS, draw_example, write_example_bundle
from imgclf_nb.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
NO_TORCH = {"torch", "torchvision", "fastai", "timm", "matplotlib", "sklearn", "onnx", "fastcore"}
HOST = "127.0.0.2"  # answers only where a server listens on more than 127.0.0.1
CANARY = "index-password.invalid"  # stands for what a build argument could betray


def call(*words, timeout=60, **options):
    """Run a program and give its standard output; a failure shows what it wrote."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=timeout, **options)
    assert done.returncode == 0, f"{' '.join(map(str, words))[:300]}\n{(done.stdout + done.stderr)[-3000:]}"
    return done.stdout


def pip_arguments():
    """Build arguments that make pip in the build look where pip on this machine looks (not on its disks)."""
    found = {}
    for line in call(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        found[name.split(".")[-1]] = ast.literal_eval(value)
    words = []
    for name in ("index-url", "extra-index-url"):
        urls = [url for url in found.get(name, "").split() if not url.startswith(("file:", "/"))]
        if urls: words += ["--build-arg", f"PIP_{name.upper().replace('-', '_')}={' '.join(urls)}"]
    if "cert" in found:
        words += ["--secret", f"id=pip_ca,src={found['cert']}", "--build-arg", "PIP_CERT=/run/secrets/pip_ca"]
    hosts = f"{found.get('trusted-host', '')} {CANARY}".split()
    return [*words, "--build-arg", f"PIP_TRUSTED_HOST={' '.join(hosts)}"]


class Docker:
    """An engine that answers."""
    def __init__(self, folder):
        self.image = f"imgclf-test-{os.getpid()}"

    def build(self):
        """Build the image and read what it says of itself."""
        call("docker", "build", "-t", self.image, *pip_arguments(), ROOT, timeout=1800)
        self.config = json.loads(call("docker", "inspect", self.image))[0]["Config"]
        self.record = call("docker", "inspect", self.image) + call("docker", "history", "--no-trunc", self.image)

    def start(self, model, port, words=()):
        """Start a container; its handle."""
        return call("docker", "run", "-d", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt",
                    "no-new-privileges", "-v", f"{model}:/work/model:ro", "-e", f"IMGCLF_PORT={port}",
                    "-p", f"{HOST}:{port}:{port}", self.image, *words).strip()

    def run_inside(self, handle, words):
        """Run a program in a container that runs."""
        return subprocess.run(["docker", "exec", handle, *words], capture_output=True, text=True, timeout=60)

    def ended(self, handle):
        """Whether a container runs no more."""
        return call("docker", "inspect", "-f", "{{.State.Running}}", handle).strip() == "false"

    def terminate(self, handle):
        """Send SIGTERM."""
        call("docker", "kill", "--signal", "TERM", handle)

    def wait(self, handle, timeout):
        """Wait for the end; exit code and what was written."""
        code = int(call("docker", "wait", handle, timeout=timeout))
        return code, call("sh", "-c", 'exec docker logs "$0" 2>&1', handle)

    def remove(self, handle):
        """Leave nothing of a container."""
        call("docker", "rm", "-f", handle)

    def close(self):
        """Leave nothing of the image."""
        call("docker", "rmi", "-f", self.image)


class Buildah:
    """No engine: buildah builds in a chroot, on a base that mmdebstrap makes, and unshare runs the result.

    What runs is process 1 of a process namespace of its own, sees a read-only root, and has no capabilities.
    """
    BOX = """set -e
        mount --bind "$ROOTFS" "$ROOTFS"; mount -o remount,bind,ro "$ROOTFS"
        mount -t proc proc "$ROOTFS/proc"; mount -t sysfs -o ro sysfs "$ROOTFS/sys"; mount --rbind /dev "$ROOTFS/dev"
        mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs "$ROOTFS/tmp"
        mount --bind "$MODEL" "$ROOTFS/work/model"; mount -o remount,bind,ro "$ROOTFS/work/model"
        exec chroot "$ROOTFS" setpriv --reuid "$USER_ID" --regid "$GROUP_ID" --clear-groups --no-new-privs \
            --bounding-set=-all --inh-caps=-all env -i "$@" """

    def __init__(self, folder):
        self.buildah = ["buildah", "--root", folder / "storage", "--runroot", folder / "run", "--storage-driver", "vfs"]
        self.folder = folder
        self.image = "localhost/imgclf-test"

    def build(self):
        """Build the image and read what it says of itself."""
        self.make_base(self.folder / "base.tar")
        call(*self.buildah, "build", "--isolation", "chroot", "--format", "docker", "--build-arg",
             "BASE_IMAGE=localhost/imgclf-base", *pip_arguments(), "-t", self.image, ROOT, timeout=1800)
        self.record = call(*self.buildah, "inspect", "--type", "image", self.image)
        self.config = json.loads(self.record)["Docker"]["config"]
        self.root = call(*self.buildah, "mount", call(*self.buildah, "from", self.image).strip()).strip()

    def make_base(self, archive):
        """Make the base image from this machine's own Debian mirrors."""
        code = re.search(r"VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text())[1]
        lists = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").iterdir()]
        sources = [path for path in lists if path.exists() and code in path.read_text().split()]
        options = [line for line in call("apt-config", "dump", "Acquire").splitlines()
                   if re.search("Proxy|Check-|CAInfo", line)]
        call("mmdebstrap", "--variant=apt", "--include=python3,python3-venv",
             *(f"--aptopt={line}" for line in options), code, archive, *sources, timeout=900)
        empty = call(*self.buildah, "from", "scratch").strip()
        call(*self.buildah, "add", empty, archive, "/", timeout=300)
        call(*self.buildah, "commit", "--rm", empty, "localhost/imgclf-base", timeout=300)
        archive.unlink()

    def start(self, model, port, words=()):
        """Start what the image starts; its process."""
        user, group = (self.config["User"] or "0:0").split(":")
        where = dict(os.environ, ROOTFS=self.root, MODEL=str(model), USER_ID=user, GROUP_ID=group)
        self.variables = [*self.config["Env"], f"IMGCLF_PORT={port}"]
        inner = ["-C", self.config["WorkingDir"], *self.variables, *self.config["Entrypoint"],
                 *(words or self.config["Cmd"])]
        box = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "sh", "-c", self.BOX, "box"]
        with open(self.folder / "output.txt", "w") as output:
            return subprocess.Popen([*box, *inner], env=where, stdout=output, stderr=output)

    def inside(self, handle):
        """Number of the container's first process, as this machine counts."""
        return Path(f"/proc/{handle.pid}/task/{handle.pid}/children").read_text().strip()

    def run_inside(self, handle, words):
        """Run a program in a container that runs."""
        enter = ["nsenter", "--target", self.inside(handle), "--mount", "--pid", "--root", "--wd", "--setuid", "1000",
                 "--setgid", "1000", "env", "-i", *self.variables]
        return subprocess.run([*enter, *words], capture_output=True, text=True, timeout=60)

    def ended(self, handle):
        """Whether a container runs no more."""
        return handle.poll() is not None

    def terminate(self, handle):
        """Send SIGTERM."""
        os.kill(int(self.inside(handle)), signal.SIGTERM)

    def wait(self, handle, timeout):
        """Wait for the end; exit code and what was written."""
        return handle.wait(timeout), (self.folder / "output.txt").read_text()

    def remove(self, handle):
        """Leave nothing of a container: its first process takes all others along."""
        if handle.poll() is None and self.inside(handle): os.kill(int(self.inside(handle)), signal.SIGKILL)
        handle.wait(30)

    def close(self):
        """Leave nothing of the images."""
        call(*self.buildah, "rm", "--all", timeout=300)
        call(*self.buildah, "rmi", "--all", "--force", timeout=300)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The image, built by what this machine has."""
    folder = tmp_path_factory.mktemp("container")
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, timeout=60).returncode == 0:
        kind = Docker
    elif os.geteuid() == 0 and shutil.which("buildah") and shutil.which("mmdebstrap"): kind = Buildah
    else: pytest.skip("needs a Docker engine that answers, or root with buildah and mmdebstrap")
    began = time.perf_counter()
    engine = kind(folder)
    try:
        engine.build()
        print(f"\n{kind.__name__}: image built in {time.perf_counter() - began:.0f} s")
        yield engine
    finally:
        engine.close()
        shutil.rmtree(folder)


@pytest.fixture
def run(engine, tmp_path):
    """Start the image with an example bundle in `model/`, or with none; gives its handle and the server's address."""
    model, empty, handles = tmp_path / "model", tmp_path / "empty", []
    write_example_bundle(model / "bundle")
    empty.mkdir()
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]

    def start(*words, trained=True):
        handles.append(engine.start(model if trained else empty, port, words))
        return handles[-1], f"http://{HOST}:{port}"
    yield start
    for handle in handles: engine.remove(handle)


def wait_for_health(engine, handle, url):
    """Poll `/health` until it answers; the answer."""
    began = time.perf_counter()
    while time.perf_counter() - began < 60:
        try: answer = httpx.get(f"{url}/health", timeout=5)
        except httpx.TransportError:
            time.sleep(0.05)
            if engine.ended(handle): break
        else:
            print(f"\n/health answered {time.perf_counter() - began:.1f} s after the start")
            return answer
    if not engine.ended(handle): engine.terminate(handle)
    pytest.fail(f"no answer; exit code and output: {engine.wait(handle, 10)}")


@pytest.fixture
def server(engine, run):
    """A server in the image that is well."""
    handle, url = run()
    answer = wait_for_health(engine, handle, url)
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")
    return handle, url


def health_check(engine):
    """The command of HEALTHCHECK."""
    kind, *words = engine.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    return words


@pytest.mark.container
def test_the_image_serves_read_only_and_without_rights(engine, server):
    """It predicts; it is not root, has no capabilities, and can write nothing but /tmp."""
    handle, url = server
    draw_example(1).save(picture := BytesIO(), "PNG")
    answer = httpx.post(f"{url}/predict", files={"file": ("sea.png", picture.getvalue(), "image/png")})
    assert (answer.status_code, answer.json()["label"]) == (200, LABELS[1]), answer.text
    assert httpx.get(url).status_code == 200  # the page

    status = engine.run_inside(handle, ["cat", "/proc/1/status"]).stdout
    assert re.search(r"Uid:\s+1000\s+1000\s+1000\s+1000\n", status)
    assert re.search(r"CapEff:\s+0+\n", status) and re.search(r"NoNewPrivs:\s+1\n", status)
    for place in ("/work", "/work/model", "/work/model/bundle", "/venv", "/cache"):
        assert engine.run_inside(handle, ["touch", f"{place}/new"]).returncode != 0, place
    assert engine.run_inside(handle, ["touch", "/tmp/new"]).returncode == 0


@pytest.mark.container
def test_the_health_check_tells_up_from_down(engine, server):
    """HEALTHCHECK's own command succeeds beside a server, on the port in IMGCLF_PORT, and fails without one."""
    handle, _ = server
    up = engine.run_inside(handle, health_check(engine))
    assert up.returncode == 0, up.stderr
    assert engine.run_inside(handle, ["env", "IMGCLF_PORT=1", *health_check(engine)]).returncode == 1


@pytest.mark.container
def test_a_server_without_a_model_is_not_healthy(engine, run):
    """It waits for its model instead of restarting for ever, and HEALTHCHECK says so."""
    handle, url = run(trained=False)
    assert wait_for_health(engine, handle, url).status_code == 503
    assert engine.run_inside(handle, health_check(engine)).returncode == 1


@pytest.mark.container
def test_sigterm_ends_the_server(engine, server):
    """`docker stop` is heard at once, by the server itself, and is no failure."""
    handle, url = server
    began = time.perf_counter()
    engine.terminate(handle)
    code, output = engine.wait(handle, timeout=10)
    print(f"\nended {time.perf_counter() - began:.1f} s after SIGTERM")
    assert code == 0, output
    assert "Traceback" not in output
    with pytest.raises(httpx.TransportError): httpx.get(f"{url}/health", timeout=5)


@pytest.mark.container
def test_the_image_holds_what_serving_needs_and_no_more(engine, server):
    """Under 650 MB of packages; no torch, no installer, no sources; nothing of the build's arguments."""
    handle, _ = server
    list_names = "from importlib.metadata import distributions as d; print(*(x.name for x in d()))"
    names = set(engine.run_inside(handle, ["python", "-c", list_names]).stdout.lower().split())
    assert {"imgclf_nb", "openvino", "gradio"} <= {name.replace("-", "_") for name in names}
    assert not names & (NO_TORCH | {"scikit-learn", "pip", "setuptools", "openvino-telemetry"})

    megabytes = int(engine.run_inside(handle, ["sh", "-c", "du -smc /venv/lib/python3*/site-packages | tail -1"])
                    .stdout.split()[0])
    print(f"\nsite-packages: {megabytes} MB")
    assert 200 < megabytes < 650
    left = engine.run_inside(handle, ["ls", "/src", "/dist", "/root/.cache"])
    assert left.stdout == "" and "/src" in left.stderr
    assert CANARY not in engine.record and "PIP_" not in " ".join(engine.config["Env"])


@pytest.mark.container
def test_the_image_answers_other_commands(engine, run):
    """`docker run imgclf COMMAND` is `imgclf COMMAND`; a mistake is one line and exit code 2."""
    handle, _ = run("predict", "model/bundle/README.md")
    code, output = engine.wait(handle, timeout=60)
    assert code == 1 and "model/bundle/README.md   error: " in output
    handle, _ = run("predict", "--nonsense", "1")
    code, output = engine.wait(handle, timeout=60)
    assert code == 2 and output.startswith("imgclf: ") and output.count("\n") == 1


def test_the_dockerfile_is_clean():
    """hadolint has nothing to say, and the image's version label is the package's."""
    done = subprocess.run([Path(sys.executable).parent / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    assert f"ARG VERSION={parser['DEFAULT']['version']}\n" in (ROOT / "Dockerfile").read_text()


def test_compose_serves_safely():
    """`docker compose up` serves on port 8000 without rights; training is asked for by name and can write."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    serve, train = services["serve"], services["train"]
    assert serve["ports"] == ["${PUBLISH:-8000}:8000"]
    assert serve["read_only"] is True and serve["tmpfs"] and serve["cap_drop"] == ["ALL"]
    assert serve["security_opt"] == ["no-new-privileges:true"] and serve["restart"] == "unless-stopped"
    assert "profiles" not in serve and train["profiles"] == ["train"]
    for name, service in services.items():
        assert service["build"]["target"] == name
        assert {"BASE_IMAGE", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"} <= set(service["build"]["args"])
        mounts = {mount["target"]: mount for mount in service["volumes"]}
        for folder in ("data", "model", "results"):
            mount = mounts[f"/work/{folder}"]
            assert mount["source"] == f"./{folder}" and mount.get("read_only", False) == (name == "serve")
        passed = {entry.partition("=")[0].removeprefix("IMGCLF_").lower() for entry in service["environment"]}
        assert passed <= set(Settings.model_fields)
        if name == "serve": assert {"host", "api_key", "precision", *Settings.__annotations__} <= passed
    assert "IMGCLF_HOST=0.0.0.0" in serve["environment"] and "IMGCLF_PORT=8000" in serve["environment"]
    assert "IMGCLF_API_KEY" in serve["environment"]  # without a value: from the caller's environment or .env
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        call("docker", "compose", "--profile", "train", "config", "--quiet", cwd=ROOT)
