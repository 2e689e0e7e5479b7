"""What a folder of images is taken for, and folders that are all but certainly meant as something else."""

from collections.abc import Sequence

from redi.data.storage.image_sources import Source

PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}
# What people call images and this library does not decode.
UNREAD = {".arw", ".cr2", ".cr3", ".dng", ".eps", ".heic", ".heif", ".ico", ".jxl", ".nef", ".npy", ".pdf", ".psd",
          ".raw", ".svg"}  # fmt: skip


def class_order(folders: Sequence[str], numeric_order: bool = True) -> list[str]:
    """Class folders in the order of their labels: that of their numbers where all are numbers, else of their names."""
    numbers = numeric_order and all(name.isascii() and name.isdigit() for name in folders)
    return sorted(folders, key=(lambda name: (int(name), name)) if numbers else None)


def check_layout(source: Source, names: Sequence[str], path: str, where: str) -> None:
    """Raises ValueError where the folders at the top are all but certainly not classes."""
    unlabelled = "or, for images without labels, ImageFolder.num_classes = 1"
    if not (tops := {name.partition("/")[0] for name in names if "/" in name}):
        if listing := min(source.listings, default=None):
            raise ValueError(f"{where}: {_not_read(listing)}; {unlabelled}")
        return
    first = min(tops)
    if len(tops) > 1 and {name.lower() for name in tops} <= PARTS:
        part = next((name for name in sorted(tops) if name.lower() in ("train", "training")), first)
        raise ValueError(
            f"{where} holds the folders {', '.join(sorted(tops))}: parts of a data set, not classes. Bind "
            f"ImageFolder.path = {f'{path}/{part}'!r}, and another one, in a scope of its own, for evaluate.reference"
        )
    if len(tops) > 1 or len(source.folders) > 1:
        return
    inside = f"bind ImageFolder.path = {f'{path}/{first}'!r}"
    if f"{first}/dataset.json" in source.listings:
        raise ValueError(f"{where} holds one folder, {first}, with the dataset.json of labels: {inside}; {unlabelled}")
    below = {parts[1] for name in names if len(parts := name.split("/", 2)) == 3}
    if len(below) > 1:
        few = ", ".join(sorted(below)[:3]) + (", ..." if len(below) > 3 else "")
        raise ValueError(
            f"{where} holds one folder, {first}, which would be the only class. Where the {len(below)} folders in it "
            f"({few}) are the classes, {inside}; {unlabelled}"
        )
    if listing := min(source.listings, default=None):
        raise ValueError(f"{where}: {_not_read(listing)}; {unlabelled}")


def warnings_of(source: Source) -> list[str]:
    """What is left out, and might have been meant to be in."""
    warnings = []
    if unread := {ending: count for ending, count in source.left_out.items() if ending in UNREAD}:
        counts = ", ".join(f"{count:,} {ending}" for ending, count in unread.items())
        warnings.append(f"files are left out for their ending: {counts}; convert them to .png or .jpg")
    if listings := sorted(source.listings - {"dataset.json"}):
        warnings.append(f"labels are those of the folders: {_not_read(listings[0])}")
    return warnings


def _not_read(listing: str) -> str:
    if listing.endswith("dataset.json"):
        return f"{listing} is read only at the root: move it there, or bind ImageFolder.path = its folder"
    return (
        f"{listing} is not read. To take labels from it, make a Hugging Face data set "
        "(datasets.load_dataset('imagefolder', data_dir=...)['train'].save_to_disk(folder)) and start with "
        "--gin_file=images.gin --gin_file=hugging_face.gin"
    )
