"""Format rows of results as Markdown tables."""

from collections.abc import Mapping, Sequence


def tables(rows: Sequence[Mapping[str, object]]) -> str:
    """Return one Markdown table, or one for each value of `measurement` with that value as title."""
    if not any("measurement" in row for row in rows):
        return table(rows)
    kinds = dict.fromkeys(row.get("measurement", "") for row in rows)
    parts = []
    for kind in kinds:
        own = [
            {k: v for k, v in row.items() if k != "measurement"} for row in rows if row.get("measurement", "") == kind
        ]
        parts.append(f"**{kind}**\n\n{table(own)}" if kind else table(own))
    return "\n\n".join(parts)


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a Markdown table with a column for every key of any row; numbers to four digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numeric = {c for c in columns if any(isinstance(row.get(c), int | float) for row in rows)}
    lines = [[column.replace("_", " ") for column in columns], ["--:" if c in numeric else "---" for c in columns]]
    lines += [[_shown(row.get(column)) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(value: object) -> str:
    if value is None or isinstance(value, str | bool):
        return {None: "", True: "yes", False: "no"}.get(value, str(value).replace("|", "\\|"))
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
