"""Shows what the cache holds and which of the runs in a folder use it; deletes what none of them does.

python -m redi.cache runs
python -m redi.cache runs --delete      what is deleted is computed again when it is needed
"""

import shutil
from pathlib import Path

from absl import flags

from redi import command_line

FLAGS = flags.FLAGS
flags.DEFINE_string("cache_dir", None, "The cache; default: $REDI_CACHE, or ~/.cache/redi.")
flags.DEFINE_bool("delete", False, "Delete what no run in the folder uses; other runs may.")


def main(folder: Path) -> None:
    from redi.runs.cache_content import cache_entries, unfinished_runs
    from redi.runs.listing import columns
    from redi.runtime.paths import cache_folder

    cache = cache_folder(FLAGS.cache_dir)
    entries = list(cache_entries(cache, folder))
    rows = [(name, f"{size:,.1f}", ", ".join(runs) or "-") for name, size, runs in entries]
    print(columns([(str(cache), "MiB", f"runs in {folder}"), *rows]))
    if FLAGS.delete and (unfinished := unfinished_runs(folder)):
        raise ValueError(
            f"{', '.join(unfinished)}: what a run uses is known once it has a checkpoint; let it train, or delete its "
            "folder, before --delete"
        )
    unused = {name: size for name, size, runs in entries if not runs}
    for name in unused if FLAGS.delete else ():
        shutil.rmtree(cache / name)
    done = "were deleted" if FLAGS.delete else "can be deleted: --delete"
    what = f"{len(unused)} of {len(entries)} entries, {sum(unused.values()):,.1f} MiB"
    print(f"{what}, that no run in {folder} uses, {done}")


main.default_folder = "runs"
console = command_line.program(main)
