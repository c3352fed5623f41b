"""temporary"""

import json


def document(d, s, u, v):
    return json.dumps({"openapi": "3.1.0"}).encode()
