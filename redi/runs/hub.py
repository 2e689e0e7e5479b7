"""Trained models as folders to share: safetensors, JSON, the configuration and a model card; and the hub of them.

redi.save_pretrained("runs/mine", "shared/mine")
run = redi.from_pretrained("someone/their-model")
"""

import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

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
CARD = "README.md"  # completed by hand before the model is published, and so the one file that may change
BESIDE = ("metrics.json", "samples.png")  # copied from a run's folder
FILES = (RECORD, CONFIG, CARD, "*.safetensors", *BESIDE)
MAX_SIZE = 10**6  # of classes, channels, or pixels along a side
# The start of a text with an absolute path, in a value of a gin file: /..., ~/..., C:\...
ABSOLUTE = re.compile(r"""['"](?:~?/|[A-Za-z]:[\\/])""")


def save_pretrained(run: Run | str | Path, folder: str | Path) -> Path:
    """Write what sampling needs: EMA weights, fitted reducers and encoders, colours, config.gin, a model card.

    Left out are the weights of pretrained autoencoders and encoders, and the bindings that only the data set, `prepare`
    and `evaluate` take. Absolute paths that remain in config.gin are warned of.

    Args:
        run: an opened run, or its folder.
        folder: written as a whole or not at all; replaced if it holds nothing but what this function wrote before.

    Raises:
        ValueError: a run without config.gin, or a `folder` that holds something else.
        OSError: the disk is full or not writable; `folder` is as it was.
    """
    run = run if isinstance(run, Run) else load(run, device="cpu")
    folder = local_path(folder)
    if run.folder is None or not (run.folder / CONFIG).is_file():
        raise ValueError("this run has no config.gin, which is what says how to build it: train it with the programs")
    if others := _not_saved_here(folder):
        raise ValueError(f"{folder} holds other things than a saved model ({', '.join(others)}): choose another folder")
    weights = run.model.state_dict() | run.weights["ema"]  # buffers, and the averages
    tensors = {"model": weights, "codec": run.codec.learned_state(), "colours": run.colours.tensors}
    kept = ("model_arguments", "image_size", "seed", "codec", "dataset", "published", "plug_ins")
    record = {"format": FORMAT, "step": run.step} | {key: run.record[key] for key in kept if key in run.record}
    record |= {"class_names": run.class_names} if run.class_names else {}
    if published := record.get("published"):  # whose settings may name folders of whoever trained it
        args = {name: value for name, value in published["args"].items() if not ABSOLUTE.search(repr(value))}
        record["published"] = published | {"args": args}
    metrics = _metrics(run)
    extra = {CONFIG: _portable(run), CARD: model_card(run, metrics)}
    for name in BESIDE:
        if (run.folder / name).is_file() and (name != "metrics.json" or metrics):
            extra[name] = (run.folder / name).read_bytes()
    save_artefact(folder, {name: group for name, group in tensors.items() if group}, record, extra=extra)
    return folder


def from_pretrained(
    name_or_folder: str | Path, *, revision: str | None = None, gin_bindings: Sequence[str] = (),
    plugins: Sequence[str] = (), trust_code: bool = False, device: str = "auto",
) -> Run:  # fmt: skip
    """Open what `save_pretrained` wrote: a folder, or a repository of the Hugging Face hub (kept in the hub's cache).

    Weights are safetensors and cannot run code. The configuration could: gin imports the Python modules that it names.
    Only those of this library, and those you name, are imported unless you trust the source.

    Args:
        revision: branch, tag or commit of the repository.
        gin_bindings: win over its config.gin, as "StableVAE.weights = 'where/they/are/here'".
        plugins: packages or modules that config.gin may import, as 'my_lab': their code runs.
        trust_code: let config.gin import whatever it says.

    Raises:
        ValueError: no such model, an altered one (but for the model card), or a configuration that imports modules.
    """
    folder = local_path(name_or_folder)
    if not folder.is_dir():
        folder = _download(str(name_or_folder), revision)
    try:
        tensors, record = load_artefact(folder, editable=(CARD,))
    except BrokenArtefact as error:
        raise ValueError(f"cannot open {name_or_folder}: {error}") from None
    if record.get("format") != FORMAT:
        raise ValueError(f"{folder} was not written by save_pretrained; for the folder of a run: redi.load")
    if CONFIG not in record["files"]:
        raise ValueError(f"{folder / RECORD} lists no {CONFIG}, which says how to build the model: save it again")
    _check_claims(folder, tensors, record)
    trusted_imports.name(*plugins)
    if trust_code:
        trusted_imports.name(*trusted_imports.imported(folder / CONFIG))
    try:
        config.read_saved(folder / CONFIG)
    except ValueError as error:
        advice = "" if trust_code else "; or, for whatever it imports, from_pretrained(..., trust_code=True)"
        raise ValueError(f"{error}{advice}") from None
    groups = {"ema": tensors["model"], "codec": tensors.get("codec", {}), "colours": tensors.get("colours", {})}
    return open_configured(folder, folder, groups, record, device=choose_device(device), gin_bindings=gin_bindings)


def push_to_hub(
    run: Run | str | Path, repo_id: str, *, private: bool = True, revision: str | None = None,
    token: str | None = None, commit_message: str = "Upload a redi model", api=None,
) -> str:  # fmt: skip
    """Upload what `save_pretrained` writes to 'name/repository' on the Hugging Face hub -> the address of the commit.

    Args:
        repo_id: created, `private` or not, if it does not exist.
        api: a `huggingface_hub.HfApi`, or an object with its `create_repo` and `upload_folder`; default: a new one.
    """
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_pretrained(run, Path(temporary) / "model")
        api.create_repo(repo_id, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message,
            allow_patterns=list(FILES),
        )  # fmt: skip
    return str(getattr(done, "commit_url", done))


def model_card(run: Run, metrics: list[dict]) -> str:
    """README.md of the model's page."""
    size = sum(tensor.numel() for tensor in run.weights["ema"].values()) / 1e6
    published = (run.record or {}).get("published")
    return render_text("model_card.md", run=run, metrics=metrics, millions=size, published=published)


def _metrics(run: Run) -> list[dict]:
    """metrics.json, less the entries of another checkpoint's samples."""
    path = run.folder / "metrics.json"
    found = json.loads(path.read_text()) if path.is_file() else []
    return [metric for metric in found if metric.get("samples", {}).get("checkpoint_step", run.step) == run.step]


def _not_saved_here(folder: Path) -> list[str]:
    """Names of the files in a folder that `save_pretrained` did not write."""
    try:
        record = read_record(folder)
    except BrokenArtefact:
        record = {}
    written = {RECORD, *record["files"]} if record.get("format") == FORMAT else set()
    return sorted({path.name for path in folder.iterdir()} - written) if folder.exists() else []


def _portable(run: Run) -> str:
    """The configuration that builds the model and draws from it, without the paths of data sets, caches and fits (whose
    state is in the folder); with the bindings that the run was opened with. Warns of other absolute paths.
    """
    reducers = "|".join({type(r.reducer).__name__ for r in run.codec.representations.values()}) or "-"
    local = re.compile(rf"(?:\w+\.)*(?:train\.dataset|(?:{reducers})\.path)$")
    elsewhere = ("audit", "prepare", "evaluate")
    with config.isolated():
        import_all()
        config.parse([], run.gin_bindings, found=[run.folder / CONFIG])
        text = config.text_for([root for root in entry_points if root.__name__ not in elsewhere], local.match)
    if paths := [name for name, value in config.statements(text).items() if ABSOLUTE.search(value)]:
        log.warning(
            "the saved configuration names absolute paths: %s. To save other values, give this function "
            "redi.load(run_dir, gin_bindings=[...]); to open it elsewhere, from_pretrained(..., gin_bindings=[...])",
            ", ".join(paths),
        )
    return text


def _check_claims(folder: Path, tensors: Mapping, record: Mapping) -> None:
    """Raise ValueError where the record lacks what a model is built of, or claims absurd sizes."""
    try:
        arguments = record["model_arguments"]
        sizes = [*arguments["channels"].values(), *arguments["grid"], arguments["num_classes"], record["image_size"]]
        sound = all(type(size) is int and 0 < size <= MAX_SIZE for size in sizes) and type(record["step"]) is int
        names, plug_ins = record.get("class_names") or [], record.get("plug_ins", {})
        sound &= isinstance(names, list) and all(type(name) is str for name in names) and isinstance(plug_ins, dict)
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound or "model" not in tensors:
        raise ValueError(f"{folder / RECORD} does not describe a model that redi has saved: save it again")


def _download(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # whatever the HTTP library of the installed hub client raises
        raise ValueError(f"{repo_id}: no such folder here, and not to be had from the hub: {error}") from None
