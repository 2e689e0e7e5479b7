"""Detect folders of images whose subfolders are probably not classes."""

from collections.abc import Sequence

from redi.data.storage.image_sources import Source
from redi.runtime.spelling import few

PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}
# Extensions of images that this library does not decode.
UNREAD = {".arw", ".cr2", ".cr3", ".dng", ".eps", ".heic", ".heif", ".ico", ".jxl", ".nef", ".npy", ".pdf", ".psd",
          ".raw", ".svg"}  # fmt: skip


def check_layout(source: Source, names: Sequence[str], path: str, where: str) -> None:
    """Raise ValueError if the top-level folders are almost certainly not classes."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    subfolders = {name.split("/")[1] for name in names if name.count("/") > 1}
    first, listing = min(tops, default=""), min(source.listings, default="")
    remedy = f"bind ImageFolder.path = {f'{path}/{first}'!r}"
    if len(tops) > 1 and {name.lower() for name in tops} <= PARTS:
        part = next((name for name in sorted(tops) if name.lower() in ("train", "training")), first)
        other = next(name for name in sorted(tops, reverse=True) if name != part)
        raise ValueError(
            f"{where} has the folders {', '.join(sorted(tops))}, which are splits of a data set, not classes. "
            f"Bind ImageFolder.path = {f'{path}/{part}'!r}; images.gin holds out a tenth of it for evaluation. To "
            f"evaluate on {other} instead, also bind held_out/ImageFolder.path = {f'{path}/{other}'!r}, "
            "ImageFolder.split = 'all' and held_out/ImageFolder.split = 'all'"
        )
    if len(tops) > 1 or tops and len(source.folders) > 1:
        return
    if f"{first}/dataset.json" in source.listings:
        problem = f" has one folder, {first}, which contains the dataset.json with labels: {remedy}"
    elif len(subfolders) > 1:
        problem = (
            f" has one folder, {first}, which would be the only class. If the {len(subfolders)} folders in it "
            f"({few(sorted(subfolders))}) are the classes, {remedy}"
        )
    elif listing:
        problem = f": {_not_read(listing)}"
    else:
        return
    raise ValueError(f"{where}{problem}; or, for images without labels, ImageFolder.num_classes = 1")


def warnings_of(source: Source) -> list[str]:
    """Return warnings about ignored files that may have been meant to be used."""
    unread = ", ".join(f"{count:,} {suffix}" for suffix, count in source.left_out.items() if suffix in UNREAD)
    warnings = [f"ignoring files with unsupported extensions: {unread}; convert them to .png or .jpg"] if unread else []
    if listing := min(source.listings - {"dataset.json"}, default=None):
        warnings.append(f"labels are taken from the folders: {_not_read(listing)}")
    return warnings


def _not_read(listing: str) -> str:
    if listing.endswith("dataset.json"):
        return f"{listing} is read only at the root: move it there, or bind ImageFolder.path to its folder"
    return (
        f"{listing} is not read. To use its labels, create a Hugging Face data set (table = datasets.load_dataset("
        "'imagefolder', data_dir=...)['train']; for text labels, table = table.class_encode_column('label'); "
        "table.save_to_disk(folder)), bind IMAGES to that folder, and add --gin_file=hugging_face.gin as the last file"
    )
