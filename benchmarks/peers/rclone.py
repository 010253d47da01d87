"""rclone mount: FUSE in Go, a sparse file of the cache for each object. Debian package ``rclone``.

Connections: one for each open file. Cache: files on the local disk, kept. Checksums: none. Listings and attributes: an
hour, in its own memory and in the kernel.
"""

from benchmarks.peers.mounting import CREDIBLE_S, Peer, Place

OPTIONS = [
    "--vfs-cache-mode=full",
    "--vfs-read-ahead=128M",
    "--vfs-fast-fingerprint",
    "--max-read-ahead=1M",
    "--use-server-modtime",
    f"--dir-cache-time={CREDIBLE_S}s",
    f"--attr-timeout={CREDIBLE_S}s",
    "--poll-interval=0",
    "--read-only",
]


def command(place: Place) -> list[str]:
    cache = f"--cache-dir={place.directory / 'cache'}"
    return ["rclone", "mount", f"remote:{place.bucket}", str(place.target), "--config=", cache, *OPTIONS]


def environment(place: Place) -> dict[str, str]:
    return {
        "RCLONE_CONFIG_REMOTE_TYPE": "s3",
        "RCLONE_CONFIG_REMOTE_PROVIDER": "Other",
        "RCLONE_CONFIG_REMOTE_ENDPOINT": place.endpoint,
    }


PEER = Peer(
    name="rclone mount",
    program="rclone",
    version=["version"],
    options=f"--cache-dir=DIRECTORY {' '.join(OPTIONS)}",
    command=command,
    environment=environment,
)
