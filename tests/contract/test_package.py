"""The built wheel is the whole program: what a command needs comes with it."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CARRIED = ("experiments", "fl_app", "inventories", "playbooks", "plugins", "roles")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-build-isolation",
            "--no-deps",
            "--wheel-dir",
            str(folder),
            str(ROOT),
        ],
        check=True,
        timeout=120,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_carries_everything_and_nothing_else(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {"fltestbed/_content/ansible.cfg"}
    for folder in CARRIED:
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert files, folder
        wanted |= {f"fltestbed/_content/{path.relative_to(ROOT)}" for path in files}
    wanted |= {
        str(path.relative_to(ROOT))
        for path in (ROOT / "fltestbed").rglob("*")
        if path.suffix in (".py", ".typed", ".j2")
    }
    assert {name for name in held if ".dist-info/" not in name} == wanted


def test_an_installed_program_finds_what_it_carries(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = (
        "from fltestbed import paths, inventory, experiment\n"
        "print(paths.content_dir())\n"
        "print(inventory.load(paths.find_inventory('virtual')).server.name)\n"
        "print(experiment.load(paths.find_experiment('fashion-mnist-cnn')).name)\n"
    )
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path / "elsewhere",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "site/fltestbed/_content"), "server", "fashion-mnist-cnn"]


def test_flower_is_the_same_everywhere() -> None:
    """Controller, image and app: another minor version does not talk to this one."""
    image = yaml.safe_load((ROOT / "roles/images/defaults/main.yml").read_text(encoding="utf-8"))["images_requirements"]
    files = [(ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "fl_app/pyproject.toml")]
    pins = [re.findall(r"\bflwr==[0-9.]+", text) for text in (*files, "\n".join(image))]
    assert pins[0] and pins[0] == pins[1] == pins[2]
