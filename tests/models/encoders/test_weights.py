"""The weights files of the pretrained encoders: formats, what does not fit, what is refused, and the provenance."""

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from redi.models.encoders import DINOv2, Timm
from redi.runtime.checksums import tensors_sha256

REG4 = "vit_tiny_patch14_reg4_dinov2.lvd142m"


def noise_images(n: int, side: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
def test_every_file_format_gives_the_same_features_and_provenance(suffix, tmp_path, tiny_timm, tiny_encoder):
    path = tiny_timm.save(tiny_timm.random_state(REG4), tmp_path / f"weights{suffix}")
    images = noise_images(1, 32)
    for weights in (path, tmp_path):
        encoder = tiny_encoder("DINOv2", weights=str(weights))
        assert torch.equal(encoder(images), tiny_encoder("DINOv2")(images))
        assert encoder.provenance() == tiny_encoder("DINOv2").provenance()


def test_the_averaged_weights_of_a_training_checkpoint_are_taken(tmp_path, tiny_timm, tiny_encoder):
    state = tiny_timm.random_state(REG4)
    checkpoint = {"state_dict": {name: tensor * 0 for name, tensor in state.items()}, "state_dict_ema": state}
    encoder = tiny_encoder("DINOv2", weights=str(tiny_timm.save(checkpoint, tmp_path / "last.pth")))
    assert torch.equal(encoder(noise_images(1, 32)), tiny_encoder("DINOv2")(noise_images(1, 32)))


@pytest.mark.parametrize("classes", [0, 7])
@pytest.mark.parametrize(("model", "classifier"), [("test_vit", "head"), ("test_convnext", "head.fc")])
def test_a_file_with_another_classifier_or_none_is_taken(model, classifier, classes, tmp_path, tiny_timm):
    whole = tiny_timm.random_state(model)
    width = whole[f"{classifier}.weight"].shape[1]
    head = {f"{classifier}.weight": torch.ones(classes, width), f"{classifier}.bias": torch.ones(classes)}
    state = {name: tensor for name, tensor in whole.items() if not name.startswith(f"{classifier}.")}
    state |= head if classes else {}
    paths = [tiny_timm.save(s, tmp_path / f"{i}.safetensors") for i, s in enumerate((whole, state))]
    first, second = (Timm(model=model, weights=str(path)) for path in paths)
    assert torch.equal(first(noise_images(1, 32)), second(noise_images(1, 32)))


def test_a_file_in_bfloat16_gives_features_in_float32(tmp_path, tiny_timm, tiny_encoder):
    state = {name: tensor.bfloat16() for name, tensor in tiny_timm.random_state(REG4).items()}
    encoder = tiny_encoder("DINOv2", weights=str(tiny_timm.save(state, tmp_path / "half.safetensors")))
    assert encoder(noise_images(1, 32)).dtype == torch.float32
    assert encoder.provenance()["weights_sha256"] == tensors_sha256(state)


def test_positions_of_a_file_for_another_size_are_resampled(tmp_path, tiny_timm, tiny_encoder):
    state = tiny_timm.random_state(REG4, img_size=224)
    encoder = tiny_encoder("DINOv2", weights=str(tiny_timm.save(state, tmp_path / "at_224.pth")))
    assert encoder(noise_images(1, 64)).isfinite().all()


@pytest.mark.parametrize("change", ["missing", "surplus", "other shape", "classifier and one weight"])
@pytest.mark.parametrize("model", ["test_vit", "test_convnext"])
def test_weights_that_do_not_fit_whole_are_refused(model, change, tmp_path, tiny_timm):
    state = tiny_timm.random_state(model)
    name = next(key for key in state if key.endswith("norm.bias") or key.endswith("norm.weight"))
    if change in ("missing", "classifier and one weight"):
        del state[name]
    if change == "classifier and one weight":
        state = {key: tensor for key, tensor in state.items() if "head" not in key}
    if change == "surplus":
        state["blocks.99.weight"] = torch.zeros(2)
    if change == "other shape":
        state[name] = torch.zeros(5)
    path = tiny_timm.save(state, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="Timm.weights: .*weights.safetensors does not hold the weights of"):
        Timm(model=model, weights=str(path)).load()


def test_a_missing_weight_is_noticed_where_timm_itself_says_nothing(tmp_path, tiny_timm):
    model = "vit_tiny_patch16_siglip_gap_256"
    state = tiny_timm.random_state("vit_tiny_patch16_siglip_256")  # with weights for pooling, which the model lacks
    path = tiny_timm.save(state, tmp_path / "weights.pth")
    assert Timm(model=model, weights=str(path))(noise_images(1, 32)).isfinite().all()
    del state["blocks.1.attn.qkv.bias"]
    tiny_timm.save(state, path)
    timm.create_model(model, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    with pytest.raises(ValueError, match="Timm.weights: .*weights.pth lacks blocks.1.attn.qkv.bias"):
        Timm(model=model, weights=str(path)).load()


def test_weights_of_another_width_are_refused_with_file_and_model(tiny_encoder):
    wrong = tiny_encoder("Timm").weights
    with pytest.raises(ValueError, match=f"DINOv2.weights: .*{Path(wrong).name} does not hold the weights .*{REG4}"):
        tiny_encoder("DINOv2", weights=wrong)(noise_images(1, 32))


def test_files_that_are_no_weights_are_refused(tmp_path, tiny_encoder, tiny_timm):
    whole = Path(tiny_encoder("DINOv3").weights).read_bytes()
    torch.save({"model": Path("x")}, tmp_path / "code.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    (tmp_path / "short.safetensors").write_bytes(whole[:-100])
    (tmp_path / "short.pth").write_bytes(Path(tiny_encoder("DINOv2").weights).read_bytes()[:-100])
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    (tmp_path / "empty.safetensors").write_text("")
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=rf"DINOv2.weights: {file} (is truncated|holds (no|a Tensor)|was refused)"):
            tiny_encoder("DINOv2", weights=str(file)).load()


class Harmful:
    def __reduce__(self):
        return print, ("code ran",)


def test_code_in_a_file_does_not_run_where_the_readers_of_timm_and_torch_would_run_it(
    tmp_path, tiny_timm, tiny_encoder, monkeypatch, capsys
):
    monkeypatch.setattr(timm.models.load_state_dict, "__defaults__", (True, "cpu", False))  # weights_only = False
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tiny_timm.save(tiny_timm.random_state(REG4) | {"more": Harmful()}, tmp_path / "weights.pth")
    timm.models.load_state_dict(str(path))
    assert "code ran" in capsys.readouterr().out
    for use in (DINOv2.load, DINOv2.provenance):
        with pytest.raises(ValueError, match="besides tensors it contains builtins.print"):
            use(tiny_encoder("DINOv2", weights=str(path)))
    assert "code ran" not in capsys.readouterr().out


def test_timm_is_given_the_tensors_that_were_read_and_keeps_no_copy(tiny_encoder, monkeypatch):
    """It would open the file once more, by the rules of its own reader."""
    reads, read = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: reads.append(kwargs) or read(*args, **kwargs))
    encoder = tiny_encoder("DINOv2")
    encoder.load()
    assert [settings["weights_only"] for settings in reads] == [True]
    assert "state_dict" not in encoder.network.pretrained_cfg


def test_a_path_to_nothing_is_refused(tmp_path, tiny_encoder):
    with pytest.raises(ValueError, match="DINOv2.weights: .*nowhere is not a file or folder"):
        tiny_encoder("DINOv2", weights=str(tmp_path / "nowhere")).load()


def test_a_folder_with_no_or_several_weights_files_is_refused(tmp_path, tiny_encoder):
    with pytest.raises(ValueError, match="a folder without a file .safetensors"):
        tiny_encoder("DINOv2", weights=str(tmp_path)).load()
    for name in ("a.pth", "b.bin", "readme.md"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="a folder with a.pth, b.bin: give the path of one weights file"):
        tiny_encoder("DINOv2", weights=str(tmp_path)).load()


@pytest.mark.parametrize("use", [DINOv2.load, DINOv2.provenance, lambda encoder: encoder(noise_images(1, 32))])
def test_without_weights_and_network_the_error_says_where_to_get_them(use, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError) as caught:
        use(DINOv2())
    page = "https://huggingface.co/timm/vit_base_patch14_reg4_dinov2.lvd142m"
    for part in ("model.safetensors", page, "DINOv2.weights"):
        assert part in str(caught.value)


def test_a_model_without_a_hub_page_asks_for_a_file():
    with pytest.raises(ValueError, match="mixer_s16_224.untrained has no weights on .*Timm.weights = 'path/to/file'"):
        Timm(model="mixer_s16_224").load()


def test_weights_in_the_hub_cache_are_found_offline(tmp_path, monkeypatch, tiny_timm):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repository = tmp_path / "models--timm--test_vit.r160_in1k"
    snapshot = repository / "snapshots" / "0123456789012345678901234567890123456789"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    path = tiny_timm.save(tiny_timm.random_state("test_vit"), snapshot / "model.safetensors")
    images = noise_images(1, 32)
    assert torch.equal(Timm(model="test_vit")(images), Timm(model="test_vit", weights=str(path))(images))


# Provenance


def test_provenance_names_everything_that_changes_the_features(tiny_encoder):
    before = tiny_encoder("DINOv2").provenance()
    for settings in ({"image_size": 56}, {"resize": "released"}, {"layers": 0}, {"precision": "bfloat16"}):
        assert tiny_encoder("DINOv2", **settings).provenance() != before
    assert tiny_encoder("SigLIP2").provenance()["weights_sha256"] != before["weights_sha256"]


def test_provenance_holds_no_path_and_builds_no_network(tiny_encoder, monkeypatch):
    encoder = tiny_encoder("DINOv2")
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("a network was built"))
    assert str(Path(encoder.weights).parent) not in str(encoder.provenance())


def test_the_hash_is_of_the_tensors_in_the_file(tiny_timm, tiny_encoder):
    assert tiny_encoder("DINOv2").provenance()["weights_sha256"] == tensors_sha256(tiny_timm.random_state(REG4))


def test_a_pinned_hash_refuses_other_weights_and_needs_none_for_the_provenance(tiny_encoder):
    digest = tiny_encoder("DINOv2").provenance()["weights_sha256"]
    pinned = tiny_encoder("DINOv2", weights_sha256=digest, weights="nowhere")
    assert pinned.provenance() == tiny_encoder("DINOv2").provenance()
    assert tiny_encoder("DINOv2", weights_sha256=digest)(noise_images(1, 32)).isfinite().all()
    with pytest.raises(ValueError, match="have the SHA-256 .*, not 00: .* or change DINOv2.weights_sha256"):
        tiny_encoder("DINOv2", weights_sha256="00").load()
