"""The report: one self-contained HTML page about a run."""

import base64
import html
import io
import json
import logging
from pathlib import Path

from redi.core.log import read_log
from redi.core.registry import configurable

log = logging.getLogger(__name__)

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc } .lead { color: #555; margin-top: .2rem }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .3rem .9rem .3rem 0; text-align: left }
th { color: #555; font-weight: 600; border-bottom: 1px solid #ccc } td { vertical-align: top }
td.number { font-variant-numeric: tabular-nums; text-align: right } img { max-width: 100%; height: auto }
pre { background: #f6f6f4; padding: 1rem; overflow-x: auto; font-size: 13px } summary { cursor: pointer; color: #555 }
"""


@configurable(runtime=("run_dir",))
def report(run_dir: str | Path, *, title: str | None = None) -> Path:
    """Writes `run_dir/report.html` from whatever the run folder holds; needs no network to be read."""
    run_dir = Path(run_dir)
    metrics = _metrics_of_samples(run_dir)
    sections = [
        _metrics(metrics),
        _section("Samples", _picture(run_dir / "samples.png", "generated images above their features, and real ones")),
        _section("Training", _curves(read_log(run_dir))),
        _section("Progress", _previews(sorted((run_dir / "previews").glob("*.png")))),
        _audit(_json(run_dir / "audit.json")),
        _section("Configuration", _text(run_dir / "config.gin", "config.gin: all that was bound")),
        _text(run_dir / "operative.gin", "operative.gin: all that took effect, defaults included"),
    ]
    name = html.escape(title or run_dir.resolve().name)
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title><style>{STYLE}</style>"
        f"<h1>{name}</h1><p class=lead>A run of redi: joint image-feature diffusion.</p>{''.join(sections)}</html>\n"
    )
    path = run_dir / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _metrics_of_samples(run_dir: Path) -> list[dict]:
    """metrics.json, unless the samples were drawn anew since."""
    metrics, samples = _json(run_dir / "metrics.json") or [], _json(run_dir / "samples" / "record.json")
    if metrics and samples and metrics[0]["samples_sha256"] != samples["files"]["samples.safetensors"]["sha256"]:
        log.warning("metrics.json is of earlier samples and left out: run redi.evaluate --run_dir=%s", run_dir)
        return []
    return metrics


def _section(title: str, body: str) -> str:
    return f"<h2>{html.escape(title)}</h2>{body}" if body else ""


def _metrics(metrics: list[dict]) -> str:
    if not metrics:
        return ""
    rows = ""
    for metric in metrics:
        shown = {k: metric[k] for k in ("floor", "times_floor", "held_out_accuracy", "num_reference") if k in metric}
        notes = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in shown.items())
        cells = f"<td>{metric['metric'].replace('_', ' ')}<td class=number>{metric['value']:.4g}"
        rows += f"<tr>{cells}<td>{notes}<td class=number>{metric['num_samples']}"
    first = metrics[0]
    rules = [f"{rule['name']} {rule.get('scale', '')}".strip() for rule in first["guidance"]] or ["none"]
    drawn = (
        f"<p>Samples: {html.escape(first['sampler']['name'])}, {first['function_evaluations']} function evaluations, "
        f"guidance {html.escape(', '.join(rules))}, {first['weights']} weights of step {first['checkpoint_step']}, "
        f"seed {first['seed']}, labels {html.escape(str(first['labels']))}. Distances are in the feature space of "
        f"{html.escape(first['network'].get('encoder', '?'))} (width {first['network'].get('width')}, "
        f"seed {first['network'].get('seed')}), trained for this data set and never seen by the generator; "
        "they are not FIDs and compare only with distances in the same network.</p>"
    )
    table = f"<table><tr><th>metric<th>value<th><th>samples{rows}</table>"
    record = html.escape(json.dumps(metrics, indent=2))
    details = f"<details><summary>full record</summary><pre>{record}</pre></details>"
    return _section("Metrics", table + drawn + details)


def _audit(record: dict | None) -> str:
    if not record:
        return ""
    from redi.data.audit import describe

    return _section("Data", f"<pre>{html.escape(describe(record))}</pre>")


def _curves(entries: list[dict]) -> str:
    if len(entries) < 2:
        return ""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    steps = [entry["step"] for entry in entries]
    rates = ("images_per_second", "learning_rate", "gradient_norm", "step")
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in [name for name in entries[-1] if name not in rates]:
        left.plot(steps, [entry[name] for entry in entries], label=name, linewidth=1.2)
    left.set(xlabel="step", ylabel="mean squared error", ylim=(0, None), title="losses")
    left.legend(frameon=False)
    right.plot(steps, [entry["images_per_second"] for entry in entries], color="#777", linewidth=1.2)
    right.set(xlabel="step", ylabel="images / s", ylim=(0, None), title="training speed")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return _image(buffer.getvalue(), "loss curves and training speed")


def _previews(paths: list[Path]) -> str:
    shown = paths if len(paths) <= 4 else [paths[round(i * (len(paths) - 1) / 3)] for i in range(4)]
    return "".join(f"<p>step {int(path.stem.split('_')[1])}</p>{_picture(path, path.stem)}" for path in shown)


def _picture(path: Path, alt: str) -> str:
    return _image(path.read_bytes(), alt) if path.exists() else ""


def _image(png: bytes, alt: str) -> str:
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _text(path: Path, title: str) -> str:
    if not path.exists():
        return ""
    return f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(path.read_text())}</pre></details>"


def _json(path: Path):
    return json.loads(path.read_text()) if path.exists() else None
