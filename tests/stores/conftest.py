"""A real S3 server on this machine: moto on a free port of the loopback interface, one for all tests of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

from tests.stores.bucket import Bucket

_SERVER = """
import sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

moto, sent = DomainDispatcherApplication(create_backend_app), 0

def count_bytes(environ, start_response):
    global sent
    if environ["PATH_INFO"] == "/bytes-sent":
        start_response("200 OK", [])
        return [str(sent).encode()]
    answer = list(moto(environ, start_response))
    sent += sum(map(len, answer))
    return answer

server = make_server("127.0.0.1", 0, count_bytes, threaded=True)
print(server.port, flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()  # returns when the tests end
"""


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the server, set the environment of its clients in this process and its children, and yield its address."""
    command = [sys.executable, "-c", _SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdin
        assert server.stdout
        address = f"http://127.0.0.1:{int(server.stdout.readline())}"
        variables = {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "SPO_CACHE": str(tmp_path_factory.mktemp("cache")),
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            yield address
        server.stdin.close()


@pytest.fixture
def bucket(endpoint: str) -> Bucket:
    """Return an empty bucket."""
    return Bucket.make(f"spo-{uuid.uuid4().hex}")
