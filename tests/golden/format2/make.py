"""Makes the study beside it, as a killed driver left it, with its images.

Run it with the code of commit 7f18138, the last one before methods, backbones and objectives were registries and MLflow
had no journal any more, and never again with a later one:
    PYTHONPATH=<that checkout> python make.py <new folder>
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import make_folder

NAME = "before"
WORDS = (
    *("--profile", "smoke", "--space", "threshold_patch", "--sampler", "random", "--trials", "5", "--seeds", "42"),
    *("--selection", "extra", "--max-concurrent", "1", "--set", "data.image_size=64", "--set", "budget.epochs=3"),
    *("--set", "model.weights=random", "--set", "model.freeze=0"),
)


def main(folder: Path) -> None:
    home = folder / "home"
    make_folder(folder / "images")
    words = [sys.executable, "-m", "sctune", "search", "--name", NAME, "--data", str(folder / "images"), *WORDS]
    driver = subprocess.Popen(words, env={**os.environ, "SCTUNE_HOME": str(home)}, start_new_session=True)
    study = home / "studies" / NAME
    while reports(study / "record.db") < 5:
        assert driver.poll() is None
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    for name in ("ray", "trials"):
        # too large to be kept: the trial that ran begins again
        shutil.rmtree(study / name, ignore_errors=True)
    shutil.rmtree(study / "logs")
    shutil.move(study, folder / "study")
    shutil.rmtree(home)
    for path in [*(folder / "study").glob("*.json"), folder / "study" / "tracking.jsonl"]:
        # the reader puts its own folder there
        path.write_text(path.read_text().replace(str(folder), "/FOLDER").replace(socket.gethostname(), "host"))


def reports(record: Path) -> int:
    try:
        with sqlite3.connect(f"file:{record}?mode=ro", uri=True) as found:
            return int(found.execute("select count(*) from trial_intermediate_values").fetchone()[0])
    except sqlite3.Error:
        return 0


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
