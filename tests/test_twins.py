"""The same photograph must not be on both sides of a split, however it was saved."""
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageFilter

from imgclf_nb.archives import DataError
from imgclf_nb.data import _show_twins, prepare_data, read_manifest
from imgclf_nb.images import load_pixels
from imgclf_nb.settings import Settings
from imgclf_nb.splits import check_splits
from imgclf_nb.twins import _correlate, _share_keys, describe_picture, find_twins, read_grey


def draw_scene(seed, size=(360, 270)):
    """A picture with as many corners as a photograph has; no two seeds are alike."""
    random = np.random.default_rng(seed)
    picture = Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(60):
        x, y, w, h = random.integers(0, size[0]), random.integers(0, size[1]), *random.integers(6, 60, 2)
        shape = [pen.rectangle, pen.ellipse][random.integers(2)]
        shape([x, y, x + w, y + h], fill=tuple(map(int, random.integers(0, 255, 3))))
    return picture.filter(ImageFilter.GaussianBlur(0.8))


WAYS = {
    "saved anew": lambda picture: (picture, dict(quality=50)),
    "half the size": lambda picture: (picture.resize((180, 135)), dict(quality=85)),
    "larger": lambda picture: (picture.resize((540, 405)), dict(quality=85)),
    "cut out": lambda picture: (picture.crop((40, 30, 300, 230)), dict(quality=85)),
    "a small part": lambda picture: (picture.crop((120, 60, 310, 220)).resize((260, 219)), dict(quality=85)),
    "lighter": lambda picture: (picture.point(lambda value: min(255, int(value * 0.8 + 50))), dict(quality=85)),
    "squeezed": lambda picture: (picture.resize((340, 270)), dict(quality=85)),
}


@pytest.fixture
def scenes(tmp_path):
    """A folder of 40 different pictures of two classes."""
    for number in range(40):
        folder = tmp_path / "scenes" / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        draw_scene(number).save(folder / f"{number:02}.png")
    return tmp_path / "scenes"


def prepare(folder, **options):
    return prepare_data(Settings(source=str(folder), data_dir=folder.parent / "data", **options))


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_is_found_and_nothing_else(scenes, way):
    for number in (3, 4, 11):
        picture, options = WAYS[way](draw_scene(number))
        picture.save(scenes / ("cat" if number % 2 else "dog") / f"copy of {number}.jpg", **options)
    manifest = read_manifest(prepare(scenes))
    groups = manifest.groupby("group").path.apply(lambda paths: sorted(re.findall(r"\d+", " ".join(Path(p).stem for p in paths))))
    assert sorted(len(members) for members in groups) == [1] * 37 + [2] * 3, way
    assert all(int(members[0]) == int(members[-1]) for members in groups)
    assert manifest.groupby("group").split.nunique().max() == 1


def test_any_number_of_copies_are_one_photograph(scenes):
    """Thirty files with the same pixels and other bytes, as a program makes them that writes its name into each."""
    for number in range(30):
        comment = f"copy {number}".encode()
        draw_scene(5).save(scenes / "cat" / f"copy {number:02}.jpg", quality=95, comment=comment)
    manifest = read_manifest(prepare(scenes))
    copies = manifest[manifest.path.str.contains("copy|05.png")]
    assert len(copies) == 31 and set(copies.group) == {copies.sha256.min()[:16]} and copies.split.nunique() == 1
    assert manifest.group.nunique() == 40


def test_a_broken_exif_block_costs_no_picture(tmp_path):
    """The picture is used as it lies, as it is when somebody asks about it."""
    orientation = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    for name, block in (("good", orientation), ("noise", b"Exif\0\0not a TIFF file"), ("cut", orientation[:-9]),
                        ("text", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0")):
        draw_scene(1).save(tmp_path / f"{name}.jpg", exif=block)
        grey = read_grey(tmp_path / f"{name}.jpg")
        upright = Image.fromarray(load_pixels(tmp_path / f"{name}.jpg", size_px=64)).convert("L")
        assert grey.shape == ((360, 270) if name == "good" else (270, 360)), name
        alike = np.corrcoef(np.asarray(Image.fromarray(grey).resize((64, 64))).ravel(), np.asarray(upright).ravel())
        assert alike[0, 1] > 0.98, name


def test_the_same_room_with_something_else_in_it_is_no_twin():
    """Two shots share the corners of the background; what stands in front of it decides."""
    room = draw_scene(1)
    shots = [room.copy(), room.copy()]
    for shot, seed in zip(shots, (2, 3)):
        shot.paste(draw_scene(seed).resize((220, 165)), (70, 50))
    descriptions = [describe_picture(np.asarray(shot.convert("L"))) for shot in shots]
    assert len(find_twins(descriptions)) == 0
    assert len(find_twins([descriptions[0], descriptions[0]])) == 1


def test_twins_with_two_labels_are_listed_and_stay_together(scenes, tmp_path):
    for number in range(1, 20, 2):   # each cat, cut out, is a dog: as Faces and Faces_easy of Caltech-101
        draw_scene(number).crop((30, 20, 320, 240)).save(scenes / "dog" / f"part of {number}.jpg")
    data = prepare(scenes)
    manifest, twins = read_manifest(data), pd.read_csv(data / "twins.csv")
    assert len(manifest) == 50 and manifest.groupby("group").split.nunique().max() == 1
    assert len(twins) == 10 and (twins.label != twins.twin_label).all() and twins.correlation.min() > 0.95
    by_path = manifest.set_index("path")
    for one, other in zip(data / twins.path, data / twins.twin):
        assert by_path.group[str(one)] == by_path.group[str(other)] and by_path.split[str(one)] == by_path.split[str(other)]
    assert "With two labels: 10" in (data / "report.html").read_text()
    naive = read_manifest(prepare(scenes, twins=False, name="naive"))
    assert naive.group.nunique() == 50


def test_twins_with_two_labels_are_shown_first(scenes):
    """They need a decision; of the others, the least alike may be no twins."""
    one, two, three, four = sorted(map(str, scenes.rglob("*.png")))[:4]
    pairs = pd.DataFrame([(one, two, "cat", "cat", 0.95, 1.0), (three, four, "cat", "dog", 0.99, 1.0)],
                         columns=["path", "twin", "label", "twin_label", "correlation", "share"])
    captions = [caption for _, caption in _show_twins(pairs, Settings().resolve())[1]]
    assert [Path(path).name in caption for path, caption in zip((three, four, one, two), captions)] == [True] * 4


def test_what_is_transparent_is_white(tmp_path):
    """Also in a grey picture, and as the model sees it."""
    Image.new("L", (40, 40), 0).save(tmp_path / "clear.png", transparency=0)
    assert read_grey(tmp_path / "clear.png").min() == load_pixels(tmp_path / "clear.png", size_px=32).min() == 255


def test_an_empty_picture_proves_nothing():
    noise = np.random.default_rng(0).integers(0, 255, (60, 60), dtype=np.uint8)
    faint = (128 + (noise > 128)).astype(np.uint8)   # the same in one step of grey, as a scanner's white may have it
    assert _correlate(noise, faint, np.eye(2, 3)) == _correlate(faint, noise, np.eye(2, 3)) == (0, 0)
    assert _correlate(noise, noise, np.eye(2, 3)) == pytest.approx((1, 1))


@pytest.mark.parametrize("least", [1, 2])
def test_each_key_that_two_share_is_counted(least):
    pairs, shared = _share_keys(np.array([1, 1, 2, 2, 3, 3]), np.array([0, 1, 0, 1, 0, 1]), 2, least=least)
    assert (pairs.tolist(), shared.tolist()) == ([1], [3])   # 0 * 2 + 1


def test_a_copy_of_a_given_test_picture_is_no_training_picture(tmp_path):
    for split, start in (("train", 0), ("val", 100), ("test", 200)):
        for number in range(start, start + 12):
            folder = tmp_path / "given" / split / ("cat" if number % 2 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            draw_scene(number).save(folder / f"{number}.png")
    copy = tmp_path / "given" / "train" / "dog" / "copy.jpg"
    draw_scene(202).resize((200, 150)).save(copy)
    data = prepare(tmp_path / "given")
    aside = pd.read_csv(data / "quarantine.csv")
    assert list(aside.path) == [str(copy)] and "the same photograph is in test: " in aside.reason[0]
    kept = set(read_manifest(data).path)
    twins = pd.read_csv(data / "twins.csv")
    assert len(kept) == 36 and {str(data / path) for path in [*twins.path, *twins.twin]} <= kept


def test_drop_takes_out_what_a_person_chose(scenes, tmp_path):
    data = prepare(scenes)
    manifest = read_manifest(data)
    chosen = manifest[manifest.split == "train"].path.head(3)
    chosen.to_frame().to_csv(tmp_path / "drop.csv", index=False)
    rest = read_manifest(prepare(scenes, drop=tmp_path / "drop.csv"))
    assert len(rest) == 37 and not set(chosen) & set(rest.path)
    assert set(pd.read_csv(data / "quarantine.csv").path) == set(chosen)
    (tmp_path / "wrong.csv").write_text("path\nnobody.png\n")
    with pytest.raises(DataError, match="nobody.png, which is no picture of scenes"):
        prepare(scenes, drop=tmp_path / "wrong.csv")
    assert len(read_manifest(data)) == 37   # as it was


def test_training_refuses_a_leaking_manifest(scenes, tmp_path, imgclf):
    data = prepare(scenes, image_size_px=32)
    table = pd.read_csv(data / "manifest.csv", dtype=str)
    one, other = table.index[table.split == "train"][0], table.index[table.split == "test"][0]
    table.loc[one, "group"] = table.loc[other, "group"]
    table.to_csv(data / "manifest.csv", index=False)
    with pytest.raises(DataError, match="straddle splits"):
        check_splits(read_manifest(data))
    words = ["train", str(scenes), "--image-size-px", "32", "--fine-tune-epochs", "0", "--arch", "efficientnet_lite0"]
    refused = imgclf(*words)
    assert refused.returncode == 2 and "--allow-leak" in refused.stderr and len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "model").exists()
    assert imgclf(*words, "--allow-leak").returncode == 0


def find_by_force(paths, labels, splits):
    """Pairs across splits that show the same photograph, by looking at all pairs; nothing in common with imgclf_nb.twins."""
    small = [np.asarray(Image.open(path).convert("L").resize((48, 48), Image.Resampling.BOX), float) for path in paths]
    rows = np.stack([(picture - picture.mean()).ravel() for picture in small])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9
    alike = rows @ rows.T
    return {(i, j) for i, j in np.argwhere(np.triu(alike > 0.995, 1)) if splits[i] != splits[j]}


@pytest.mark.real
def test_no_photograph_straddles_a_split(real_archive, tmp_path):
    """All pairs of the ten largest classes, and each face with its cut-out, which has the same number in Faces_easy."""
    data = prepare_data(Settings(source=str(real_archive), top_n=10, data_dir=tmp_path / "data"))
    manifest = read_manifest(data)
    assert manifest.groupby("group").split.nunique().max() == 1
    assert find_by_force(manifest.path, manifest.label.tolist(), manifest.split.tolist()) == set()
    manifest["name"] = [Path(path).name for path in manifest.path]
    faces = {label: manifest[manifest.label == label].set_index("name") for label in ("Faces", "Faces_easy")}
    both = faces["Faces"].join(faces["Faces_easy"].add_suffix("_easy"), how="inner")
    apart, straddle = both[both.group != both.group_easy], both[both.split != both.split_easy]
    print(f"{len(both)} faces are there twice; {len(apart)} pairs were not found, {len(straddle)} of them straddle a split")
    assert len(both) > 250 and len(apart) <= 0.04 * len(both) and len(straddle) <= 0.025 * len(both)


def test_described_the_same_in_each_run():
    grey = np.asarray(draw_scene(1).convert("L"))
    one, other = describe_picture(grey), describe_picture(grey)
    assert (one.words == other.words).all() and one.wave == other.wave
    part = describe_picture(np.ascontiguousarray(grey[20:200, 30:300]))
    pd.testing.assert_frame_equal(find_twins([one, part], workers=2), find_twins([one, part]))
