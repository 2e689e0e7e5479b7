"""The report of the faults adds up."""

import json

from chaos_report import Report


def test_rows_are_kinds_and_the_last_line_sums_them(tmp_path):
    report = Report()
    report.add("one process", "SIGKILL", survived=True, steps_lost=3, verified=2)
    report.add("one process", "SIGKILL", survived=False, steps_lost=9, verified=1, corrupted=1)
    report.add("one process", "SIGTERM", survived=True)
    report.write(tmp_path)
    rows = json.loads((tmp_path / "chaos.json").read_text())["rows"]
    assert [(row["fault"], row["injected"], row["survived"]) for row in rows] == [("SIGKILL", 2, 1), ("SIGTERM", 1, 1)]
    last = (tmp_path / "chaos.md").read_text().splitlines()[-1]
    assert last == "| all |  | 3 | 2 | 12 | 9 | 3 | 1 |"
