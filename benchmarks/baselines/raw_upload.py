"""One object by a raw multipart upload.

Library: ``http.client`` and threads. Connections: 32, or one, kept alive, parts of 8 MiB. Signing: none. Checksums:
none. Source: memory of this process.
"""

import http.client
import re
from concurrent.futures import ThreadPoolExecutor
from threading import local
from typing import Any

CONNECTIONS = 32
PART_BYTES = 8 << 20
HOW = f"http.client, multipart, {CONNECTIONS} connections, parts of 8 MiB, unsigned, no checksums, from memory"
HOW_ONE = "http.client, multipart, one connection, parts of 8 MiB, unsigned, no checksums, from memory"


def run(endpoint: str, bucket: str, key: str, body: memoryview, connections: int = CONNECTIONS) -> None:
    own = local()

    def ask(method: str, query: str, content: Any = b"") -> tuple[http.client.HTTPMessage, bytes]:
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=60)
        own.connection.request(method, f"/{bucket}/{key}?{query}", content)
        response = own.connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"{method} {key}: {response.status} {answer[:200]!r}")
        return response.headers, answer

    _, begun = ask("POST", "uploads=")
    found = re.search(rb"<UploadId>(.*?)</UploadId>", begun)
    assert found, begun
    upload = found.group(1).decode()

    def send(number: int) -> str:
        piece = body[(number - 1) * PART_BYTES : number * PART_BYTES]
        headers, _ = ask("PUT", f"partNumber={number}&uploadId={upload}", piece)
        etag = headers["ETag"]
        return f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"

    count = -(-len(body) // PART_BYTES)
    with ThreadPoolExecutor(connections) as pool:
        parts = "".join(pool.map(send, range(1, count + 1)))
    ask("POST", f"uploadId={upload}", f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode())
