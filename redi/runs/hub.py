"""Save, open and publish trained models as portable folders: safetensors, JSON, configuration and model card.

redi.save_pretrained("runs/mine", "shared/mine")
run = redi.from_pretrained("someone/their-model")
"""

import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from redi.core import config
from redi.core.configurables import import_all
from redi.core.registry import entry_points
from redi.pages.render import render_text
from redi.runs.load import Run, load, open_configured
from redi.runtime import trusted_imports
from redi.runtime.artefact import RECORD, load_artefact, read_record, save_artefact
from redi.runtime.checksums import BrokenArtefact
from redi.runtime.device import choose_device
from redi.runtime.paths import local_path

log = logging.getLogger(__name__)

FORMAT = "redi pretrained 1"
CONFIG = "config.gin"
CARD = "README.md"  # the one file that may change: its author completes it before publishing
BESIDE = ("metrics.json", "samples.png")  # copied from the run folder
FILES = (RECORD, CONFIG, CARD, "*.safetensors", *BESIDE)
MAX_SIZE = 10**6  # largest plausible number of classes, channels, or pixels along a side
ABSOLUTE = re.compile(r"""['"](?:~?/|[A-Za-z]:[\\/])""")  # an absolute path in a gin value


def save_pretrained(run: Run | str | Path, folder: str | Path) -> Path:
    """Write everything that sampling needs to one folder; return the folder.

    The folder holds EMA weights, fitted reducers and encoders, the colour basis, config.gin and a model card, but no
    pretrained autoencoders and encoders, and no bindings of the data set, `prepare` and `evaluate`. Absolute paths that
    remain in config.gin cause a warning.

    Args:
        run: an opened run, or its folder.
        folder: written atomically; replaced if it only holds files that this function wrote.

    Raises ValueError: the run has no config.gin, or `folder` holds other files.
    """
    run = run if isinstance(run, Run) else load(run, device="cpu")
    folder = local_path(folder)
    if run.folder is None or not (run.folder / CONFIG).is_file():
        raise ValueError("this run has no config.gin, which is needed to rebuild the model: train it with redi.train")
    if others := _not_saved_here(folder):
        raise ValueError(f"{folder} holds files besides a saved model ({', '.join(others)}): choose another folder")
    weights = run.model.state_dict() | dict(run.weights["ema"])  # buffers and EMA weights
    tensors = {"model": weights, "codec": run.codec.learned_state(), "colours": run.colours.tensors}
    keys = ("model_arguments", "image_size", "seed", "codec", "dataset", "published", "plug_ins")
    assert run.record is not None  # a run with a folder has the record of its checkpoint
    record: dict[str, Any] = {"format": FORMAT, "step": run.step}
    record |= {key: run.record[key] for key in keys if key in run.record}
    record |= {"class_names": run.class_names} if run.class_names else {}
    if published := record.get("published"):  # its training settings may contain private paths
        args = {name: value for name, value in published["args"].items() if not ABSOLUTE.search(repr(value))}
        record["published"] = published | {"args": args}
    metrics = _metrics(run)
    extra: dict[str, str | bytes] = {CONFIG: _portable(run), CARD: model_card(run, metrics)}
    for name in BESIDE:
        if (run.folder / name).is_file() and (name != "metrics.json" or metrics):
            extra[name] = (run.folder / name).read_bytes()
    save_artefact(folder, {name: group for name, group in tensors.items() if group}, record, extra=extra)
    return folder


def from_pretrained(
    name_or_folder: str | Path, *, revision: str | None = None, gin_bindings: Sequence[str] = (),
    plugins: Sequence[str] = (), trust_code: bool = False, device: str = "auto",
) -> Run:  # fmt: skip
    """Open a model that `save_pretrained` wrote, from a folder or a Hugging Face Hub repository; return the run.

    Safetensors files cannot run code, but a configuration can: gin imports the Python modules that it names. Only
    modules of this library and those in `plugins` are imported, unless `trust_code` is set.

    Args:
        name_or_folder: a folder, or 'name/repository' on the hub, downloaded to the hub's cache.
        revision: branch, tag or commit of the repository.
        gin_bindings: override its config.gin, for example "StableVAE.weights = '/path/on/this/machine'".
        plugins: packages or modules that config.gin may import, for example 'my_lab'. Their code runs.
        trust_code: let config.gin import any module.

    Raises ValueError: no such model, a file other than the model card was changed, or the configuration imports a
    module that is not allowed.
    """
    folder = local_path(name_or_folder)
    if not folder.is_dir():
        folder = _download(str(name_or_folder), revision)
    try:
        tensors, record = load_artefact(folder, editable=(CARD,))
    except BrokenArtefact as error:
        raise ValueError(f"cannot open {name_or_folder}: {error}") from None
    if record.get("format") != FORMAT:
        raise ValueError(f"{folder} was not written by save_pretrained; open a run folder with redi.load")
    if CONFIG not in record["files"]:
        raise ValueError(f"{folder / RECORD} lists no {CONFIG}, which is needed to build the model: save it again")
    _check_claims(folder, tensors, record)
    trusted_imports.trust(*plugins)
    if trust_code:
        trusted_imports.trust(*trusted_imports.imported_modules(folder / CONFIG))
    try:
        config.read_saved(folder / CONFIG)
    except ValueError as error:
        advice = "" if trust_code else "; to allow all of its imports: from_pretrained(..., trust_code=True)"
        raise ValueError(f"{error}{advice}") from None
    groups = {"ema": tensors["model"], "codec": tensors.get("codec", {}), "colours": tensors.get("colours", {})}
    return open_configured(folder, folder, groups, record, device=choose_device(device), gin_bindings=gin_bindings)


def push_to_hub(
    run: Run | str | Path, repo_id: str, *, private: bool = True, revision: str | None = None,
    token: str | None = None, commit_message: str = "Upload a redi model", api=None,
) -> str:  # fmt: skip
    """Save a run with `save_pretrained` and upload it to the Hugging Face Hub; return the URL of the commit.

    Args:
        repo_id: 'name/repository'; created if it does not exist.
        private: whether a new repository is private.
        api: a `huggingface_hub.HfApi`, or an object with its `create_repo` and `upload_folder`; default: a new one.
    """
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_pretrained(run, Path(temporary) / "model")
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message,
            allow_patterns=list(FILES),
        )  # fmt: skip
    return str(getattr(commit, "commit_url", commit))


def model_card(run: Run, metrics: list[dict]) -> str:
    """Return the text of the model card (README.md)."""
    size = sum(tensor.numel() for tensor in run.weights["ema"].values()) / 1e6
    published = (run.record or {}).get("published")
    return render_text("model_card.md", run=run, metrics=metrics, millions=size, published=published)


def _metrics(run: Run) -> list[dict]:
    """Return the entries of metrics.json that were measured on samples of this checkpoint."""
    assert run.folder is not None  # checked by `save_pretrained`
    path = run.folder / "metrics.json"
    entries = json.loads(path.read_text()) if path.is_file() else []
    return [entry for entry in entries if entry.get("samples", {}).get("checkpoint_step", run.step) == run.step]


def _not_saved_here(folder: Path) -> list[str]:
    """Return the names of the files in a folder that `save_pretrained` did not write."""
    try:
        record = read_record(folder)
    except BrokenArtefact:
        record = {}
    written = {RECORD, *record["files"]} if record.get("format") == FORMAT else set()
    return sorted({path.name for path in folder.iterdir()} - written) if folder.exists() else []


def _portable(run: Run) -> str:
    """Return the configuration that builds the model and samples from it; warn of absolute paths in it."""
    assert run.folder is not None  # checked by `save_pretrained`
    reducers = "|".join({type(r.reducer).__name__ for r in run.codec.representations.values()}) or "-"
    local = re.compile(rf"(?:\w+\.)*(?:train\.dataset|(?:{reducers})\.path)$")
    omitted = ("audit", "prepare", "evaluate")
    with config.isolated():
        import_all()
        inlined = run.objective.clock.portable() if run.objective else []
        config.parse([], [*run.gin_bindings, *inlined], saved=[run.folder / CONFIG])
        text = config.text_for([root for root in entry_points if root.__name__ not in omitted], local.match)
    if paths := [name for name, value in config.statements(text).items() if ABSOLUTE.search(value)]:
        log.warning(
            "the saved configuration contains absolute paths: %s. To replace them, save the run that "
            "redi.load(run_dir, gin_bindings=[...]) returns, or pass gin_bindings to from_pretrained",
            ", ".join(paths),
        )
    return text


def _check_claims(folder: Path, tensors: Mapping, record: Mapping) -> None:
    """Raise ValueError if the record is incomplete or states implausible sizes."""
    try:
        arguments = record["model_arguments"]
        groups = [size.values() if isinstance(size, dict) else [size] for size in arguments["channels"].values()]
        sizes = [*chain(*groups), *arguments["grid"], arguments["num_classes"], record["image_size"]]
        sound = all(type(size) is int and 0 < size <= MAX_SIZE for size in sizes) and type(record["step"]) is int
        names, plug_ins = record.get("class_names") or [], record.get("plug_ins", {})
        sound &= isinstance(names, list) and all(type(name) is str for name in names) and isinstance(plug_ins, dict)
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound or "model" not in tensors:
        raise ValueError(f"{folder / RECORD} does not describe a model saved by redi: save it again")


def _download(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # the type depends on the HTTP library of the installed hub client
        raise ValueError(f"{repo_id} is not a local folder, and downloading it failed: {error}") from None
