"""List what the cache holds and which runs in a folder use it; delete unused entries.

python -m redi.cache runs
python -m redi.cache runs --delete      delete the entries that no run in the folder uses

Deleted entries are computed again when a run needs them.
"""

import shutil
from pathlib import Path

from absl import flags

from redi import command_line

FLAGS = flags.FLAGS
flags.DEFINE_string("cache_dir", None, "Folder of the cache; default: $REDI_CACHE, or ~/.cache/redi.")
flags.DEFINE_bool("delete", False, "Delete entries that no run in the folder uses. Runs elsewhere may use them.")


def main(folder: Path) -> None:
    """Print the entries of the cache; delete the unused ones if --delete is set."""
    from redi.runs.cache_content import cache_entries, unfinished_runs
    from redi.runs.listing import columns
    from redi.runtime.paths import cache_folder

    cache = cache_folder(FLAGS.cache_dir)
    entries = list(cache_entries(cache, folder))
    rows = [(name, f"{size:,.1f}", ", ".join(runs) or "-") for name, size, runs in entries]
    print(columns([(str(cache), "MiB", f"runs in {folder}"), *rows]))
    if FLAGS.delete and (unfinished := unfinished_runs(folder)):
        raise ValueError(
            f"{', '.join(unfinished)}: without a checkpoint, the cache entries in use are unknown. Let the run train, "
            "or delete its folder, before --delete"
        )
    unused = {name: size for name, size, runs in entries if not runs}
    for name in unused if FLAGS.delete else ():
        shutil.rmtree(cache / name)
    action = "deleted" if FLAGS.delete else "delete them with --delete"
    count = f"{len(unused)} of {len(entries)} entries ({sum(unused.values()):,.1f} MiB)"
    print(f"{count} are used by no run in {folder}: {action}")


console = command_line.program(main, default_folder="runs")
