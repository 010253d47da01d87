"""What Penstock is compared with: one named file each, which states library, connections, checksums, destination."""
