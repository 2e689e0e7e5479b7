"""Measures a run's samples against reference images; writes metrics.json.

python -m redi.evaluate --run_dir=runs/digits
torchrun --nproc_per_node=8 -m redi.evaluate --run_dir=runs/sit      features shared by eight processes

NETWORKS: evaluate.networks, a list of encoders; every metric is computed in each that has the features for it.
    @evaluator/encoders.DomainEncoder()    small, trained on the training images; needs no download, and is never an FID
    @encoders.Inception()    of clean-fid; Inception.mode: 'clean', 'legacy_tensorflow' (ADM, EDM), 'legacy_pytorch'
    @encoders.DINOv2() or any other encoder    FD-DINOv2: DINOv2.size = 'L', DINOv2.image_size = 224

METRICS: evaluate.metrics, by default all; named <metric>_<network>, with Inception fid_<mode>, sfid_<mode>, kid_<mode>.
    frechet_distance            FID, FD-DINOv2; with standard error, bias, value for infinitely many samples, and the
                                floor: as many training images as samples, against the same held-out reference
    kernel_distance             KID: unbiased, for few samples
    spatial_frechet_distance    sFID of ADM; Inception only
    inception_score             of unbiased logits in 10 splits, as ADM; Inception only
    precision, recall           of Kynkaanniemi et al., k = 3
    recognised_as_label         by a DomainEncoder that was trained on labels
    evaluate.representation = @representation_metrics    the generated representation: agreement with the encoder's
                                features of the generated image, between floor and ceiling; linear probe and k-NN

REFERENCE: evaluate.reference; default: the training images. Its features are computed once and kept in the cache.
    @held_out/datasets.ImageFolder(), or another data set; @datasets.AdmBatch() for the arr_0 of an .npz file
    @StoredStatistics()    mu and sigma of an .npz file; StoredStatistics.network says which network made them
    evaluate.max_images    at most so many of each seed's samples, and of the reference

With sample.seeds = (0, 1, 2) a value is the mean over seeds, with its spread. Ready-made: evaluator.gin, inception.gin.
"""

import logging
from pathlib import Path

from redi import command_line
from redi.prepare import audited

log = logging.getLogger("redi")


def stage(run_dir: Path, trained_dir: Path | None = None) -> None:
    """Evaluates the samples in `run_dir` under the parsed configuration; `trained_dir` holds the checkpoints."""
    from redi.core import config
    from redi.evaluation.evaluate import evaluate
    from redi.evaluation.records import describe
    from redi.runtime.artefact import write_json
    from redi.runtime.device import choose_device, own_gpu
    from redi.runtime.distributed import process_rank

    trained_dir, (rank, world_size) = trained_dir or run_dir, process_rank()
    if rank == 0:
        (run_dir / "stages.json").unlink(missing_ok=True)  # as in redi.sample
    if config.bound("evaluate.networks") is None and config.bound("evaluate.reference") is None:
        log.warning("nothing is measured: neither evaluate.networks nor evaluate.reference is bound; see evaluator.gin")
        if rank == 0:
            write_json(run_dir / "metrics.json", [])
        return
    device = own_gpu(choose_device(config.bound("train.device", "auto")))
    metrics = config.call(
        evaluate, run_dir=run_dir, dataset=audited(trained_dir), trained=_trained(trained_dir, rank),
        device=device, rank=rank, world_size=world_size,
    )  # fmt: skip
    if rank == 0:
        print(describe(metrics), flush=True)


def _trained(trained_dir: Path, rank: int):
    """The run, where the representation that it generates is to be measured, by one process."""
    from redi.core import config
    from redi.runs.load import load

    codec = config.bound("train.codec")
    wanted = config.bound("evaluate.representation", True) is not None
    if rank > 0 or not wanted or codec is None or not codec.channels.representations:
        return None
    return load(trained_dir, device=config.bound("train.device", "auto"))


def main(run_dir: Path) -> None:
    command_line.configure(run_dir, trains=False)
    stage(run_dir, command_line.trained_dir(run_dir))


def console() -> None:
    command_line.run(main, __doc__)


if __name__ == "__main__":
    console()
