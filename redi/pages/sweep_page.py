"""The page of a sweep: plots, a sortable table, samples of all points side by side, training curves, failures."""

from pathlib import Path

from redi.pages.curves import model_panels
from redi.pages.render import render
from redi.pages.sweep_plots import sweep_panels
from redi.pages.sweep_results import SweepResults
from redi.pages.sweep_samples import sample_strip
from redi.pages.wording import gin_number, is_number, number
from redi.runtime.log import read_log


def sweep_page(sweep_dir: Path, title: str) -> str:
    """Return the HTML document."""
    results = SweepResults(sweep_dir)
    folder, count = results.folder, len(results.points)
    failures = [(point.name, *point.error.partition("\n\n")[::2]) for point in results.points if point.error]
    if failures:
        folder.notes.append(f"{len(failures)} of {count} points failed; see the errors below.")
    num_samples = {metric: list(map(number, results.num_samples(metric))) for metric in results.metrics}
    for metric, counts in num_samples.items():
        if len(counts) > 1:  # distances depend on the number of samples
            message = f"was measured on different numbers of samples ({', '.join(counts)})"
            folder.notes.append(f"{metric} {message}: the values of these points are not comparable.")
    models = dict.fromkeys(point.model for point in results.points if point.model)
    logs = {model: entries for model in models if (entries := read_log(sweep_dir / "models" / model))}
    done = sum(point.status == "done" for point in results.points)
    return render(
        "sweep.html",
        title=title,
        lead=f"A sweep of redi over {', '.join(results.axes) or 'nothing'}: {done} of {count} points are done.",
        results=results,
        best={metric: results.best(metric) for metric in results.metrics},
        numeric=[axis for axis in results.axes
                 if all(gin_number(group.bindings.get(axis)) is not None for group in results.groups)],
        stages=list(dict.fromkeys(stage for point in results.points for stage, seconds in point.seconds.items()
                                  if is_number(seconds))),
        panels=sweep_panels(results, results.metrics) if len(results.groups) > 1 else [],
        num_samples={metric: " or ".join(counts) for metric, counts in num_samples.items() if counts},
        strip=sample_strip(results),
        curves=model_panels(logs),
        convergence=folder.picture("convergence.png", "steps to reach the final distance of a baseline"),
        failures=failures,
        configuration=folder.text("config.gin"),
        notes=folder.notes,
    )  # fmt: skip
