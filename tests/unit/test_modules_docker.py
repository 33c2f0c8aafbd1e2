"""testbed_docker: the engine's socket, played by a real server, and control groups as both versions lay them out."""

import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import ansible_modules  # noqa: F401 makes ansible.module_utils.testbed_docker importable
import pytest
from ansible.module_utils import testbed_docker

ASKED: list[str] = []


class Engine(BaseHTTPRequestHandler):
    """Answers by path as a Docker engine does."""

    def do_GET(self) -> None:
        ASKED.append(self.path)
        code, body = {
            "/version": (200, b'{"Version": "26.1.5"}'),
            "/containers/gone/json": (404, b'{"message": "No such container"}'),
            "/broken": (500, b'{"message": "out of order"}'),
        }.get(urlsplit(self.path).path, (200, b"[]"))
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "socket"

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "docker.sock"
    monkeypatch.setattr(testbed_docker, "SOCKET", str(path))
    ASKED.clear()
    with socketserver.UnixStreamServer(str(path), Engine) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield path
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("engine")
def test_answers_come_decoded() -> None:
    assert testbed_docker.get("/version") == {"Version": "26.1.5"}
    assert testbed_docker.inspect("gone") is None
    with pytest.raises(ValueError, match=r"500 to /broken.*out of order"):
        testbed_docker.get("/broken")


@pytest.mark.usefixtures("engine")
def test_a_projects_containers_are_asked_for_by_label_stopped_ones_too() -> None:
    assert testbed_docker.containers("fltestbed-lab") == []
    query = parse_qs(urlsplit(ASKED[0]).query)
    assert query["all"] == ["1"]
    assert json.loads(query["filters"][0]) == {"label": ["com.docker.compose.project=fltestbed-lab"]}


def test_a_missing_engine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testbed_docker, "SOCKET", str(tmp_path / "docker.sock"))
    with pytest.raises(testbed_docker.EngineUnreachable, match=r"docker\.sock"):
        testbed_docker.get("/version")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for / when the module reads."""
    monkeypatch.setattr(testbed_docker, "Path", lambda path: tmp_path / path.lstrip("/"))
    return tmp_path


def put(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


@pytest.mark.parametrize(
    ("quota", "memory", "wanted"),
    [("35000", "671088640", (0.35, 640 * 2**20)), ("-1", "9223372036854771712", (None, None))],
)
def test_limits_of_control_groups_version_1(
    kernel: Path, quota: str, memory: str, wanted: tuple[object, object]
) -> None:
    put(
        kernel,
        {
            "proc/7/cgroup": "9:memory:/docker/abc\n4:cpu,cpuacct:/docker/def\n1:name=systemd:/docker/abc\n0::/\n",
            "sys/fs/cgroup/cpu/docker/def/cpu.cfs_quota_us": f"{quota}\n",
            "sys/fs/cgroup/cpu/docker/def/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": f"{memory}\n",
        },
    )
    assert testbed_docker.cgroup_limits(7) == wanted


@pytest.mark.parametrize(
    ("groups", "files", "wanted"),
    [
        ("0::/docker/abc\n", {"docker/abc/cpu.max": "50000 100000\n"}, (0.5, None)),
        ("0::/docker/abc\n", {"docker/abc/memory.max": "1048576\n"}, (None, 2**20)),
        (
            "4:cpu,cpuacct:/docker/abc\n0::/\n",
            {"cpu/docker/abc/cpu.cfs_quota_us": "50000\n", "cpu/docker/abc/cpu.cfs_period_us": "100000\n"},
            (0.5, None),
        ),
        ("9:memory:/docker/abc\n", {"memory/docker/abc/memory.limit_in_bytes": "1048576\n"}, (None, 2**20)),
    ],
)
def test_a_controller_that_is_off_limits_nothing(
    kernel: Path, groups: str, files: dict[str, str], wanted: tuple[object, object]
) -> None:
    """Raspberry Pi OS boots without the memory controller."""
    put(kernel, {"proc/7/cgroup": groups} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert testbed_docker.cgroup_limits(7) == wanted


@pytest.mark.parametrize(
    ("cpu", "memory", "wanted"),
    [("70000 100000", "1073741824", (0.7, 2**30)), ("max 100000", "max", (None, None))],
)
def test_limits_of_control_groups_version_2(kernel: Path, cpu: str, memory: str, wanted: tuple[object, object]) -> None:
    group = "sys/fs/cgroup/system.slice/docker-abc.scope"
    put(
        kernel,
        {
            "proc/7/cgroup": "0::/system.slice/docker-abc.scope\n",
            f"{group}/cpu.max": f"{cpu}\n",
            f"{group}/memory.max": f"{memory}\n",
        },
    )
    assert testbed_docker.cgroup_limits(7) == wanted
