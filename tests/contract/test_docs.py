"""The pages and the playbooks say what is there: links, commands, keys and columns."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import pytest
import typer
import yaml
from ansible_modules import load
from pydantic import BaseModel
from small_dataset import write_idx

from fltestbed import partition, results, telemetry
from fltestbed.cli import app
from fltestbed.experiment import (
    KNOWN,
    Balance,
    Capability,
    Data,
    Experiment,
    Iid,
    Partitioner,
    Privacy,
    Rule,
    Schedule,
    Settings,
    Strategy,
    When,
    _keys,
)
from fltestbed.formats import Files
from fltestbed.inventory import CLIENT_KEYS
from fltestbed.population import Distribution, Population
from fltestbed.timeline.schema import Churn, Event, Timeline

ROOT = Path(__file__).parents[2]
SKIPPED = {".git", ".venv", ".fltestbed", "runs", "dist", "__pycache__", ".ansible"}


def project_files() -> Iterator[Path]:
    """Yield every file of the project: nothing that is made, fetched or kept there."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [each for each in folders if each not in SKIPPED and not each.endswith(("_cache", ".egg-info"))]
        yield from (Path(folder) / name for name in names)


PAGES = sorted(path for path in project_files() if path.suffix == ".md")
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml"))
INVENTORIES = sorted(file.parent for file in (ROOT / "inventories").rglob("hosts.yml"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_tables_are_whole(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert re.match(r".*\n\|[|: -]+\n", table), table.splitlines()[0]


def console_lines() -> Iterator[tuple[str, str]]:
    """Yield (page, command) for every line after a prompt in a console block."""
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
                yield relative(page), line


def parse(command: click.Command, arguments: list[str]) -> None:
    """Parse a command line without running it. Raises click.ClickException for what there is not."""
    context = command.make_context("fltestbed", list(arguments), resilient_parsing=False)
    if isinstance(command, click.Group):
        _, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert inner
        parse(inner, rest)


def test_commands_in_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    seen = set()
    for page, line in console_lines():
        program, *arguments = shlex.split(line)
        seen.add(program)
        if program == "make":
            assert set(arguments) <= targets, f"{page}: {line}"
        elif program == "fltestbed":
            try:
                parse(typer.main.get_command(app), arguments)
            except click.ClickException as error:
                pytest.fail(f"{page}: {line}: {error.format_message()}")
    assert {"make", "fltestbed"} <= seen


def test_a_command_that_does_not_exist_would_be_found() -> None:
    for line in ("upp", "lab upp", "run --app", "up --no-such-option", "status --format xml"):
        with pytest.raises(click.ClickException):
            parse(typer.main.get_command(app), line.split())


def test_the_demo_gives_the_commands_of_the_readme() -> None:
    demo = re.findall(
        r"^show (fltestbed [^$\n]*?) ?(?:\$ask)?$", (ROOT / "scripts/demo").read_text(encoding="utf-8"), re.MULTILINE
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(demo) >= 4
    assert "".join(f"$ {command}\n" for command in demo) in readme


def test_the_readme_shows_a_run_as_the_program_prints_it() -> None:
    spec = importlib.util.spec_from_file_location("readme_demo", ROOT / "scripts/readme_demo.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    block = (ROOT / "README.md").read_text(encoding="utf-8").partition(script.BEGIN)[2].partition(script.END)[0]
    heads = [line.split() for line in block.splitlines() if line.startswith(("round ", "device "))]
    assert "ROUNDS" in block and "CLIENTS" in block, "run python scripts/readme_demo.py runs/<run>"
    run = importlib.import_module("fltestbed.cli.run")
    assert heads[0] == " ".join(run._ROUND).replace("_", " ").split()
    assert heads[1] == " ".join(run._client([_client_row()])).replace("_", " ").split()


def _client_row() -> dict[str, Any]:
    return dict.fromkeys(columns("clients.jsonl")) | {"train_seconds": 1.0, "peak_memory_mb": 1.0}


def names(page: str, heading: str) -> set[str]:
    """Return what the first cells of the tables below a heading name."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return {
        name for cell in re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE) for name in re.findall(r"`([^`]*)`", cell)
    }


def columns(name: str) -> set[str]:
    """Return what an app writes into a file."""
    no_figures = {"server_loss": None, "server_accuracy": None}
    rows = {
        "rounds.jsonl": telemetry.round_row(1, "", [], seconds=0, selected=0, moved=0, **no_figures),
        "clients.jsonl": {"run": ""} | telemetry.client_row("", "", 1, "", {}, None),
    }
    return set(rows[name])


def test_every_key_of_the_runs_record_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLTESTBED_METRICS_PORT", "0")
    with telemetry.Recorder(tmp_path, "r", [], 1, 1):
        record = json.loads((tmp_path / "run.json").read_text())
    assert names("reference-results.md", "run.json") == set(record)


@pytest.mark.parametrize("name", ["rounds.jsonl", "clients.jsonl"])
def test_every_column_of_the_results_is_explained(name: str) -> None:
    assert names("reference-results.md", name) == columns(name)


def test_every_column_of_the_results_is_read() -> None:
    assert set(results.ROUNDS) == columns("rounds.jsonl")
    assert {"run", *results.CLIENTS} == columns("clients.jsonl")


def test_every_key_of_the_lock_is_explained() -> None:
    lock = yaml.safe_load((ROOT / "roles/run/vars/main.yml").read_text(encoding="utf-8"))["_run_lock"]
    assert names("reference-results.md", "lock.json") == set(lock)


def test_every_file_of_the_results_is_explained() -> None:
    text = (ROOT / "docs/reference-results.md").read_text(encoding="utf-8").partition("\n## ")[0]
    for name in (*load("modules", "testbed_collect").WRITTEN, "lock.json", "logs/server.log"):
        assert f"| `{name}` |" in text, name


def test_every_client_key_of_the_inventory_is_explained() -> None:
    assert names("reference-inventory.md", "Clients") == set(CLIENT_KEYS)


def test_every_key_of_a_timeline_is_explained() -> None:
    assert names("reference-timeline.md", "Events") == {
        field.alias or name for name, field in Event.model_fields.items()
    }
    churn = names("reference-timeline.md", "Churn")
    assert churn - {"model"} == {kind.model_fields["model"].annotation.__args__[0] for kind in kinds(Churn)}
    text = (ROOT / "docs/reference-timeline.md").read_text(encoding="utf-8").partition("\n## Churn\n")[2]
    for key in {key for kind in kinds(Churn) for key in kind.model_fields}:
        assert f"`{key}" in text, key


def test_every_column_of_a_timelines_events_is_explained() -> None:
    page = (ROOT / "docs/reference-results.md").read_text(encoding="utf-8").partition("\n## events.jsonl\n")[2]
    source = (ROOT / "fltestbed/timeline/driver.py").read_text(encoding="utf-8")
    for key in re.findall(r'^ +"([a-z_]+)": ', source, re.MULTILINE):
        assert key in ("seconds", "round", "accuracy") or f"`{key}`" in page, key


def test_every_key_of_an_experiment_is_explained_with_its_default() -> None:
    page = (ROOT / "docs/how-to-write-an-experiment.md").read_text(encoding="utf-8").partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (.*?) \|", page, re.MULTILINE))
    containers = {name for name, field in Experiment.model_fields.items() if isinstance(field.default, BaseModel)}
    elsewhere = {f"partitioner.{key}" for kind in kinds(Partitioner) for key in kind.model_fields} | {
        f"{part}.{key}"
        for part, union in (("strategy", Strategy), ("privacy", Privacy), ("train.schedule", Schedule))
        for kind in kinds(union)
        for key in kind.model_fields
    }
    elsewhere |= {f"timeline.{key}" for key in Timeline.model_fields}
    here = {"partitioner.name", "strategy.name", "strategy.fraction_train", "strategy.min_train_clients"}
    assert set(rows) == set(_keys(Experiment)) - containers - (elsewhere - here)
    filled = Experiment.model_validate({"name": "x"}).model_dump()
    for key, shown in rows.items():
        value: Any = filled
        for part in key.split("."):
            value = value[part]
        if shown.startswith("`"):
            assert yaml.safe_load(shown.strip("`")) == value, key
        else:
            words = {
                "name": "required",
                "description": "empty",
                "min_clients": "all",
                "data.path": "none",
                "privacy": "none",
                "sweep": "none",
                "timeline": "none",
            }
            assert shown == words[key], key


def kinds(union: Any) -> list[type[BaseModel]]:
    """Return the alternatives of an annotated union."""
    return list(get_args(get_args(union)[0]))


UNIONS = {
    "Partitioners": Partitioner,
    "Strategies": Strategy,
    "Schedules": Schedule,
    "Differential privacy": Privacy,
}


@pytest.mark.parametrize(("heading", "union"), UNIONS.items())
def test_every_argument_is_explained_with_its_default(heading: str, union: Any) -> None:
    page = (ROOT / "docs/reference-experiments.md").read_text(encoding="utf-8")
    text = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    shown = {
        name: {key: yaml.safe_load(value) for key, value in re.findall(r"`([a-z_0-9]+)=([^`]+)`", cell)}
        for name, cell in re.findall(r"^\| `([a-z-]+)` \| (.*?) \|", text, re.MULTILINE)
    }
    assert shown == {
        get_args(kind.model_fields["name"].annotation)[0]: {
            key: field.default
            for key, field in kind.model_fields.items()
            if key not in ("name", "fraction_train", "min_train_clients")
        }
        for kind in kinds(union)
    }


def test_every_key_of_a_rule_is_explained() -> None:
    page = (ROOT / "docs/how-to-write-an-experiment.md").read_text(encoding="utf-8")
    text = page.partition("\n## Rules\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)) == set(Rule.model_fields)
    for key in (*When.model_fields, *Settings.model_fields, *Balance.model_fields, *get_args(Capability)):
        assert f"`{key}`" in text, key


def test_every_key_of_a_population_is_explained() -> None:
    assert names("reference-profiles.md", "Populations") == {
        *Population.model_fields,
        *(get_args(kind.model_fields["name"].annotation)[0] for kind in kinds(Distribution)),
    }
    text = (ROOT / "docs/reference-profiles.md").read_text(encoding="utf-8")
    for kind in kinds(Distribution):
        name = get_args(kind.model_fields["name"].annotation)[0]
        row = re.search(rf"^\| `{name}` \| (.*?) \|", text, re.MULTILINE)
        assert row
        assert set(re.findall(r"`([a-z]+)`", row[1])) == set(kind.model_fields) - {"name"}


def test_every_published_testbed_is_explained() -> None:
    published = {str(path.relative_to(ROOT / "inventories")) for path in INVENTORIES if "published" in path.parts}
    assert names("reference-profiles.md", "Published testbeds") == published


def test_every_shipped_experiment_is_explained() -> None:
    assert names("reference-experiments.md", "Ready experiments") == {
        file.stem for file in (ROOT / "experiments").iterdir()
    }


def test_every_model_and_data_set_is_explained() -> None:
    models = {path.stem.replace("_", "-") for path in (ROOT / "fl_app/testbed_app/nets").glob("[!_]*.py")}
    assert names("reference-experiments.md", "Models") == models
    assert names("reference-experiments.md", "Data sets") >= set(KNOWN)


def test_the_arrays_of_a_clients_file_are_named(tmp_path: Path) -> None:
    write_idx(tmp_path / "idx", train=200, test=10)
    source = Files(tmp_path / "idx", Data(source="folder", name="pixels", path="x"))
    made, _ = partition.ensure(source, Iid(name="iid"), seed=7, clients=2, cache_dir=tmp_path)
    page = (ROOT / "docs/how-to-run-your-own-app.md").read_text(encoding="utf-8")
    named = re.search(r"file\s+\(arrays (.*?)\)", page)
    with np.load(made.shards[0].path) as arrays:
        assert named and set(re.findall("`(.+?)`", named[1])) == set(arrays)


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=relative)
def test_a_playbook_begins_with_what_it_does(playbook: Path) -> None:
    assert playbook.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("inventory", INVENTORIES, ids=relative)
def test_playbooks_load_with_every_inventory(inventory: Path) -> None:
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            "--syntax-check",
            "-i",
            str(inventory),
            *map(str, PLAYBOOKS),
        ],
        cwd=ROOT,
        env=os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "WARNING" in line], done.stderr


FOREIGN = {
    "a path of a developer's machine": r"/root/\.|/wor[k]/|/home/(?!pi\b|me\b)\w+/",
    "the host of a package registry": (
        r"\b(pypi|pythonhosted|npmjs|crates|galaxy\.ansible|(hub|registry-1|index|download)\.docker"
        r"|(deb|security|snapshot)\.debian|archive\.ubuntu|download\.pytorch)\.(org|com|io)\b"
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_no_file_names(what: str) -> None:
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found = re.search(FOREIGN[what], text)
        assert not found, f"{relative(path)} has {what}: {found and found[0]}"
