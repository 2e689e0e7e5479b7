"""Import a published checkpoint (DiT, SiT, REPA, ReDi, SFD, ...) as a run, or export a run's weights in its layout.

python -m redi.convert --checkpoint=redi_xl.pt --framework=sit --pca=dino_pca_model.pth --run_dir=runs/redi_xl
python -m redi.convert --run_dir=runs/redi_xl --export=again.pt
In Python: redi.import_checkpoint and redi.export_checkpoint.
"""

import logging
from pathlib import Path

from absl import flags

from redi import command_line

log = logging.getLogger("redi")

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "Published checkpoint to import: .safetensors, .pt, .pth, .ckpt, .bin, folder.")
FRAMEWORKS = ["sit", "dit", "repa", "lightningdit", "sfd", "dit-dh", "reg", "reglue"]
flags.DEFINE_enum("framework", None, FRAMEWORKS, "Framework of the checkpoint, if the file does not say.")
flags.DEFINE_string("pca", None, "PCA of the features: dino_pca_model.pth, or the folder of a saved reducer.")
flags.DEFINE_integer("step", None, "Training step of the checkpoint, if the file does not say.")
flags.DEFINE_string("export", None, "File to export to: .pt, .pth or .safetensors.")
flags.DEFINE_enum("weights", "ema", ["ema", "model"], "Weights to export: averaged or raw.")


def main(run_dir: Path) -> None:
    """Import --checkpoint to `run_dir`, or export the weights of `run_dir` to --export."""
    from redi.runs.convert import export, import_checkpoint

    if bool(FLAGS.checkpoint) == bool(FLAGS.export):
        raise ValueError("pass either --checkpoint (import) or --export (write a run's weights)")
    if FLAGS.export:
        export(run_dir, FLAGS.export, weights=FLAGS.weights)
        log.info("wrote the %s weights of %s to %s", FLAGS.weights, run_dir, FLAGS.export)
        return
    options = {"framework": FLAGS.framework, "pca": FLAGS.pca, "step": FLAGS.step}
    options |= {"gin_files": FLAGS.gin_file, "gin_bindings": FLAGS.gin_bindings}
    folder = import_checkpoint(FLAGS.checkpoint, run_dir, **options)
    log.info("wrote %s; sample from it with python -m redi.sample --run_dir=%s", folder, run_dir)


console = command_line.program(main)
