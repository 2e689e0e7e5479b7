"""Preparation: audit the data, check the configuration, fit the codec, fill the cache."""

import logging

from redi.core import config
from redi.data.cache.prepare import prepare
from redi.evaluation.checking import check_size
from redi.evaluation.evaluate import prepare_networks
from redi.evaluation.reconstruction import check_reconstruction, reconstruction_metrics
from redi.evaluation.records import format_metrics
from redi.pages.reference import read_curve
from redi.runs.checks import check_results, check_settings_of_training, check_training
from redi.runs.experiment import Experiment
from redi.runs.forecast import training_forecast
from redi.runs.load import network_opener
from redi.runs.networks import check_networks
from redi.runtime.atomic import write_json
from redi.runtime.checkpoint import list_checkpoints, newest_good
from redi.runtime.checksums import sealed
from redi.runtime.distributed import process_rank

log = logging.getLogger("redi")


def prepare_run(experiment: Experiment, *, evaluates: bool = False, monitor=None, trains: bool = False):
    """Fit the experiment's codec, or restore that of a resumed run; return data for `train`: cache, stream or images.

    Args:
        evaluates: also check the settings of sampling, evaluation and the report.
        monitor: the monitor to prepare.
        trains: whether to check that a step fits into the memory of this machine.

    Raises ValueError: training (or evaluation) would fail; raised before anything is fitted or encoded.
    """
    check_settings_of_training()
    if evaluates:
        read_curve(config.bound("report.curve"))
    if reconstructs := config.bound("evaluate.reconstruction", False):
        check_reconstruction(experiment.reference, experiment.metric_networks)
    codec, run_dir = experiment.codec, experiment.trained_dir
    codec.load()  # fails on missing weights before the audit reads every image
    # A cache streamed from object storage needs no images here. They were audited when they were encoded.
    streams_alone = not config.is_bound("train.dataset") and config.is_bound("prepare.cache_url")
    if streams_alone and (evaluates or reconstructs or monitor is not None):
        what = "evaluating" if evaluates or reconstructs else "train.monitor"
        raise ValueError(
            f"{what} needs images, and the cache streamed from prepare.cache_url holds none: bind train.dataset, or "
            "run only redi.train and redi.sample without train.monitor"
        )
    data = config.call(prepare, codec=codec, dataset=None) if streams_alone else experiment.train_data
    net = check_training(codec, data, monitor=monitor, resumes=bool(list_checkpoints(run_dir)), trains=trains)
    if evaluates:
        check_results(codec, data, reference=experiment.reference, networks=experiment.metric_networks)
    open_network = network_opener(run_dir)
    check_networks(net, codec, run_dir, open_network)
    experiment.checked(lambda: training_forecast(net, codec, len(data), experiment.device))
    codec.to(experiment.device)
    if monitor is not None:
        monitor.prepare(data, experiment.reference)
    if (newest := newest_good(run_dir, ("codec",), set_aside=False)) is not None:
        codec.load_learned_state(newest[1]["codec"])
    if not streams_alone:
        data = config.call(prepare, codec=codec, dataset=data)
    check_networks(net, codec, run_dir, open_network)  # the codec is fitted now
    if reconstructs and not list_checkpoints(run_dir):
        _measure_autoencoder(experiment)
    return data


def _measure_autoencoder(experiment: Experiment) -> None:
    """Print the metrics of the autoencoder alone and write `reconstruction.json`."""
    (rank, world_size), cache_dir = process_rank(), config.bound("evaluate.cache_dir")
    images, networks = experiment.train_data, experiment.metric_networks or []
    check_size(images.image_size, experiment.reference)
    prepare_networks(networks, images, cache_dir, experiment.device)
    entries = reconstruction_metrics(
        experiment.codec, experiment.reference, networks, dataset=images, cache_dir=cache_dir, rank=rank,
        max_images=config.bound("evaluate.max_images"), world_size=world_size,
    )  # fmt: skip
    if rank == 0:
        write_json(experiment.trained_dir / "reconstruction.json", [sealed(one) for one in entries])
        log.info("the autoencoder alone, on %d images of evaluate.reference", entries[0]["num_samples"])
        print(format_metrics(entries), flush=True)
