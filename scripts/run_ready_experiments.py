"""Runs ready experiments for two rounds each on a testbed, and prints what came of them as a table.

    python scripts/run_ready_experiments.py -i TESTBED [EXPERIMENT ...]

Those whose data are not in a package train on a small file in the data set's own format, which this makes; those whose
data are in a package train on a hundredth of it. A client takes up to 1.3 GB. The runs stay in runs/.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))
import ready_data  # noqa: E402 the tests' own module

FLTESTBED = Path(sys.executable).parent / "fltestbed"
EXPERIMENTS = sorted(path.stem for path in (REPOSITORY / "experiments").glob("*.yml"))


def main() -> None:
    """Run what the command line says. Exits with 1 where a run failed or its loss did not fall."""
    parser = argparse.ArgumentParser(description="Runs ready experiments for two rounds each.")
    parser.add_argument("-i", "--inventory", required=True)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="default: all")
    asked = parser.parse_args()
    print("| ready experiment | data | clients | seconds, two rounds | loss, rounds 1 and 2 | peak memory, MB |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        done = [run(name, asked.inventory, Path(folder)) for name in asked.experiments or EXPERIMENTS]
    sys.exit(0 if all(done) else 1)


def run(name: str, inventory: str, folder: Path) -> bool:
    """Run one experiment, print its row, and say whether it learnt."""
    experiment = yaml.safe_load((REPOSITORY / "experiments" / f"{name}.yml").read_text())
    data = experiment["data"]
    if data["source"] == "debian":
        settings, said = ["rounds=2", "train.data_fraction=0.01"], "real"
    else:
        made = folder / name
        ready_data.write_data(data["name"], made)
        settings, said = ready_data.settings(name, experiment["model"], made), "generated"
    command = [str(FLTESTBED), "run", name, "-i", inventory, "--format", "json", "--set", "sweep=null"]
    for setting in settings:
        command += ["--set", setting]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        print(f"| `{name}` | {said} | | | failed, exit code {ended.returncode} | |", flush=True)
        return False
    shown = json.loads(ended.stdout)
    losses = [row["server_loss"] for row in shown["rounds"]]
    peaks = [row["peak_memory_mb"] for row in shown["clients"]]
    print(
        f"| `{name}` | {said} | {len(peaks)} | {sum(row['seconds'] for row in shown['rounds']):.0f} "
        f"| {losses[0]:.3f}, {losses[-1]:.3f} | {max(peaks):.0f} |",
        flush=True,
    )
    return bool(losses[-1] < losses[0])


if __name__ == "__main__":
    main()
