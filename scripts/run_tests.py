"""Runs parts of the tests, stops at the first failure, and removes what the tests made.

`python scripts/run_tests.py lint molecule e2e,purge+unit`: arguments one after the other, what has a comma between it
side by side, what has a plus one after the other again. The last line is `N passed, N failed`: pytest's tests, and one
for each other command.
"""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
# ansible.cfg refuses to go without an inventory.
LINT_ROLES = "env ANSIBLE_INVENTORY=inventories/virtual ansible-lint --nocolor -q"
# A file stays on one core: the tests of test_cli_commands share the lock of a testbed's name.
PARTS = {
    "lint": ["ruff check", "ruff format --check", "mypy", "yamllint --strict .", LINT_ROLES],
    "unit": ["pytest -n auto --maxprocesses 4 --dist loadfile tests/unit tests/contract"],
    "molecule": ["molecule test --scenario-name default", "molecule test --scenario-name cluster"],
    "e2e": ["pytest tests/e2e --ignore tests/e2e/test_purge.py"],
    "purge": ["pytest tests/e2e/test_purge.py"],
}
TESTBEDS = ("molecule-default", "molecule-cluster", "e2e", "purge")  # whose virtual devices are the tests' own
RUNNING: set["subprocess.Popen[bytes]"] = set()
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PWD": str(ROOT)}


def main(names: list[str]) -> int:
    """Run the parts; return the exit code."""
    parts = set(re.split("[,+]", ",".join(names)))
    on_devices = parts & {"molecule", "e2e", "purge"}
    if on_devices and os.geteuid() != 0 and subprocess.run(["sudo", "-n", "true"], check=False).returncode:
        print("error: the tests on virtual devices need root, and sudo asks for a password", file=sys.stderr)
        print("hint: run them as root or with a sudo that asks for none; make lint unit needs neither", file=sys.stderr)
        return 1
    adopt_orphans()
    for number in (signal.SIGINT, signal.SIGTERM):  # a background shell has SIGINT ignored, and children inherit that
        signal.signal(number, signal.default_int_handler)
    had_engine = docker("version") is not None
    if on_devices and had_engine:
        remove_devices()  # of a run that was killed
    rows: list[tuple[str, float, int, int]] = []
    interrupted = False
    try:
        if "e2e" in parts:
            install_browser()
        for group in names:
            shown, *aside = group.split(",")
            pool = ThreadPoolExecutor(max(1, len(aside)))
            others = [pool.submit(run_lane, lane, show=False) for lane in aside]
            rows += run_lane(shown)
            rows += [row for other in others for row in other.result()]
            if any(row[3] for row in rows):
                break
    except KeyboardInterrupt:
        interrupted = True
        for process in list(RUNNING):
            interrupt(process)
    finally:
        if on_devices:
            remove_devices()
            if not had_engine:
                stop_engine()
        end_processes()
    print(f"\n{'part':10}{'seconds':>9}")
    for name, seconds, _, failed in rows:
        print(f"{name:10}{seconds:9.1f}{'  FAILED' if failed else ''}")
    if interrupted:
        print("interrupted")
    print(f"{sum(row[2] for row in rows)} passed, {sum(row[3] for row in rows)} failed", flush=True)
    return 130 if interrupted else int(any(row[3] for row in rows))


def run_lane(lane: str, *, show: bool = True) -> list[tuple[str, float, int, int]]:
    """Run parts one after the other until one fails; return their rows."""
    rows = []
    for name in lane.split("+"):
        rows.append(run_part(name, show=show))
        if rows[-1][3]:
            break
    return rows


def run_part(name: str, *, show: bool) -> tuple[str, float, int, int]:
    """Run a part's commands until one fails; return (name, seconds, passed, failed)."""
    began = time.monotonic()
    passed = failed = 0
    for command in PARTS[name]:
        code, last = run(command.split(), show=show)
        counts = {what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|error)", last)}
        if command.startswith("pytest") and counts:
            passed += counts.get("passed", 0)
            failed += counts.get("failed", 0) + counts.get("error", 0)
        else:
            passed, failed = passed + (code == 0), failed + (code != 0)
        if code:
            failed = failed or 1
            break
    return name, time.monotonic() - began, passed, failed


def run(command: list[str], *, show: bool = True) -> tuple[int, str]:
    """Run a command, show its output as it comes or when it has ended; return its exit code and last line.

    The output goes through a file, not a pipe: a pipe stays open as long as something in the background holds it.
    """
    with tempfile.NamedTemporaryFile() as log, Path(log.name).open("rb") as shown:
        process = subprocess.Popen(
            command, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        RUNNING.add(process)
        last, title = b"", f"\n$ {' '.join(command)}\n".encode()
        while True:
            ended = process.poll() is not None
            if (show or ended) and (said := title + shown.read()):
                title = b""
                sys.stdout.buffer.write(said)
                sys.stdout.flush()
                last = ((last + said).rstrip().splitlines() or [b""])[-1]
            if ended:
                RUNNING.discard(process)
                return process.returncode, last.decode(errors="replace")
            time.sleep(0.1)


def interrupt(process: "subprocess.Popen[bytes]") -> None:
    """Let a command remove its own things, and end."""
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)


def install_browser() -> None:
    """Install the Chromium that opens reports, where there is none."""
    if shutil.which("chromium"):
        return
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        run([*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", *arguments])


def docker(*arguments: str) -> list[str] | None:
    """Return the lines that the Docker client prints; None where there is no engine."""
    sudo = [] if os.access("/var/run/docker.sock", os.W_OK) else ["sudo", "-n"]
    if shutil.which("docker") is None or (sudo and shutil.which("sudo") is None):
        return None
    done = subprocess.run([*sudo, "docker", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else None


def remove_devices() -> None:
    """Remove what a test that was broken off left on the local engine."""
    for testbed in TESTBEDS:
        mine = ["--filter", f"label=fltestbed.testbed={testbed}"]
        for look, remove in (
            (["ps", "-aq"], ["rm", "--force", "--volumes"]),
            (["volume", "ls", "-q"], ["volume", "rm"]),
            (["network", "ls", "-q"], ["network", "rm"]),
        ):
            if found := docker(*look, *mine):
                docker(*remove, *found)


def stop_engine() -> None:
    """Stop the Docker engine if the role docker started it without a service manager; others it leaves alone."""
    role = ["-m", "ansible.builtin.include_role", "-a", "name=docker tasks_from=stop"]
    here = ["-i", "localhost,", "-c", "local"]
    subprocess.run(
        ["ansible", "localhost", *here, *role],
        cwd=ROOT,
        env=ENVIRONMENT,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def adopt_orphans() -> None:
    """Become the parent of whatever a test leaves in the background, as ssh's shared connections."""
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def end_processes() -> None:
    """End everything below this process."""
    for number, wait in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 1.0)):
        for pid in below(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        until = time.monotonic() + wait
        while time.monotonic() < until:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if not below(os.getpid()):
                return
            time.sleep(0.05)


def below(pid: int) -> list[int]:
    """Return the processes that a process started, those that they started, and so on; not the dead ones."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found = children.get(pid, [])
    for child in found:
        found += children.get(child, [])
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
