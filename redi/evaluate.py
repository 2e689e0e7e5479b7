"""Measures a run's samples against reference images; writes metrics.json.

python -m redi.evaluate --run_dir=runs/digits
torchrun --nproc_per_node=8 -m redi.evaluate --run_dir=runs/sit      features shared by eight processes

NETWORKS: evaluate.networks, a list of encoders; every metric is computed in each that has the features for it.
    @evaluator/encoders.DomainEncoder()    small, trained on the training images; needs no download, and is never an FID
    @encoders.Inception()    of clean-fid; Inception.mode: 'clean', 'legacy_tensorflow' (ADM, EDM), 'legacy_pytorch'
    @encoders.DINOv2() or any other encoder    FD-DINOv2: DINOv2.size = 'L', DINOv2.image_size = 224

METRICS: evaluate.metrics, by default all; named <metric>_<network>, with Inception fid_<mode>, sfid_<mode>, kid_<mode>.
    frechet_distance (FID, FD-DINOv2; with standard error, bias and the floor: as many training images as samples),
    kernel_distance (KID), precision, recall; with Inception also spatial_frechet_distance (sFID) and inception_score;
    with a DomainEncoder that was trained on labels also recognised_as_label. docs/metrics.md defines them.
    evaluate.representation = @representation_metrics    the generated representation: agreement with the encoder's
                                features of the generated image, between floor and ceiling; linear probe and k-NN

REFERENCE: evaluate.reference; default: the training images. Its features are computed once and kept in the cache.
    @held_out/datasets.ImageFolder(), or another data set; @datasets.AdmBatch() for the arr_0 of an .npz file
    @StoredStatistics()    mu and sigma of an .npz file; StoredStatistics.network says which network made them
    evaluate.max_images    at most so many of each seed's samples, and of the reference

With sample.seeds = (0, 1, 2) a value is the mean over seeds, with its spread. Ready-made: evaluator.gin, inception.gin.
In Python: redi.evaluate_samples.
"""

from pathlib import Path

from redi import command_line


def main(run_dir: Path) -> None:
    from redi.runs.stages import evaluate_stage

    evaluate_stage(command_line.configure(run_dir, trains=False))


console = command_line.program(main, dry_run=True)
