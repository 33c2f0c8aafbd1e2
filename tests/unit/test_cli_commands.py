"""The program as a user starts it: a packaged copy with small playbooks of its own, run on this machine alone."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_dataset import write_idx

from fltestbed.paths import content_dir

REPOSITORY = Path(__file__).parents[2]
PROGRAM = "from fltestbed.cli import main; main()"
INVENTORY = {
    "testbed": {
        "vars": {"ansible_connection": "local"},
        "children": {"superlink": {"hosts": {"server": None}}, "supernodes": {"hosts": {"pi-1": None, "pi-2": None}}},
    }
}


class Cli:
    """A packaged copy of the program, and a working directory in which it is started."""

    def __init__(self, folder: Path) -> None:
        self.cwd = folder / "work"
        self.cwd.mkdir()
        self._path = folder / "program"
        package = self._path / "fltestbed"
        shutil.copytree(REPOSITORY / "fltestbed", package, ignore=shutil.ignore_patterns("_content", "__pycache__"))
        self.content = package / "_content"
        for name in ("playbooks", "plugins/modules", "inventories/virtual", "inventories/attic", "experiments"):
            (self.content / name).mkdir(parents=True)
        shutil.copy(content_dir() / "ansible.cfg", self.content)
        shutil.copytree(content_dir() / "roles" / "testbed", self.content / "roles" / "testbed")
        shutil.copytree(content_dir() / "fl_app", self.content / "fl_app", ignore=shutil.ignore_patterns("__pycache__"))
        self.inventory(INVENTORY)
        (self.content / "experiments" / "tiny.yml").write_text("name: tiny\nrounds: 2\n")

    def inventory(self, tree: dict[str, Any]) -> None:
        (self.content / "inventories" / "virtual" / "hosts.json").write_text(json.dumps(tree))

    def playbook(self, verb: str, *tasks: dict[str, Any], hosts: str = "all") -> None:
        play = {"hosts": hosts, "gather_facts": False, "tasks": list(tasks)}
        (self.content / "playbooks" / f"{verb}.yml").write_text(json.dumps([play]))

    def module(self, name: str, body: str) -> None:
        """Add a module; `body` sets `result` from `params`."""
        source = (
            "import json, os, sys, time\nfrom ansible.module_utils.basic import AnsibleModule\n"
            "module = AnsibleModule(argument_spec={name: {'type': 'raw'} for name in ('a', 'b', 'c')})\n"
            f"params = module.params\n{body}\nmodule.exit_json(**result)\n"
        )
        (self.content / "plugins" / "modules" / f"{name}.py").write_text(source)

    def start(self, *args: str) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if name != "FLTESTBED_INVENTORY"}
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *args],
            cwd=self.cwd,
            env=kept | {"PYTHONPATH": str(self._path), "XDG_TEST": str(self.cwd)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *args: str) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr."""
        with self.start(*args) as process:
            out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def processes(self) -> set[str]:
        """Return the command lines of all that was started here and still runs, by a mark that Ansible passes on."""
        found = set()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                line = (entry / "cmdline").read_bytes().decode().replace("\0", " ")
                environment = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if f"XDG_TEST={self.cwd}\0" in environment:
                found.add(line)
        return found


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    program = Cli(tmp_path)
    yield program
    left = program.processes()
    assert not left, f"left running: {left}"


def shell(script: str, **more: Any) -> dict[str, Any]:
    return {"ansible.builtin.command": {"argv": ["sh", "-c", script]}, **more}


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def test_up_says_what_changed_and_where_the_log_is(cli: Cli) -> None:
    cli.playbook("up", shell("true", name="Look", changed_when=False), shell("true", name="Mend"))
    code, out, err = cli("up")
    assert (code, out) == (0, "")
    lines = err.splitlines()
    assert sorted(lines[:3]) == ["pi-1: Mend", "pi-2: Mend", "server: Mend"]
    assert lines[3:6] == ["pi-1    2 ok  1 changed", "pi-2    2 ok  1 changed", "server  2 ok  1 changed"]
    log = re.fullmatch(r"\d+\.\d s, log: (.*)", lines[6])
    assert log
    assert Path(log[1]).is_relative_to(cli.cwd / ".fltestbed" / "virtual" / "logs")
    assert "PLAY RECAP" in Path(log[1]).read_text()


def test_verbose_shows_ansibles_output_on_stderr(cli: Cli) -> None:
    cli.playbook("up", shell("true", name="Mend"))
    code, out, err = cli("up", "-v", "--limit", "pi-1", "--check", "--diff")
    assert (code, out) == (0, "")
    assert "TASK [Mend]" in err
    assert "server" not in err


def test_failed_hosts_exit_with_5_and_say_why(cli: Cli) -> None:
    cli.playbook(
        "up", shell("echo no disk >&2; exit 1", name="Write", when="inventory_hostname == 'pi-2'"), shell("true")
    )
    code, _, err = cli("up")
    assert code == 5
    assert "pi-2: Write FAILED" in err
    assert "pi-1    1 ok  1 changed" in err
    assert (
        "error: 1 of 3 hosts failed\n  pi-2: Write\n    non-zero return code (exit code 1)\n    no disk\nhint: " in err
    )
    assert "{" not in err


def test_unreachable_hosts_exit_with_6(cli: Cli) -> None:
    nowhere = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    INVENTORY_WITH_HOLE = json.loads(json.dumps(INVENTORY))
    INVENTORY_WITH_HOLE["testbed"]["children"]["supernodes"]["hosts"]["pi-2"] = nowhere
    cli.inventory(INVENTORY_WITH_HOLE)
    cli.playbook("up", shell("true", name="Mend"))
    code, _, err = cli("up")
    assert code == 6
    assert "pi-1: Mend" in err
    assert "error: 1 of 3 hosts cannot be reached\n  pi-2: Mend\n" in err


def test_a_playbook_that_does_not_load_exits_with_9(cli: Cli) -> None:
    cli.playbook("up", {"no_such_module": {}})
    code, _, err = cli("up")
    assert code == 9
    assert "no_such_module" in err
    assert "logs/" in err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["upp"], 2, "No such command 'upp'"),
        (["up", "--chekc"], 2, "No such option"),
        (["run"], 3, "give an EXPERIMENT, or an app with --app"),
        (["run", "--app", "nowhere"], 3, "nowhere: is no Flower app: there is no such folder"),
        (["run", "tiny", "--name", "My Run"], 2, "use a to z"),
        (["up", "-i", "atic"], 3, "did you mean attic?"),
        (["run", "tinny"], 3, "did you mean tiny?"),
        (["run", "tiny", "--set", "rouns=1"], 3, "rounds"),
        (["logs", "pi-3"], 3, "did you mean pi-2 or pi-1?"),
        (["down"], 130, "give --yes"),
    ],
)
def test_wrong_input_stops_before_any_host(cli: Cli, args: list[str], code: int, message: str) -> None:
    got, out, err = cli(*args)
    assert (got, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert not list(cli.cwd.glob(".fltestbed/*/logs")), "Ansible was started"


def test_a_bug_keeps_its_traceback(cli: Cli) -> None:
    cli.playbook("up", shell("true"))
    (cli.cwd / ".fltestbed").write_text("a file where a folder belongs")
    code, _, err = cli("up")
    assert code == 1
    assert "Traceback" in err


def test_down_with_yes_does_not_ask(cli: Cli) -> None:
    cli.playbook("down", shell("true", name="Remove"))
    code, _, err = cli("down", "--yes")
    assert code == 0
    assert "pi-1: Remove" in err


def test_a_purge_says_what_is_left_where_and_goes_on(cli: Cli) -> None:
    records = cli.cwd / ".fltestbed" / "virtual" / "hosts"
    records.mkdir(parents=True)
    held = {"packages": ["runc", "docker.io"], "images": ["fltestbed/app:1"], "daemon_options": {"log-opts": {}}}
    (records / "pi-1.json").write_text(json.dumps(held))
    cli.playbook("down", shell("exit 3", name="Remove", when="inventory_hostname != 'server' and host_purge"))
    assert cli("down", "--yes")[0] == 0
    code, _, err = cli("down", "--purge", "--yes")
    assert code == 5
    assert "left there: containers, data and files" in err and "2 packages that came with it (runc, docker.io)" in err
    assert "left there: nothing, by the records on this machine" in err  # of pi-2
    assert "hint: when that is mended, fltestbed down --purge -i virtual removes what is left" in err


def test_revoke_marks_first_and_up_refuses_until_it_is_undone(cli: Cli) -> None:
    pki = cli.cwd / ".fltestbed" / "virtual" / "pki"
    (pki / "nodes").mkdir(parents=True)
    for name in ("pi-1", "pi-1.pub", "pi-2"):
        (pki / "nodes" / name).touch()
    cli.playbook("up", shell("true"))
    cli.playbook("revoke", shell("exit 3"), hosts="superlink")
    assert cli("revoke", "pi-1")[0] == 130  # nobody answers the question
    assert not (pki / "revoked").exists()
    assert cli("revoke", "pi-1", "--yes")[0] == 5  # the server could not be asked: the mark stays
    assert (pki / "revoked").read_text() == "pi-1\n"
    assert [path.name for path in (pki / "nodes").iterdir()] == ["pi-2"]
    code, _, err = cli("up")
    assert code == 3 and "fltestbed revoke --undo pi-1" in err
    cli.playbook("revoke", shell("test {{ superlink_revoked[0] }} = pi-1"), hosts="superlink")
    assert cli("revoke", "pi-1", "--yes")[:2] == (
        0,
        "pi-1: SuperLink refuses the key; take it out of the inventory before the next up\n",
    )
    assert cli("revoke", "--undo", "pi-2")[:2] == (0, "pi-2: not revoked, and nothing was changed; revoked are pi-1\n")
    assert (pki / "revoked").read_text() == "pi-1\n"
    code, _, err = cli("revoke", "pi-11", "--yes")
    assert code == 3 and "did you mean pi-1" in err
    assert cli("revoke", "--undo", "pi-1")[:2] == (0, "pi-1: the next up makes a new key\n")
    _, out, _ = cli("revoke", "--undo", "pi-1")
    assert out == "pi-1: not revoked, and nothing was changed; no key of this testbed is revoked\n"
    assert cli("up")[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_within_3_seconds(cli: Cli, number: signal.Signals) -> None:
    cli.playbook("up", shell("touch started-$PPID; exec sleep 60", name="Take long", args={"chdir": str(cli.cwd)}))
    with cli.start("up") as process:
        wait_for(lambda: len(list(cli.cwd.glob("started-*"))) == 3)
        assert len([line for line in cli.processes() if line.startswith("sleep 60")]) == 1
        began = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=10)
        assert time.monotonic() - began < 3
    assert process.returncode == 130
    assert "the same command goes on from where it is" in err
    assert "logs/" in err
    assert cli.processes() == set()
    cli.playbook("up", shell("true"))
    assert cli("up")[0] == 0, "the lock was left behind"


def test_ansible_that_ignores_the_signal_is_killed(cli: Cli) -> None:
    cli.playbook("up", shell("trap '' INT TERM; touch started; sleep 60; sleep 60", args={"chdir": str(cli.cwd)}))
    with cli.start("up", "--limit", "pi-1") as process:
        wait_for((cli.cwd / "started").exists)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
        assert time.monotonic() - began < 3
    assert process.returncode == 130


def test_a_second_fltestbed_is_refused_with_8(cli: Cli) -> None:
    cli.playbook("up", shell("touch started; while ! test -e go; do sleep 0.1; done", args={"chdir": str(cli.cwd)}))
    with cli.start("up", "--limit", "pi-1") as first:
        wait_for((cli.cwd / "started").exists)
        code, _, err = cli("down", "--yes")
        assert (code, f"process {first.pid}" in err) == (8, True)
        (cli.cwd / "go").touch()
        first.communicate(timeout=30)
    assert first.returncode == 0


RUN = """
folder = os.path.join(params['a'], params['b'])
os.makedirs(folder, exist_ok=True)
number = params['c']
when = {'run': params['b'], 'round': number, 'start': '2026-01-01T10:00:00.000+00:00',
        'end': '2026-01-01T10:00:01.500+00:00'}
rounds = {**when, 'seconds': 1.5, 'clients_ok': 1, 'clients_failed': 1, 'server_accuracy': 0.8,
          'server_loss': 0.5, 'client_accuracy': 0.7}
good = {**when, 'device': 'pi-1', 'client': 'pi-1', 'failure': None, 'train_seconds': number, 'examples': 100,
        'accuracy': 0.75, 'peak_memory_mb': 400 + number}
bad = {**when, 'device': 'pi-2', 'client': 'pi-2', 'failure': 'went offline', 'train_seconds': None, 'examples': None,
       'accuracy': None, 'peak_memory_mb': None}
for name, rows in (('rounds', [rounds]), ('clients', [good, bad])):
    with open(os.path.join(folder, name + '.jsonl'), 'a') as file:
        file.writelines(json.dumps(row) + '\\n' for row in rows)
status = {'status': 'finished' if number == 2 else 'running', 'reason': None, 'updated': when['end']}
with open(os.path.join(folder, 'run.json'), 'w') as file:
    json.dump(status, file)
result = {'round': rounds, 'clients': [good, bad], 'run': status}
"""


def training(*numbers: int) -> dict[str, Any]:
    call = {"a": "{{ runs_dir }}", "b": "{{ run_name }}", "c": "{{ item }}"}
    return {"name": "Await the rounds", "testbed_run": call, "loop": list(numbers)}


def test_run_shows_rounds_clients_and_where_the_results_are(cli: Cli) -> None:
    cli.module("testbed_run", RUN)
    cli.playbook("run", training(1, 2), hosts="superlink")
    code, out, err = cli("run", "tiny")
    assert code == 0
    assert "round 1/2  accuracy 0.8  loss 0.5  1.5 s  clients 1 ok, 1 failed" in err
    assert out.splitlines() == [
        "ROUNDS",
        "round  seconds  clients ok  clients failed  server accuracy  server loss  client accuracy",
        "    1      1.5           1               1              0.8          0.5              0.7",
        "    2      1.5           1               1              0.8          0.5              0.7",
        "",
        "CLIENTS",
        "device  client  rounds ok  rounds failed  train seconds  examples  accuracy  peak memory mb  last failure",
        "pi-1    pi-1            2              0            1.5       100      0.75             402  -",
        "pi-2    pi-2            0              2              -         -         -               -  went offline",
    ]
    [folder] = (cli.cwd / "runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-tiny", folder.name)
    assert f"results: {folder}" in err
    assert f"report: {folder}/report/report.html" in err
    assert (folder / "report" / "report.html").exists()


RULES = "rules=[{scale: {local_epochs: cpus}}]"


def sized(cpus: float) -> dict[str, Any]:
    return {"testbed_client": {"cpus": cpus, "memory": "1g"}}


def test_plan_of_an_experiment_shows_what_clients_would_train_with(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write_idx(tmp_path / "fltestbed/data/fashion-mnist", train=1000, test=50)
    children = {
        "superlink": {"hosts": {"server": None}},
        "supernodes": {"hosts": {"pi-1": sized(0.5), "pi-2": sized(2)}},
    }
    cli.inventory({"testbed": {"children": children}})
    code, out, err = cli("plan", "tiny", "--set", RULES, "--set", "train.local_epochs=4")
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()[2:]] == [
        ["pi-1", "pi-1", "0.5", "1024m", "400", "32", "0.05", "1", "1", "1", "-", "1", "1"],
        ["pi-2", "pi-2", "2", "1024m", "400", "32", "0.05", "4", "1", "1", "-", "1", "1"],
    ]
    code, _, err = cli("plan", "tiny", "--set", "rules=[{fit_memory: 0.9}]")
    assert code == 3
    assert "needs figures of pi-1 that were not measured\nhint: fltestbed calibrate" in err
    assert cli("plan", "--set", "rounds=1")[0] == 2


def test_run_shows_what_rules_set_before_a_client_trains(cli: Cli) -> None:
    cli.module("testbed_run", RUN)
    part = {"examples": 9, "settings": {"batch_size": 8}, "rules": [1]}
    cli.module("testbed_experiment", f"result = {{'partitions': [{part}, {part}]}}")
    cli.playbook("run", {"testbed_experiment": {"a": ""}, "name": "Resolve"}, training(1, 2), hosts="superlink")
    code, _, err = cli("run", "tiny", "--set", "rules=[{set: {batch_size: 8}}]")
    assert code == 0, err
    assert err.index("pi-1    pi-1    -     -              9           8") < err.index("round 1/2")
    code, _, err = cli("run", "tiny", "--set", "rules=[{balance: {round_seconds: 8}}]")
    assert code == 3
    assert "needs figures of pi-1" in err and "log: " not in err


def test_run_passes_settings_on_and_prints_json(cli: Cli) -> None:
    cli.module("testbed_run", RUN)
    tell = {
        "ansible.builtin.copy": {
            "dest": f"{cli.cwd}/told",
            "content": "{{ [experiment_file, experiment_settings] | to_json }}",
        }
    }
    cli.playbook("run", tell, training(1, 2), hosts="superlink")
    code, out, _ = cli(
        "run", "tiny", "--set", "train.batch_size=8", "--set", "rounds=2", "--name", "mine", "--format", "json"
    )
    assert code == 0
    result = json.loads(out)
    assert [row["round"] for row in result["rounds"]] == [1, 2]
    assert result["clients"][1]["last_failure"] == "went offline"
    file, settings = json.loads((cli.cwd / "told").read_text())
    assert (Path(file).name, settings) == ("tiny.yml", ["train.batch_size=8", "rounds=2"])
    assert [folder.name[15:] for folder in (cli.cwd / "runs").iterdir()] == ["-mine"]


def test_a_run_that_did_not_finish_exits_with_7_and_shows_what_it_has(cli: Cli) -> None:
    cli.module("testbed_run", RUN)
    reason = {
        "ansible.builtin.copy": {
            "dest": "{{ runs_dir }}/{{ run_name }}/run.json",
            "content": '{"status": "failed", "reason": "too few", "updated": "2026-01-01T10:00:02.000+00:00"}',
        }
    }
    cli.playbook("run", training(1), reason, hosts="superlink")
    code, out, err = cli("run", "tiny")
    assert code == 7
    assert "ROUNDS" in out
    assert "error: the run is failed: too few" in err


SWEPT = """
sys.path.insert(0, params['b'])
from pathlib import Path
from fltestbed import paths, plan
given, folder = params['a'], Path(params['c'])
wanted = plan.resolve(Path(given['file']), given['settings'], app=None, content_dir=paths.content_dir())
lock = plan.prepare(wanted, given['clients'], cache_dir=paths.cache_dir(), calibration=Path('none'))
lock |= {'testbed': 'virtual', 'clients': given['clients'], 'test_set': lock['test_set']['sha256']}
if wanted.experiment.train.batch_size == 16 and not Path(given['mended']).exists():
    status = {'status': 'failed', 'reason': 'too small', 'updated': '2026-01-01T10:00:02.000+00:00'}
    (folder / 'run.json').write_text(json.dumps(status))
(folder / 'lock.json').write_text(json.dumps(lock))
result = {}
"""


@pytest.fixture
def sweep(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Return a function that sweeps an experiment, whose lines it takes, on clients with so many cores."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write_idx(tmp_path / "fltestbed/data/fashion-mnist", train=1000, test=50)
    cli.module("testbed_run", RUN)
    cli.module("testbed_experiment", SWEPT)

    def start(text: str, *args: str, cpus: float = 1, lost: str = "none") -> tuple[int, str, str]:
        names = ("pi-1", "pi-2")
        hosts = {name: sized(cpus) for name in names}
        children = {"superlink": {"hosts": {"server": None}}, "supernodes": {"hosts": hosts}}
        cli.inventory({"testbed": {"vars": {"ansible_connection": "local"}, "children": children}})
        each = {"cpus": cpus, "memory": 2**30, "settings": {}, "data": None}
        call = {
            "a": {
                "file": "{{ experiment_file }}",
                "settings": "{{ experiment_settings }}",
                "clients": [{"device": name, "client": name, **each} for name in names],
                "mended": str(cli.cwd / "mended"),
            },
            "b": str(cli.content.parent.parent),
            "c": "{{ runs_dir }}/{{ run_name }}",
        }
        python = {"ansible_python_interpreter": "{{ ansible_playbook_python }}"}
        away = {"ansible_connection": f"{{{{ 'ssh' if inventory_hostname == '{lost}' else 'local' }}}}"}
        look = shell("true", name="Look", vars=away | {"ansible_host": "127.0.0.1", "ansible_port": 1})
        plays = [
            ("superlink", [look] if lost == "server" else []),
            ("superlink", [training(1, 2), {"name": "Plan", "testbed_experiment": call, "vars": python}]),
            ("all", [look]),
        ]
        content = [{"hosts": group, "gather_facts": False, "tasks": tasks} for group, tasks in plays]
        (cli.content / "playbooks" / "run.yml").write_text(json.dumps(content))
        (cli.content / "experiments" / "many.yml").write_text(f"name: many\nrounds: 2\nseed: 7\n{text}\n")
        return cli("sweep", "many", "--format", "json", *args)

    return start


def test_a_sweep_runs_what_is_not_finished_and_compares(cli: Cli, sweep: Callable[..., tuple[int, str, str]]) -> None:
    text = "sweep: {train.batch_size: [16, 32]}\nrepeats: 2"
    code, out, err = sweep(text)
    assert code == 7, err
    assert "run 2 of 4 (train.batch_size 16, seed 8): begins" in err
    assert err.count("error: the run is failed: too small") == 2
    assert "hint: the same command runs what is not finished" in err
    assert [(row["train.batch_size"], row["seed"]) for row in json.loads(out)["runs"]] == [(32, 7), (32, 8)]

    (cli.cwd / "mended").touch()
    code, out, err = sweep(text, "--output", "many.html")
    assert code == 0, err
    assert (err.count(": begins"), err.count(": finished already")) == (2, 2)
    rows = json.loads(out)["runs"]
    assert [(row["train.batch_size"], row["seed"]) for row in rows] == [(16, 7), (16, 8), (32, 7), (32, 8)]
    assert rows[0]["run"].endswith("-many-1")
    assert rows[0]["accuracy"] == 0.8
    repeats = json.loads(out)["repeats"]
    assert [(row["train.batch_size"], row["n"], row["reached_0.8"]) for row in repeats] == [(16, 2, 2), (32, 2, 2)]
    assert (repeats[0]["accuracy_mean"], repeats[0]["accuracy_sd"], "seed" in repeats[0]) == (0.8, 0, False)
    assert (cli.cwd / "many.html").exists()
    assert len(list((cli.cwd / "runs").iterdir())) == 6

    assert ": begins" in sweep("sweep: {train.batch_size: [32]}", cpus=0.5)[2]  # other limits, another run
    code, _, err = cli("run", "many")
    assert code == 3
    assert "is of many runs" in err


def test_a_device_that_is_lost_after_a_run_does_not_lose_it(sweep: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = sweep("sweep: {rounds: [2, 3]}", lost="pi-2")
    assert code == 0, err
    assert err.count("1 of 3 hosts cannot be reached") == 2
    assert "warning: run 2 of 2 (rounds 3): finished all the same, and counts" in err
    assert [row["rounds"] for row in json.loads(out)["runs"]] == [2, 2]


def test_a_sweep_ends_where_the_server_is_lost_and_shows_what_it_has(
    sweep: Callable[..., tuple[int, str, str]],
) -> None:
    assert sweep("sweep: {seed: [1]}")[0] == 0
    code, out, err = sweep("sweep: {seed: [1, 2, 3]}", lost="server")
    assert code == 7
    assert [row["seed"] for row in json.loads(out)["runs"]] == [1]
    assert "error: run 2 of 3 (seed 2): 1 of 1 hosts cannot be reached\n1 more were not begun" in err
    assert "run 3 of 3 (seed 3): begins" not in err


def test_combinations_that_cannot_be_keep_no_other_from_running(sweep: Callable[..., tuple[int, str, str]]) -> None:
    text = "sweep: {model: [vgg-11, cnn], partitioner: [{name: n-labels, labels: 1}, {name: iid}]}"
    code, out, err = sweep(text)
    assert code == 7, err
    assert [(row["model"], row["partitioner"]) for row in json.loads(out)["runs"]] == [("cnn", '{"name": "iid"}')]
    assert err.index("run 2 of 4 (model vgg-11") < err.index(": begins")
    assert err.count(": model: vgg-11 takes 32 at least a side") == 4  # as it is found, and at the end
    assert 'run 3 of 4 (model cnn, partitioner {"name": "n-labels", "labels": 1}): error: ' in err
    code, out, err = sweep("sweep: {model: [vgg-11, lstm]}")
    assert (code, out) == (3, "")
    assert err.startswith("error: setting 'model=\"vgg-11\"': model: vgg-11 takes 32")


def test_ctrl_c_in_a_run_stops_it_and_keeps_what_is_there(cli: Cli) -> None:
    cli.module("testbed_run", RUN)
    cli.playbook("run", training(1), shell("exec sleep 60"), hosts="superlink")
    cli.playbook("stop", shell("echo {{ run_name }} > {{ runs_dir }}/stopped", name="Stop"), hosts="superlink")
    with cli.start("run", "tiny") as process:
        wait_for(lambda: any(line.startswith("sleep 60") for line in cli.processes()))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    [folder] = (cli.cwd / "runs").glob("*-tiny")
    assert process.returncode == 130
    assert (cli.cwd / "runs" / "stopped").read_text().strip() == folder.name
    assert f"error: the run was stopped; what it has is in {folder}" in err


def test_a_second_ctrl_c_leaves_at_once(cli: Cli) -> None:
    cli.playbook("run", shell("exec sleep 60"), hosts="superlink")
    cli.playbook("stop", shell("exec sleep 61"), hosts="superlink")
    with cli.start("run", "tiny") as process:
        wait_for(lambda: any(line.startswith("sleep 60") for line in cli.processes()))
        process.send_signal(signal.SIGINT)
        wait_for(lambda: any(line.startswith("sleep 61") for line in cli.processes()))
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
        assert time.monotonic() - began < 3
    assert process.returncode == 130
    assert "left before the run was stopped" in err
    assert "fltestbed stop ends it" in err


def test_help_loads_no_heavy_module(cli: Cli) -> None:
    heavy = {"ansible", "ansible_runner", "cryptography", "numpy", "pydantic", "rich", "torch", "yaml"}
    show = "import sys, fltestbed.cli; sys.argv[1:] = ['-h']\ntry: fltestbed.cli.main()\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True, cwd=cli.cwd)
    assert "Usage: fltestbed" in done.stdout
    assert heavy & set(done.stdout.split()) == set()


def test_status_shows_all_and_tells_with_5_or_6_what_is_wrong(cli: Cli) -> None:
    cli.module(
        "testbed_status",
        "result = {'os': 'Debian', 'arch': 'aarch64', 'docker': '26.1', 'run': None}\n"
        "result |= {'containers': [], 'conditions': [], 'nodes': []}",
    )
    cli.playbook("status", {"testbed_status": {}})
    code, out, err = cli("status", "--format", "json")
    assert code == 5
    assert [row["docker"] for row in json.loads(out)["hosts"]] == ["26.1"] * 3
    assert "client-pi-2 is not there" in err
    unreachable = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    cli.playbook("status", {"testbed_status": {}, "vars": unreachable})
    code, out, err = cli("status")
    assert code == 6
    assert out.startswith("HOSTS\nhost    os  arch  docker\nserver  -   -     -\n")
    assert "error: 3 of 3 hosts cannot be reached" in err


def test_status_names_a_certificate_that_is_damaged(cli: Cli) -> None:
    pki = cli.cwd / ".fltestbed" / "virtual" / "pki"
    pki.mkdir(parents=True)
    (pki / "server.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    code, out, err = cli("status")
    assert (code, out) == (10, "")
    assert f"error: this machine's files: {pki}/server.crt is damaged" in err
    assert "hint: bring it back from a backup; or remove it" in err
