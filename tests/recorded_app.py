"""The app of tests/apps/logistic with the lines that have its run recorded."""

import shutil
from pathlib import Path

_APP = Path(__file__).parent / "apps/logistic"
_LINES = {
    "server_app.py": {
        "from logistic import model": "from fltestbed import telemetry\n\nfrom logistic import model",
        "@app.main()\n": "@app.main()\n@telemetry.server\n",
        "    def evaluate(": "    @telemetry.evaluation\n    def evaluate(",
        "FedAvg(fraction_evaluate=0.0)": "FedAvg()",
    },
    "client_app.py": {
        "from logistic import model": "from fltestbed import telemetry\n\nfrom logistic import model",
        "ClientApp()": "ClientApp(mods=[telemetry.client])",
    },
}


def make(folder: Path) -> Path:
    """Write the app into a new folder and return it. Its clients evaluate the global model, too."""
    shutil.copytree(_APP, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in _LINES.items():
        file = folder / "logistic" / name
        text = file.read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        file.write_text(text)
    return folder
