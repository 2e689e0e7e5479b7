"""Checkpoints as other programs write them: the same formats for a model, an encoder and an autoencoder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from redi.fusion import sincos_positions
from redi.models.autoencoders import StableVAE
from redi.models.published.file import read_published
from redi.models.published.layout import Layout
from redi.models.published.parse import published_shapes
from redi.models.published.weights import from_published

State = dict[str, Tensor]


def zeros(state: State) -> State:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def behind(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def torch_file(content: Callable[[State], object]) -> Callable[[State, Path], Path]:
    def write(state: State, folder: Path) -> Path:
        torch.save(content(state), folder / "last.pt")
        return folder / "last.pt"

    return write


def alone(state: State, folder: Path) -> Path:
    save_file(state, folder / "any_name.safetensors")
    return folder


def shards(suffix: str, index: str) -> Callable[[State, Path], Path]:
    def write(state: State, folder: Path) -> Path:
        names, places = sorted(state), {}
        for i in range(2):
            part, file = {name: state[name] for name in names[i::2]}, f"part-{i}-of-2{suffix}"
            save_file(part, folder / file) if suffix == ".safetensors" else torch.save(part, folder / file)
            places |= dict.fromkeys(part, file)
        (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
        return folder

    return write


OTHERS = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(9)}}}}
FORMATS = {
    **{
        name: torch_file(lambda s, name=name: {name: s, **OTHERS})
        for name in (
            "state_dict", "state_dict_ema", "model_state_dict", "model", "ema", "model_ema", "teacher", "student",
            "module",
        )
    },
    **{
        prefix: torch_file(lambda s, prefix=prefix: behind(prefix, s))
        for prefix in (
            "ema_model.", "model.", "net.", "module.", "_orig_mod.", "backbone.", "any.other.one.", "module._orig_mod.",
        )
    },
    "ema and model": torch_file(lambda s: {"model": zeros(s), "ema": behind("module.", s), **OTHERS}),
    "lightning": torch_file(
        lambda s: {"state_dict": behind("model.", zeros(s)) | behind("ema_model.", s), "global_step": 7}
    ),
    "ema-pytorch": torch_file(
        lambda s: {
            "ema": {"step": torch.tensor(5)} | behind("online_model.", zeros(s)) | behind("ema_model.", s),
            "model": zeros(s),
        }
    ),
    "an average's settings": torch_file(lambda s: {"ema": {"decay": torch.tensor(0.9)}, "model": s}),
    "teacher with a head": torch_file(
        lambda s: {
            "student": behind("backbone.", zeros(s)), "teacher": behind("backbone.", s) | {"head.w": torch.ones(1)},
        }
    ),
    "AveragedModel": torch_file(lambda s: behind("module.", s) | {"n_averaged": torch.tensor(3)}),
    "containers in containers": torch_file(lambda s: {"model": {"state_dict": behind("net.", s)}}),
    "a folder with one file": alone,
    "safetensors shards": shards(".safetensors", "model.safetensors.index.json"),
    "torch shards": shards(".bin", "pytorch_model.bin.index.json"),
}  # fmt: skip


def dit() -> State:
    layout = Layout(32, 1, 2, 4, 4, (4, 4), 5, 128)
    generator = torch.Generator().manual_seed(0)
    state = {n: 0.1 * torch.randn(s, generator=generator) for n, s in published_shapes(layout).items()}
    return state | {"pos_embed": sincos_positions((4, 4), 32)[None]}


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_is_read_from_every_format(name, tmp_path):
    state = dit()
    path = FORMATS[name](state, tmp_path)
    imported = from_published(read_published(path).state(), num_heads=2).state
    expected = from_published(state, num_heads=2).state
    assert imported.keys() == expected.keys()
    assert all(torch.equal(imported[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", FORMATS)
def test_an_encoder_is_read_from_every_format(name, tmp_path, tiny_timm, tiny_encoder):
    path = FORMATS[name](tiny_timm.random_state("test_vit.r160_in1k"), tmp_path)
    images = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    features = tiny_encoder("Timm", weights=str(path))(images)
    assert torch.equal(features, tiny_encoder("Timm")(images)) and features.std() > 0


@pytest.mark.parametrize("name", ["ema and model", "lightning", "net.", "safetensors shards", "torch shards"])
def test_an_autoencoder_is_read_from_the_same_formats(name, tmp_path, vae_folders):
    source = vae_folders["StableVAE"]
    shutil.copy(source / "config.json", tmp_path)
    path = FORMATS[name](load_file(source / "diffusion_pytorch_model.safetensors"), tmp_path)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    images = StableVAE(weights=str(path)).decode(latents)
    assert torch.equal(images, StableVAE(weights=str(source)).decode(latents))


def test_the_log_says_which_weights_are_read(tmp_path, caplog):
    caplog.set_level("INFO", logger="redi")
    read_published(FORMATS["lightning"](dit(), tmp_path))
    assert "last.pt: ema weights in state_dict.ema_model.*, model weights in state_dict.model.*" in caplog.text


def test_a_missing_shard_is_named(tmp_path):
    FORMATS["safetensors shards"](dit(), tmp_path)
    (tmp_path / "part-1-of-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"json lists part-1-of-2.safetensors, but 1 of 2 shards are missing from"):
        read_published(tmp_path)


def test_a_shard_that_lacks_a_tensor_of_the_index_is_named(tmp_path):
    FORMATS["safetensors shards"](dit(), tmp_path)
    save_file({"other": torch.ones(1)}, tmp_path / "part-1-of-2.safetensors")
    with pytest.raises(ValueError, match=r"lists \S+ in part-1-of-2.safetensors, which lacks it"):
        read_published(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "[" * 100_000])
def test_an_index_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="index.json is not an index of shards"):
        read_published(tmp_path)


def test_a_shard_outside_of_the_folder_is_not_read(tmp_path):
    (tmp_path / "inside").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    index = tmp_path / "inside" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(ValueError, match="lists x.safetensors, but .* missing from .*inside"):
        read_published(tmp_path / "inside")
