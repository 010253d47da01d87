"""JuiceFS: FUSE in Go, its own format in the bucket: blocks of 4 MiB, names and sizes in a database.

It cannot read objects that others wrote. So they are copied through it into a bucket of its own in the same remote
before anything is measured, with a cache that is not the mount's. Database: SQLite on the local disk, so that names
and attributes never ask the remote. Connections: up to 200. Cache: a file for each block on the local disk, checked.
Processor: as root it gives itself the highest priority.
"""

from benchmarks.peers.mounting import CREDIBLE_S, Peer, Place

VOLUME = "volume"
QUIET = ["juicefs", "--no-agent"]
OPTIONS = [
    "--cache-size=32G",
    "--buffer-size=1G",
    "--max-readahead=256M",
    "--max-fuse-io=1M",
    f"--open-cache={CREDIBLE_S}s",
    f"--attr-cache={CREDIBLE_S}s",
    f"--entry-cache={CREDIBLE_S}s",
    f"--dir-entry-cache={CREDIBLE_S}s",
    "--readdir-cache",
    "--hide-internal",
    "--read-only",
]


def prepare(place: Place) -> list[list[str]]:
    address = place.endpoint.removeprefix("http://")
    bucket = ["--storage=s3", f"--bucket={place.endpoint}/{place.bucket}-juicefs", "--access-key=anonymous"]
    source = f"s3://anonymous:@{address}/{place.bucket}/"
    return [
        [*QUIET, "format", *bucket, "--trash-days=0", _database(place), VOLUME],
        [*QUIET, "sync", "--no-https", "--threads=64", "--force-update", source, f"jfs://{VOLUME}/"],
    ]


def command(place: Place) -> list[str]:
    mount = [*QUIET, "mount", "--no-usage-report", "--backup-meta=0", "--no-syslog", "--metrics=127.0.0.1:0"]
    return [*mount, f"--cache-dir={place.directory / 'cache'}", *OPTIONS, _database(place), str(place.target)]


def environment(place: Place) -> dict[str, str]:
    return {VOLUME: _database(place)}


def _database(place: Place) -> str:
    return f"sqlite3://{place.directory / 'names.db'}"


PEER = Peer(
    name="JuiceFS",
    program="juicefs",
    version=["version"],
    options=f"--cache-dir=DIRECTORY {' '.join(OPTIONS)}; names in SQLite, data copied in through it",
    command=command,
    environment=environment,
    prepare=prepare,
)
