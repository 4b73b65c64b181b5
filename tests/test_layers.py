"""A module imports only modules of a smaller notebook number; the serving side never loads training or plotting."""
import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SERVING = ["settings", "files", "bombs", "images", "bundle", "judge", "engine", "predict", "monitor", "service", "body", "guard", "api", "views", "looks", "page",
           "tool", "door", "manners", "app", "serve", "options", "cli"]
HEAVY = ["torch", "torchvision", "fastai", "timm", "matplotlib", "sklearn"]


def notebook_numbers():
    """Module name -> (number, letter), from the file names of the notebooks."""
    names = (re.fullmatch(r"(\d+)([a-z]?)_(\w+)\.ipynb", path.name) for path in (ROOT / "nbs").glob("*.ipynb"))
    return {name[3]: (int(name[1]), name[2]) for name in names if name}


NUMBERS = notebook_numbers()


def imported_modules(module):
    """Modules of this package that a module imports anywhere, also inside functions."""
    tree = ast.parse((ROOT / "imgclf_nb" / f"{module}.py").read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            source = "imgclf_nb." * bool(node.level) + (node.module or "")
            found |= {f"{source}.{alias.name}" for alias in node.names} | {source}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    parts = (re.split(r"\.+", name) for name in found)
    return {part[1] for part in parts if part[0] == "imgclf_nb" and len(part) > 1 and part[1] in NUMBERS}


def test_the_rule_has_something_to_hold():
    assert set(SERVING) <= set(NUMBERS)
    assert {"bundle", "images", "settings"} <= imported_modules("predict")


@pytest.mark.parametrize("module", sorted(NUMBERS))
def test_imports_only_smaller_numbers(module):
    larger = [other for other in imported_modules(module) if NUMBERS[other] >= NUMBERS[module]]
    assert not larger, f"{module} {NUMBERS[module]} imports {larger}"


@pytest.mark.parametrize("module", SERVING)
def test_serving_loads_nothing_heavy(module):
    code = f"import sys, imgclf_nb.{module}; print(*[m for m in {HEAVY} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == []


def test_predicting_loads_nothing_heavy(tmp_path):
    from imgclf_nb.example import draw_example, write_example_bundle
    write_example_bundle(tmp_path / "bundle")
    draw_example(0).save(tmp_path / "leaf.png")
    code = ("import sys; from imgclf_nb.predict import Predictor; "
            f"print(Predictor({str(tmp_path / 'bundle')!r}).predict({str(tmp_path / 'leaf.png')!r}).label, "
            f"*[m for m in {HEAVY + ['onnx', 'pandas', 'scipy', 'fastcore']} if m in sys.modules])")
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.stdout.split() == ["leaf"], ran.stdout + ran.stderr


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda file: file.name)
def test_benchmarks_import_what_there_is(file):
    """A benchmark takes hours and is run seldom: what it imports in the middle of it must not be gone by then."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("imgclf_nb"):
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("file", sorted((ROOT / "nbs").rglob("*.ipynb")), ids=lambda file: file.name)
def test_a_figure_is_a_picture_in_jupyterlab_too(file):
    """There a `Figure` is drawn only after `%matplotlib inline` or a first figure of pyplot; `nbdev_test` draws it in any case."""
    ready = False
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        ready |= cell["cell_type"] == "code" and bool(re.search(r"^%matplotlib inline|plt\.(subplots|figure|imshow|plot|hist)\(", source, re.M))
        drawn = any("image/png" in output.get("data", {}) and "<Figure" in str(output["data"].get("text/plain")) for output in cell.get("outputs", []))
        assert ready or not drawn, f"{cell['id']} shows its figure as text in JupyterLab"
