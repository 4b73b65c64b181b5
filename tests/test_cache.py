"""What holds for the pixel cache beyond the lesson in nbs/03_loaders.ipynb."""
import hashlib
import multiprocessing
import os
import threading
import time

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

from imgclf_nb import loaders
from imgclf_nb.loaders import CacheError, cache_pixels
from imgclf_nb.settings import Settings

SIZE_PX = 32
ROW_BYTES = SIZE_PX**2 * 3


def make_manifest(folder, count, side=8):
    """A manifest of generated pictures; no two are alike."""
    random, rows = np.random.default_rng(0), []
    folder.mkdir(exist_ok=True)
    for number in range(count):
        path = folder / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)).save(path, compress_level=1)
        rows.append((str(path), hashlib.sha256(path.read_bytes()).hexdigest()))
    return pd.DataFrame(rows, columns=["path", "sha256"])


@pytest.fixture
def manifest(tmp_path):
    return make_manifest(tmp_path / "pictures", 60)


def settings(**values):
    return Settings(_env_file=None, **{"image_size_px": SIZE_PX, "workers": 2, **values})


def forbid(*_, **__):
    raise AssertionError("a picture was decoded")


def caches(folder):
    """The files in the cache that are no lock."""
    return sorted(path.name for path in (folder / "cache").iterdir() if path.name != ".lock")


def test_a_second_run_decodes_nothing(manifest, tmp_path, monkeypatch):
    first = cache_pixels(manifest, tmp_path, settings=settings())[:]
    monkeypatch.setattr(loaders, "load_pixels", forbid)
    assert np.array_equal(cache_pixels(manifest, tmp_path, settings=settings())[:], first)


@pytest.mark.parametrize("change", [{"fit": "crop"}, {"image_size_px": 64}])
def test_another_size_or_fit_is_another_cache(manifest, tmp_path, change):
    cache_pixels(manifest, tmp_path, settings=settings())
    pixels = cache_pixels(manifest, tmp_path, settings=settings(**change))
    assert len(caches(tmp_path)) == 2 and pixels.shape[1] == change.get("image_size_px", SIZE_PX)


def test_a_changed_picture_is_another_cache(manifest, tmp_path):
    cache_pixels(manifest, tmp_path, settings=settings())
    cache_pixels(manifest.iloc[::-1], tmp_path, settings=settings())
    assert len(caches(tmp_path)) == 2


def test_rows_beyond_the_budget_are_the_same(manifest, tmp_path, capsys):
    everything = cache_pixels(manifest, tmp_path / "all", settings=settings())
    tight = cache_pixels(manifest, tmp_path, settings=settings(cache_gb=20.5 * ROW_BYTES / 1e9))
    assert tight.kept == 20 and "20 of 60" in capsys.readouterr().err
    assert os.path.getsize(tight.file.name) <= 20.5 * ROW_BYTES
    random = np.random.default_rng(0)
    for rows in (slice(None), slice(15, 25), slice(50, 2, -3), random.permutation(60), [-1, 0, 0], np.arange(60) % 7 == 0, []):
        rows = rows if len(np.shape(rows)) == 0 or len(rows) else np.array([], int)
        assert np.array_equal(tight[rows], everything[rows])
    assert np.array_equal(tight[59], everything[-1]) and tight[59].shape == (SIZE_PX, SIZE_PX, 3)
    with pytest.raises(IndexError):
        tight[60]


def test_no_cache_with_a_budget_of_nothing(manifest, tmp_path):
    pixels = cache_pixels(manifest, tmp_path, settings=settings(cache_gb=0))
    assert pixels[:].shape == (60, SIZE_PX, SIZE_PX, 3) and not (tmp_path / "cache").exists()


def test_the_folder_stays_within_the_budget(manifest, tmp_path):
    """The least recently used cache goes first; other programs' files stay; who reads on can."""
    budget = settings(cache_gb=(2 * 60 * ROW_BYTES + 2000) / 1e9)
    squish = cache_pixels(manifest, tmp_path, settings=budget)
    crop = cache_pixels(manifest, tmp_path, settings=budget.model_copy(update={"fit": "crop"}))
    (tmp_path / "cache" / "0123456789abcdef-activations.npy").write_bytes(b"0" * 100_000)
    now = time.time()
    os.utime(squish.file.name, (now - 100, now - 100))
    os.utime(crop.file.name, (now - 50, now - 50))
    cache_pixels(manifest, tmp_path, settings=budget)   # now the crop is the older one
    pad = cache_pixels(manifest, tmp_path, settings=budget.model_copy(update={"fit": "pad"}))
    names = caches(tmp_path)
    assert "0123456789abcdef-activations.npy" in names and len(names) == 3
    assert os.path.exists(squish.file.name) and os.path.exists(pad.file.name)
    assert crop[:].shape == squish[:].shape


@pytest.mark.parametrize("damage", ["short", "empty", "other"])
def test_a_damaged_cache_is_built_anew(manifest, tmp_path, damage, capsys):
    pixels = cache_pixels(manifest, tmp_path, settings=settings())
    path, right = pixels.file.name, pixels[:]
    if damage == "other":   # as long as the right one, but of another shape
        content = open(path, "rb").read()
        open(path, "wb").write(content.replace(b"(60, 32, 32, 3)", b"(60, 64, 16, 3)"))
    else:
        os.truncate(path, 0 if damage == "empty" else 100_000)
    assert np.array_equal(cache_pixels(manifest, tmp_path, settings=settings())[:], right)
    assert "built anew" in capsys.readouterr().err


def test_a_cache_cut_short_while_in_use_is_an_error(manifest, tmp_path):
    pixels = cache_pixels(manifest, tmp_path, settings=settings())
    os.truncate(pixels.file.name, 100_000)
    with pytest.raises(CacheError, match="cut short"):
        pixels[59]


def test_a_folder_that_is_read_only_serves(manifest, tmp_path, monkeypatch):
    right = cache_pixels(manifest, tmp_path, settings=settings())[:]

    def refuse(*_, **__):
        raise PermissionError(13, "not ours")
    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(loaders, "_lock", forbid)
    assert np.array_equal(cache_pixels(manifest, tmp_path, settings=settings())[:], right)


def start(function, *values):
    """Run a function in a process of its own, with all that is imported here."""
    process = multiprocessing.get_context("fork").Process(target=function, args=values)
    process.start()
    return process


def build_slowly(manifest, folder, decoded):
    """Build a cache in more than half a second, and note each picture in a file."""
    load = loaders.load_pixels

    def slow(*args, **options):
        time.sleep(0.02)
        with open(decoded, "a") as file:
            file.write("x")
        return load(*args, **options)
    loaders.load_pixels = slow
    cache_pixels(manifest, folder, settings=settings())


@pytest.mark.parametrize("fit", ["squish", "crop"])   # the name that was being built, and another
def test_a_build_that_is_killed_leaves_nothing_that_is_used(manifest, tmp_path, fit):
    process = start(build_slowly, manifest, tmp_path, tmp_path / "decoded")
    while not (tmp_path / "decoded").exists() or (tmp_path / "decoded").stat().st_size < 10:
        assert process.is_alive()
        time.sleep(0.005)
    process.kill()
    process.join()
    assert [name.endswith(".npy.partial") for name in caches(tmp_path)] == [True]
    (tmp_path / "cache" / ".0123456789abcdef-activations.npy.partial").write_bytes(b"of a training that was killed")
    pixels = cache_pixels(manifest, tmp_path, settings=settings(fit=fit))
    assert [name.endswith(".npy") for name in caches(tmp_path)] == [True]
    uncached = cache_pixels(manifest, tmp_path, settings=settings(fit=fit, cache_gb=0))
    assert np.array_equal(pixels[:], uncached[:])


def test_two_at_once_build_once(manifest, tmp_path):
    both = [start(build_slowly, manifest, tmp_path, tmp_path / "decoded") for _ in range(2)]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(caches(tmp_path)) == 1 and (tmp_path / "decoded").stat().st_size == 60


def use_all(manifest, folder, sink):
    """Build a cache of almost all pictures, read it row by row and in batches; how much memory grew, in MB."""
    process, done, seen = psutil.Process(), threading.Event(), []

    def watch():
        while not done.wait(0.002):
            seen.append(process.memory_info().rss)
    before = process.memory_info().rss
    thread = threading.Thread(target=watch)
    thread.start()
    pixels = cache_pixels(manifest, folder, settings=settings(image_size_px=224, cache_gb=0.28))
    for row in range(len(pixels)):
        assert pixels[row].any()
    for k in range(0, len(pixels), 32):
        assert pixels[k:k + 32].any()
    done.set()
    thread.join()
    sink.put(((max(seen) - before) / 1e6, os.path.getsize(pixels.file.name) / 1e6, pixels.kept))


def test_few_pictures_wait_for_a_slow_disk(manifest, monkeypatch):
    load, decoded = loaders.load_pixels, []

    def count(*args, **options):
        decoded.append(args)
        return load(*args, **options)
    monkeypatch.setattr(loaders, "load_pixels", count)
    pictures = loaders._decode_many(list(zip(manifest.path, manifest.sha256)), settings())
    next(pictures)
    time.sleep(0.2)
    assert len(decoded) <= 4
    assert len(list(pictures)) == 59


def test_memory_does_not_grow_with_the_data(tmp_path):
    """300 MB of pixels, most of them cached, are built and read twice."""
    sink = multiprocessing.get_context("fork").SimpleQueue()
    process = start(use_all, make_manifest(tmp_path / "pictures", 2000), tmp_path, sink)
    process.join(100)
    assert process.exitcode == 0
    growth_mb, size_mb, kept = sink.get()
    assert 270 < size_mb <= 280 and kept < 2000
    assert growth_mb < 100
