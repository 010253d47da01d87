"""s3fs: FUSE in C++, a file of the cache for each object. Debian package ``s3fs``.

Connections: up to 32 for one object. Cache: files on the local disk, kept. Checksums: none. Attributes: an hour, in
its own memory. Kernel: keeps pages from open to open.
"""

from benchmarks.peers.mounting import CREDIBLE_S, Peer, Place

OPTIONS = [
    "kernel_cache",
    "parallel_count=32",
    "multireq_max=64",
    "max_stat_cache_size=1000000",
    f"stat_cache_expire={CREDIBLE_S}",
    "enable_noobj_cache",
    "ro",
]


def command(place: Place) -> list[str]:
    directory = place.directory
    bound = [f"url={place.endpoint}", "use_path_request_style", "public_bucket=1"]
    bound += [f"use_cache={directory / 'cache'}", f"tmpdir={directory}"]
    options = [word for option in [*bound, *OPTIONS] for word in ("-o", option)]
    return ["s3fs", place.bucket, str(place.target), "-f", *options]


PEER = Peer(
    name="s3fs",
    program="s3fs",
    version=["--version"],
    options=f"-o use_cache=DIRECTORY,{','.join(OPTIONS)}",
    command=command,
)
