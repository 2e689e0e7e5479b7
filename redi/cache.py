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
    from redi.runs.cache_content import cache_entries
    from redi.runs.listing import columns
    from redi.runtime.paths import cache_folder

    cache = cache_folder(FLAGS.cache_dir)
    entries = cache_entries(cache, folder)
    rows = [(entry.name, f"{entry.mib:,.1f}", ", ".join(entry.runs) or "-") for entry in entries]
    print(columns([(str(cache), "MiB", f"runs in {folder}"), *rows]))
    unused = [entry for entry in entries if not entry.runs]
    for entry in unused if FLAGS.delete else ():
        shutil.rmtree(cache / entry.name)
    done = "were deleted" if FLAGS.delete else "can be deleted: --delete"
    size, idle = (sum(entry.mib for entry in some) for some in (entries, unused))
    print(f"{size:,.1f} MiB; {idle:,.1f} MiB ({len(unused)} of {len(entries)} entries) that no run uses {done}")


console = command_line.program(main)

if __name__ == "__main__":
    console()
