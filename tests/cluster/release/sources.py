"""Functions that the tests of a release send."""

from __future__ import annotations

import base64
import io
import secrets
import tarfile

ECHO = "def handler(event, ctx):\n    return ctx.function_id\n"

# Serves HTTP on $PORT itself, with nothing but the standard library.
SERVER = """
import http.server, os

class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"served"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Server).serve_forever()
"""


def new(source: str) -> str:
    """Return a source that nobody has sent before, so that it is built."""
    return f"{source}\n# {secrets.token_hex(8)}\n"


def image_archive(base: str, *steps: str) -> str:
    """Return an archive with a Dockerfile of these steps, as /v1 takes it; never built before."""
    dockerfile = "\n".join(
        [
            f"FROM {base}",
            f"ENV MARK={secrets.token_hex(8)}",
            *steps,
            "COPY server.py /server.py",
            'CMD ["python3", "/server.py"]',
        ]
    )
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for name, text in {"Dockerfile": dockerfile, "server.py": SERVER}.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return base64.b64encode(whole.getvalue()).decode()
