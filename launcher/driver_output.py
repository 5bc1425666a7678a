"""Passes on what a driver prints, and keeps it in the run's folder."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from rotescale.log_uploads import LogUploads
from rotescale.run_dir import RunDir

_END_SECONDS = 30.0


def say(words: str) -> None:
    """Print a line of our own; who cannot be told, by a full disk or a reader that has gone, is
    not."""
    with suppress(OSError):
        print(words, flush=True)


def end_output() -> None:
    """Have what cannot be written not change the exit code, as Python's own last attempt would."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class DriverOutput:
    """Passes a driver's output on, and keeps it in the run folder."""

    def __init__(self, driver: subprocess.Popen[bytes], log: Path, run_dir: RunDir) -> None:
        self.last_line = ""
        """The last that was printed and is not empty."""
        self._driver = driver
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._pass_on, daemon=True)
        self._thread.start()
        self._uploads = LogUploads(run_dir, [log])

    def close(self) -> None:
        """Wait until all of it is kept."""
        self._thread.join(timeout=_END_SECONDS)
        self._uploads.close()

    def _pass_on(self) -> None:
        assert self._driver.stdout is not None
        with self._driver.stdout as lines, self._log.open("ab") as log:
            for line in lines:
                # Neither a full disk nor a reader that has gone may end the run.
                with suppress(OSError):
                    # Another line may follow that is not the driver's.
                    sys.stdout.buffer.write(line if line.endswith(b"\n") else line + b"\n")
                    sys.stdout.flush()
                with suppress(OSError):
                    log.write(line)
                    log.flush()
                self.last_line = line.decode(errors="replace").strip() or self.last_line
