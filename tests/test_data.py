"""Hostile and odd data: archives, downloads, tables, folders and splits that are no lesson."""
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import socket
import stat
import struct
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from imgclf_nb import sources
from imgclf_nb.archives import DataError, _Budget, _Metered, unpack_archive
from imgclf_nb.data import _plot_counts, fingerprint_data, find_data, prepare_data, read_manifest
from imgclf_nb.download import download_file, has_md5
from imgclf_nb.files import StorageError, replace_folder
from imgclf_nb.images import ImageError, load_pixels
from imgclf_nb.settings import Settings
from imgclf_nb.sources import open_source
from imgclf_nb.splits import split_groups


def jpeg(seed, size=(24, 16)):
    """The bytes of a small random JPEG."""
    file, noise = io.BytesIO(), np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def draw(folder, classes=("cat", "dog"), images=10, start=0):
    """Write `images` different pictures for each class below `folder`."""
    for number, label in enumerate(classes):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for k in range(images):
            (folder / label / f"{k:03}.jpg").write_bytes(jpeg(start + 1000 * number + k))
    return folder


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


@pytest.fixture
def prepare(tmp_path):
    """Prepare a source in `tmp_path/data`; gives the manifest, with `folder` as an attribute."""
    def run(source, **values):
        folder = prepare_data(Settings(source=str(source), **{"data_dir": tmp_path / "data", **values}))
        manifest = read_manifest(folder)
        manifest.attrs["folder"] = str(folder)
        return manifest
    return run


@pytest.fixture
def refuse(prepare, tmp_path):
    """Prepare a source that must be refused with one line, and leave everything as it was."""
    def run(source, *parts, **values):
        before = listing(tmp_path)
        with pytest.raises(DataError) as caught:
            prepare(source, **values)
        message = str(caught.value)
        for part in parts:
            assert part in message
        assert "\n" not in message and listing(tmp_path) == before
        return message
    return run


# ---- archives


def write_tar(path, members, mode="w"):
    """A tar of (TarInfo changes, content) pairs."""
    with tarfile.open(path, mode) as archive:
        for changes, content in members:
            info = tarfile.TarInfo(changes["name"])
            for key, value in changes.items():
                setattr(info, key, value)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/abs/x.jpg", "..\\x.jpg", "C:/x.jpg", "\\\\host\\share\\x.jpg",
                                  "../readme.txt", ".hidden/../../x.jpg"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_no_path_leaves_the_target(tmp_path, refuse, name, kind):
    path = tmp_path / f"pets.{kind}"
    if kind == "tar":
        write_tar(path, [({"name": "cat/1.jpg"}, jpeg(1)), ({"name": name}, b"x")])
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("cat/1.jpg", jpeg(1))
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, b"x")
    refuse(path, "outside the target", repr(name))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_links_and_devices_in_a_tar(tmp_path, refuse, kind):
    member = ({"name": "cat/link.jpg", "type": kind, "linkname": "/etc/passwd"}, b"")
    refuse(write_tar(tmp_path / "pets.tar", [({"name": "cat/1.jpg"}, jpeg(1)), member]), "cat/link.jpg", "link or a device")


def test_link_to_a_folder_in_a_tar_then_a_file_through_it(tmp_path, refuse):
    members = [({"name": "cat", "type": tarfile.SYMTYPE, "linkname": str(tmp_path)}, b""), ({"name": "cat/evil.jpg"}, jpeg(1))]
    refuse(write_tar(tmp_path / "pets.tar", members), "link or a device")


def test_link_in_a_zip(tmp_path, refuse):
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        info = zipfile.ZipInfo("cat/1.jpg")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    refuse(tmp_path / "pets.zip", "cat/1.jpg", "link or a device")


def test_bombs_are_counted_while_they_unpack(tmp_path, refuse):
    zeros = bytes(30_000_000)
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.jpg", zeros)
    lying = (tmp_path / "b.zip").read_bytes().replace(struct.pack("<I", len(zeros)), struct.pack("<I", 1000))
    (tmp_path / "lying.zip").write_bytes(lying)
    write_tar(tmp_path / "b.tgz", [({"name": "cat/1.jpg"}, zeros)], "w:gz")
    write_tar(tmp_path / "skipped.tgz", [({"name": "cat/not_unpacked.bin"}, zeros), ({"name": "cat/1.jpg"}, b"")], "w:gz")
    inner = (tmp_path / "b.tgz").read_bytes()
    with zipfile.ZipFile(tmp_path / "nested.zip", "w") as archive:
        archive.writestr("inner.tgz", inner)
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(6000):
            archive.writestr(f"cat/{number}.jpg", b"")
    for name in ("b.zip", "b.tgz", "skipped.tgz", "nested.zip", "many.zip"):
        refuse(tmp_path / name, "unpacks to more than 0.02 GB", "--max-archive-gb", max_archive_gb=0.02)
    refuse(tmp_path / "lying.zip", max_archive_gb=0.02)


def test_tar_header_that_asks_for_memory(tmp_path, refuse):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 300_000_000
    with gzip.open(tmp_path / "pax.tgz", "wb", compresslevel=1) as file:
        file.write(header.tobuf())
        file.write(bytes(300_000_000))
    tracemalloc.start()
    try:
        refuse(tmp_path / "pax.tgz", "damaged")
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_a_gzip_is_not_inflated_beyond_the_limit_to_skip_a_member():
    with pytest.raises(DataError, match="unpacks to more than 1 GB"):
        _Metered(io.BytesIO(), _Budget("x.tgz", 1)).seek(2 * 10**9)


def test_damaged_archives(tmp_path, refuse):
    whole = tmp_path / "whole"
    pictures = [({"name": f"{label}/{k}.jpg"}, jpeg(k)) for k, label in enumerate("abcabcabc")]
    tar = write_tar(whole, pictures).read_bytes()
    tgz = gzip.compress(tar)
    with zipfile.ZipFile(whole, "w") as archive:
        for changes, content in pictures:
            archive.writestr(changes["name"], content)
    packed = whole.read_bytes()
    headers = [at for at in range(0, len(tar), 512) if tar[at:at + 1] in b"abc" and tar[at + 257:at + 262] == b"ustar"]
    flipped = bytearray(tgz)
    flipped[-6] ^= 1   # the checksum at the end of a gzip
    spoiled = {"cut.tar": tar[:headers[4] + 700], "cut_at_header.tar": tar[:headers[4]], "cut_in_header.tar": tar[:headers[4] + 100],
               "noise.tar": tar[:headers[4]] + os.urandom(512) + tar[headers[4] + 512:], "cut.tgz": tgz[:len(tgz) // 2],
               "flipped.tgz": bytes(flipped), "cut.zip": packed[:len(packed) // 2], "text.zip": b"hello", "empty.tar": b"",
               "flipped.zip": packed[:200] + bytes([packed[200] ^ 255]) + packed[201:], "gz_of_text.tar.gz": gzip.compress(b"hello")}
    for name, content in spoiled.items():
        (tmp_path / name).write_bytes(content)
        refuse(tmp_path / name, f"can't unpack {tmp_path / name}")
    (tmp_path / "page.zip").write_text("\n<html>404</html>")
    refuse(tmp_path / "page.zip", "web page")


def test_encrypted_zip_and_clashing_members(tmp_path, refuse):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("cat/1.jpg", jpeg(1))
    locked = bytearray((tmp_path / "a.zip").read_bytes())
    locked[6] |= 1
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    refuse(tmp_path / "locked.zip", "password")
    clash = [({"name": "cat/1.jpg"}, jpeg(1)), ({"name": "cat/1.jpg/2.jpg"}, jpeg(2))]
    refuse(write_tar(tmp_path / "clash.tar", clash), "can't unpack")
    refuse(write_tar(tmp_path / "long.tar", [({"name": f"cat/{'x' * 300}.jpg"}, jpeg(1))]), "can't unpack")


@pytest.mark.parametrize("suffix, mode", [("zip", None), ("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz")])
def test_every_kind_of_archive(tmp_path, prepare, suffix, mode):
    draw(tmp_path / "in" / "pets")
    (tmp_path / "in" / "pets" / "cat" / "text.jpg").write_text("no picture")
    path = tmp_path / f"pets.{suffix}"
    if mode:
        with tarfile.open(path, mode) as archive:
            archive.add(tmp_path / "in" / "pets", "pets")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name in listing(tmp_path / "in"):
                archive.write(tmp_path / "in" / name, name)
            archive.writestr("__MACOSX/pets/cat/._1.jpg", b"x")
            archive.writestr("pets/.ipynb_checkpoints/1.jpg", jpeg(1))
    manifest = prepare(path)
    data = tmp_path / "data" / "pets"
    assert listing(tmp_path / "data")[0] == "pets" and sorted(os.listdir(data)) == [
        "images", "manifest.csv", "quarantine.csv", "report.html", "source.json", "twins.csv"]
    assert manifest.label.value_counts().to_dict() == {"cat": 10, "dog": 10}
    stored = pd.read_csv(data / "manifest.csv")
    assert list(stored) == ["path", "label", "split", "sha256", "width_px", "height_px", "group"]
    assert stored.path.str.startswith("images/pets/").all()
    assert hashlib.sha256(Path(manifest.path[0]).read_bytes()).hexdigest() == manifest.sha256[0]
    assert list(pd.read_csv(data / "quarantine.csv").path) == ["images/pets/cat/text.jpg"]


def test_archives_in_an_archive_stay_apart(tmp_path, prepare):
    inner = {}
    for split, start in (("train", 0), ("test", 50)):
        draw(tmp_path / split, start=start)
        with tarfile.open(tmp_path / f"{split}.tgz", "w:gz") as archive:
            archive.add(tmp_path / split, ".")
        inner[split] = (tmp_path / f"{split}.tgz").read_bytes()
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        for split, content in inner.items():
            archive.writestr(f"both/{split}.tgz", content)
    manifest = prepare(tmp_path / "both.zip")
    assert manifest.groupby("split").size().to_dict() == {"test": 20, "train": 16, "val": 4}
    assert set(manifest.label) == {"cat", "dog"}
    assert not [name for name in listing(tmp_path / "data") if name.endswith("tgz")]


def test_an_archive_in_an_archive_in_an_archive_is_left_aside(tmp_path):
    content = jpeg(1)
    for inner, outer in (("cat/1.jpg", "c.zip"), ("c.zip", "b.zip"), ("b.zip", "a.zip")):
        with zipfile.ZipFile(tmp_path / outer, "w") as archive:
            archive.writestr(inner, content)
        content = (tmp_path / outer).read_bytes()
    assert unpack_archive(tmp_path / "a.zip", tmp_path / "out") == ["b/c.zip"]


@pytest.mark.parametrize("suffix, mode", [("tar", "w"), ("tgz", "w:gz")])
def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path, prepare, suffix, mode):
    draw(tmp_path / "pets")
    draw(tmp_path / "more", start=50, images=3)
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as inner:
        for name in listing(tmp_path / "more"):
            inner.write(tmp_path / "more" / name, name)
    with tarfile.open(tmp_path / f"both.{suffix}", mode) as archive:
        archive.add(tmp_path / "pets", "both/train")
        archive.add(tmp_path / "more.zip", "both/test.zip")
    manifest = prepare(tmp_path / f"both.{suffix}")
    assert manifest.groupby("split").size().to_dict() == {"test": 6, "train": 16, "val": 4}


def test_same_archive_again_reuses_the_images(tmp_path, prepare, refuse):
    with tarfile.open(tmp_path / "pets.tar", "w") as archive:
        archive.add(draw(tmp_path / "in"), "pets")
    first = prepare(tmp_path / "pets.tar")
    inode = os.stat(first.path[0]).st_ino
    os.rename(tmp_path / "pets.tar", tmp_path / "moved.tar")   # known by its content, not by its place
    again = prepare(tmp_path / "moved.tar", name="pets", seed=7)
    assert os.stat(again.path[0]).st_ino == inode and list(first.split) != list(again.split)
    with tarfile.open(tmp_path / "pets.tar", "w") as archive:
        archive.add(draw(tmp_path / "other", images=5), "pets")
    refuse(tmp_path / "pets.tar", "choose another name with --name")
    refuse("digits", "choose another name with --name", name="pets")


# ---- folders and names


def test_messages_for_what_is_not_there(tmp_path, refuse, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowers").mkdir()
    refuse("flowrs", "'flowrs' does not exist", "did you mean flowers", "digits, caltech101", ".zip .tar .tar.gz .tgz")
    refuse("caltech-101", "did you mean caltech101")
    refuse("", "does not exist")
    refuse("x" * 5000, "does not exist")
    refuse("a\0b", "does not exist")
    refuse("~nobody of this name/flowers", "does not exist")
    refuse("flowers", "no classes in flowers", "found no files")
    (tmp_path / "flowers" / "rose").mkdir()
    (tmp_path / "flowers" / "rose" / "1.heic").write_bytes(b"x")
    refuse("flowers", "found 1 .heic")
    (tmp_path / "flowers" / "loose.jpg").write_bytes(jpeg(1))
    refuse("flowers", "1 images outside class folders")
    (tmp_path / "flowers.rar").write_bytes(b"x")
    refuse("flowers.rar", "another kind")


def test_too_little(tmp_path, refuse):
    refuse(draw(tmp_path / "one", classes=["cat"]), "only one class, 'cat'")
    many = draw(tmp_path / "many", classes=["cat", "dog"])
    draw(many, classes=[f"rare_{n:02}" for n in range(12)], images=2, start=50_000)
    refuse(many, "rare_00 (2 images:", "and 2 more", "--top-n 2")
    lone = draw(tmp_path / "lone")
    for path in (lone / "dog").iterdir():
        path.write_text("no picture")
    refuse(lone, "only one class, 'cat'", "10 can't be used", "000.jpg: not a readable image")
    for path in (lone / "cat").iterdir():
        path.write_bytes(b"")
    refuse(lone, "no usable image", "20 can't be used", "empty")
    same = draw(tmp_path / "same")
    for path in (same / "cat").iterdir():
        path.write_bytes(jpeg(1))
    refuse(same, "cat (10 images: 10 train, 0 val, 0 test)", "not copies")
    draw(same, classes=["emu"], start=9000)   # it is as large as cat, so to leave cat away takes more than --top-n
    assert "--top-n" not in refuse(same, "cat (10 images: 10 train, 0 val, 0 test)")


def test_debris_is_no_class(tmp_path, prepare):
    pets = draw(tmp_path / "pets")
    for debris in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "BACKGROUND_Google", "cat/.thumbs", "cat/@eaDir"):
        draw(pets / debris, classes=["x"] if "/" in debris else [""], start=9000)
    (pets / "empty").mkdir()
    (pets / "cat" / "Thumbs.db").write_bytes(b"x")
    (pets / "cat" / "._000.jpg").write_bytes(b"x")
    manifest = prepare(pets)
    assert manifest.label.value_counts().to_dict() == {"cat": 10, "dog": 10}
    assert len(pd.read_csv(Path(manifest.attrs["folder"]) / "quarantine.csv")) == 0


def test_links_in_a_folder(tmp_path, prepare):
    pets = draw(tmp_path / "pets", classes=["cat"])
    draw(tmp_path / "elsewhere", classes=["dog"], start=500)
    (pets / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (pets / "cat" / "loop").symlink_to(pets)
    (pets / "cat" / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(pets / "cat" / "pipe.jpg")
    manifest = prepare(pets)
    assert manifest.label.value_counts().to_dict() == {"cat": 10, "dog": 10}
    aside = pd.read_csv(Path(manifest.attrs["folder"]) / "quarantine.csv").set_index("path").reason
    assert "No such file" in aside[str(pets / "cat" / "broken.jpg")] and aside[str(pets / "cat" / "pipe.jpg")] == "not a file"


def test_labels_are_words(tmp_path, prepare):
    labels = ["01", "1", "NA", "nan", "True", "$x_^$", "<b>", 'quo"te, comma', "two\nlines", "-", "日本"]
    manifest = prepare(draw(tmp_path / "words", classes=labels, images=4))
    assert sorted(set(manifest.label)) == sorted(labels)
    assert "<b>" not in (Path(manifest.attrs["folder"]) / "report.html").read_text()


def test_one_unicode_form(tmp_path, prepare):
    manifest = prepare(draw(tmp_path / "forms", classes=["cafe\u0301", "caf\u00e9", "tea"], images=4))
    assert manifest.label.value_counts().to_dict() == {"caf\u00e9": 8, "tea": 4}


def test_names_that_are_not_utf8(tmp_path, prepare):
    pets = draw(tmp_path / "pets")
    (Path(os.fsdecode(os.fsencode(pets) + b"/cat/\xff.jpg"))).write_bytes(jpeg(77))
    (Path(os.fsdecode(os.fsencode(pets) + b"/\xfe"))).mkdir()
    (Path(os.fsdecode(os.fsencode(pets) + b"/\xfe/1.jpg"))).write_bytes(jpeg(78))
    with pytest.raises(DataError, match="\ufffd \\(0 images.*UTF-8"):   # a class that vanishes is an error
        prepare(pets)
    manifest = prepare(pets, top_n=2)
    assert len(manifest) == 20
    aside = pd.read_csv(Path(manifest.attrs["folder"]) / "quarantine.csv")
    assert len(aside) == 1 and aside.reason.str.contains("UTF-8").all()   # the other one's class is not among the two


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_that_breaks_off_is_set_aside(tmp_path, prepare, format):
    pets, file = draw(tmp_path / "pets"), io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)).save(file, format)
    (pets / "cat" / f"half.{format.lower()}").write_bytes(file.getvalue()[:len(file.getvalue()) // 2])
    assert len(prepare(pets)) == 20


@pytest.mark.skipif(os.name == "nt", reason="Windows forbids such names")
@pytest.mark.parametrize("place", ["table", "XMP"])
def test_a_tiff_is_turned_once(tmp_path, prepare, place):
    """By the tag in its own table, or by that in its XMP, of which Pillow learns only when it decodes."""
    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for seed in range(4):
            noise = np.random.default_rng([seed, label == "cat"]).integers(0, 256, (30, 20, 3), np.uint8)
            tags = {274: 6} if place == "table" else {700: b'<x tiff:Orientation="6"/>'}
            Image.fromarray(noise).save(tmp_path / "pets" / label / f"{seed}.tif", tiffinfo=tags)
            Image.fromarray(np.rot90(noise, -1)).save(tmp_path / f"{label}{seed}.png")
    for row in prepare(tmp_path / "pets").itertuples():
        upright = load_pixels(tmp_path / f"{row.label}{Path(row.path).stem}.png", size_px=32)
        assert (row.width_px, row.height_px) == (30, 20)
        assert np.abs(load_pixels(row.path, size_px=32).astype(int) - upright).max() <= 2


def test_a_line_break_in_a_name_is_set_aside(tmp_path, prepare, refuse):
    pets = draw(tmp_path / "pets")
    (pets / "cat" / "x\ry.jpg").write_bytes(jpeg(5))
    (pets / "cat" / "x\ny.jpg").write_bytes(jpeg(6))   # this one a table can hold
    manifest = prepare(pets)
    assert len(manifest) == 21
    aside = pd.read_csv(Path(manifest.attrs["folder"]) / "quarantine.csv")
    assert aside.reason.tolist() == ["the file's name holds a line break; rename it"]
    draw(pets, classes=["e\rmu"], start=9000)
    refuse(pets, "e\ufffdmu (0 images")


def test_too_large_is_set_aside(tmp_path, prepare):
    pets = draw(tmp_path / "pets")
    Image.new("RGB", (1200, 1000)).save(pets / "cat" / "wide.png")
    (pets / "cat" / "heavy.jpg").write_bytes(jpeg(5) + bytes(2_000_000))
    manifest = prepare(pets, max_megapixels=1, max_file_mb=1)
    aside = pd.read_csv(Path(manifest.attrs["folder"]) / "quarantine.csv").reason.tolist()
    assert len(manifest) == 20 and "2 MB; the limit is 1" in aside[0] and "1200 x 1000" in aside[1]


def test_data_dir(tmp_path, refuse, prepare, monkeypatch):
    pets = draw(tmp_path / "pets")
    (tmp_path / "file").write_text("x")
    refuse(pets, "file is not a folder", "--data-dir", data_dir=tmp_path / "file")
    refuse(pets, "file is not a folder", data_dir=tmp_path / "file" / "deep")
    (tmp_path / "data" / "pets").mkdir(parents=True)   # an empty folder is nobody's
    prepare(pets)
    (tmp_path / "data" / "pets" / "source.json").write_text("{broken")
    refuse(pets, "does not come from")
    monkeypatch.chdir(tmp_path)
    assert prepare("pets", data_dir="relative").path.map(os.path.isabs).all()
    inside = prepare("pets", data_dir=".")             # the data folder is the source itself
    assert set(pd.read_csv("pets/manifest.csv").path.str[:4]) == {"cat/", "dog/"} and len(inside) == 20
    assert prepare("pets", data_dir=".").equals(inside)


def test_what_was_made_earlier_is_no_class(tmp_path, prepare, monkeypatch):
    draw(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    prepare("digits", data_dir="data")
    draw(tmp_path / "here", classes=["results"], start=7000)
    manifest = prepare(".", data_dir="data")
    assert set(manifest.label) == {"cat", "dog"} and manifest.attrs["folder"] == "data/here"


def test_a_class_with_a_file_named_source_json_is_a_class(tmp_path, prepare):
    """Programs that download pictures leave such files."""
    pets = draw(tmp_path / "pets")
    (pets / "cat" / "source.json").write_text('{"source": "https://example.org/cats"}')
    (pets / "dog" / "source.json").write_text("[1]")
    assert set(prepare(pets).label) == {"cat", "dog"}


@pytest.mark.parametrize("name", ["manifest.csv", "report.html", "twins.csv", "quarantine.csv", "suspects.csv", "odd.csv", "source.json"])
def test_files_of_ones_own_are_not_overwritten(tmp_path, prepare, refuse, name):
    """A folder in the data folder is its own data set, so what is written lies beside what was there."""
    pets = draw(tmp_path / "data" / "pets")
    (pets / name).write_text("{}")
    refuse(pets, f"{pets / name} is not ours", "--name")
    assert (pets / name).read_text() == "{}"
    assert len(prepare(pets, name="others")) == 20 and (pets / name).read_text() == "{}"
    (pets / name).unlink()
    assert len(prepare(pets)) == len(prepare(pets)) == 20   # the second time, these files are ours


def zip_folder(path, folder):
    with zipfile.ZipFile(path, "w") as archive:
        for name in listing(folder):
            archive.write(folder / name, name)
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_photographs_of_kinds_that_are_not_read_are_told(tmp_path, refuse, prepare, packed):
    pets = draw(tmp_path / "pets")
    for place in ("cat/1.HEIC", "cat/2.heic", "dog/raw/1.dng", "dog/notes.txt", "emu/1.heic"):
        (pets / place).parent.mkdir(exist_ok=True)
        (pets / place).write_bytes(b"x")
    pack = (lambda: zip_folder(tmp_path / "pets.zip", pets)) if packed else (lambda: pets)
    refuse(pack(), "no image of emu", "3 .heic", "JPEG")
    (pets / "emu" / "1.heic").rename(pets / "emu.heic")
    source = pack()
    for _ in range(2):   # an archive is unpacked once
        manifest = prepare(source)
        assert set(manifest.label) == {"cat", "dog"}
        memory = json.loads((Path(manifest.attrs["folder"]) / "source.json").read_text())
        assert memory["ignored"] == {".heic": 3, ".dng": 1, ".txt": 1}


def test_such_a_photograph_above_the_classes_is_none_of_them(tmp_path, prepare):
    draw(tmp_path / "pets" / "all")
    (tmp_path / "pets" / "group.heic").write_bytes(b"x")
    assert set(prepare(tmp_path / "pets").label) == {"cat", "dog"}


def test_a_split_of_such_photographs_is_not_lost(tmp_path, refuse):
    draw(tmp_path / "pets" / "train")
    (tmp_path / "pets" / "test" / "cat").mkdir(parents=True)
    (tmp_path / "pets" / "test" / "cat" / "1.avif").write_bytes(b"x")
    refuse(tmp_path / "pets", "no image of test/cat", "1 .avif")


def test_leftovers_of_a_kill_are_swept(tmp_path, prepare):
    draw(tmp_path / "pets")
    (tmp_path / "data" / ".pets.partial" / "images").mkdir(parents=True)
    prepare(tmp_path / "pets")
    assert os.listdir(tmp_path / "data") == ["pets"]


def test_an_interrupt_between_two_renames_loses_nothing(tmp_path, monkeypatch):
    (folder := tmp_path / "model").mkdir()
    (folder / "old").touch()
    rename = Path.replace
    def interrupt(path, target):
        if path.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(path, target)
    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt), replace_folder(folder) as partial:
        (partial / "new").touch()
    assert listing(tmp_path) == ["model", "model/old"]


def test_a_link_goes_on_pointing_at_the_folder_that_is_replaced(tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "bundle").symlink_to("v1")
    for name in ("first", "second"):
        with replace_folder(tmp_path / "bundle") as partial:
            (partial / name).touch()
    assert listing(tmp_path) == ["bundle", "v1", "v1/second"] and (tmp_path / "bundle" / "second").exists()


def test_two_who_replace_a_folder_wait_for_each_other(tmp_path):
    def fill(letter):
        with replace_folder(tmp_path / "model") as partial:
            for number in range(20):
                (partial / f"{letter}{number}").touch()
                time.sleep(0.002)
    with ThreadPoolExecutor() as pool:
        list(pool.map(fill, "abcdef"))
    names = os.listdir(tmp_path / "model")
    assert len(names) == 20 and len({name[0] for name in names}) == 1 and os.listdir(tmp_path) == ["model"]


def test_a_failure_leaves_an_earlier_data_set_alone(tmp_path, prepare, refuse):
    pets = draw(tmp_path / "pets")
    prepare(pets)
    before = (tmp_path / "data" / "pets" / "manifest.csv").read_bytes()
    draw(pets, classes=["emu"], images=2, start=5000)
    refuse(pets, "emu (2 images")
    assert (tmp_path / "data" / "pets" / "manifest.csv").read_bytes() == before


def test_full_disk(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "pets.tar", "w") as archive:
        archive.add(draw(tmp_path / "in"), "pets")
    before = listing(tmp_path)
    monkeypatch.setattr("imgclf_nb.archives._copy", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match="disk is full"):
        prepare_data(Settings(source=str(tmp_path / "pets.tar"), data_dir=tmp_path / "data"))
    assert listing(tmp_path) == before


# ---- given splits and tables


@pytest.mark.parametrize("names", [("train", "valid", "TEST"), ("training", "validation", "testing"), ("train", "val", "test")])
def test_given_splits_are_kept(tmp_path, prepare, names):
    for number, name in enumerate(names):
        draw(tmp_path / "pets" / name, start=100 * number, images=6)
    given = prepare(tmp_path / "pets")
    folder = given.path.map(lambda path: Path(path).parts[-3])
    assert (given.split == folder.map(dict(zip(names, ("train", "val", "test"))))).all()


@pytest.mark.parametrize("present, carved", [(("train", "test"), "val"), (("train", "val"), "test")])
def test_a_missing_split_is_carved_from_train(tmp_path, prepare, present, carved):
    for number, name in enumerate(present):
        draw(tmp_path / "pets" / name, start=100 * number, images=20)
    manifest = prepare(tmp_path / "pets")
    folder = manifest.path.map(lambda path: Path(path).parts[-3])
    assert (manifest.split[folder == present[1]] == present[1]).all()
    assert manifest.split[folder == "train"].value_counts().to_dict() == {"train": 34, carved: 6}


def test_given_splits_that_do_not_fit(tmp_path, refuse):
    draw(tmp_path / "a" / "val")
    draw(tmp_path / "a" / "test", start=100)
    refuse(tmp_path / "a", "0 train")
    draw(tmp_path / "b" / "train")
    draw(tmp_path / "b" / "test", classes=["cat"], start=100)
    refuse(tmp_path / "b", "dog (10 images: 8 train, 2 val, 0 test)")
    draw(tmp_path / "b" / "sample", start=300)
    refuse(tmp_path / "b", "splits or classes")
    draw(tmp_path / "c" / "train")
    draw(tmp_path / "c" / "dev", start=100)
    refuse(tmp_path / "c", "train beside dev: splits or classes")


def test_the_same_file_in_train_and_test(tmp_path, prepare):
    for name, start in (("train", 0), ("val", 100), ("test", 200)):
        draw(tmp_path / "pets" / name, start=start)
    pets = tmp_path / "pets"
    (pets / "train" / "cat" / "leak.jpg").write_bytes((pets / "test" / "cat" / "003.jpg").read_bytes())
    (pets / "val" / "dog" / "leak.jpg").write_bytes((pets / "test" / "cat" / "003.jpg").read_bytes())   # another label, too
    (pets / "train" / "dog" / "leak.jpg").write_bytes((pets / "val" / "dog" / "005.jpg").read_bytes())
    manifest = prepare(pets)
    assert (manifest.split == "test").sum() == 20 and len(manifest) == 60
    assert manifest.groupby("sha256").split.nunique().max() == 1
    aside = pd.read_csv(Path(manifest.attrs["folder"]) / "quarantine.csv").set_index("path").reason
    assert {Path(path).parts[-3] for path in aside.index} == {"train", "val"}
    assert aside[str(pets / "train" / "cat" / "leak.jpg")] == f"the same file is in test: {pets / 'test' / 'cat' / '003.jpg'}"


def test_the_same_file_under_two_labels(tmp_path, prepare):
    pets = draw(tmp_path / "pets")
    (pets / "dog" / "x.jpg").write_bytes((pets / "cat" / "001.jpg").read_bytes())
    manifest = prepare(pets)
    assert manifest.label.value_counts().to_dict() == {"dog": 10, "cat": 9}
    report = (Path(manifest.attrs["folder"]) / "report.html").read_text()
    assert report.count("the same file has the label") == 4   # under conflicts and in the quarantine


def test_a_class_of_copies_does_not_vanish(tmp_path, refuse):
    pets = draw(tmp_path / "pets")
    (pets / "emu").mkdir()
    for k in range(4):
        (pets / "emu" / f"{k}.jpg").write_bytes((pets / "cat" / f"{k:03}.jpg").read_bytes())
    refuse(pets, "too few images of emu (0 images", "8 can't be used", "the same file has the label 'emu', too", "--top-n 2")


def test_no_copy_straddles(tmp_path, prepare):
    pets = draw(tmp_path / "pets", images=20)
    for k in range(15):
        (pets / "cat" / f"copy_{k}.jpg").write_bytes((pets / "cat" / f"{k % 4:03}.jpg").read_bytes())
    manifest = prepare(pets)
    assert len(manifest) == 55 and manifest.groupby("group").split.nunique().max() == 1
    assert set(manifest[manifest.label == "cat"].split) == {"train", "val", "test"}


@pytest.mark.parametrize("head, rows", [
    ("path,label", "{0},{1}"), ("\ufeffpath;label", '"{0}";{1}'), ("Path\tLabel\tnote", "{0}\t{1}\t"),
    ("label , path", "{1}, {0}"), ("path,label", "./{0},{1}\r"),
    ("\ufeff\n \n\t\t\nPath\tLabel", "{0}\t{1}"), (";\r\n\r\npath;label", "{0};{1}")])
def test_tables(tmp_path, prepare, head, rows):
    draw(tmp_path / "pets")
    lines = [rows.format(f"pets/{label}/{k:03}.jpg", label) for label in ("cat", "dog") for k in range(10)]
    (tmp_path / "table.csv").write_bytes("\n".join([head, *lines, lines[0], ""]).encode())
    assert prepare(tmp_path / "table.csv").label.value_counts().to_dict() == {"cat": 10, "dog": 10}


def test_tables_with_mistakes(tmp_path, refuse, prepare):
    draw(tmp_path / "pets")
    table = tmp_path / "table.csv"
    good = "".join(f"pets/{label}/{k:03}.jpg,{label}\n" for label in ("cat", "dog") for k in range(10))
    for text, *parts in (("path,kind\na,b\n", "no column label", "path, kind"), ("", "no column path", "has none"),
                         ("path,label\n", "no usable image"), (f"path,label\na.jpg,\n{good}", "line 2"),
                         (f"\n\npath,label\na.jpg,\n{good}", "line 4"), ("\n,\n", "no column path", "has none"),
                         (f"path,label\na,b.jpg,cat\n{good}", "line 2", "quotes"), (f'path,label\n"a.jpg,cat\n{good}', "quotes"),
                         (f'path,label\n"a"b.jpg,cat\n{good}', "line 2", "put quotes right"),
                         ("path,label,split\na.jpg,cat,dev\n", "'dev'", "train, val, test"), ("path,label,split\na.jpg,cat,\n", "every row")):
        table.write_text(text)
        refuse(table, "table.csv", *parts)
    table.write_bytes("path,label\nM\u00fcll.jpg,cat\n".encode("latin-1"))
    refuse(table, "not UTF-8")
    table.write_text(f"path,label\na\0b.jpg,cat\n{good}")   # Python 3.10 refuses the table, 3.11 the path
    if sys.version_info >= (3, 11):
        manifest = prepare(table)
        aside = pd.read_csv(Path(manifest.attrs["folder"]) / "quarantine.csv")
        assert len(aside) == 1 and aside.reason[0].startswith("can't be read: ") and "embedded null" in aside.reason[0]
    else:
        refuse(table, "line contains NUL")
    table.write_text(f"path,label\ngone.jpg,cat\npets,cat\n/dev/zero,cat\npets/cat/000.jpg,BACKGROUND_Google\n{good}")
    manifest = prepare(table)
    assert manifest.label.value_counts().to_dict() == {"cat": 10, "dog": 10}
    aside = pd.read_csv(Path(manifest.attrs["folder"]) / "quarantine.csv")
    assert sorted(aside.reason) == ["can't be read: No such file or directory", "not a file", "not a file"]


# ---- the split


def make_table(n_classes, n_images, group_size=1):
    rows = [(f"c{c}", f"{c}-{k // group_size}") for c in range(n_classes) for k in range(n_images)]
    return pd.DataFrame(rows, columns=["label", "group"]).assign(split=None)


@pytest.mark.parametrize("n_images, group_size", list(itertools.product((3, 4, 5, 10, 101), (1, 2, 3))))
@pytest.mark.parametrize("val, test", [(0.01, 0.15), (0.15, 0.15), (0.45, 0.45)])
def test_every_class_in_every_split_where_it_is_possible(n_images, group_size, val, test):
    table = make_table(4, n_images, group_size)
    splits = split_groups(table, val_share=val, test_share=test)
    assert set(splits) <= {"train", "val", "test"} and not splits.isna().any()
    assert splits.groupby(table.group).nunique().max() == 1
    counts = pd.crosstab(table.label, splits).reindex(columns=["train", "val", "test"], fill_value=0)
    if -(-n_images // group_size) >= 3:
        assert counts.min().min() >= 1
        assert (abs(counts.test - n_images * test) <= group_size).all() or n_images < 10


def test_a_group_may_span_classes():
    table = make_table(2, 40)
    table["group"] = [f"g{k % 40}" for k in range(80)]   # whole and cropped: one group for each pair
    splits = split_groups(table, val_share=0.15, test_share=0.15)
    assert splits.groupby(table.group).nunique().max() == 1
    assert pd.crosstab(table.label, splits).to_numpy().tolist() == [[6, 28, 6]] * 2


def test_what_came_into_the_test_with_another_class_counts():
    """Ten groups are of both classes, and some of them are in the test by their share of the first."""
    groups = [f"s{n}" for n in range(20)] + [f"s{n}" for n in range(10)] + [f"b{n}" for n in range(20)]
    table = pd.DataFrame({"label": ["a"] * 20 + ["b"] * 30, "group": groups, "split": None})
    splits = split_groups(table, val_share=0.2, test_share=0.2)
    assert pd.crosstab(table.label, splits).to_numpy().tolist() == [[4, 12, 4], [6, 18, 6]]


def test_same_split_whatever_the_order_and_place(tmp_path, prepare):
    one, two = draw(tmp_path / "one", images=30), tmp_path / "two"
    for path in sorted(one.rglob("*.jpg"), reverse=True):
        (two / path.parent.name).mkdir(parents=True, exist_ok=True)
        (two / path.parent.name / f"renamed_{path.stat().st_ino}.jpg").write_bytes(path.read_bytes())
    a, b, c = prepare(one), prepare(two, workers=1), prepare(two, workers=7)
    assert fingerprint_data(a) == fingerprint_data(b) == fingerprint_data(c)
    assert a.set_index("sha256").split.to_dict() == b.set_index("sha256").split.to_dict()
    assert fingerprint_data(prepare(one, seed=1)) != fingerprint_data(a)


@pytest.mark.parametrize("twins", [True, False])
def test_a_damaged_jpeg_is_found_by_either_check(tmp_path, prepare, twins):
    """Cut short, or with bytes changed: set aside exactly where the pixels that are learned from can't be had."""
    random, folder = np.random.default_rng(0), draw(tmp_path / "pets", images=40)
    for k in range(120):
        content = bytearray(jpeg(500 + k, size=(80, 120)))
        if k % 2:
            content = content[:random.integers(2, len(content))]
        else:   # in the header and the tables, where it may or may not matter
            content[random.integers(600)] = random.integers(256)
        (folder / "cat" / f"hurt{k:03}.jpg").write_bytes(content)
    def is_damaged(path):
        try:
            load_pixels(path, size_px=64)
        except ImageError:
            return True
    damaged = {path.name for path in folder.rglob("*.jpg") if is_damaged(path)}
    manifest = prepare(folder, twins=twins, image_size_px=64)
    aside = pd.read_csv(Path(manifest.attrs["folder"]) / "quarantine.csv")
    assert {Path(path).name for path in aside.path} == damaged and 60 <= len(damaged) < 120


def test_top_n_opens_no_class_that_cannot_be_among_the_largest(tmp_path, prepare):
    for label, good, broken in (("ant", 9, 3), ("bee", 8, 0), ("cat", 10, 0), ("dog", 7, 0), ("eel", 6, 2)):
        draw(tmp_path / "zoo", [label], images=good, start=10_000 * ord(label[0]))
        for k in range(broken):
            (tmp_path / "zoo" / label / f"broken{k}.jpg").write_text("no picture")
    manifest = prepare(tmp_path / "zoo", top_n=2)
    assert set(manifest.label) == {"ant", "cat"}
    aside = pd.read_csv(Path(manifest.attrs["folder"]) / "quarantine.csv")
    assert len(aside) == 3 and aside.path.str.contains("/ant/broken").all()   # `eel` was never opened
    for k in range(3, 9):   # 12 files as before, and 3 of them good: the next largest takes the place
        (tmp_path / "zoo" / "ant" / f"{k:03}.jpg").write_text("no picture")
    assert set(prepare(tmp_path / "zoo", top_n=2).label) == {"bee", "cat"}


def test_top_n_counts_after_the_quarantine(tmp_path, prepare):
    pets = draw(tmp_path / "pets", classes=["ant", "bee", "cat"], images=6)
    draw(pets, classes=["dog"], images=8, start=9000)
    for k in range(3):
        (pets / "dog" / f"{k:03}.jpg").write_text("no picture")
    assert set(prepare(pets, top_n=2).label) == {"ant", "bee"}   # dog has 5 left; ties go by name
    assert set(prepare(pets, top_n=50).label) == {"ant", "bee", "cat", "dog"}


def test_manifest_and_find_data(tmp_path, prepare):
    with pytest.raises(DataError, match="imgclf prepare digits"):
        find_data(Settings(data_dir=tmp_path / "data"))
    assert fingerprint_data(prepare("digits"))[:16] == "8f7266f8620df402"   # on every machine
    assert find_data(Settings(data_dir=tmp_path / "data")) == tmp_path / "data" / "digits"
    with pytest.raises(DataError, match="did you mean digits"):
        find_data(Settings(source="digts", data_dir=tmp_path / "data"))
    wide = "path,label,split,sha256,width_px,height_px,group\na.png,cat,train,0,wide,1,0\n"
    for text, part in ((wide, "imgclf prepare"), ("path,label\na,b\n", "no column split"), ("", "imgclf prepare"), ('path,label\n"a', "imgclf prepare")):
        (tmp_path / "manifest.csv").write_text(text)
        with pytest.raises(DataError, match=part):
            read_manifest(tmp_path)
    (tmp_path / "manifest.csv").unlink()
    with pytest.raises(DataError, match="is missing"):
        read_manifest(tmp_path)


def test_long_paths_are_whole_in_the_report(tmp_path, prepare):
    pets = draw(tmp_path / "pets")
    name = "a_very_long_name_" * 8 + ".jpg"
    (pets / "cat" / name).write_text("no picture")
    assert name in (Path(prepare(pets).attrs["folder"]) / "report.html").read_text()


def test_the_plot_of_many_classes_shows_the_largest():
    table = pd.DataFrame([(f"c{k:02}", "train") for k in range(50) for _ in range(k + 1)], columns=["label", "split"])
    assert [tick.get_text() for tick in _plot_counts(table).axes[0].get_yticklabels()] == [f"c{k}" for k in range(10, 50)]


# ---- Caltech-101


def test_md5_without_what_python_3_11_brought(tmp_path, monkeypatch):
    monkeypatch.delattr(hashlib, "file_digest", raising=False)
    (tmp_path / "x").write_bytes(bytes(3_000_000))
    assert has_md5(tmp_path / "x", hashlib.md5(bytes(3_000_000)).hexdigest())


class Server:
    """Serve files by name: whole, broken off after some bytes, or as a web page; counts what was asked."""
    def __init__(self, files, breaks=(), pages=(), ranges=True):
        self.asked, self.breaks = [], list(breaks)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                name, wanted = self.path.rsplit("/", 1)[1], self.headers.get("Range")
                outer.asked.append((name, wanted))
                body = b"<html>Please wait</html>" if name in pages else files.get(name)
                if body is None:
                    return self.send_error(404)
                start = int(re.findall(r"\d+", wanted)[0]) if wanted and ranges else 0
                if start and start >= len(body):
                    return self.send_error(416)
                self.send_response(206 if start else 200)
                self.send_header("Content-Type", "text/html" if name in pages else "application/octet-stream")
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                most = outer.breaks.pop(0) if outer.breaks else None
                self.wfile.write(body[start:] if most is None else body[start:start + most])

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def caltech(tmp_path, monkeypatch):
    """Two small archives as Caltech and fastai pack them, and a function that serves them."""
    draw(tmp_path / "in" / "101_ObjectCategories", classes=["Faces", "ketch", "BACKGROUND_Google"])
    with tarfile.open(tmp_path / "inner.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "in" / "101_ObjectCategories", "101_ObjectCategories")
    with zipfile.ZipFile(tmp_path / "official.zip", "w") as archive:
        archive.write(tmp_path / "inner.tar.gz", "caltech-101/101_ObjectCategories.tar.gz")
        archive.writestr("caltech-101/padding.bin", os.urandom(3_000_000))
        archive.writestr("__MACOSX/caltech-101/._x.tar.gz", b"x")
    with tarfile.open(tmp_path / "second.tgz", "w:gz") as archive:
        archive.add(tmp_path / "in" / "101_ObjectCategories", "caltech_101/101_ObjectCategories")
    files = {"caltech-101.zip": (tmp_path / "official.zip").read_bytes(), "caltech_101.tgz": (tmp_path / "second.tgz").read_bytes()}

    def serve(damage=(), **options):
        served = {name: content[:-9] + b"123456789" if name in damage else content for name, content in files.items()}
        server = Server(served, **options)
        monkeypatch.setattr(sources, "_CALTECH101", tuple(
            (f"{server.address}/{name}", hashlib.md5(content).hexdigest()) for name, content in files.items()))
        return server
    serve.files = files
    return serve


def test_caltech_from_the_official_place(caltech, prepare, tmp_path):
    server = caltech()
    manifest = prepare("caltech101", top_n=2)
    assert set(manifest.label) == {"Faces", "ketch"} and [name for name, _ in server.asked] == ["caltech-101.zip"]
    assert os.listdir(tmp_path / "data" / "downloads") == ["caltech-101.zip"]
    prepare("caltech101", seed=3)
    assert len(server.asked) == 1   # neither downloaded nor unpacked again


def test_caltech_goes_on_after_breaks(caltech, prepare):
    server = caltech(breaks=[1_500_000, 1_100_000])
    prepare("caltech101")
    assert [wanted for _, wanted in server.asked] == [None, "bytes=1048576-", "bytes=2097152-"]


def test_caltech_where_the_server_knows_no_ranges(caltech, prepare):
    server = caltech(breaks=[1_500_000], ranges=False)
    prepare("caltech101")
    assert len(server.asked) == 2


@pytest.mark.parametrize("options", [dict(pages=["caltech-101.zip"]), dict(damage=["caltech-101.zip"])])
def test_caltech_from_the_second_place(caltech, prepare, tmp_path, options):
    server = caltech(**options)
    assert set(prepare("caltech101").label) == {"Faces", "ketch"}
    assert [name for name, _ in server.asked] == ["caltech-101.zip", "caltech_101.tgz"]
    assert os.listdir(tmp_path / "data" / "downloads") == ["caltech_101.tgz"]


def test_caltech_from_nowhere(caltech, refuse, tmp_path):
    server = caltech(pages=["caltech-101.zip"], damage=["caltech_101.tgz"])
    refuse("caltech101", "web page", "wrong checksum", f"{server.address}/caltech-101.zip", f"{server.address}/caltech_101.tgz",
           str(tmp_path / "data" / "downloads"), "as SOURCE")


def test_caltech_put_there_by_hand(caltech, prepare, refuse, tmp_path):
    server = caltech(pages=["caltech-101.zip", "caltech_101.tgz"])
    downloads = tmp_path / "data" / "downloads"
    downloads.mkdir(parents=True)
    (downloads / "caltech_101.tgz").write_bytes(b"something else")
    refuse("caltech101", "caltech_101.tgz has the wrong checksum")
    (downloads / "caltech_101.tgz").write_bytes(caltech.files["caltech_101.tgz"])
    assert len(prepare("caltech101")) == 20 and not server.asked


def test_a_whole_part_is_only_verified(caltech, tmp_path):
    server, content = caltech(), caltech.files["caltech-101.zip"]
    (tmp_path / "x.zip.partial").write_bytes(content)
    download_file(f"{server.address}/caltech-101.zip", tmp_path / "x.zip", md5=hashlib.md5(content).hexdigest())
    assert (tmp_path / "x.zip").read_bytes() == content and not (tmp_path / "x.zip.partial").exists()


def test_caltech_without_a_network_fails_soon(refuse, monkeypatch):
    """A name that no one resolves for an hour, and one that is refused at once."""
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **k: time.sleep(60) if "caltech" in str(host) else real("127.0.0.1", 1))
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    start = time.monotonic()
    refuse("caltech101", "no answer within 8 s", "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip", "fast-ai-imageclas")
    assert time.monotonic() - start < 20


# ---- real photographs


@pytest.mark.real
def test_real_photographs(real_archive, prepare):
    manifest = prepare(real_archive, top_n=10)
    assert sorted(set(manifest.label)) == sorted(["airplanes", "Motorbikes", "Faces", "Faces_easy", "watch", "Leopards",
                                                  "bonsai", "car_side", "ketch", "chandelier"])
    assert manifest.groupby("group").split.nunique().max() == 1
    shares = manifest.split.value_counts(normalize=True)
    assert abs(shares["test"] - 0.15) < 0.01 and abs(shares["val"] - 0.15) < 0.01
