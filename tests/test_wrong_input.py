"""Mistakes of the user: one clear line, exit code 2, nothing left behind."""
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image


def draw_folder(folder, classes=("cat", "dog"), images=12):
    """A folder with a folder of small random JPEGs for each class."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(images):
            noise = np.random.default_rng(1000 * number + k).integers(0, 255, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / name / f"{k:03}.jpg")
    return folder


def listing(folder):
    """Every path below a folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def refused(imgclf, tmp_path):
    """Run a command that must be refused; gives its one line."""
    def run(*words, **options):
        before = listing(tmp_path)
        result = imgclf(*words, **options)
        assert result.returncode == 2, result.stdout + result.stderr
        assert result.stderr.count("\n") == 1 and result.stderr.startswith("imgclf: "), result.stderr
        assert listing(tmp_path) == before, "something was left behind"
        return result.stderr
    return run


@pytest.mark.parametrize("words, said", [
    (["prepare", ""], "an argument is empty"), (["predict", " "], "an argument is empty"), (["run", "pets", "--arch", ""], "--arch is empty"),
    (["serve", "--api-key="], "--api-key is empty"), (["prepare", "pets", "--drop", ""], "--drop is empty")])
def test_an_unset_variable_of_the_shell_is_not_the_default(refused, tmp_path, words, said):
    """`imgclf prepare "$FOLDER"` prepared the digits, and `--api-key "$KEY"` served without a key."""
    draw_folder(tmp_path / "pets")
    assert said in refused(*words)


def test_another_source_of_the_same_name(imgclf, refused, tmp_path):
    """A data set is found by its name; a training on another folder of that name, or with another kind's defaults, is refused."""
    for place in ("a", "b"):
        draw_folder(tmp_path / place / "pets")
    assert imgclf("prepare", "a/pets", "--no-audit", "--image-size-px", "32").returncode == 0
    for words in (["train", "b/pets", "--arch", "efficientnet_lite0"], ["train", "--name", "pets"]):
        said = refused(*words)
        assert "a/pets" in said and "--name" in said, said
    assert "--recipe fastai" in refused("train", "a/pets", "--arch", "efficientnet_lite0", "--find-lr")
    assert "cache-gb" in refused("prepare", "a/pets", "--cache-gb", "inf")


def test_another_archive_of_the_same_name(imgclf, refused, tmp_path):
    """An archive is known by its content; one that was moved, or cleared away, needs no new name."""
    for year, classes in ("2023", ["cat", "dog"]), ("2024", ["cat", "emu"]):
        draw_folder(tmp_path / year / "pets", classes)
        (tmp_path / f"in{year}").mkdir()
        with zipfile.ZipFile(tmp_path / f"in{year}" / "pets.zip", "w") as archive:
            for file in sorted((tmp_path / year).rglob("*.jpg")):
                archive.write(file, file.relative_to(tmp_path / year))
    assert imgclf("prepare", "in2023/pets.zip", "--no-audit", "--image-size-px", "32").returncode == 0
    assert "from another archive, not from in2024/pets.zip" in refused("train", "in2024/pets.zip", "--arch", "no_such_network")
    (tmp_path / "in2023" / "pets.zip").rename(tmp_path / "in2023" / "kept.zip")
    for source in ("in2023/kept.zip", "in2023/pets.zip"):
        assert "no_such_network" in refused("train", source, "--name", "pets", "--arch", "no_such_network")   # the origin is no matter


def test_a_folder_of_the_same_name_as_one_that_is_gone(imgclf, refused, tmp_path):
    for place in ("a", "b"):
        draw_folder(tmp_path / place / "pets")
    assert imgclf("prepare", "a/pets", "--no-audit", "--image-size-px", "32").returncode == 0
    (tmp_path / "a").rename(tmp_path / "gone")
    assert "was prepared from" in refused("train", "b/pets", "--arch", "no_such_network")
    assert "was prepared from" not in refused("train", "a/pets", "--arch", "no_such_network")


def test_missing_folder(refused):
    assert "flowers" in refused("run", "flowers", "--arch", "efficientnet_lite0")


def test_empty_folder(refused, tmp_path):
    (tmp_path / "flowers").mkdir()
    assert "flowers" in refused("prepare", "flowers")


def test_one_class_only(refused, tmp_path):
    draw_folder(tmp_path / "pets", classes=["cat"])
    assert "cat" in refused("prepare", "pets")


def test_class_with_two_images(refused, tmp_path):
    draw_folder(tmp_path / "pets")
    draw_folder(tmp_path / "pets", classes=["axolotl"], images=2)
    message = refused("prepare", "pets")
    assert "axolotl" in message and "2" in message and "dog" not in message


def test_zip_that_climbs_out(refused, tmp_path):
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        archive.writestr("pets/cat/1.jpg", b"x")
        archive.writestr("pets/../../evil.jpg", b"x")
    assert "evil.jpg" in refused("prepare", "pets.zip")
    assert not (tmp_path.parent / "evil.jpg").exists()


def test_csv_without_label(refused, tmp_path):
    (tmp_path / "pets.csv").write_text("path,kind\na.jpg,cat\n")
    message = refused("prepare", "pets.csv")
    assert "label" in message and "kind" in message


def test_unknown_architecture(refused):
    assert "resnet50" in refused("run", "digits", "--arch", "resnet5O")


@pytest.mark.parametrize("option, value", [("--image-size-px", "0"), ("--fit", "stretch"), ("--top-n", "x"), ("--sead", "1")])
def test_bad_options(refused, option, value):
    assert option.strip("-") in refused("prepare", "digits", option, value)


def test_bad_variable(refused):
    assert "IMGCLF_ARCH" in refused("prepare", env={**os.environ, "IMGCLF_ARHC": "resnet50"})


def test_weights_of_another_network(refused, tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    assert "does not fit resnet18" in refused("run", "digits", "--arch", "resnet18", "--weights", "other.pth")
    assert "no such file" in refused("run", "digits", "--arch", "resnet18", "--weights", "gone.pth")


def test_train_before_prepare(refused):
    assert "imgclf prepare" in refused("train")


def test_evaluate_before_train(refused, imgclf):
    assert imgclf("prepare").returncode == 0
    assert "bundle" in refused("evaluate")


def test_broken_pictures_are_set_aside_and_named(imgclf, tmp_path):
    """A text file called .jpg and a truncated JPEG: the run goes on without them."""
    draw_folder(tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "notes.jpg").write_text("buy milk")
    whole = (tmp_path / "pets" / "dog" / "000.jpg").read_bytes()
    (tmp_path / "pets" / "dog" / "half.jpg").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "pets" / "dog" / "phone.HEIC").write_bytes(b"x")
    result = imgclf("prepare", "pets")
    assert result.returncode == 0, result.stderr
    assert "; 2 set aside; left out: 1 .heic" in result.stdout
    aside = pd.read_csv(tmp_path / "data" / "pets" / "quarantine.csv")
    assert sorted(path.split("/")[-1] for path in aside.path) == ["half.jpg", "notes.jpg"] and aside.reason.str.len().min() > 10
    manifest = pd.read_csv(tmp_path / "data" / "pets" / "manifest.csv")
    assert len(manifest) == 24 and not manifest.path.str.contains("half|notes").any()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("option", ["--data-dir", "--model-dir", "--results-dir"])
def test_full_disk(imgclf, small_disk, tmp_path, option):
    """Whichever folder is on the full disk: a message, and no part of a file."""
    (small_disk / "filler").write_bytes(b"x" * 1_000_000)
    result = imgclf("run", "digits", "--top-n", "2", "--image-size-px", "32", "--head-epochs", "1", "--fine-tune-epochs", "0",
                    option, small_disk / "here")
    assert result.returncode == 2, result.stdout + result.stderr
    assert "disk is full" in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
    for path in small_disk.rglob("*"):
        assert not path.name.startswith("."), "a part was left behind"
        if path.suffix == ".png":
            Image.open(path).load()


@pytest.fixture
def hearing():
    """A background job of a shell is deaf to Ctrl-C, and so are its children: how the tests were started shall not matter."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("hearing")
def test_ctrl_c_leaves_no_parts(tmp_path):
    """An interrupted training says so, without a traceback."""
    process = subprocess.Popen([Path(sys.executable).parent / "imgclf", "run"], cwd=tmp_path, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "model" / "checkpoint.pth").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors and "stopped" in errors
    assert not list(tmp_path.rglob(".*.partial"))


@pytest.mark.usefixtures("hearing")
def test_ctrl_c_in_a_callback_is_heard(tmp_path):
    """Python can't raise from a finalizer or a weak reference's callback: the command stops all the same."""
    program = ("import signal, sys, time, imgclf_nb.cli as cli\n"
               "class Deaf:\n    def __del__(self): signal.raise_signal(signal.SIGINT)\n"
               "def work(words):\n    Deaf()\n    for _ in range(300): time.sleep(0.1)\n"
               "cli._do = work\n"
               "sys.exit(cli.main(['run']))\n")
    began = time.monotonic()
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (130, "imgclf: stopped\n")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("words, said", [(["--results-dir", "notes.txt"], "a file has the name of a folder"),
                                         (["--model-dir", "notes.txt/model"], "a file has the name of a folder"),
                                         (["--unknown-dir", "nowhere"], "no such folder")])
def test_what_would_fail_in_the_end_fails_at_once(imgclf, tmp_path, words, said):
    (tmp_path / "notes.txt").write_text("mine")
    ran = imgclf("run", "digits", *words)
    assert ran.returncode == 2 and said in ran.stderr and ran.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists() and (tmp_path / "notes.txt").read_text() == "mine"


LATE = """
import os, sys
class Leak:
    def __del__(self, write=os.write): write(2, b"leaked 4 instances!")
sys.leak = Leak()   # goes with Python itself, as Triton's do
from imgclf_nb.cli import main
sys.argv = ["imgclf", "predict", "none.jpg", "--model-dir", "nowhere"]
sys.exit(main())
"""


def test_the_last_word_is_ours(tmp_path):
    """A command ends with its own line, whatever a library says while Python goes down."""
    ran = subprocess.run([sys.executable, "-c", LATE], cwd=tmp_path, text=True, capture_output=True)
    assert ran.returncode == 2 and ran.stderr.startswith("imgclf: ") and ran.stderr.count("\n") == 1, ran.stderr
    assert "leaked" not in ran.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_can_not_be_written_at_the_end_is_told(tmp_path):
    """An answer that still waited in memory when the command ended."""
    with open("/dev/full", "w") as full:
        ran = subprocess.run([sys.executable, "-m", "imgclf_nb", "--version"], cwd=tmp_path, text=True, stdout=full, stderr=subprocess.PIPE,
                             env={**os.environ, "PYTHONUNBUFFERED": ""})
    assert ran.returncode and "No space left" in ran.stderr, (ran.returncode, ran.stderr)
