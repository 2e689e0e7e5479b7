"""Write the tables of README.md in this folder, between its markers, from results/*.json.

python benchmarks/readme.py            # after every benchmark
python benchmarks/readme.py --check    # fails if a table differs from its JSON file
"""

import argparse
import json
import re
import sys
from pathlib import Path

from ledger import RESULTS
from markdown_table import table, tables

README = Path(__file__).resolve().parent / "README.md"
MARKED = re.compile(r"(<!-- results of (\w+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
DEVICES = {"cpu": "CPU", "cuda": "GPU"}


def generated(text: str, results: Path = RESULTS) -> str:
    """Return the text of README.md with the tables of the files in `results`."""
    return MARKED.sub(lambda match: f"{match[1]}\n{section(match[2], results)}\n\n{match[3]}", text)


def section(benchmark: str, results: Path) -> str:
    """Return the tables of one benchmark for every device, or the command that produces them."""
    if (single := results / f"{benchmark}.json").exists():  # an older benchmark with a single file
        return of_runs(json.loads(single.read_text()))
    if benchmark == "gpu":  # the parts of gpu.sh
        paths = [path for path in sorted((results / "gpu").glob("*.json")) if not path.name.endswith(".status.json")]
        parts = [f"### {path.stem}\n\n{of_result(json.loads(path.read_text()))}" for path in paths]
        return "\n\n".join(parts) or "Not measured yet. To measure: `bash benchmarks/gpu.sh benchmarks/results/gpu`."
    parts = []
    for device, name in DEVICES.items():
        path = results / f"{benchmark}.{device}.json"
        if path.exists():
            parts.append(f"### {name}\n\n{of_result(json.loads(path.read_text()))}")
        else:
            command = f"python benchmarks/{benchmark}.py --device {device}"
            parts.append(f"### {name}\n\nNot measured yet. To measure: `{command} && python benchmarks/readme.py`.")
    return "\n\n".join(parts)


def of_result(result: dict) -> str:
    notes = "".join(f"\n- {note}" for note in result["notes"])
    return f"{described(result)}\n\n{tables(result['rows'])}" + (f"\n{notes}" if notes else "")


def described(result: dict) -> str:
    """Return one paragraph with machine, versions, commit, date, command and settings."""
    at = result["environment"]
    machine = f"{at['processor']}, {at['cores']} cores, {at['threads']} threads, {at['memory_gib']} GiB"
    if "gpu" in at:
        machine = f"{at['gpu']}, {at['gpu_memory_gib']} GiB; {machine}"
    versions = ", ".join(f"{name} {version}" for name, version in at["versions"].items())
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result["settings"].items())
    lines = f"{machine}. {versions}; commit {at['commit']}, {at['date'][:10]}. `{result['command']}`"
    return lines + (f" ({settings})" if settings else "")


def of_runs(result: dict) -> str:
    """Return the table of an older file: a list of runs. Nested values are left out."""
    rows = [{k: v for k, v in run.items() if not isinstance(v, dict | list)} for run in result["runs"]]
    return f"{result['what']}; {result['machine']}.\n\n{table(rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    text = README.read_text()
    new = generated(text)
    if parser.parse_args().check:
        sys.exit(f"{README} is out of date: run python benchmarks/readme.py" if new != text else 0)
    README.write_text(new)
    print(f"{README} is up to date" if new == text else f"wrote {README}")


if __name__ == "__main__":
    main()
