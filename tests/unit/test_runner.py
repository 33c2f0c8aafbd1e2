"""Real playbooks, run on this machine alone."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fltestbed.errors import AnsibleFailed, HostsFailed, HostsUnreachable, PreflightError
from fltestbed.runner import Event, HostResult, RunResult, run_playbook

SECRET = "canary-7f3a"  # noqa: S105 nothing is behind it


@pytest.fixture(autouse=True)
def working_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    return tmp_path


def play(tasks: list[dict[str, Any]], hosts: str = "pi-1 pi-2", **options: Any) -> RunResult:
    folder = Path.cwd() / "lab"
    folder.mkdir()
    variables = {"ansible_connection": "local"}
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": dict.fromkeys(hosts.split(), variables)}}))
    playbook = Path.cwd() / "verb.yml"
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    return run_playbook(playbook, folder, **options)


def shell(script: str, **more: Any) -> dict[str, Any]:
    return {"ansible.builtin.command": {"argv": ["sh", "-c", script]}, **more}


def test_every_host_is_counted_and_the_log_is_for_people_alone() -> None:
    result = play(
        [shell("true"), shell("true", when="inventory_hostname == 'pi-1'"), shell("true", changed_when=False)]
    )
    assert result.hosts == {"pi-1": HostResult(ok=3, changed=2), "pi-2": HostResult(ok=2, changed=1, skipped=1)}
    assert result.rc == 0
    result.require_success()
    assert result.log.parent == Path.cwd() / ".fltestbed" / "lab" / "logs"
    assert stat.S_IMODE(result.log.stat().st_mode) == 0o600
    text = result.log.read_text()
    assert "PLAY RECAP" in text
    assert "\x1b" not in text


def test_nothing_of_the_run_stays_behind() -> None:
    play([shell("true")])
    assert list((Path.cwd() / "tmp").iterdir()) == []


def test_one_host_that_fails_does_not_stop_the_others() -> None:
    result = play(
        [shell("echo out; echo oops >&2; exit 3", name="Break", when="inventory_hostname == 'pi-1'"), shell("true")]
    )
    assert result.hosts["pi-2"] == HostResult(ok=1, changed=1, skipped=1)
    with pytest.raises(HostsFailed) as caught:
        result.require_success()
    assert caught.value.hosts == {"pi-1": ("Break", "non-zero return code (exit code 3)\noops")}
    assert "1 of 2 hosts" in caught.value.message


def test_a_failed_loop_names_what_failed() -> None:
    result = play([{"ansible.builtin.fail": {"msg": "no {{ item }}"}, "loop": ["salt", "pepper"]}], hosts="pi-1")
    error = result.hosts["pi-1"].error
    assert error
    assert error.message == "no salt\nno pepper"


def test_failures_that_were_dealt_with_are_none() -> None:
    result = play([shell("false", ignore_errors=True), {"block": [shell("false")], "rescue": [shell("true")]}])
    result.require_success()
    assert all(host.error is None for host in result.hosts.values())


def test_an_unreachable_host_is_told_apart() -> None:
    nowhere = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    result = play([{"ansible.builtin.ping": {}, "name": "Look", "vars": nowhere}], hosts="pi-1")
    with pytest.raises(HostsUnreachable) as caught:
        result.require_success()
    assert caught.value.hosts["pi-1"].task == "Look"
    assert "refused" in caught.value.hosts["pi-1"].message


def test_a_check_in_a_preflight_file_is_told_apart() -> None:
    (Path.cwd() / "preflight.yml").write_text(json.dumps([{"ansible.builtin.fail": {"msg": "too old"}}]))
    result = play([{"ansible.builtin.include_tasks": str(Path.cwd() / "preflight.yml")}])
    with pytest.raises(PreflightError) as caught:
        result.require_success()
    assert {error.message for error in caught.value.hosts.values()} == {"too old"}


@pytest.mark.parametrize(
    ("options", "message"), [({"limit": "pi-9"}, "no hosts"), ({"tags": "x", "hosts": ""}, "no host matched")]
)
def test_ansible_that_comes_to_no_host_is_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AnsibleFailed, match=message):
        play([shell("true")], **options)


def test_a_playbook_that_does_not_load_is_told() -> None:
    with pytest.raises(AnsibleFailed, match="no_such_module"):
        play([{"no_such_module": {}}])


def test_options_reach_ansible() -> None:
    (Path.cwd() / "file").write_text("old")
    task = {"ansible.builtin.copy": {"dest": f"{Path.cwd()}/file", "content": "new"}, "tags": "copy"}
    result = play([task, shell("true")], limit="pi-1", tags="copy", check=True, diff=True, verbosity=1)
    assert result.hosts == {"pi-1": HostResult(ok=1, changed=1)}
    assert (Path.cwd() / "file").read_text() == "old"
    assert "+new" in result.log.read_text()


def test_results_of_a_module_are_kept_for_each_host() -> None:
    result = play(
        [
            {"ansible.builtin.debug": {"msg": "first"}},
            {"ansible.builtin.debug": {"msg": "{{ inventory_hostname }}"}},
            {"ansible.builtin.set_fact": {"x": "{{ item }}"}, "loop": [1, 2]},
        ]
    )
    assert {name: answer["msg"] for name, answer in result.results("debug").items()} == {"pi-1": "pi-1", "pi-2": "pi-2"}
    assert [item["item"] for item in result.items("set_fact")["pi-1"]] == [1, 2]
    assert result.results("testbed_status") == {}


def test_extra_vars_are_data_and_no_templates() -> None:
    value = {"name": "{{ 1 + 1 }}", "list": ["{{ lookup('pipe', 'id') }}", 3]}
    result = play(
        [{"ansible.builtin.debug": {"msg": "{{ value | to_json }}"}}], hosts="pi-1", extra_vars={"value": value}
    )
    assert json.loads(result.results("debug")["pi-1"]["msg"]) == value


def test_secrets_are_seen_nowhere() -> None:
    seen: list[str] = []

    def look(event: Event) -> None:
        seen.append(repr(event))
        if event.kind == "start":
            seen.extend(file.read_bytes().decode() for file in Path("/proc").glob("[0-9]*/cmdline"))

    result = play(
        [shell("echo {{ password }}", no_log=True), shell("echo {{ password }}; false", no_log=True)],
        hosts="pi-1",
        extra_vars={"password": SECRET},
        become_password=SECRET,
        on_event=look,
    )
    with pytest.raises(HostsFailed, match="1 of 1") as caught:
        result.require_success()
    assert "kept secret" in caught.value.hosts["pi-1"].message
    assert any("ansible-playbook" in line for line in seen)
    assert not any(SECRET in text for text in [*seen, result.log.read_text(), repr(result)])


def test_ansible_gets_little_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_TOKEN", SECRET)
    monkeypatch.setenv("ANSIBLE_ROLES_PATH", "/nowhere")
    monkeypatch.setenv("LC_TIME", "C.UTF-8")
    message = "{{ lookup('env', 'CANARY_TOKEN') }},{{ lookup('env', 'LC_TIME') }},{{ lookup('env', 'PWD') }}"
    config = "{{ lookup('config', 'DEFAULT_ROLES_PATH', 'HOST_KEY_CHECKING') | to_json }}"
    result = play([{"ansible.builtin.debug": {"msg": [message, config]}}], hosts="pi-1")
    environment, settings = result.results("debug")["pi-1"]["msg"]
    assert environment == f",C.UTF-8,{Path.cwd()}"
    assert "/nowhere" not in settings
    assert "true" in settings


def test_events_come_as_they_happen() -> None:
    events: list[Event] = []
    play([shell("true", name="One"), shell("false", name="Two")], hosts="pi-1", on_event=events.append)
    told = [(event.kind, event.task, event.changed) for event in events if event.host]
    assert told == [("start", "One", False), ("ok", "One", True), ("start", "Two", False), ("failed", "Two", False)]


def test_a_handler_that_fails_leaves_nothing_running() -> None:
    def fail(event: Event) -> None:
        if event.kind == "start":
            time.sleep(2)  # for the command to start
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        play([shell("exec sleep 47")], hosts="pi-1", on_event=fail)
    assert not [file for file in Path("/proc").glob("[0-9]*/cmdline") if b"sleep\x0047" in file.read_bytes()]


STOPPED = """
import json, sys
from pathlib import Path
from fltestbed.errors import Cancelled
from fltestbed.runner import run_playbook
Path("lab").mkdir()
hosts = {"pi-1": {"ansible_connection": "local"}, "pi-2": {"ansible_connection": "local"}}
Path("lab/hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
task = {"name": "Sleep", "ansible.builtin.command": {"argv": ["sleep", "593"]}}
Path("verb.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [task]}]))
try:
    run_playbook(Path.cwd() / "verb.yml", Path.cwd() / "lab")
except Cancelled as error:
    print(error.message)
"""


def processes(mark: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found


def wait_until(look: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_however_it_is_stopped_nothing_stays_behind(number: signal.Signals, working_dir: Path) -> None:
    mark = f"XDG_TEST={working_dir}"
    scratch = working_dir / "tmp"
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED],
        env=os.environ | {"XDG_TEST": str(working_dir), "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        text=True,
    ) as stopped:
        wait_until(lambda: sum(line.startswith("sleep 593") for line in processes(mark)) == 2)
        stopped.send_signal(number)
        said = stopped.communicate(timeout=60)[0]
    wait_until(lambda: not processes(mark))
    wait_until(lambda: not list(scratch.glob("fltestbed-*")))
    if number is signal.SIGINT:
        assert said == "stopped as asked\n  pi-1: 0 done, 0 changed; at: Sleep\n  pi-2: 0 done, 0 changed; at: Sleep\n"
