"""What README and docs print is what a reader can type: every code block of every page runs."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.docs_session import blocks_of
from integration.conftest import why_no_mounts

ROOT = Path(__file__).resolve().parents[2]
SESSION = Path(__file__).with_name("docs_session.py")
ENDPOINT_IN_DOCS = "https://s3.example.com"
PAGE_TIMEOUT_S = 300


def pages() -> list[Path]:
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [page for page in found if page.exists() and blocks_of(page.read_text())]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store that has what the pages speak of; its endpoint."""
    import boto3
    import pandas
    from botocore.config import Config
    from moto.server import ThreadedMotoServer

    # Not our own remote: it takes unsigned requests only, and the pages show credentials.
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "penstock", "aws_secret_access_key": "penstock-secret", "region_name": "us-east-1"}
    config = Config(s3={"addressing_style": "path"})
    store = boto3.client("s3", endpoint_url=endpoint, config=config, **keys)
    store.create_bucket(Bucket="my-bucket")
    for number in range(1, 33):
        store.put_object(Bucket="my-bucket", Key=f"train/images/{number:04}.bin", Body=os.urandom(112 << 10))
    table = tmp_path_factory.mktemp("table") / "table.parquet"
    pandas.DataFrame({"number": range(10_000), "name": [f"row {row}" for row in range(10_000)]}).to_parquet(table)
    store.put_object(Bucket="my-bucket", Key="train/table.parquet", Body=table.read_bytes())
    store.put_object(Bucket="my-bucket", Key="models/config.json", Body=b'{"layers": 12}')
    yield endpoint
    store.close()
    server.stop()


@pytest.mark.timeout(PAGE_TIMEOUT_S + 60)
@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_every_code_block_of_a_page_runs(page: Path, bucket: str, tmp_path: Path) -> None:
    if page.stem == "mount" and (reason := why_no_mounts()):
        pytest.skip(f"needs the right to mount: {reason}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "AWS_"))}
    environment |= {
        "PENSTOCK_HOME": str(tmp_path / "home"),
        "AWS_ACCESS_KEY_ID": "penstock",
        "AWS_SECRET_ACCESS_KEY": "penstock-secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, str(SESSION), str(page), f"{ENDPOINT_IN_DOCS}={bucket}"]
    # Into a file: a node that a block starts must not hold this test up.
    output = tmp_path / "output.txt"
    try:
        with output.open("wb") as stream:
            ended = subprocess.run(
                command,
                cwd=work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=PAGE_TIMEOUT_S,
            )
        assert ended.returncode == 0, output.read_text(errors="replace")
    finally:
        penstock = shutil.which("penstock", path=environment["PATH"])
        assert penstock is not None
        subprocess.run([penstock, "down"], env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=True)
