"""A real HTTP server with the S3 interface (moto), in a process of its own, which can be held for a while."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

BUCKET = "bucket"
SECRET = "canary-s3-90b1"


class S3Server:
    """env: what a client needs. `hold` stops the server from answering and `release` lets it go on; nothing is lost."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.env = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "canary-key",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            # no answer from the machine's metadata service is waited for
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
        with (folder / "moto.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self._make_bucket()

    def objects(self) -> list[str]:
        """Their keys, the markers of folders left out."""
        import boto3

        client = boto3.client(
            "s3", endpoint_url=self.url, aws_access_key_id="k", aws_secret_access_key=SECRET, region_name="us-east-1"
        )
        found = client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return sorted(row["Key"] for row in found if not row["Key"].endswith("/"))

    def hold(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def release(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _make_bucket(self) -> None:
        end = time.monotonic() + 60
        while True:
            try:
                urlopen(Request(f"{self.url}/{BUCKET}", method="PUT"), timeout=5).close()
                return
            except (URLError, OSError):
                if time.monotonic() > end or self._process.poll() is not None:
                    raise
                time.sleep(0.2)
