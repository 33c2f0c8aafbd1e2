"""A report in a browser that has no network."""

import re
from pathlib import Path

import pytest
import run_folder

from fltestbed import compare, report

from .browser import visit


def charts(document: str) -> dict[str, int]:
    """Return how many marks each chart of a document has drawn."""
    parts = re.split(r'<div class="chart[^"]*" data-chart="([^"]+)"', document)[1:]
    return {
        name: len(re.findall(r'<(?:path|rect|line)[^>]* role="graphics-symbol"', drawn))
        for name, drawn in zip(parts[::2], parts[1::2], strict=True)
    }


def require_drawn(document: str, least: int) -> None:
    drawn = charts(document)
    assert len(drawn) >= least, drawn
    assert all(drawn.values()), drawn
    assert 'data-drawn="all"' in document


def test_a_report_draws_every_chart_and_asks_for_nothing(tmp_path: Path) -> None:
    folder = run_folder.copy(tmp_path)
    run_folder.add_hardware(folder)
    seen = visit(report.write(folder), tmp_path)
    assert seen.console == []
    assert seen.requests == []
    require_drawn(seen.document, 16)


def test_a_comparison_does_so_too(tmp_path: Path) -> None:
    runs = compare.read([run_folder.copy(tmp_path), run_folder.copy(tmp_path, "other")])
    compare.write(runs, 0.8, tmp_path / "page.html")
    seen = visit(tmp_path / "page.html", tmp_path)
    assert (seen.console, seen.requests) == ([], [])
    require_drawn(seen.document, 5)


@pytest.mark.parametrize("what", ["request", "error", "chart"])
def test_a_page_that_does_otherwise_would_be_found(tmp_path: Path, what: str) -> None:
    text = report.write(run_folder.copy(tmp_path)).read_text(encoding="utf-8")
    policy, head = re.search(r"<meta http-equiv[^\n]*", text), "</head>"
    assert policy
    if what == "request":
        text = text.replace(policy[0], "").replace(head, f'<img alt="" src="http://192.0.2.1/x.png">{head}')
    elif what == "error":
        text = text.replace(head, f"<script>nothing()</script>{head}")
    else:
        text = text.replace('data-chart="accuracy_rounds"', 'data-chart="no_such_chart"')
    (tmp_path / "bad.html").write_text(text, encoding="utf-8")
    seen = visit(tmp_path / "bad.html", tmp_path)
    if what == "request":
        assert "http://192.0.2.1/x.png" in seen.requests
    elif what == "error":
        assert any("nothing is not defined" in line for line in seen.console)
    else:
        with pytest.raises(AssertionError):
            require_drawn(seen.document, 1)
