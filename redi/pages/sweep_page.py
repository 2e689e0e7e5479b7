"""The page of a sweep: plots, a table that sorts, the same samples side by side, training curves, failures."""

from pathlib import Path

from redi.pages.curves import model_panels
from redi.pages.files import Folder
from redi.pages.frame import cell, page, sortable
from redi.pages.markup import Html, details, element, is_number, join, number, scrolling, section, words
from redi.pages.sweep_plots import sweep_panels
from redi.pages.sweep_results import Group, Point, SweepResults, gin_number, gin_words
from redi.pages.sweep_samples import samples_section


def sweep_page(sweep_dir: Path, title: str) -> str:
    """The document."""
    results = SweepResults(sweep_dir)
    done = sum(point.status == "done" for point in results.points)
    failed = [point for point in results.points if point.status in ("failed", "damaged") or point.error]
    if failed:
        results.folder.notes.append(f"{len(failed)} of {len(results.points)} points failed; their errors are below.")
    sections = [
        section("Results", sweep_panels(results), _counts(results), _tables(results)),
        samples_section(results),
        section("Training", model_panels(_logs(results))),
        section("Convergence", results.folder.picture("convergence.png", "steps until a baseline's final distance")),
        _failures(failed),
        section("Configuration", results.folder.listing("config.gin", "config.gin: the sweep file as parsed")),
    ]
    keys = ", ".join(results.axes) or "nothing"
    lead = f"A sweep of redi over {keys}: {done} of {len(results.points)} points are done."
    return page(title, lead, results.folder.notes, sections)


def _counts(results: SweepResults) -> Html:
    """Of how many samples each metric is; a note where points differ in that, for it changes distances."""
    lines = []
    for metric in results.metrics:
        counts = results.num_samples(metric)
        if len(counts) > 1:
            results.folder.notes.append(
                f"{words(metric)} was measured on different numbers of samples ({', '.join(map(number, counts))}): the "
                "values of these points do not compare."
            )
        lines += [f"{words(metric)}: of {' or '.join(map(number, counts))} samples"] if counts else []
    return element("p", "; ".join(lines) + ".", class_="soft") if lines else Html()


def _is_numeric(results: SweepResults, axis: str) -> bool:
    return all(gin_number(group.bindings.get(axis)) is not None for group in results.groups)


def _tables(results: SweepResults) -> Html:
    parts = []
    if results.has_seeds:
        caption = "Mean ± sample standard deviation over seeds. A click on a header sorts."
        headers = [*_axis_headers(results, results.group_axes), ("points", True), *_metric_headers(results)]
        rows = [_group_row(results, group) for group in results.groups]
        parts += _captioned(caption, sortable(headers, rows, "results over seeds"), "results over seeds, wide")
    caption = "Every point. A click on a header sorts." + (
        " ± is the sample standard deviation over sampling seeds."
        if any(is_number(m.get("spread")) for point in results.points for m in point.metrics.values()) else ""
    )  # fmt: skip
    stages = list(dict.fromkeys(stage for point in results.points for stage in point.seconds))
    headers = [("point", False), *_axis_headers(results, results.axes), *_metric_headers(results)]
    headers += [("status", False), *[(f"{stage}, s", True) for stage in stages]]
    rows = [_point_row(results, point, stages) for point in results.points]
    parts += _captioned(caption, sortable(headers, rows, "results of every point"), "results of every point, wide")
    return join(parts)


def _captioned(caption: str, table: Html, label: str) -> list[Html]:
    """The caption stays where the table scrolls sideways."""
    return [element("p", caption, class_="soft"), scrolling(table, label=label)]


def _axis_headers(results: SweepResults, axes: list[str]) -> list[tuple[str, bool]]:
    return [(axis, _is_numeric(results, axis)) for axis in axes]


def _metric_headers(results: SweepResults) -> list[tuple[str, bool]]:
    arrows = {"lower": " (lower is better)", "higher": " (higher is better)"}
    return [(words(metric) + arrows.get(results.better(metric), ""), True) for metric in results.metrics]


def _setting(text: str | None) -> Html:
    value = gin_number(text)
    return cell(gin_words(text), value=value, numeric=value is not None)


def _measured(value: float | None, spread: float | None) -> Html:
    if value is None:
        return cell("–", value="", numeric=True)
    shown = number(value) + (f" ± {number(spread, digits=2)}" if is_number(spread) else "")
    return cell(shown, value=repr(float(value)), numeric=True)


def _group_row(results: SweepResults, group: Group) -> list[Html]:
    done = sum(point.status == "done" for point in group.points)
    count = cell(f"{done} of {len(group.points)}" if done < len(group.points) else str(done), value=done, numeric=True)
    settings = [_setting(group.bindings.get(axis)) for axis in results.group_axes]
    return [*settings, count, *[_measured(group.mean(metric), group.spread(metric)) for metric in results.metrics]]


def _point_row(results: SweepResults, point: Point, stages: list[str]) -> list[Html]:
    measured = [_measured(point.value(m), point.metrics.get(m, {}).get("spread")) for m in results.metrics]
    times = [_measured(point.seconds.get(stage), None) for stage in stages]
    settings = [_setting(point.bindings.get(axis)) for axis in results.axes]
    return [element("th", point.name, scope="row"), *settings, *measured, cell(point.status), *times]


def _logs(results: SweepResults) -> dict[str, list[dict]]:
    """Per model, in the order of the points, where it has one yet."""
    logs = {}
    for model in dict.fromkeys(point.model for point in results.points):
        if model:
            logs[model] = Folder(results.folder.path / "models" / model, results.folder.notes).log()
    return {model: entries for model, entries in logs.items() if entries}


def _failures(failed: list[Point]) -> Html:
    parts = []
    for point in failed:
        message, _, trace = (point.error or "no explanation").partition("\n\n")
        parts += [element("h3", point.name), element("pre", message, tabindex="0")]
        parts += [details("where it arose", element("pre", trace, tabindex="0"))] if trace else []
    return section("Failures", *parts)
