"""A real `imgclf serve` in a process and a folder of its own, for the tests that talk to it."""
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from imgclf_nb.example import write_example_bundle


@dataclass
class Server:
    """A running server."""
    process: subprocess.Popen
    url: str            # without a slash at its end
    log: Path           # what it writes to standard error
    uploads: Path       # the folder in which it makes its own folder for uploads
    started_s: float    # from the command to the first answer of /health

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, number=signal.SIGTERM, timeout=20) -> int:
        """Send a signal, wait for the end; gives the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout)


def wait_for(condition, seconds=20, what="it"):
    """Ask again and again until there is an answer that is true; gives it."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)
    return answer


@contextmanager
def running_server(folder, *words, env={}, bundle=True):
    """Run `imgclf serve` on a free port with the example bundle, until the block ends; gives a `Server`."""
    (folder := Path(folder)).mkdir(exist_ok=True)
    if bundle:
        write_example_bundle(folder / "model" / "bundle")
    (uploads := folder / "temporary").mkdir(exist_ok=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("IMGCLF_", "GRADIO_", "HF_"))}
    with open(log := folder / "serve.log", "w") as errors:
        began = time.monotonic()
        process = subprocess.Popen([Path(sys.executable).parent / "imgclf", "serve", "--port", "0", *map(str, words)],
                                   cwd=folder, stdout=errors, stderr=errors, env={**clean, "TMPDIR": str(uploads), **env})
    try:
        def answers():
            assert process.poll() is None, f"the server ended:\n{log.read_text()}"
            port = re.search(r"(?:localhost:|on port )(\d+)", log.read_text())
            try:
                return port and httpx.get(f"{(url := f'http://127.0.0.1:{port[1]}')}/health").status_code in (200, 503) and url
            except httpx.TransportError:
                return None
        url = wait_for(answers, 60, "the first answer")
        yield Server(process, url, log, uploads, time.monotonic() - began)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
