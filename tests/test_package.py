"""The wheel is complete, and predicts without torch."""
import ast
import json
import subprocess
import sys
import tarfile
import venv
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from imgclf_nb.example import write_example_bundle

ROOT = Path(__file__).resolve().parent.parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(ROOT / "settings.ini")


def required(key):
    """The names of the packages that a list of settings.ini asks for."""
    return {canonicalize_name(Requirement(line).name) for line in parser["DEFAULT"][key].splitlines() if line.strip()}


def imported(modules):
    """The packages that modules import at any place, as names on PyPI."""
    found = set()
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.split(".")[0] for name in names}
    known = packages_distributions()
    return {canonicalize_name(known[name][0]) for name in found if name in known} - {"imgclf-nb"}


def test_every_import_is_required():
    modules = [path for path in (ROOT / "imgclf_nb").glob("*.py") if path.name != "_dev.py"]
    assert imported(modules) <= required("requirements")


def test_serving_needs_a_subset():
    assert required("serve_requirements") <= required("requirements")
    assert not required("serve_requirements") & {"torch", "torchvision", "fastai", "timm", "matplotlib"}


def test_requirements_have_no_upper_pins():
    for line in parser["DEFAULT"]["requirements"].splitlines():
        assert "==" not in line and "~=" not in line, line


@pytest.mark.install
def test_wheel_predicts_in_an_environment_without_torch(tmp_path):
    """What the serving image does: the wheel (made from the sdist) without its dependencies, and `serve_requirements`."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT], check=True, capture_output=True)
    wheel, = (tmp_path / "dist").glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    needs = [line for line in parser["DEFAULT"]["serve_requirements"].splitlines() if line.strip()]
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", *needs], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)

    write_example_bundle(tmp_path / "model" / "bundle")
    for name in ("red", "blue"):
        Image.new("RGB", (60, 40), name).save(tmp_path / f"{name}.png")
    result = subprocess.run([python.parent / "imgclf", "predict", "red.png", "blue.png", "--format", "json"],
                            cwd=tmp_path, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert [row["label"] for row in json.loads(result.stdout)] == ["tomato", "sea"]
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode != 0

    asked = subprocess.run([python, "-m", "imgclf_nb", "train"], cwd=tmp_path, text=True, capture_output=True)
    assert asked.returncode == 2 and asked.stderr.count("\n") == 1, asked.stderr
    assert "imgclf: train needs " in asked.stderr and "pip install imgclf_nb" in asked.stderr
    sdist, = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if "/tests" in name or "/nbs" in name]
