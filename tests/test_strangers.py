"""Folders and archives that somebody else has made: what is in them is read, never obeyed."""
import hashlib
import io
import json
import subprocess
import tarfile
import time

import numpy as np
import pytest

from imgclf_nb.archives import DataError, unpack_archive
from imgclf_nb.bundle import BundleError, write_bundle
from imgclf_nb.cli import main
from imgclf_nb.example import draw_example, write_example_bundle
from imgclf_nb.files import replace_folder, write_atomic
from imgclf_nb.loaders import _lock
from imgclf_nb.predict import Predictor
from imgclf_nb.reproduce import read_git_state


def test_a_link_in_the_place_of_a_half_written_file_is_not_followed(tmp_path):
    (thesis := tmp_path / "home" / "thesis.txt").parent.mkdir()
    thesis.write_text("years of work")
    (stranger := tmp_path / "model").mkdir()
    for name in (".metrics.json.partial", ".lock"):
        (stranger / name).symlink_to(thesis)
    (stranger / ".bundle.partial").symlink_to(thesis.parent)
    with write_atomic(stranger / "metrics.json") as partial: partial.write_text("{}")
    with replace_folder(stranger / "bundle") as partial: (partial / "model.onnx").write_text("net")
    with _lock(stranger): pass
    assert thesis.read_text() == "years of work" and list(thesis.parent.iterdir()) == [thesis]
    assert (stranger / "metrics.json").read_text() == "{}" and (stranger / "bundle" / "model.onnx").read_text() == "net"
    assert not any(path.is_symlink() for path in stranger.iterdir())


@pytest.mark.parametrize("way", ["core.fsmonitor", "filter.z.clean"])
def test_git_runs_no_program_of_the_folder_it_is_asked_about(tmp_path, way):
    def git(*words): subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True, capture_output=True)
    git("init")
    (tmp_path / "notes.txt").write_text("one")
    git("add", ".")
    git("commit", "-m", "one")
    (program := tmp_path / "run.sh").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\ncat\n")
    program.chmod(0o755)
    git("config", way, str(program))
    (tmp_path / ".git" / "info" / "attributes").write_text("* filter=z\n")
    (tmp_path / "notes.txt").write_text("two")
    assert len(read_git_state(tmp_path)["commit"]) == 40
    assert not (tmp_path / "ran").exists()
    git("status")
    assert (tmp_path / "ran").exists(), "the trap itself does not work"


def write_tar(path, name, *, size=None, pax=None):
    """A tar with one member, whose header lies about its size, or has a further header of these bytes."""
    member = tarfile.TarInfo(name)
    member.size = size or 0
    header = member.tobuf(tarfile.GNU_FORMAT) if size is None or size >= 0 else None
    if header is None:   # base 256, as GNU tar writes numbers below nothing
        member.size = 0
        header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
        header[124:136] = (256**12 + size).to_bytes(12, "big")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    with open(path, "wb") as file:
        if pax:
            extended = tarfile.TarInfo("pax")
            extended.type, extended.size = tarfile.XHDTYPE, len(pax)
            file.write(extended.tobuf(tarfile.USTAR_FORMAT) + pax + bytes(-len(pax) % 512))
        file.write(bytes(header) + bytes(1024))
    return path


def test_a_tar_that_never_ends_is_refused(tmp_path):
    for lie in (dict(size=-512), dict(pax=b"1" * 300_000)):
        began = time.monotonic()
        with pytest.raises(DataError, match="damaged"): unpack_archive(write_tar(tmp_path / "a.tar", "1.jpg", **lie), tmp_path / "out")
        assert time.monotonic() - began < 10


def test_members_that_hold_nothing_count_too(tmp_path):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        for number in range(3000): archive.addfile(tarfile.TarInfo(f"{number}.txt"))
    with pytest.raises(DataError, match="unpacks to more than 0.01 GB"): unpack_archive(tmp_path / "a.tgz", tmp_path / "out", max_gb=0.01)


def test_a_bundles_reference_may_hold_anything(tmp_path):
    bundle = write_example_bundle(tmp_path / "bundle")
    def replace(content):
        other = write_bundle(tmp_path / "other", bundle.info.model_copy(update={"files": {}}), model_file=bundle.model_file,
                             reference=bundle.read_reference())
        text = json.loads((other.path / "bundle.json").read_text())
        (other.path / "reference.npz").write_bytes(content)
        text["files"]["reference.npz"] = hashlib.sha256(content).hexdigest()
        (other.path / "bundle.json").write_text(json.dumps(text))
        return other.path
    plain = io.BytesIO()
    np.save(plain, np.zeros(3))
    lie = io.BytesIO()
    np.savez(lie, axes=np.zeros((3, 4)))
    huge = io.BytesIO()
    np.savez_compressed(huge, axes=np.zeros(80_000_000))
    for content in (plain.getvalue(), lie.getvalue().replace(b"(3, 4)", b"(3,9" + b"9" * 2 + b")"), huge.getvalue(), b"PK\x03\x04"):
        with pytest.raises(BundleError, match="export the bundle again|reference.npz"): Predictor(replace(content))


def test_a_label_can_neither_end_the_card_nor_draw_on_the_terminal(tmp_path, capsys):
    evil = ["<img src=x onerror=alert(1)>", "sea\n\n## Score\n\n100 %", "\x1b[2J\x1b]0;owned\x07"]
    source = write_example_bundle(tmp_path / "example")
    bundle = write_bundle(tmp_path / "model" / "bundle", source.info.model_copy(update={"labels": sorted(evil), "files": {}}), model_file=source.model_file)
    card = (bundle.path / "README.md").read_text(encoding="utf-8")
    assert "<img" not in card and "\n## Score" not in card and "onerror" in card
    picture = tmp_path / "a\x1b[2J\nb.png"
    draw_example(2).save(picture)
    assert main(["predict", str(picture), "--model-dir", str(tmp_path / "model")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and out.count("\n") == 1 and "%" in out
    assert main(["predict", str(tmp_path / "\x1b[2Jnone"), "--model-dir", str(tmp_path / "\x1b[31mnothing")]) == 2
    assert "\x1b" not in capsys.readouterr().err
