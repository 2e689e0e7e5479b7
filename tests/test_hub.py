"""Trained models as folders, and what would be uploaded to the hub. No network is asked."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import redi
from redi.convert import import_checkpoint
from redi.core.checkpoint import list_checkpoints
from redi.fusion import sincos_positions
from redi.models.published_layout import Layout, published_shapes

ROOT = Path(__file__).resolve().parents[1]


def checkpoint(path, c):
    torch.manual_seed(0)
    layout = Layout(
        width=64, depth=1, patch_size=2, in_channels=c, out_channels=c, patch_grid=(4, 4), num_classes=5,
        mlp_hidden=256,
    )  # fmt: skip
    state = {name: 0.1 * torch.randn(shape) for name, shape in published_shapes(layout).items()}
    torch.save(state | {"pos_embed": sincos_positions((4, 4), 64)[None]}, path)
    return path


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run on pixels, with metrics."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "mine.gin").write_text("include 'plain.gin'\n")
    path = checkpoint(folder / "pixels.pt", 3)
    import_checkpoint(path, folder / "run", framework="sit", gin_files=[str(folder / "mine.gin")])
    metric = {"metric": "frechet_distance_domain_network", "value": 12.34, "num_samples": 1000, "checkpoint_step": 0}
    metric |= {"sampler": {"name": "Heun"}, "function_evaluations": 50, "guidance": [], "seed": 3}
    (folder / "run" / "metrics.json").write_text(json.dumps([metric, metric | {"value": 99.9, "checkpoint_step": 7}]))
    return folder / "run"


@pytest.fixture
def saved(run_dir, tmp_path) -> Path:
    return redi.save_pretrained(run_dir, tmp_path / "model")


def draw(run):
    sampler = redi.samplers.Euler(num_evaluations=2)
    return redi.generate(run.model, run.codec, run.process, labels=[0, 3], sampler=sampler).x


def test_a_saved_model_draws_what_the_run_draws(run_dir, saved):
    assert torch.equal(draw(redi.from_pretrained(saved, device="cpu")), draw(redi.load(run_dir, device="cpu")))


def test_it_holds_safetensors_json_text_and_no_pickle(saved):
    assert sorted(path.name for path in saved.iterdir()) == [
        "README.md", "config.gin", "metrics.json", "model.safetensors", "record.json",
    ]  # fmt: skip


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


LOADING = ["import antigravity", "from os import path", "include 'other.gin'", "  import antigravity", "\\\nimport x.y"]


@pytest.mark.parametrize("statement", LOADING)
def test_a_configuration_that_loads_code_is_refused_unless_trusted(saved, statement):
    config = saved / "config.gin"
    config.write_text(f"{statement}\n{config.read_text()}")
    with pytest.raises(ValueError, match=r"config\.gin says .*would run code.*trust_code=True"):
        redi.from_pretrained(saved)


def test_no_module_is_imported_before_the_refusal_and_a_trusted_one_is(saved, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_plugin.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    config = saved / "config.gin"
    config.write_text(f"import their_plugin\n{config.read_text()}")
    with pytest.raises(ValueError, match="import their_plugin"):
        redi.from_pretrained(saved)
    assert not (tmp_path / "ran").exists()
    redi.from_pretrained(saved, trust_code=True, device="cpu")
    assert (tmp_path / "ran").exists()


def test_words_in_strings_and_comments_load_nothing(saved):
    config = saved / "config.gin"
    config.write_text(config.read_text() + "\n# import os\nIMAGES = 'import os; include this'\n")
    redi.from_pretrained(saved, device="cpu")


def test_altered_weights_are_refused(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ValueError, match="was altered"):
        redi.from_pretrained(saved)


def test_the_folder_of_a_run_is_told_from_a_saved_model(run_dir):
    with pytest.raises(ValueError, match=r"record\.json is missing"):
        redi.from_pretrained(run_dir)
    with pytest.raises(ValueError, match="not written by save_pretrained; for the folder of a run: redi.load"):
        redi.from_pretrained(list_checkpoints(run_dir)[-1])


def test_a_folder_with_other_things_is_not_overwritten(run_dir, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds other things"):
        redi.save_pretrained(run_dir, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_a_name_that_is_nowhere_is_refused(monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match="some/model: no such folder here, and not to be had from the hub: no network"):
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
    code = "import sys, redi.hub; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
