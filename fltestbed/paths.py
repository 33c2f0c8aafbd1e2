"""Where the playbooks and roles lie, where a testbed's state lies, and how a bare name becomes a file."""

import contextlib
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path

from fltestbed.errors import DiskError, ExperimentError, InventoryError, ResultsError

_PROGRAM = ("__init__", "device_data", "errors", "formats", "known", "limits", "telemetry")
_FULL = 10 * 2**20  # bytes below which a disk is taken for full
_RUN_FILES = ("run.json", "lock.json", "experiment.json", "rounds.jsonl", "clients.jsonl")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
_KEPT = ("HOME", "LANG", "TERM", "TMPDIR", "USER", "SSH_AUTH_SOCK", "DOCKER_HOST", *_CERTIFICATES, *_PROXIES)


def content_dir() -> Path:
    """Return the folder of ansible.cfg, playbooks and roles: packaged, or the repository of an editable install."""
    package = Path(__file__).parent
    packaged = package / "_content"
    return packaged if packaged.is_dir() else package.parent


def program() -> dict[str, Path]:
    """Return the modules of this package that an app can import in its containers, by their path there."""
    return {f"fltestbed/{name}.py": Path(__file__).parent / f"{name}.py" for name in _PROGRAM}


def state_dir(testbed: str) -> Path:
    """Return the folder below the working directory that holds a testbed's keys, lock and logs."""
    return Path.cwd() / ".fltestbed" / testbed


def runs_dir() -> Path:
    """Return the folder below the working directory that holds the results."""
    return Path.cwd() / "runs"


def cache_dir() -> Path:
    """Return the folder of what every testbed of this user shares: images, wheels, data sets."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fltestbed"


def ansible_environment() -> dict[str, str]:
    """Return the environment for Ansible's programs: the few variables they need, and nothing else of the user's."""
    from importlib.metadata import version  # slow, and --help does without

    kept = {
        name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(("LC_", "PIP_", "XDG_"))
    }
    if vault := os.environ.get("ANSIBLE_VAULT_PASSWORD_FILE"):
        kept["ANSIBLE_VAULT_PASSWORD_FILE"] = str(expanded(vault).absolute())
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PWD": str(Path.cwd()),
        "ANSIBLE_CONFIG": str(content_dir() / "ansible.cfg"),
        "FLTESTBED_VERSION": version("fltestbed"),
    }


def full_disk(error: OSError) -> DiskError:
    """Return what to say of a file that this machine could not write or read: which, why, and what is full."""
    what = f"{error.filename}: " if error.filename else ""
    places = {Path.cwd(), Path(tempfile.gettempdir()), cache_dir()}
    full = [str(place) for place in sorted(places) if place.is_dir() and shutil.disk_usage(place).free < _FULL]
    where = f"less than {_FULL // 2**20} MB are free at {' and '.join(full)}" if full else "see its owner and mode"
    return DiskError(
        f"this machine's files: {what}{error.strerror}; {where}",
        "the same command goes on from where the hosts are, once that is mended",
    )


def find_inventory(name: str) -> Path:
    """Return the inventory folder that `name` means: a path, or a folder in ./inventories or in the packaged ones.

    Raises InventoryError with the nearest names.
    """
    places = [Path.cwd() / "inventories", content_dir() / "inventories"]
    for folder in (expanded(name), *(place / name for place in places)):
        if _is(Path.is_dir, folder):
            return folder.resolve()
    known = {folder.name for place in places if place.is_dir() for folder in place.iterdir() if folder.is_dir()}
    published = content_dir() / "inventories/published"
    known = known - {"published"} | {f"published/{folder.name}" for folder in published.glob("*")}
    raise InventoryError(
        f"there is no inventory folder {name!r}", f"give a folder's path or a known name: {nearest(name, known)}"
    )


def find_experiment(name: str) -> Path:
    """Return the experiment file that `name` means: a path, or a file in ./experiments or in the packaged ones.

    Raises ExperimentError with the nearest names.
    """
    known = experiment_files()
    for file in (expanded(name), known.get(name)):
        if file and _is(Path.is_file, file):
            return file.resolve()
    raise ExperimentError(
        f"there is no experiment {name!r}", f"give a file's path or a known name: {nearest(name, known)}"
    )


def experiment_files() -> dict[str, Path]:
    """Return the files in ./experiments and the packaged ones by name; one of ./experiments hides another's."""
    places = [content_dir() / "experiments", Path.cwd() / "experiments"]
    return {file.stem: file for place in places for file in sorted(place.glob("*.yml"))}


def find_run(name: str) -> Path:
    """Return the folder of the run that `name` means: a path, or a name in ./runs; without one, the latest there.

    Raises ResultsError with the nearest names.
    """
    runs = runs_dir()
    known = {folder.name: folder for folder in runs.iterdir() if _is_run(folder)} if runs.is_dir() else {}
    if not name:
        if known:
            return known[max(known)]  # a name begins with the time
        raise ResultsError(f"there is no run in {runs}", "give a run's folder, or go to the folder that has runs/")
    folder = expanded(name)
    for place in (folder, runs / name):
        if _is_run(place):
            return place.resolve()
    if _is(Path.is_dir, folder):
        raise ResultsError(f"{folder} is no run's folder: it has none of {', '.join(_RUN_FILES)}", nearest(name, known))
    raise ResultsError(f"there is no run {name!r}", f"give a folder's path or a known name: {nearest(name, known)}")


def _is_run(folder: Path) -> bool:
    return any(_is(Path.is_file, folder / name) for name in _RUN_FILES)


def expanded(name: str) -> Path:
    """Return the path that a user wrote, with the home folder for `~`; `~nobody`, whom there is not, stays."""
    with contextlib.suppress(RuntimeError):
        return Path(name).expanduser()
    return Path(name)


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    """Return whether a path is of a kind; a name longer than a file's can be is of none."""
    try:
        return kind(path)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a phrase that proposes the known words nearest to a mistyped one, or lists them all."""
    words = sorted(set(known))
    close = get_close_matches(word, words, n=3)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known are {', '.join(words)}" if words else "none is known"
