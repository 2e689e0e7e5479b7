"""Measure a run's samples against reference images; write metrics.json.

python -m redi.evaluate --run_dir=runs/digits
torchrun --nproc_per_node=8 -m redi.evaluate --run_dir=runs/sit      eight processes share the feature extraction

NETWORKS: evaluate.networks is a list of encoders. Every metric is computed in each network that supports it.
    @evaluator/encoders.DomainEncoder()    small network trained on the training images; no download. Not an FID.
    @encoders.Inception()    as in clean-fid; Inception.mode: 'clean', 'legacy_tensorflow' (ADM, EDM), 'legacy_pytorch'
    @encoders.DINOv2() or any other encoder    FD-DINOv2: DINOv2.size = 'L', DINOv2.image_size = 224

METRICS: evaluate.metrics; default: all. Names: <metric>_<network>; for Inception: fid_<mode>, sfid_<mode>, kid_<mode>.
    frechet_distance (FID, FD-DINOv2), with standard error, bias, and the floor: the same distance for as many training
    images as there are samples
    kernel_distance (KID), precision, recall
    spatial_frechet_distance (sFID) and inception_score: Inception only
    recognised_as_label: only a DomainEncoder that was trained on labels
    evaluate.representation = @representation_metrics    metrics of the generated features: agreement with the encoder's
                                features of the generated image, with floor and ceiling; linear probe and k-NN
    evaluate.reconstruction = True    PSNR and rFID of the autoencoder alone; also printed before training
    docs/metrics.md defines all of them.

REFERENCE: evaluate.reference; default: the training images. Reference features are computed once and cached.
    @held_out/datasets.ImageFolder(), or another data set; @datasets.AdmBatch() reads arr_0 of an .npz file
    @StoredStatistics()    mu and sigma of an .npz file; StoredStatistics.network names the network that computed them
    evaluate.max_images    use at most this many samples of each seed, and at most this many reference images

With sample.seeds = (0, 1, 2), values are means over seeds, with their spread. Presets: evaluator.gin, lite2.gin,
inception.gin. In Python: redi.evaluate_samples.
"""

from pathlib import Path

from redi import command_line


def main(run_dir: Path) -> None:
    """Measure the samples in `run_dir`."""
    from redi.runs.stages import evaluate_stage

    evaluate_stage(command_line.configure(run_dir, trains=False))


console = command_line.program(main, dry_run=True)
