"""One picture, one answer: alone, in thousands, from fifty threads, and whatever is wrong with the others."""
import csv
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from imgclf_nb.archives import DataError
from imgclf_nb.bundle import BundleError, write_bundle
from imgclf_nb.cli import main
from imgclf_nb.example import draw_example, write_example_bundle
from imgclf_nb.folders import list_pictures
from imgclf_nb.images import ImageError, load_pixels
from imgclf_nb.predict import PredictError, Predictor


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_example_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="module")
def predictor(bundle):
    return Predictor(bundle.path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(60):
        draw_example(i % 3, seed=i, doubt=0.48).save(folder / f"{i:02}.png")
    return sorted(folder.iterdir())


def same_everywhere(predictor, files):
    """Check alone = many = array = fifty threads, to the last bit."""
    alone = [predictor.predict(file) for file in files]
    info = predictor.info
    pixels = np.stack([load_pixels(file, size_px=info.image_size_px, fit=info.fit) for file in files])
    together = predictor.run(pixels)["probabilities"]
    for answer, row in zip(alone, together):
        for label, probability in answer.predictions:
            assert probability == row[predictor.labels.index(label)]
    assert list(predictor.predict_many(files)) == alone
    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(predictor.predict, files * 4)) == alone * 4


def test_a_picture_in_memory_may_be_filled_anew(predictor, files, tmp_path):
    """As a loop over a video does, or Pillow over the frames of a GIF; and one picture may be there many times."""
    arrays = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    alone = [predictor.predict(array) for array in arrays]
    def refill(buffer=np.empty_like(arrays[0])):
        for array in arrays:
            buffer[:] = array
            yield buffer
    assert list(predictor.predict_many(refill())) == alone
    frames = [Image.fromarray(array) for array in arrays[:20]]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=40)
    with Image.open(tmp_path / "a.gif") as film:
        moving = list(predictor.predict_many(ImageSequence.Iterator(film)))
        assert moving == [predictor.predict(frame.copy()) for frame in ImageSequence.Iterator(film)]
    lazy = Image.open(files[0])   # not decoded yet
    assert list(predictor.predict_many([lazy] * 30)) == alone[:1] * 30


def test_a_turned_tiff_in_memory(predictor, tmp_path):
    """It has one answer, whoever decodes it."""
    picture = draw_example(1, seed=3)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.tif", exif=exif)
    picture.save(tmp_path / "a.png", exif=exif)
    for name in ("a.tif", "a.png"):
        (answer,) = predictor.predict_many([Image.open(tmp_path / name)])
        assert answer == predictor.predict(tmp_path / name), name


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_not_waited_for(predictor, tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    (answer,) = predictor.predict_many([tmp_path / "a.jpg"])
    assert "pipe" in str(answer)


@pytest.mark.parametrize("precision", ["auto", "f32"])
def test_the_same_answer_through_every_door(bundle, files, precision):
    same_everywhere(Predictor(bundle.path, precision=precision), files)


def test_matches_the_reference_interpreter(bundle, files):
    from onnx.reference import ReferenceEvaluator
    pixels = np.stack([load_pixels(file, size_px=32) for file in files])
    ours = Predictor(bundle.path, precision="f32").run(pixels)
    names = ["probabilities", "features", "evidence"]
    for name, theirs in zip(names, ReferenceEvaluator(str(bundle.model_file)).run(names, {"images": pixels})):
        assert ours[name].dtype == np.float32 and np.abs(ours[name] - theirs).max() < 1e-5


def test_every_wrong_item_is_an_error_in_its_place(predictor, tmp_path, files):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "cut.png").write_bytes(files[0].read_bytes()[:200])
    (tmp_path / "empty.png").touch()
    wrong = [tmp_path / "none.jpg", tmp_path, tmp_path / "text.jpg", tmp_path / "cut.png", tmp_path / "empty.png", None,
             3, 2.5, [], {}, b"", b"hello", "", "a\0b", "x" * 5000, np.zeros((4, 4)), np.zeros((0, 0, 3), np.uint8),
             object(), files[0] / "below"]
    mixed = [item for bad in wrong for item in (bad, files[1])]
    answers = list(predictor.predict_many(mixed))
    assert len(answers) == len(mixed)
    assert all(isinstance(answer, ImageError) and str(answer) for answer in answers[::2]), answers[::2]
    assert answers[1::2] == [predictor.predict(files[1])] * len(wrong)
    with pytest.raises(ImageError, match="no such file"):
        predictor.predict(tmp_path / "none.jpg")


def test_names_of_any_bytes_are_printed(tmp_path, bundle, files):
    """A file name that is no UTF-8 stops no output."""
    (tmp_path / "photos").mkdir()
    name = os.fsencode(tmp_path / "photos") + b"/caf\xe9.png"
    Path(os.fsdecode(name)).write_bytes(files[0].read_bytes())
    (tmp_path / "photos" / "zoo.png").write_bytes(files[1].read_bytes())
    for format in ("json", "csv", "table"):
        done = subprocess.run([Path(sys.executable).parent / "imgclf", "predict", "photos", "--model-dir", bundle.path.parent, "--format", format],
                              cwd=tmp_path, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
        assert done.returncode == 0, done.stderr
        assert "caf\ufffd.png" in done.stdout.decode() and "zoo.png" in done.stdout.decode()


def test_labels_are_printed_in_any_encoding(tmp_path, files):
    """Letters that the terminal or the file lacks are written as their numbers, as Python writes them."""
    write_example_bundle(tmp_path / "bundle", labels=["Blätter", "海", "tomato"])
    done = subprocess.run([Path(sys.executable).parent / "imgclf", "predict", *files[:2], "--model-dir", tmp_path], capture_output=True,
                          text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and r"Bl\xe4tter" in done.stdout and r"\u6d77" in done.stdout, done.stderr


@pytest.mark.parametrize("format", ["json", "csv"])
def test_programs_get_utf8_on_every_system(tmp_path, format):
    write_example_bundle(tmp_path / "bundle", labels=["Blätter", "海 😀", "tomato"])
    draw_example(1, doubt=0.1).save(tmp_path / "é.png")
    done = subprocess.run([Path(sys.executable).parent / "imgclf", "predict", tmp_path / "é.png", "--model-dir", tmp_path, "--format", format],
                          capture_output=True, env={**os.environ, "PYTHONIOENCODING": "cp1252"})
    assert "海 😀" in done.stdout.decode("utf-8"), done.stderr
    assert format == "csv" or json.loads(done.stdout)[0]["predictions"][0]["label"] == "海 😀"


def test_threads_keep_to_the_quota_of_a_container(monkeypatch, bundle):
    """A pod that may use one of 64 processors gets no 64 threads, nor their memory."""
    monkeypatch.setattr("imgclf_nb.engine._limit_threads", lambda: 1)
    assert Predictor(bundle.path).streams == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(predictor, tmp_path, files):
    locked = tmp_path / "locked.png"
    locked.write_bytes(files[0].read_bytes())
    locked.chmod(0)
    with pytest.raises(ImageError, match="no permission"):
        predictor.predict(locked)


def test_a_file_of_gigabytes_does_not_fill_the_memory(tmp_path, bundle, files):
    """It is refused unread, and the next picture is answered."""
    (tmp_path / "photos").mkdir()
    with open(tmp_path / "photos" / "film.jpg", "wb") as file:
        file.truncate(64 * 10**9)   # more than the machine has; takes no room on the disk
    shutil.copy(files[1], tmp_path / "photos" / "zoo.png")
    done = subprocess.run([Path(sys.executable).parent / "imgclf", "predict", "photos", "--model-dir", bundle.path.parent, "--format", "csv"],
                          cwd=tmp_path, capture_output=True, text=True)
    film, zoo = csv.DictReader(done.stdout.splitlines())
    assert "64000 MB; the limit is 50" in film["error"] and "--max-file-mb" in film["error"] and not film["label"]
    assert zoo["label"] and not zoo["error"]
    assert done.returncode == 1 and done.stderr == "imgclf: 1 of 2 pictures could not be answered\n"   # a script notices


def test_linked_folders_are_looked_into_once(tmp_path):
    """As `prepare` does; folders are no pictures, whatever they are called."""
    for name in ("photos/dir.jpg/a.jpg", "elsewhere/b.jpg", "elsewhere/.hidden/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "up").symlink_to(tmp_path / "photos")
    assert [path.relative_to(tmp_path).as_posix() for path in list_pictures(tmp_path / "photos")] == [
        "photos/dir.jpg/a.jpg", "photos/link/b.jpg"]


def test_a_folder_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    """Not left out, or somebody would take the answers for all there are."""
    (tmp_path / "photos" / "locked").mkdir(parents=True)
    (tmp_path / "photos" / "a.jpg").touch()
    scan = os.scandir

    def refuse(folder):   # root may read everything
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="can't read .*locked: Permission denied; mend its permissions"):
        list_pictures(tmp_path / "photos")


def test_thousands_are_never_held_at_once(bundle):
    predictor, alive, most = Predictor(bundle.path, workers=2), set(), 0

    class Counted(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def pictures():
        nonlocal most
        for _ in range(2000):
            picture = np.zeros((8, 8, 3), np.uint8).view(Counted)
            alive.add(id(picture))
            most = max(most, len(alive))
            yield picture

    assert sum(1 for _ in predictor.predict_many(pictures())) == 2000
    assert most <= 4 * predictor.workers + predictor.workers + 2


def test_an_abandoned_stream_leaves_no_thread(predictor, files):
    stream = predictor.predict_many(files * 10)
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("imgclf-predict")]


def test_an_error_of_the_source_is_not_swallowed(predictor, files):
    def broken():
        yield files[0]
        raise RuntimeError("the list broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        list(predictor.predict_many(broken()))
    assert list(predictor.predict_many([])) == []


@pytest.mark.parametrize("one", ["a.png", Path("a.png"), b"bytes", Image.new("RGB", (4, 4))])
def test_one_picture_is_not_many(predictor, one):
    with pytest.raises(PredictError, match="use predict for one"):
        predictor.predict_many(one)


def test_top_k(predictor, files):
    assert len(predictor.predict(files[0], 1).predictions) == 1
    answer = predictor.predict(files[0], 99)
    assert len(answer.predictions) == 3 and answer.predictions[0] == (answer.label, answer.probability)
    assert sum(p for _, p in answer.predictions) == pytest.approx(1, abs=1e-5)
    for top_k in (0, -1):
        with pytest.raises(PredictError, match="at least 1"):
            predictor.predict(files[0], top_k)
        with pytest.raises(PredictError, match="at least 1"):
            list(predictor.predict_many(files, top_k))


def test_unsure_follows_the_threshold(bundle, tmp_path, files):
    info = bundle.info.model_copy(update={"thresholds": {"unsure": 0.999}})
    strict = Predictor(write_bundle(tmp_path / "b", info, model_file=bundle.model_file).path)
    assert strict.predict(files[0]).unsure
    info = bundle.info.model_copy(update={"thresholds": {}})
    assert not Predictor(write_bundle(tmp_path / "c", info, model_file=bundle.model_file).path).predict(files[0]).unsure


def test_a_bundle_whose_network_does_not_fit(bundle, tmp_path):
    def rewrite(file, **values):
        return write_bundle(tmp_path / "b", bundle.info.model_copy(update=values), model_file=file).path

    with pytest.raises(BundleError, match="3 probabilities.*2 labels"):
        Predictor(rewrite(bundle.model_file, labels=["a", "b"]))
    with pytest.raises(BundleError, match="promises an input of 64 pixels"):
        Predictor(rewrite(bundle.model_file, image_size_px=64))
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(BundleError, match="OpenVINO can't run"):
        Predictor(rewrite(tmp_path / "text.onnx"))


def test_precision(bundle):
    with pytest.raises(PredictError, match="choose auto, f32, bf16 or int8"):
        Predictor(bundle.path, precision="int4")
    assert Predictor(bundle.path, precision="f32").precision == "f32"
    assert Predictor(bundle.path).precision in ("f32", "bf16")


@pytest.mark.parametrize("command", ["train", "run"])
@pytest.mark.parametrize("precision, words", [("int8", "train with auto"), ("bf16", "no bfloat16")])
def test_no_training_begins_that_its_precision_would_end(monkeypatch, tmp_path, capsys, command, precision, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("imgclf_nb.engine._list_capabilities", lambda: ["FP32"])   # an older processor
    assert main([command, "digits", "--precision", precision]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bf16_is_what_is_computed_where_it_is_chosen(bundle, files):
    fast, exact = Predictor(bundle.path), Predictor(bundle.path, precision="f32")
    if fast.precision != "bf16":
        pytest.skip("this processor has no bfloat16 arithmetic")
    pixels = np.stack([load_pixels(file, size_px=32) for file in files])
    apart = np.abs(fast.run(pixels)["probabilities"] - exact.run(pixels)["probabilities"]).max()
    assert 0 < apart < 0.02


LONELY = """
import json, os, sys, time
def listen(event, args):
    if event in ("socket.getaddrinfo", "socket.connect", "os.fork", "subprocess.Popen"): os.write(2, f"{event} {args}".encode())
sys.addaudithook(listen)
began = time.perf_counter()
from imgclf_nb.predict import Predictor
answer = Predictor(sys.argv[1]).predict(sys.argv[2])
print(json.dumps([answer.label, time.process_time(), time.perf_counter() - began]))
time.sleep(0.5)
"""


def test_ready_within_a_second_and_calls_nobody(bundle, tmp_path):
    draw_example(1).save(tmp_path / "sea.png")
    computed, waited = [], []
    for _ in range(3):   # the best of three, and processor time: other work on the machine is not what is measured
        ran = subprocess.run([sys.executable, "-c", LONELY, bundle.path, tmp_path / "sea.png"], capture_output=True, text=True,
                             timeout=60)
        assert ran.returncode == 0 and ran.stderr == ""
        label, processor_s, wall_s = json.loads(ran.stdout)
        assert label == "sea"
        computed.append(processor_s)
        waited.append(wall_s)
    assert min(computed) < 1 and min(waited) < 5


FIRST_CALLS = """
import sys, threading
import numpy as np
from imgclf_nb.predict import Predictor
predictor, barrier = Predictor(sys.argv[1]), threading.Barrier(8)
picture = np.zeros((40, 40, 3), np.uint8)
def ask():
    barrier.wait()
    predictor.predict(picture)
threads = [threading.Thread(target=ask, daemon=True) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join(20)
sys.exit(any(thread.is_alive() for thread in threads))
"""


def test_first_calls_from_many_threads_do_not_wait_for_each_other(tmp_path):
    """OpenVINO's Python layer can deadlock if two threads make its first call (seen in one of six starts)."""
    bundle = write_example_bundle(tmp_path / "bundle")
    for _ in range(10):
        run = subprocess.run([sys.executable, "-c", FIRST_CALLS, str(bundle.path)], timeout=60)
        assert run.returncode == 0, "threads still wait for each other after 20 s"


FORKED = """
import multiprocessing, sys
from imgclf_nb.predict import PredictError, Predictor

predictor = Predictor(sys.argv[1])
def ask(path):
    own = Predictor(sys.argv[1]).predict(path).label
    try: return own, predictor.predict(path).label
    except PredictError as error: return own, str(error)

with multiprocessing.get_context("fork").Pool(1) as pool: print(*pool.map(ask, sys.argv[2:])[0])
"""


def test_a_predictor_made_before_a_fork_says_so_instead_of_waiting_for_ever(bundle, tmp_path):
    draw_example(1, seed=3).save(tmp_path / "sea.png")
    done = subprocess.run([sys.executable, "-c", FORKED, bundle.path, tmp_path / "sea.png"], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("sea this predictor was made before the process was forked"), done.stderr
