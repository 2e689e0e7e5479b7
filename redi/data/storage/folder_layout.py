"""Folders of images that are all but certainly meant as something else than classes, or may be."""

from collections.abc import Sequence

from redi.data.storage.image_sources import Source
from redi.runtime.spelling import few

PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}
# What people call images and this library does not decode.
UNREAD = {".arw", ".cr2", ".cr3", ".dng", ".eps", ".heic", ".heif", ".ico", ".jxl", ".nef", ".npy", ".pdf", ".psd",
          ".raw", ".svg"}  # fmt: skip


def check_layout(source: Source, names: Sequence[str], path: str, where: str) -> None:
    """Raises ValueError where the folders at the top are all but certainly not classes."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    below = {name.split("/")[1] for name in names if name.count("/") > 1}
    first, listing = min(tops, default=""), min(source.listings, default="")
    inside = f"bind ImageFolder.path = {f'{path}/{first}'!r}"
    if len(tops) > 1 and {name.lower() for name in tops} <= PARTS:
        part = next((name for name in sorted(tops) if name.lower() in ("train", "training")), first)
        other = next(name for name in sorted(tops, reverse=True) if name != part)
        raise ValueError(
            f"{where} holds the folders {', '.join(sorted(tops))}: parts of a data set, not classes. "
            f"Bind ImageFolder.path = {f'{path}/{part}'!r}; images.gin holds a tenth of it out for evaluation. To "
            f"evaluate with {other} instead, bind also held_out/ImageFolder.path = {f'{path}/{other}'!r}, "
            "ImageFolder.split = 'all' and held_out/ImageFolder.split = 'all'"
        )
    if len(tops) > 1 or tops and len(source.folders) > 1:
        return
    if f"{first}/dataset.json" in source.listings:
        problem = f" holds one folder, {first}, with the dataset.json of labels: {inside}"
    elif len(below) > 1:
        problem = (
            f" holds one folder, {first}, which would be the only class. Where the {len(below)} folders in it "
            f"({few(sorted(below))}) are the classes, {inside}"
        )
    elif listing:
        problem = f": {_not_read(listing)}"
    else:
        return
    raise ValueError(f"{where}{problem}; or, for images without labels, ImageFolder.num_classes = 1")


def warnings_of(source: Source) -> list[str]:
    """What is left out, and might have been meant to be in."""
    unread = ", ".join(f"{count:,} {ending}" for ending, count in source.left_out.items() if ending in UNREAD)
    warnings = [f"files are left out for their ending: {unread}; convert them to .png or .jpg"] if unread else []
    if listing := min(source.listings - {"dataset.json"}, default=None):
        warnings.append(f"labels are those of the folders: {_not_read(listing)}")
    return warnings


def _not_read(listing: str) -> str:
    if listing.endswith("dataset.json"):
        return f"{listing} is read only at the root: move it there, or bind ImageFolder.path = its folder"
    return (
        f"{listing} is not read. To take labels from it, make a Hugging Face data set (table = datasets.load_dataset("
        "'imagefolder', data_dir=...)['train']; where labels are text, table = table.class_encode_column('label'); "
        "table.save_to_disk(folder)), bind IMAGES = that folder, and add --gin_file=hugging_face.gin as the last file"
    )
