"""The stages of a job: train, sample, evaluate, query, report. Each takes the experiment of the job."""

import logging
from collections.abc import Callable

import torch

from redi.core import config
from redi.evaluation.evaluate import evaluate, prepare_networks
from redi.evaluation.predicted import predicted_features
from redi.evaluation.queries import query
from redi.evaluation.records import format_metrics
from redi.evaluation.samples.sample import sample
from redi.evaluation.samples.stored import load_samples
from redi.evaluation.stored_statistics import StoredStatistics
from redi.pages.reference import read_curve
from redi.pages.report import report
from redi.runs.checks import check_label_order, check_results, check_sample_settings
from redi.runs.experiment import Experiment
from redi.runs.forecast import sampling_forecast
from redi.runs.prepare import prepare_run
from redi.runtime.artefact import write_json
from redi.runtime.checkpoint import newest_record
from redi.runtime.checksums import json_sha256
from redi.runtime.distributed import process_rank
from redi.sampling.generate import Generated, generate
from redi.sampling.pictures import class_ordered, num_columns, sample_grid, stack
from redi.training.trainer import train

log = logging.getLogger("redi")


def train_stage(experiment: Experiment, *, evaluates: bool = False) -> None:
    """Prepare and train, or resume from the newest checkpoint. `evaluates`: see `prepare_run`."""
    monitor = config.bound("train.monitor")
    data = prepare_run(experiment, evaluates=evaluates, monitor=monitor, trains=True)
    config.call(
        train, run_dir=experiment.trained_dir, codec=experiment.codec, dataset=data, monitor=monitor,
        check_memory=False,  # `prepare_run` has checked it
    )  # fmt: skip


def sample_stage(experiment: Experiment) -> None:
    """Write `samples/` and the picture `samples.png`."""
    (rank, world_size), run = process_rank(), experiment.run
    check_sample_settings(run)
    networks = config.bound("sample.networks") or []
    experiment.checked(lambda: sampling_forecast(run))
    if networks:
        learning = any(network.learns_from_data for network in networks)
        data = experiment.train_data if learning else None
        prepare_networks(networks, data, config.bound("evaluate.cache_dir"), experiment.device)
    # Everything that decides the images, to compare with stored ones. A user's function may call `generate` too.
    key = json_sha256(config.key(["sample.generate", generate]))
    samples = config.call(
        sample, run_dir=experiment.run_dir, trained=run, rank=rank, world_size=world_size, key=key,
        **({"networks": networks} if networks else {}),
    )  # fmt: skip
    _replace_results(experiment)
    if rank == 0:
        evaluations = samples.record["function_evaluations"]
        log.info("wrote %d images to %s, %g function evaluations each", len(samples), samples.folder, evaluations)
        _picture(experiment, samples)


def _replace_results(experiment: Experiment) -> None:
    """Delete `stages.json`, the record of `redi.run`, because its results were replaced."""
    experiment.keep_config()
    if process_rank()[0] == 0:
        (experiment.run_dir / "stages.json").unlink(missing_ok=True)


def _picture(experiment: Experiment, samples, rows: int = 4) -> None:
    """Write a picture of generated images above real held-out ones, each with its features."""
    run, path = experiment.run, experiment.run_dir / "samples.png"
    if not samples.has_images:
        path.unlink(missing_ok=True)  # a picture of earlier samples
        log.info("no picture, because sample.keep = %s does not include images", tuple(samples.record["kept"]))
        return
    columns, names = num_columns(samples.labels), run.class_names
    some = samples.take(class_ordered(samples.labels, columns, rows))
    features = ", ".join(run.codec.channels.maps[1:]) if samples.has_x else ""
    caption = f" images above their features ({features}; one colour basis)" if features else " images"
    sheets = [sample_grid(some, run.codec, run.colours, "generated" + caption, columns, names)]
    real = _if_readable(lambda: _real_images(experiment, rows), "leaving real images out of the picture")
    if real is not None:
        batch, columns = real
        x = run.codec.encode(batch["images"].to(run.codec.device)).cpu() if samples.has_x else None
        real = Generated(batch["images"], x, batch["labels"], {})  # type: ignore[arg-type]  # no x without features
        sheets.append(sample_grid(real, run.codec, run.colours, "real held-out" + caption, columns, names))
    stack(sheets).save(path)
    log.info("wrote %s", path)
    if real is not None and getattr(run.model, "feature_shape", None):
        batch = {"images": real.images, "labels": real.labels}
        _if_readable(lambda: _predictions(experiment, batch, columns), "leaving out predicted features")


def _predictions(experiment: Experiment, batch: dict[str, torch.Tensor], columns: int) -> None:
    """Write `predicted_features.png` and `.json`: predicted beside true features of held-out images."""
    cosines, picture = predicted_features(experiment.run, batch, columns=columns)
    path = experiment.run_dir / "predicted_features.png"
    picture.save(path)
    write_json(path.with_suffix(".json"), {"num_images": len(batch["images"]), "cosine": cosines})
    log.info("wrote %s", path)


def _real_images(experiment: Experiment, rows: int) -> tuple[dict[str, torch.Tensor], int] | None:
    """Return held-out images, one class per column, and the number of columns; None without held-out images."""
    if (held_out := experiment.held_out) is None:
        return None
    labels = torch.from_numpy(held_out.labels)
    columns = num_columns(labels)
    return held_out.batch(class_ordered(labels, columns, rows).tolist()), columns


def _if_readable(images: Callable, without: str):
    """Return `images()`. If they cannot be read, log a warning that begins with `without` and return None."""
    try:
        return images()
    except (ValueError, OSError, ImportError) as error:
        log.warning("%s: %s", without, str(error).partition("\n")[0])
        return None


def _images_to_measure(experiment: Experiment):
    """Return the training images, or None if they cannot be read and only stored statistics are needed."""
    networks = experiment.metric_networks
    learning = networks is None or any(getattr(network, "learns_from_data", True) for network in networks)
    if learning or not isinstance(experiment.reference, StoredStatistics):
        return experiment.train_data
    return _if_readable(lambda: experiment.train_data, "measuring without the training images, which cannot be read")


def evaluate_stage(experiment: Experiment) -> None:
    """Measure the samples in `run_dir`; write `metrics.json` and print it."""
    run_dir, (rank, world_size) = experiment.run_dir, process_rank()
    if not config.is_bound("evaluate.networks") and not config.is_bound("evaluate.reference"):
        log.warning("nothing to measure: bind evaluate.networks or evaluate.reference, for example with evaluator.gin")
        experiment.checked(lambda: "nothing to measure")
        if rank == 0:
            write_json(run_dir / "metrics.json", [])
        _replace_results(experiment)
        return
    bound = {"networks": experiment.metric_networks, "reference": experiment.reference}
    # Rank 0 alone measures the generated representation.
    measures = rank == 0 and config.is_bound("evaluate.representation", default=True)
    reconstructs = config.bound("evaluate.reconstruction", False)
    if (data := _images_to_measure(experiment)) is not None:
        check_results(experiment.codec, data, reference=experiment.reference, networks=experiment.metric_networks)
        if rank == 0 and "published" in newest_record(experiment.trained_dir):
            check_label_order(data.class_names)
    samples = load_samples(run_dir)
    experiment.checked(lambda: f"would measure {len(samples)} samples in {samples.folder}")
    metrics = config.call(
        evaluate, run_dir=run_dir, dataset=data, device=experiment.device, rank=rank,
        trained=experiment.run if reconstructs or measures and experiment.codec.representations else None,
        world_size=world_size, **{name: value for name, value in bound.items() if value is not None},
    )  # fmt: skip
    _replace_results(experiment)
    if rank == 0:
        print(format_metrics(metrics), flush=True)


def query_stage(experiment: Experiment) -> None:
    """Sample features given images and images given features, on held-out images if any, otherwise training images."""
    try:
        data = experiment.held_out or experiment.train_data
    except (ValueError, OSError) as error:
        raise ValueError(f"redi.query needs images: bind evaluate.reference or train.dataset ({error})") from error
    result = config.call(query, run_dir=experiment.run_dir, trained=experiment.run, dataset=data)
    experiment.keep_config()
    for question in ("features_given_image", "image_given_features"):
        for name, measured in result[question].items():
            values = f"agreement {measured['agreement']:.3f}, floor {measured['floor']:.3f}"
            print(f"{question.replace('_', ' ')} ({name}): {values}", flush=True)
    log.info("wrote %s", experiment.run_dir / "queries.png")


def report_stage(experiment: Experiment) -> None:
    """Write `report.html`."""
    read_curve(config.bound("report.curve"))  # fails before `config.gin` is written
    experiment.keep_config()
    trained_dir = None if experiment.trained_dir == experiment.run_dir else experiment.trained_dir
    log.info("wrote %s", config.call(report, run_dir=experiment.run_dir, trained_dir=trained_dir))
