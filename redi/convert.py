"""Makes a run of a published checkpoint (DiT, SiT, REPA, ReDi), or writes a run's weights in the published layout.

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
flags.DEFINE_string("checkpoint", None, "A published checkpoint: .safetensors, .pt, .pth, .ckpt, .bin, or a folder.")
flags.DEFINE_enum("framework", None, ["sit", "dit", "repa"], "What it is of, where the file does not say so.")
flags.DEFINE_string("pca", None, "Statistics of the features: dino_pca_model.pth, or the folder of a saved reducer.")
flags.DEFINE_integer("step", None, "After how many steps it was written, where the file does not say so.")
flags.DEFINE_string("export", None, "Write the run's weights to this file: .pt, .pth or .safetensors.")
flags.DEFINE_enum("weights", "ema", ["ema", "model"], "Which weights to export.")


def main(run_dir: Path) -> None:
    from redi.runs.convert import export, import_checkpoint

    if bool(FLAGS.checkpoint) == bool(FLAGS.export):
        raise ValueError("give either --checkpoint (to make a run of it) or --export (to write a run's weights)")
    if FLAGS.export:
        export(run_dir, FLAGS.export, weights=FLAGS.weights)
        log.info("%s weights of %s: %s", FLAGS.weights, run_dir, FLAGS.export)
        return
    options = {"framework": FLAGS.framework, "pca": FLAGS.pca, "step": FLAGS.step}
    options |= {"gin_files": FLAGS.gin_file, "gin_bindings": FLAGS.gin_bindings}
    folder = import_checkpoint(FLAGS.checkpoint, run_dir, **options)
    log.info("written: %s; draw from it: python -m redi.sample --run_dir=%s", folder, run_dir)


console = command_line.program(main)
