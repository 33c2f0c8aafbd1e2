"""docs/reference-faults.md against the tests that it names."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_page_names_exists() -> None:
    page = (ROOT / "docs/reference-faults.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(e2e|unit) `(test_\w+)`", page))
    assert len(named) >= 15
    for part, test in named:
        texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests" / part).glob("test_*.py")]
        assert any(f"def {test}(" in text for text in texts), f"{part} {test}"


def test_every_fault_that_is_injected_on_devices_is_on_the_page() -> None:
    page = (ROOT / "docs/reference-faults.md").read_text(encoding="utf-8")
    written = re.findall(r"^def (test_\w+)\(", (ROOT / "tests/e2e/test_faults.py").read_text("utf-8"), re.MULTILINE)
    assert [test for test in written if f"`{test}`" not in page] == []
