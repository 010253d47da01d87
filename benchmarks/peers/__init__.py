"""Other programs that show a bucket as a directory: one named file each, which states its options and its cache.

A peer whose program is found takes part; none of them is installed by us. Each gets the bucket that Penstock gets, a
directory of its own for its cache, and an environment of its own. Names, sizes and times may be believed for an hour,
as in the attachments that they are compared with.
"""

from benchmarks.peers import juicefs, rclone, s3fs

PEERS = (juicefs.PEER, rclone.PEER, s3fs.PEER)
NEVER_RUN = ("mount-s3",)
"""Known, but with no file here: nobody has run it in these comparisons yet."""
