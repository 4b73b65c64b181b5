"""What a bundle's reader refuses, and what its writer leaves behind when it is stopped."""
import json
import os
import shutil

import pytest

from imgclf_nb import bundle as bundle_module
from imgclf_nb import engine, predict
from imgclf_nb.bundle import BundleError, BundleInfo, read_bundle, update_card, write_bundle
from imgclf_nb.example import write_example_bundle


@pytest.fixture
def bundle(tmp_path):
    return write_example_bundle(tmp_path / "bundle")


def change(bundle, **values):
    """Rewrite fields of bundle.json."""
    file = bundle.path / "bundle.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_written_bundle_reads_back(bundle):
    assert read_bundle(bundle.path) == bundle
    assert read_bundle(str(bundle.path)).info.labels == ["leaf", "sea", "tomato"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"schema"', "{}", '{"schema": 1}', '{"schema": "one"}',
                                  '{"schema": null}', '{"schema": 0}', "\xff"])
def test_nonsense_for_a_description(bundle, text):
    (bundle.path / "bundle.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match="bundle.json.*again"):
        read_bundle(bundle.path)


@pytest.mark.parametrize("values", [{"labels": ["a", "a"]}, {"labels": ["a"]}, {"labels": "ab"}, {"image_size_px": 0},
                                    {"fit": "stretch"}, {"temperature": 0}, {"thresholds": {"unsure": "high"}}])
def test_wrong_fields_are_named(bundle, values):
    change(bundle, **values)
    with pytest.raises(BundleError, match=next(iter(values))):
        read_bundle(bundle.path)


def test_a_newer_schema_is_told_before_anything_else_is_understood(bundle):
    (bundle.path / "bundle.json").write_text('{"schema": 2, "labels": {"now": "a mapping"}}')
    with pytest.raises(BundleError, match="schema 2.*upgrade"):
        read_bundle(bundle.path)


@pytest.mark.parametrize("name", ["model.onnx", "README.md"])
def test_every_file_is_checked(bundle, name):
    file = bundle.path / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"{name} has the wrong checksum"):
        read_bundle(bundle.path)
    file.unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        read_bundle(bundle.path)


def test_a_network_without_a_checksum_is_refused(bundle):
    change(bundle, files={})
    with pytest.raises(BundleError, match="model.onnx has the wrong checksum"):
        read_bundle(bundle.path)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/file"])
def test_checksums_reach_no_file_outside(bundle, name):
    change(bundle, files={**bundle.info.files, name: "0" * 64})
    with pytest.raises(BundleError, match="outside its folder"):
        read_bundle(bundle.path)


def test_no_folder_and_no_bundle(tmp_path, bundle):
    with pytest.raises(BundleError, match="no such folder"):
        read_bundle(tmp_path / "none")
    with pytest.raises(BundleError, match="no such folder"):
        read_bundle(bundle.path / "bundle.json")
    with pytest.raises(BundleError, match="did you mean .*bundle"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("name", ["is_dir", "is_file", "read_bytes"])
def test_no_permission_is_said(bundle, monkeypatch, name):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(type(bundle.path), name, refuse)
        with pytest.raises(BundleError, match="can't read .*mend its permissions"):
            read_bundle(bundle.path)


def test_an_interrupted_write_leaves_the_old_bundle(tmp_path, bundle, monkeypatch):
    monkeypatch.setattr(shutil, "copyfile", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_bundle(bundle.path, bundle.info, model_file=bundle.model_file)
    assert read_bundle(bundle.path) == bundle
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_bundle_may_be_written_from_its_own_network(bundle):
    info = bundle.info.model_copy(update={"name": "other"})
    assert read_bundle(bundle.path).sha256 != write_bundle(bundle.path, info, model_file=bundle.model_file).sha256
    assert read_bundle(bundle.path).info.name == "other"


def test_labels_of_any_script_survive(tmp_path):
    labels = ["Äpfel", "犬", "a|b\"c'"]
    assert read_bundle(write_example_bundle(tmp_path / "b", labels=labels).path).info.labels == labels


def test_info_is_frozen(bundle):
    with pytest.raises(Exception, match="frozen"):
        bundle.info.name = "other"
    assert BundleInfo.model_validate(bundle.info.model_dump(by_alias=True)) == bundle.info


def test_a_bundle_that_is_replaced_while_it_is_read(bundle, monkeypatch):
    """A training that ends just now is no damage: what it wrote is read."""
    check = bundle_module._check_files
    def replace_first(*arguments):
        monkeypatch.setattr(bundle_module, "_check_files", check)   # once
        write_example_bundle(bundle.path, temperature=3)
        return check(*arguments)
    monkeypatch.setattr(bundle_module, "_check_files", replace_first)
    assert read_bundle(bundle.path).info.temperature == 3


def test_a_network_that_was_replaced_while_it_was_loaded(bundle, monkeypatch):
    """No labels of the old model over the answers of the new one."""
    compile_network = engine._compile
    def replace_first(*arguments):
        write_example_bundle(bundle.path, labels=["red", "white", "blue"], temperature=3)
        return compile_network(*arguments)
    monkeypatch.setattr(engine, "_compile", replace_first)
    with pytest.raises(BundleError, match="replaced while it was loaded: start again"):
        predict.Predictor(bundle.path)


def test_a_score_for_a_bundle_that_was_replaced_meanwhile(bundle, monkeypatch):
    """A training that ends while the score is written: the bundle stays whole."""
    replace = bundle_module.replace_folder
    def replace_later(path):
        monkeypatch.setattr(bundle_module, "replace_folder", replace)   # once
        write_example_bundle(bundle.path, temperature=3)
        return replace(path)
    monkeypatch.setattr(bundle_module, "replace_folder", replace_later)
    update_card(bundle.path, "99 of 100 right.")
    assert read_bundle(bundle.path).info.temperature == 3
