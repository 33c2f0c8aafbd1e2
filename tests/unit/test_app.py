"""A user's own Flower app: what is refused before a host is touched, what is packed, what its image has to hold."""

import io
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from fltestbed import app, plan
from fltestbed.errors import AppError, ExperimentError

ROOT = Path(__file__).parents[2]
PLAIN = ROOT / "tests/apps/logistic"
EXPERIMENT = ROOT / "experiments/fashion-mnist-cnn.yml"
IMAGE = {
    "python": "3.11.2",
    "machine": "x86_64",
    "packages": {"flwr": "1.41.0", "numpy": "2.2.6", "Prometheus_Client": "0.23.1", "torch": "2.13.0+cpu"},
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PLAIN, tmp_path / "own", ignore=shutil.ignore_patterns("__pycache__")))


def edit(folder: Path, old: str, new: str) -> None:
    file = folder / "pyproject.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_plain_app_is_read() -> None:
    read = app.load(PLAIN)
    assert (read.name, read.version, read.reports) == ("logistic", "1.0.0", False)
    assert read.config == {"num-server-rounds": 3, "learning_rate": 0.5, "label": "plain", "data.points": 200}
    assert set(read.files) == {
        "pyproject.toml",
        *(f"logistic/{name}.py" for name in ("__init__", "client_app", "model", "server_app")),
    }
    assert app.load(ROOT / "fl_app").reports


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[project]", "[project", "pyproject.toml: is not valid TOML: Expected ']'"),
        ('name = "logistic"', "", "[project] lacks name"),
        ('publisher = "example"', "", "[tool.flwr.app] lacks publisher"),
        ("[tool.flwr.app.components]", "[tool.other]", "[tool.flwr.app.components] lacks serverapp and clientapp"),
        ("clientapp = ", "client = ", "[tool.flwr.app.components] lacks clientapp"),
        ("[tool.flwr.app", "[tool.fedml.app", "[tool.flwr.app] lacks publisher"),
        ("logistic.client_app:app", "logistic.clientapp:app", "there is no logistic/clientapp.py among the files"),
        ('"numpy>=1.26"', '"numpy=>1.26"', "[project]: dependencies or requires-python: "),
        ('"numpy>=1.26"', "7", "[project]: dependencies or requires-python: "),
        ('label = "plain"', "label = [1, 2]", "[tool.flwr.app.config]: label is [1, 2]"),
        ('publisher = "example"', 'publisher = "example"\nfab-exclude = [1]', "fab-include or fab-exclude: "),
    ],
)
def test_what_flower_would_refuse_is_refused(own: Path, old: str, new: str, said: str) -> None:
    edit(own, old, new)
    with pytest.raises(AppError) as caught:
        app.load(own)
    assert said in caught.value.message
    assert caught.value.hint and "\n" not in caught.value.message
    assert caught.value.exit_code == 3


def test_a_folder_that_is_no_app(tmp_path: Path) -> None:
    with pytest.raises(AppError, match="is no Flower app: it has no pyproject"):
        app.load(tmp_path)
    with pytest.raises(AppError, match="is no Flower app: there is no such folder"):
        app.load(tmp_path / "none")


def test_an_app_that_is_too_large_names_its_largest_files(own: Path) -> None:
    (own / "rows.json").write_text(os.urandom(11 * 2**20).hex())
    with pytest.raises(AppError) as caught:
        app.load(own)
    assert "MB, and Flower takes 10 MB" in caught.value.message
    assert "the largest files are rows.json, " in caught.value.hint
    (own / ".gitignore").write_text("rows.*\n")
    assert "rows.json" not in app.load(own).files


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's own use of it
@pytest.mark.parametrize("way", [".gitignore", "fab-exclude", "fab-include"])
def test_the_same_is_packed_as_flower_packs(own: Path, way: str) -> None:
    from flwr.cli.build import build_fab_from_disk

    for name, content in {
        "README.md": "Ähnlich",
        "LICENSE": "MIT",
        "conf/a.yaml": "a: 1",
        "conf/local.yaml": "a: 2",
        "data/points.csv": "1,2",
        "data/points.json": "[1, 2]",
        "notes.txt": "no code",
        "lib/left_out.py": "",
        "logistic/lib/kept.py": "",
        "logistic/test_model.py": "",
        "build/x.py": "",
        "venv/x.py": "",
        ".venv/lib/x.py": "",
        "__pycache__/x.py": "",
        "ignored.py": "",
    }.items():
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text(content)
    if way == ".gitignore":
        (own / way).write_text("ignored.py\n# a comment\n/conf/local.yaml\n")
        stand_ins = set()
    else:
        patterns = {"fab-exclude": '["ignored.py", "*.json"]', "fab-include": '["logistic/**/*.py", "*.yaml"]'}
        edit(own, 'publisher = "example"', f'publisher = "example"\n{way} = {patterns[way]}')
        stand_ins = {"ignored.py", "data/points.json"} if way == "fab-exclude" else set()
    packed = app.load(own).files
    assert {packed[name] for name in stand_ins} <= {""}

    # Delivered, it is a folder again; Flower packs the same of it as of the original.
    delivered = own.with_name("delivered")
    for name, content in packed.items():
        (delivered / name).parent.mkdir(parents=True, exist_ok=True)
        (delivered / name).write_text(content)
    before, after = (zipfile.ZipFile(io.BytesIO(build_fab_from_disk(folder))) for folder in (own, delivered))
    assert {name: after.read(name) for name in after.namelist()} == {
        name: before.read(name) for name in before.namelist()
    }
    assert set(before.namelist()) - {".info/CONTENT"} == set(packed) - stand_ins


def test_links_and_files_that_are_no_text(own: Path) -> None:
    (own / "link.py").symlink_to("/etc/passwd")
    assert "link.py" not in app.load(own).files
    (own / "latin.md").write_bytes("é".encode("latin-1"))
    with pytest.raises(AppError, match="not UTF-8"):
        app.load(own)


def test_settings_are_of_the_apps_own_keys() -> None:
    settings = ["num-server-rounds=2", "learning_rate=1", "label=a b", "data.points=50"]
    wanted = plan.resolve(None, settings, app=PLAIN, content_dir=ROOT)
    assert wanted.run_config == {"num-server-rounds": 2, "learning_rate": 1.0, "label": "a b", "data.points": 50}
    assert isinstance(wanted.run_config["learning_rate"], float)
    assert (wanted.name, wanted.experiment) == ("logistic", None)


@pytest.mark.parametrize(
    ("setting", "said", "hint"),
    [
        ("num_server_rounds=2", "there is no key 'num_server_rounds'", "did you mean num-server-rounds"),
        ("rounds", "is not of the form key=value", ""),
        ("num-server-rounds=two", "must be a whole number, as the app's default 3 is", ""),
        ("num-server-rounds=2.5", "must be a whole number", ""),
        ("learning_rate=fast", "must be a number", ""),
        ("label=it's", "no ' and no line break", ""),
    ],
)
def test_settings_that_the_app_does_not_take(setting: str, said: str, hint: str) -> None:
    with pytest.raises(AppError) as caught:
        plan.resolve(None, [setting], app=PLAIN, content_dir=ROOT)
    assert f"setting {setting!r}" in caught.value.message and said in caught.value.message
    assert hint in caught.value.hint


def test_an_experiment_gives_its_values_to_the_keys_that_the_app_has(own: Path) -> None:
    edit(own, "learning_rate = 0.5", "learning-rate = 0.5\nseed = 1")
    settings = ["rounds=4", "train.learning_rate=0.1", "label=x"]
    wanted = plan.resolve(EXPERIMENT, settings, app=own, content_dir=ROOT)
    assert wanted.run_config == {"num-server-rounds": 4, "learning-rate": 0.1, "seed": 42, "label": "x"}
    assert wanted.experiment and wanted.experiment.rounds == 4
    with pytest.raises(AppError) as caught:
        plan.resolve(EXPERIMENT, ["roundz=1"], app=own, content_dir=ROOT)
    assert "rounds" in caught.value.hint
    with pytest.raises(ExperimentError, match="rounds: "):
        plan.resolve(EXPERIMENT, ["rounds=0"], app=own, content_dir=ROOT)


def test_an_app_written_for_fltestbed_wants_an_experiment_and_its_keys(own: Path) -> None:
    with pytest.raises(AppError, match="there is no experiment"):
        plan.resolve(None, [], app=ROOT / "fl_app", content_dir=ROOT)
    edit(own, 'label = "plain"', 'run = ""')
    with pytest.raises(AppError, match=r"\[tool.flwr.app.config\] lacks batch-size"):
        plan.resolve(EXPERIMENT, [], app=own, content_dir=ROOT)
    assert plan.resolve(EXPERIMENT, ["rounds=1"], app=None, content_dir=ROOT).run_config["learning-rate"] == 0.02
    with pytest.raises(ExperimentError, match="has no 'cnnn'") as caught:
        plan.resolve(EXPERIMENT, ["model=cnnn"], app=None, content_dir=ROOT)
    assert caught.value.hint == "did you mean cnn?"
    with pytest.raises(ExperimentError, match="there is no /nowhere"):
        folder = ["data.source=folder", "data.path=/nowhere"]
        plan.resolve(EXPERIMENT, folder, app=None, content_dir=ROOT)
    for setting in ("run=x", "batch-size=8"):  # the experiment's to say
        with pytest.raises(AppError, match="there is no key"):
            plan.resolve(EXPERIMENT, [setting], app=None, content_dir=ROOT)


def test_nothing_to_run() -> None:
    with pytest.raises(AppError, match="there is nothing to run"):
        plan.resolve(None, [], app=None, content_dir=ROOT)


@pytest.mark.parametrize(
    ("dependency", "lacks"),
    [
        ("flwr[simulation]>=1.41,<2", []),
        ("prometheus-client", []),
        ("numpy<2", ["numpy<2 (there is 2.2.6)"]),
        ("torch==2.13.0", []),
        ("scikit-learn>=1.4", ["scikit-learn>=1.4 (not there)"]),
        ("scikit_learn; sys_platform == 'win32'", []),
        ("pandas; python_version < '3.12'", ['pandas; python_version < "3.12" (not there)']),
        ("tpu; platform_machine == 'aarch64'", []),
    ],
)
def test_what_an_image_lacks(dependency: str, lacks: list[str]) -> None:
    assert app.lacking([dependency], "", IMAGE) == lacks


def test_an_image_whose_python_is_too_old() -> None:
    assert app.lacking([], ">=3.12", IMAGE) == ["Python >=3.12 (there is 3.11.2)"]
    assert app.lacking([], ">=3.11", IMAGE) == []
