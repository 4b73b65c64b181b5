"""What several tests share."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "data" / "caltech101.tar"


@pytest.fixture
def imgclf(tmp_path):
    """Run the `imgclf` command in a process and a folder of its own; gives a CompletedProcess."""
    def run(*words, timeout=300, **options):
        program = Path(sys.executable).parent / "imgclf"
        return subprocess.run([program, *map(str, words)], cwd=tmp_path, text=True, capture_output=True,
                              timeout=timeout, **options)
    return run


@pytest.fixture
def real_archive():
    """The archive of real photographs, or skip."""
    if not REAL.exists():
        pytest.skip(f"the real photographs are looked for at {REAL}")
    return REAL
