# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""Takes and sends large bodies piece by piece: POST / counts and hashes, GET /?bytes=N sends N."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PIECE = 64 * 1024


class BigFiles(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def pieces(self):
        """The request's body, chunked or not, a piece at a time."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                while size:
                    piece = self.rfile.read(min(PIECE, size))
                    if not piece:
                        raise ConnectionError("the body ended early")
                    size -= len(piece)
                    yield piece
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            piece = self.rfile.read(min(PIECE, left))
            if not piece:
                raise ConnectionError("the body ended early")
            left -= len(piece)
            yield piece

    def do_POST(self):
        size, digest = 0, hashlib.sha256()
        for piece in self.pieces():
            size += len(piece)
            digest.update(piece)
        body = json.dumps({"bytes": size, "sha256": digest.hexdigest()}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        left = int(parse_qs(urlsplit(self.path).query).get("bytes", ["0"])[0])
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(left))
        self.end_headers()
        while left:
            self.wfile.write(b"m" * min(PIECE, left))
            left -= min(PIECE, left)


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", 8000), BigFiles).serve_forever()
