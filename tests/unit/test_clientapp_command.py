"""The command that starts a ClientApp: Flower's own, without what only the SuperNode's command imports."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from queue import Queue
from types import ModuleType
from typing import Any

import pytest
from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest, SendTaskHeartbeatResponse
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

COMMAND = Path(__file__).parents[2] / "roles/supernode/files/flwr-clientapp"
TOKEN = "ab" * 32


@pytest.fixture
def supernode() -> Iterator[tuple[str, "Queue[dict[str, Any]]"]]:
    """A port that takes heartbeats: its address, and the requests in the order in which they came."""
    seen: Queue[dict[str, Any]] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen.put({"path": self.path, "body": body, "headers": headers})
            answer = SendTaskHeartbeatResponse(success=True).SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def command() -> ModuleType:
    loader = SourceFileLoader("clientapp_command", str(COMMAND))
    spec = spec_from_loader(loader.name, loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_command_is_flowers_with_fewer_imports() -> None:
    ours, flowers = (
        subprocess.run(
            [sys.executable, "-X", "importtime", str(command), "--help"], capture_output=True, text=True, timeout=120
        )
        for command in (COMMAND, Path(sys.executable).with_name("flwr-clientapp"))
    )
    assert ours.returncode == 0 and ours.stdout == flowers.stdout
    assert "sqlalchemy" in flowers.stderr and "sqlalchemy" not in ours.stderr


def test_its_heartbeat_is_flowers(command: ModuleType, supernode: tuple[str, "Queue[dict[str, Any]]"]) -> None:
    address, seen = supernode
    command.send_heartbeat(address, TOKEN)
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeTokenHttpInterceptor(TOKEN)],
    )
    assert client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success
    client.close()
    ours, flowers = seen.get(timeout=10), seen.get(timeout=10)
    assert (ours["path"], ours["body"]) == (flowers["path"], flowers["body"])
    assert ours["headers"].items() >= {"flwr-task-token": TOKEN}.items()
    assert {name: flowers["headers"][name] for name in ours["headers"] if name != "accept-encoding"} == {
        name: value for name, value in ours["headers"].items() if name != "accept-encoding"
    }


def test_it_is_sent_before_the_imports(supernode: tuple[str, "Queue[dict[str, Any]]"]) -> None:
    address, seen = supernode
    arguments = [sys.executable, str(COMMAND), "--runtime-api-address", address, "--token", TOKEN, "--insecure"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        first, second = seen.get(timeout=60), seen.get(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert first["path"].endswith("heartbeat")
    assert "user-agent" not in first["headers"] and "httpx" in second["headers"]["user-agent"]


def test_a_supernode_that_is_not_there_is_no_matter(command: ModuleType) -> None:
    command.send_heartbeat("127.0.0.1:1", TOKEN)
