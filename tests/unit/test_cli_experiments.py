"""fltestbed experiments, as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fltestbed.cli.run import absolute

BUILT_IN = sorted(file.stem for file in (Path(__file__).parents[2] / "experiments").iterdir())


def listed(folder: Path, code: int = 0) -> tuple[dict[str, Any], str]:
    """Return the rows by name, and what was said on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", "from fltestbed.cli import main; main()", "experiments", "--format", "json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return {row.pop("experiment"): row for row in json.loads(done.stdout)["experiments"]}, done.stderr


def test_the_built_in_ones_and_those_of_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/mine.yml").write_text("name: mine\ndescription: Mine\nstrategy: {name: tifl}")
    (tmp_path / "experiments/kubeflower.yml").write_text("name: kubeflower\nrounds: 77")
    rows, _ = listed(tmp_path)
    assert sorted(rows) == sorted([*BUILT_IN, "mine"])
    assert rows["mine"] == {
        "model": "cnn",
        "data": "fashion-mnist",
        "source": "debian",
        "partitioner": "iid",
        "strategy": "tifl",
        "rounds": 5,
        "description": "Mine",
    }
    assert rows["kubeflower"]["rounds"] == 77


def test_a_file_that_is_not_in_order_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/broken.yml").write_text("name: broken\nrounds: none")
    rows, said = listed(tmp_path, code=3)
    assert sorted(rows) == BUILT_IN
    assert "broken.yml:2: rounds: cannot be 'none'" in said


def test_a_path_that_is_typed_is_relative_to_the_working_directory(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("data.path=mnist.zip") == f"data.path={tmp_path}/mnist.zip"
    assert absolute("data.path=/srv/mnist") == "data.path=/srv/mnist"
    assert absolute("rounds=2") == "rounds=2"
