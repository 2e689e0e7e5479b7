"""Trained models as folders, and what would be uploaded to the hub. No network is asked."""

import argparse
import hashlib
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import redi
from redi.core import config
from redi.core.channels import Channels
from redi.core.clocks import Learned
from redi.fusion import sincos_positions
from redi.models.published.layout import Layout
from redi.models.published.parse import published_shapes
from redi.runs.convert import import_checkpoint
from redi.runs.experiment import Experiment
from redi.runs.stages import train_stage
from redi.runtime.checkpoint import list_checkpoints
from redi.runtime.checksums import OWN_HASH

ROOT = Path(__file__).resolve().parents[1]


def checkpoint(path, c, args=None):
    torch.manual_seed(0)
    layout = Layout(
        width=64, depth=1, patch_size=2, in_channels=c, out_channels=c, patch_grid=(4, 4), num_classes=5,
        mlp_hidden=256,
    )  # fmt: skip
    state = {name: 0.1 * torch.randn(shape) for name, shape in published_shapes(layout).items()}
    state |= {"pos_embed": sincos_positions((4, 4), 64)[None]}
    torch.save({"ema": state, "args": argparse.Namespace(**args)} if args else state, path)
    return path


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run on pixels, with metrics."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "mine.gin").write_text("include 'plain.gin'\n")
    path = checkpoint(folder / "pixels.pt", 3)
    import_checkpoint(path, folder / "run", framework="sit", gin_files=[str(folder / "mine.gin")])
    drawn = {
        "checkpoint_step": 0,
        "sampler": {"name": "Heun"},
        "function_evaluations": 50,
        "guidance": [],
        "seeds": [3],
    }
    metric = {"metric": "frechet_distance_domain_network", "value": 12.34, "num_samples": 1000, "samples": drawn}
    later = metric | {"value": 99.9, "samples": drawn | {"checkpoint_step": 7}}
    (folder / "run" / "metrics.json").write_text(json.dumps([metric, later]))
    return folder / "run"


@pytest.fixture
def saved(run_dir, tmp_path) -> Path:
    return redi.save_pretrained(run_dir, tmp_path / "model")


def draw(run):
    sampler = redi.samplers.Euler(num_evaluations=2)
    return redi.generate(run.model, run.codec, run.process, labels=[0, 3], sampler=sampler).x


def test_a_saved_model_draws_what_the_run_draws(run_dir, saved):
    assert torch.equal(draw(redi.from_pretrained(saved, device="cpu")), draw(redi.load(run_dir, device="cpu")))


def test_class_names_travel_and_stand_for_labels(run_dir, tmp_path):
    run = redi.load(run_dir, device="cpu")
    run.class_names = ["ant", "bee", "cow", "dog", "eel"]
    run = redi.from_pretrained(redi.save_pretrained(run, tmp_path / "model"), device="cpu")
    assert run.class_names == ["ant", "bee", "cow", "dog", "eel"]
    settings = {"sampler": redi.samplers.Euler(num_evaluations=2)}
    assert torch.equal(run.generate(["dog", 0], **settings).x, run.generate([3, 0], **settings).x)
    with pytest.raises(ValueError, match="no class is named 'dogs'; did you mean 'dog'"):
        run.generate(["dogs"], **settings)


def test_it_holds_safetensors_json_text_and_no_pickle(saved):
    assert sorted(path.name for path in saved.iterdir()) == [
        "README.md", "config.gin", "metrics.json", "model.safetensors", "record.json",
    ]  # fmt: skip


def test_the_record_lists_every_file_with_its_hash(saved):
    listed = json.loads((saved / "record.json").read_text())["files"]
    raw = {path.name: path.read_bytes() for path in saved.iterdir() if path.name != "record.json"}
    assert {name: entry["sha256"] for name, entry in listed.items()} == {
        name: hashlib.sha256(content).hexdigest() for name, content in raw.items()
    }


def test_a_save_that_fails_leaves_the_model_before_and_can_be_repeated(run_dir, saved):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    run = redi.load(run_dir, device="cpu")
    run.record = run.record | {"seed": object()}  # cannot be written as JSON, which comes last
    with pytest.raises(TypeError):
        redi.save_pretrained(run, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    redi.save_pretrained(run_dir, saved)


def test_an_opened_model_can_be_saved_again(saved, tmp_path):
    again = redi.save_pretrained(redi.from_pretrained(saved, device="cpu"), tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()
    assert (again / "config.gin").read_text() == (saved / "config.gin").read_text()


def test_the_card_tells_numbers_of_this_checkpoint_and_leaves_the_licence_open(saved):
    card = (saved / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: redi\nlicense: other\n")
    assert "| frechet_distance_domain_network | 12.34 | 1000 | Heun, 50 evaluations, guidance: none, seed 3 |" in card
    assert "99.9" not in card  # of another step
    assert 'redi.from_pretrained("' in card and "**to be chosen**" in card
    assert "Imported from `pixels.pt` (SHA-256" in card


def test_a_model_without_metrics_says_so(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    folder = redi.save_pretrained(tmp_path / "run", tmp_path / "model")
    assert "Not measured." in (folder / "README.md").read_text() and not (folder / "metrics.json").exists()


def test_fitted_reducers_travel_and_the_path_of_the_fit_does_not(tmp_path):
    reducer = redi.reducers.PCA(rank=8, standardize=True, scale="raw")
    torch.manual_seed(0)
    reducer.fit([torch.randn(2, 768, 4, 4)])
    reducer.save(tmp_path / "a fit at some long path that gin breaks the line for, as it does beyond 80 characters")
    (fit,) = tmp_path.iterdir()
    path = checkpoint(tmp_path / "redi.pt", 12)
    import_checkpoint(path, tmp_path / "run", framework="sit", gin_bindings=[f"PCA.path = '{fit}'"])
    folder = redi.save_pretrained(tmp_path / "run", tmp_path / "model")
    shutil.rmtree(fit)
    found = redi.from_pretrained(folder, device="cpu").codec.representations["dinov2"].reducer
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in reducer.state_dict().items())
    assert str(fit) not in (folder / "config.gin").read_text()


def write_config(folder, text):
    """As somebody who publishes a model with this configuration would."""
    (folder / "config.gin").write_text(text)
    record = json.loads((folder / "record.json").read_text())
    record.pop(OWN_HASH)
    record["files"]["config.gin"] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "record.json").write_text(json.dumps(record))


def read_config(folder) -> str:
    return (folder / "config.gin").read_text()


LOADING = ["import antigravity", "from os import path", "include 'other.gin'", "  import antigravity", "\\\nimport x.y"]


@pytest.mark.parametrize("statement", LOADING)
def test_a_configuration_that_loads_code_is_refused_unless_trusted(saved, statement):
    write_config(saved, f"{statement}\n{read_config(saved)}")
    with pytest.raises(ValueError, match=r"contains .*would run code.*(plugin=|--gin_file).*trust_code=True"):
        redi.from_pretrained(saved)


def test_no_module_is_imported_before_the_refusal_and_a_trusted_one_is(saved, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_plugin.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    write_config(saved, f"import their_plugin\n{read_config(saved)}")
    with pytest.raises(ValueError, match="import their_plugin"):
        redi.from_pretrained(saved)
    assert not (tmp_path / "ran").exists()
    redi.from_pretrained(saved, trust_code=True, device="cpu")
    assert (tmp_path / "ran").exists()


def test_words_in_strings_and_comments_load_nothing(saved):
    write_config(saved, read_config(saved) + "\n# import os\nIMAGES = 'import os; include this'\n")
    redi.from_pretrained(saved, device="cpu")


def test_altered_weights_are_refused(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ValueError, match="was altered"):
        redi.from_pretrained(saved)


def test_an_altered_configuration_is_refused(saved):
    text = read_config(saved)
    (saved / "config.gin").write_text(text.replace("1", "2", 1))
    with pytest.raises(ValueError, match=r"config\.gin was altered"):
        redi.from_pretrained(saved)


def test_the_card_may_be_completed(saved):
    (saved / "README.md").write_text("---\nlicense: mit\n---\n")
    assert redi.from_pretrained(saved, device="cpu").num_classes == 5


def test_a_record_without_the_configuration_is_refused(saved):
    record = json.loads((saved / "record.json").read_text())
    del record["files"]["config.gin"], record[OWN_HASH]
    (saved / "record.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"record\.json lists no config\.gin"):
        redi.from_pretrained(saved)


def test_a_model_with_a_vector_travels(tiny_gin, tmp_path):
    bindings = ["JointCodec.representations = [@Representation(), @token/Representation()]", "train.num_steps = 1"]
    bindings += ["token/Representation.vector = 'pooled'", "token/PCA.rank = 5", "train.device = 'cpu'"]
    with config.isolated():
        config.parse([tiny_gin], bindings)
        experiment = Experiment(tmp_path / "run")
        experiment.claim(trains=True)
        train_stage(experiment)
    folder = redi.save_pretrained(tmp_path / "run", tmp_path / "model")
    assert redi.from_pretrained(folder, device="cpu").codec.channels.vectors == {"domain_pooled": 5}


@pytest.mark.parametrize(
    "claim",
    [
        {"num_classes": 10**12},
        {"channels": {"image": 1, "z": {"length": "5", "channels": 1}}},
        {"channels": {"image": -1}},
        {"channels": [3]},
        {"grid": 7},
        {"grid": [4, "4"]},
    ],
)
def test_a_record_of_absurd_claims_is_refused_before_anything_is_built(saved, claim):
    record = json.loads((saved / "record.json").read_text())
    del record[OWN_HASH]
    record["model_arguments"] |= claim
    (saved / "record.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"record\.json does not describe a model saved by redi"):
        redi.from_pretrained(saved, device="cpu")


def test_the_folder_of_a_run_is_told_from_a_saved_model(run_dir):
    with pytest.raises(ValueError, match=r"record\.json is missing"):
        redi.from_pretrained(run_dir)
    with pytest.raises(ValueError, match="not written by save_pretrained; open a run folder with redi.load"):
        redi.from_pretrained(list_checkpoints(run_dir)[-1])


def test_a_folder_with_other_things_is_not_overwritten(run_dir, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds files besides"):
        redi.save_pretrained(run_dir, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_no_model_is_written_over_a_run_or_its_checkpoint(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    (newest,) = list_checkpoints(tmp_path / "run")
    for folder in (tmp_path / "run", newest):
        with pytest.raises(ValueError, match="holds files besides a saved model"):
            redi.save_pretrained(tmp_path / "run", folder)
    assert draw(redi.load(tmp_path / "run", device="cpu")).shape == (2, 3, 8, 8)


def test_a_model_is_not_replaced_together_with_what_was_added_to_it(run_dir, saved):
    (saved / ".git").mkdir()
    with pytest.raises(ValueError, match=r"files besides a saved model \(\.git\)"):
        redi.save_pretrained(run_dir, saved)


# ---- paths


def tiny_vae(folder) -> Path:
    logging.getLogger("xformers").setLevel(logging.ERROR)
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    network = AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, **blocks)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alices(tmp_path_factory) -> tuple[Path, Path]:
    """(run, VAE) of a plain model with paths to data set, cache and VAE."""
    folder = tmp_path_factory.mktemp("alice")
    vae = tiny_vae(folder / "vae")
    path = checkpoint(folder / "sit.pt", 4, {"path_type": "Linear", "data_path": "/home/alice/imagenet"})
    bindings = [
        "IMAGES = '/home/alice/imagenet'", "prepare.cache_dir = '/home/alice/cache'", f"StableVAE.weights = '{vae}'",
        "evaluate.cache_dir = '~/cache'", "evaluate.reference = @held_out/datasets.ImageFolder()",
        "held_out/ImageFolder.path = '/home/alice/held_out'",
    ]  # fmt: skip
    import_checkpoint(path, folder / "run", framework="sit", gin_bindings=bindings)
    return folder / "run", vae


def test_paths_of_data_and_caches_stay_at_home_and_settings_travel(alices, tmp_path):
    folder = redi.save_pretrained(alices[0], tmp_path / "model")
    texts = {path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors"}
    assert [name for name, text in texts.items() if "alice/" in text.replace(str(alices[1]), "")] == []
    bound = config.statements(texts["config.gin"])
    assert [key for key in bound if key.split(".")[0] in ("prepare", "evaluate", "ImageFolder", "IMAGES")] == []
    assert "train.dataset" not in bound and "'/home/alice/imagenet'" in read_config(alices[0])
    kept = config.statements(read_config(alices[0]))
    for key in ("generate.sampler", "train.batch_size", "AdamW.lr", "DiffusionTransformer.width", "EMA.decay"):
        assert bound[key] == kept[key]
    assert json.loads(texts["record.json"])["published"]["args"] == {"path_type": "Linear"}


def test_absolute_paths_that_remain_are_warned_of_by_name(alices, tmp_path, caplog):
    redi.save_pretrained(alices[0], tmp_path / "model")
    (message,) = [record.getMessage() for record in caplog.records if record.name == "redi.runs.hub"]
    assert "absolute paths: StableVAE.weights. " in message and str(alices[1]) not in message


def test_weights_that_lie_elsewhere_are_bound_when_a_model_is_opened(alices, tmp_path):
    shutil.copytree(alices[0], tmp_path / "run")
    shutil.copytree(alices[1], tmp_path / "vae")
    text = read_config(alices[0]).replace(str(alices[1]), "/nowhere/vae")
    (tmp_path / "run" / "config.gin").write_text(text)
    with pytest.raises(ValueError, match=r"StableVAE\.weights"):
        redi.load(tmp_path / "run", device="cpu")
    bindings = [f"StableVAE.weights = '{tmp_path / 'vae'}'"]
    run = redi.load(tmp_path / "run", device="cpu", gin_bindings=bindings)
    folder = redi.save_pretrained(alices[0], tmp_path / "model")
    write_config(folder, read_config(folder).replace(str(alices[1]), "/nowhere/vae"))
    with pytest.raises(ValueError, match=r"StableVAE\.weights"):
        redi.from_pretrained(folder, device="cpu")
    opened = redi.from_pretrained(folder, device="cpu", gin_bindings=bindings)
    expected = draw(redi.load(alices[0], device="cpu"))
    assert torch.equal(draw(run), expected) and torch.equal(draw(opened), expected)


def test_a_model_is_saved_with_the_bindings_that_it_was_opened_with(alices, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(alices[1].parent)
    run = redi.load(alices[0], device="cpu", gin_bindings=["StableVAE.weights = 'vae'"])
    folder = redi.save_pretrained(run, tmp_path / "model")
    assert config.statements(read_config(folder))["StableVAE.weights"] == "'vae'"
    assert "alice" not in read_config(folder) and "absolute paths" not in caplog.text


def test_saving_leaves_the_configuration_at_hand(alices, tmp_path):
    config.parse([], ["PCA.rank = 3"])
    before = config.full_text()
    redi.save_pretrained(alices[0], tmp_path / "model")
    assert config.full_text() == before


def test_bindings_of_nothing_in_a_model_are_warned_of(saved, caplog):
    redi.from_pretrained(saved, device="cpu", gin_bindings=["ImageFolder.path = 'images'"])
    assert "unused bindings, which no component in use refers to: ImageFolder.path" in caplog.text


def test_bindings_for_a_run_built_without_gin_are_refused(run_dir):
    codec = redi.JointCodec()
    with pytest.raises(ValueError, match=r"gin_bindings = \['PCA\.rank = 4'\] have no effect on the codec="):
        redi.load(run_dir, device="cpu", codec=codec, gin_bindings=["PCA.rank = 4"])


# ---- the hub


def test_a_name_that_is_nowhere_is_refused(monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match="some/model is not a local folder, and downloading it failed: no network"):
        redi.from_pretrained("some/model")


def test_a_repository_is_opened_like_the_folder_that_it_is_downloaded_to(saved, monkeypatch):
    import huggingface_hub

    def download(repo_id, revision, allow_patterns):
        assert (repo_id, revision) == ("some/model", "v1") and "*.safetensors" in allow_patterns
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert redi.from_pretrained("some/model", revision="v1", device="cpu").num_classes == 5


class FolderHub:
    """The two calls of `huggingface_hub.HfApi`, on a folder."""

    def __init__(self, root):
        self.root, self.private = root, None

    def create_repo(self, repo_id, *, private, exist_ok):
        self.private = private
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, *, repo_id, folder_path, revision, commit_message, allow_patterns):
        for path in Path(folder_path).iterdir():
            assert any(path.match(pattern) for pattern in allow_patterns), path
            shutil.copy(path, self.root / repo_id / path.name)
        return f"https://hub/{repo_id}/commit/{revision}"


def test_what_is_pushed_opens_as_what_was_saved(run_dir, tmp_path):
    hub = FolderHub(tmp_path)
    address = redi.push_to_hub(run_dir, "me/model", revision="main", api=hub)
    assert address == "https://hub/me/model/commit/main" and hub.private is True
    assert torch.equal(draw(redi.from_pretrained(tmp_path / "me/model", device="cpu")), draw(redi.load(run_dir)))


def test_the_real_client_has_the_calls_that_are_made():
    import inspect

    from huggingface_hub import HfApi

    create, upload = inspect.signature(HfApi.create_repo), inspect.signature(HfApi.upload_folder)
    assert {"repo_id", "private", "exist_ok"} <= set(create.parameters)
    wanted = {"repo_id", "folder_path", "revision", "commit_message", "allow_patterns"}
    assert wanted <= set(upload.parameters)


def test_the_hub_client_is_imported_only_where_it_is_used():
    code = "import sys, redi.runs.hub; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("probe", [True, False], ids=["a probe", "a found clock"])
def test_a_learned_clock_travels_with_the_model(probe, tiny_gin, tmp_path):
    clock = Learned(start=3.0).for_channels(Channels(image=1, domain=2)).artefacts()["clock.json"]
    (tmp_path / "clock.json").write_text(json.dumps(clock))
    bindings = ["Learned.start = 3.0"] if probe else [f"CLOCK = '{tmp_path}'"]
    config.parse([tiny_gin, f"levers/{'clock_probe' if probe else 'learned_clock'}.gin"], bindings)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.gin").write_text(config.full_text())
    train_stage(Experiment(folder))
    run = redi.load(folder)
    saved = redi.save_pretrained(run, tmp_path / "model")
    (tmp_path / "clock.json").unlink()
    opened = redi.from_pretrained(saved)
    assert opened.process.clock.time("image", 0.5) == run.process.clock.time("image", 0.5) != 0.5
    assert torch.equal(draw(opened), draw(run))
    if not probe:
        with pytest.raises(ValueError, match=r"clocks\.Learned\.path = .*: there is no .*clock\.json"):
            redi.load(folder)
        again = redi.load(folder, gin_bindings=[f"Learned.path = '{folder}'"])  # its copy
        assert torch.equal(draw(again), draw(run))
