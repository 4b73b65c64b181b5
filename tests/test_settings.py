"""What holds for settings beyond the lesson in nbs/00_settings.ipynb."""
import re
from pathlib import Path

import pytest

import imgclf_nb
from imgclf_nb.options import env_example
from imgclf_nb.settings import Settings, SettingsError

ROOT = Path(__file__).resolve().parent.parent


def test_env_example_is_in_step():
    assert (ROOT / ".env.example").read_text() == env_example(), "run `make readme`"


def test_every_default_of_env_example_is_accepted(tmp_path, monkeypatch):
    """Uncommenting every line must give the defaults."""
    monkeypatch.chdir(tmp_path)
    text = re.sub(r"^# (IMGCLF_)", r"\1", env_example(), flags=re.M)
    Path(".env").write_text(text)
    assert Settings() == Settings(_env_file=None)


def test_env_file_counts_and_its_typos_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("IMGCLF_FIT=pad\nOTHER_TOOL=1\n")
    assert Settings().fit == "pad"
    Path(".env").write_text("IMGCLF_FITT=pad\n")
    with pytest.raises(SettingsError, match="did you mean IMGCLF_FIT"):
        Settings()


def test_version_is_that_of_settings_ini():
    version = re.search(r"^version = (.+)$", (ROOT / "settings.ini").read_text(), re.M)[1]
    assert imgclf_nb.__version__ == version, "run `pip install -e .` again"
