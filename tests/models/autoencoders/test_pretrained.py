import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from redi.models.autoencoders.stable_vae import SD_VAE, StableVAE
from redi.models.autoencoders.tiny_vae import TAESD, TinyVAE
from redi.models.codec import JointCodec

HALF = 2**-11  # the relative rounding error of float16
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def folder(vae_folders) -> str:
    return str(vae_folders["StableVAE"])


@pytest.fixture
def diffusers_vae(folder) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).requires_grad_(False)


@pytest.fixture
def copied(vae_folders, tmp_path) -> Path:
    """A copy of StableVAE's folder, to spoil."""
    return Path(shutil.copytree(vae_folders["StableVAE"], tmp_path / "copied"))


def images(n: int = 2, side: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), generator=generator, dtype=torch.uint8)


def normalised(uint8: Tensor) -> Tensor:
    return (uint8.float() / 255 - 0.5) / 0.5  # as transforms.Normalize(0.5, 0.5) after ToTensor


def latents_like(n: int = 2, side: int = 8) -> Tensor:
    return torch.randn(n, 4, side, side, generator=torch.Generator().manual_seed(1))


def close(a: Tensor, b: Tensor, *, half: bool = True) -> None:
    torch.testing.assert_close(a.float(), b.float(), rtol=2 * HALF if half else 1e-5, atol=1e-4 if half else 1e-5)


# Against diffusers.


def test_moments_are_mean_and_log_variance_of_diffusers(folder, diffusers_vae):
    posterior = diffusers_vae.encode(normalised(images())).latent_dist
    moments = StableVAE(weights=folder).moments(images())
    assert moments.dtype == torch.float16
    close(moments, torch.cat([posterior.mean, posterior.logvar], dim=1))


def test_sampled_latents_are_the_scaled_sample_of_diffusers(folder, diffusers_vae):
    vae = StableVAE(weights=folder)
    moments = vae.moments(images())
    posterior = diffusers_vae.encode(normalised(images())).latent_dist
    torch.manual_seed(3)
    expected = posterior.sample() * 0.18215
    torch.manual_seed(3)
    close(vae.latents(moments), expected)


def test_mean_latents_are_the_scaled_mode_of_diffusers(folder, diffusers_vae):
    vae = StableVAE(weights=folder, posterior="mean")
    close(vae.latents(vae.moments(images())), diffusers_vae.encode(normalised(images())).latent_dist.mode() * 0.18215)


@pytest.mark.parametrize("uint8_rule", ["round", "truncate"])
def test_decoded_images_are_those_of_diffusers(folder, diffusers_vae, uint8_rule):
    x = diffusers_vae.decode(latents_like() / 0.18215).sample.double()
    expected = {"round": (127.5 * x + 127.5).round(), "truncate": (127.5 * x + 128).floor()}[uint8_rule].clamp(0, 255)
    decoded = StableVAE(weights=folder, uint8_rule=uint8_rule).decode(latents_like())
    difference = (decoded.double() - expected).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3  # float32 against float64, near a half
    assert decoded.float().std() > 1


def test_tiny_latents_and_images_are_those_of_diffusers(vae_folders):
    vae = TinyVAE(weights=str(vae_folders["TinyVAE"]))
    reference = AutoencoderTiny.from_pretrained(vae_folders["TinyVAE"], low_cpu_mem_usage=False)
    with torch.no_grad():
        close(vae.latents(vae.moments(images())), reference.encode(normalised(images())).latents)
        x = reference.decode(latents_like()).sample
    expected = (127.5 * x + 127.5).round().clamp(0, 255)
    assert (vae.decode(latents_like()).float() - expected).abs().max() <= 1


def test_scale_and_shift_cancel_in_decoding(folder):
    plain, other = StableVAE(weights=folder, scale=1.0), StableVAE(weights=folder, scale=0.25, shift=-3.0)
    z = latents_like()
    difference = plain.decode(z).float() - other.decode((z + 3) * 0.25).float()
    assert difference.abs().max() <= 1 and (difference != 0).float().mean() < 1e-3


def test_latents_are_shifted_before_they_are_scaled(folder):
    vae = StableVAE(weights=folder, scale=0.5, shift=2.0, posterior="mean")
    assert torch.equal(vae.latents(torch.full((1, 8, 1, 1), 6.0)), torch.full((1, 4, 1, 1), 2.0))


# The posterior.


def test_the_sampled_posterior_has_the_stored_mean_and_variance(folder):
    vae = StableVAE(weights=folder, scale=1.0)
    moments = torch.tensor([3.0, -1.0, 0.0, 7.0, -8.0, -2.0, 0.0, 1.0]).half().view(1, 8, 1, 1).expand(1, 8, 250, 200)
    torch.manual_seed(0)
    drawn = vae.latents(moments)[0].double().flatten(1)  # (4, 50000)
    mean, variance = moments.double()[0, :4, 0, 0], moments.double()[0, 4:, 0, 0].exp()
    n = drawn.shape[1]
    assert ((drawn.mean(1) - mean).abs() < 4 * (variance / n).sqrt()).all()
    assert ((drawn.var(1) / variance - 1).abs() < 4 * (2 / n) ** 0.5).all()


def test_a_sampled_posterior_is_drawn_anew_each_time_and_its_mean_is_not(folder):
    for posterior, same in (("sample", False), ("mean", True), ("frozen", True)):
        vae = StableVAE(weights=folder, posterior=posterior)
        moments = vae.moments(images())
        assert torch.equal(vae.latents(moments), vae.latents(moments)) is same


def test_a_frozen_sample_is_stored_alone(folder):
    stored = StableVAE(weights=folder, posterior="frozen").moments(images())
    assert stored.shape == (2, 4, 8, 8) and stored.dtype == torch.float16


def test_a_frozen_sample_does_not_depend_on_batch_order_or_seed(folder):
    vae = StableVAE(weights=folder, posterior="frozen")
    torch.manual_seed(1)
    together = vae.moments(images(4))
    torch.manual_seed(2)
    alone = torch.cat([vae.moments(image[None]) for image in images(4).flip(0)]).flip(0)
    close(together, alone)


def test_a_frozen_sample_follows_the_posterior(folder, diffusers_vae):
    many = images(64)
    posterior = diffusers_vae.encode(normalised(many)).latent_dist
    stored = StableVAE(weights=folder, posterior="frozen", batch_size=64).moments(many).float()
    # Only the widest channel: where std is far below the rounding error of the mean, noise cannot be recovered.
    noise = ((stored - posterior.mean) / posterior.std)[:, 3]
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    assert np.unique(noise[:, 0, 0].numpy()).size == 64


def test_stored_log_variances_keep_the_standard_deviation_where_stored_deviations_do_not():
    logvar = torch.linspace(-30, 20, 100_001, dtype=torch.float64)
    std = (0.5 * logvar).exp()
    from_logvar = (0.5 * logvar.half().double()).exp()
    assert ((from_logvar / std - 1).abs()).max() < 0.004
    assert ((std.half().double() / std - 1).abs()).max() > 0.05


def test_moments_of_another_posterior_are_refused(folder):
    frozen = StableVAE(weights=folder, posterior="frozen").moments(images())
    with pytest.raises(ValueError, match="posterior = 'sample' needs 8 stored channels, not 4: set"):
        StableVAE(weights=folder).latents(frozen)


# Passes, precision, device.


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_no_pass_is_larger_than_batch_size_and_none_changes_the_result(folder, batch_size):
    whole, vae = StableVAE(weights=folder, batch_size=64), StableVAE(weights=folder, batch_size=batch_size)
    sizes = []
    for part in (vae.network.encoder, vae.network.decoder):
        part.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    close(vae.moments(images(5)), whole.moments(images(5)))
    assert (vae.decode(latents_like(5)).float() - whole.decode(latents_like(5)).float()).abs().max() <= 1
    assert max(sizes) == batch_size and sum(sizes) == 10


def test_bfloat16_stays_near_float32_and_is_not_the_same(folder):
    exact, fast = StableVAE(weights=folder), StableVAE(weights=folder, precision="bfloat16")
    a, b = exact.moments(images()).float(), fast.moments(images()).float()
    assert 0 < (a - b).abs().max() < 0.03 * a.abs().max()  # bfloat16 has 8 bits
    a, b = exact.decode(latents_like()).float(), fast.decode(latents_like()).float()
    assert 0 < (a - b).abs().max() < 0.03 * 255


def test_latents_stored_in_half_precision_can_be_made_in_bfloat16(vae_folders):
    folder = str(vae_folders["TinyVAE"])
    exact, fast = TinyVAE(weights=folder, batch_size=1), TinyVAE(weights=folder, batch_size=1, precision="bfloat16")
    a, b = exact.moments(images()), fast.moments(images())
    assert b.dtype == torch.float16
    assert 0 < (a - b).abs().max() < 0.03 * a.abs().max()


def test_float32_holds_under_the_callers_autocast(folder):
    vae = StableVAE(weights=folder)
    with torch.autocast("cpu", torch.bfloat16):
        inside = vae.moments(images())
    assert torch.equal(inside, vae.moments(images()))


@pytest.mark.parametrize("first", ["load", "move"])
def test_weights_follow_the_module_to_its_device(folder, first):
    vae = StableVAE(weights=folder)
    codec = JointCodec(autoencoder=vae)
    steps = [vae.load, lambda: codec.to("meta")]
    for step in steps if first == "load" else reversed(steps):
        step()
    assert {parameter.device.type for parameter in vae.network.parameters()} == {"meta"}


def test_inputs_go_to_the_network_wherever_they_are(vae_folders, monkeypatch):
    """Tensors without contents, whose devices torch checks: it needs no GPU."""
    with FakeTensorMode():
        with torch.device("cuda"):
            vae = TinyVAE(weights=str(vae_folders["TinyVAE"]))
            monkeypatch.setattr(TinyVAE, "network", AutoencoderTiny.from_config(vae.config))
        stored, decoded = vae.moments(torch.empty(2, 3, 32, 32).byte()), vae.decode(torch.empty(2, 4, 8, 8))
    assert stored.device.type == decoded.device.type == "cuda"


@pytest.mark.parametrize("kind", [StableVAE, TinyVAE])
def test_weights_stay_frozen_in_training(vae_folders, kind):
    vae = kind(weights=str(vae_folders[kind.__name__]))
    vae.load()
    JointCodec(autoencoder=vae).train()
    vae.train()
    assert not any(module.training for module in vae.network.modules())
    assert not any(parameter.requires_grad for parameter in vae.network.parameters())


def test_weights_are_in_no_state_dict(folder):
    vae = StableVAE(weights=folder)
    vae.load()
    assert JointCodec(autoencoder=vae).state_dict() == {}


def test_a_codec_encodes_and_decodes_with_it(folder):
    codec = JointCodec(autoencoder=StableVAE(weights=folder))
    x = codec.encode(images())
    assert x.shape == (2, 4, 8, 8) and codec.grid(32) == (8, 8)
    assert codec.decode(x).shape == (2, 3, 32, 32)


# Configurations and files.


@pytest.mark.parametrize(("config", "millions"), [(SD_VAE, 83.653863), (TAESD, 2.445063)])
def test_the_known_configurations_are_those_of_the_published_sizes(config, millions):
    with torch.device("meta"):
        network = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}[config["_class_name"]](
            **{key: value for key, value in config.items() if key != "_class_name"}
        )
    assert sum(parameter.numel() for parameter in network.parameters()) == round(millions * 1e6)


def test_default_sizes_are_known_without_weights():
    for vae in (StableVAE(), StableVAE(weights="stabilityai/sd-vae-ft-mse"), TinyVAE()):
        assert (vae.channels, vae.downsample) == (4, 8)


def test_channels_and_downsample_come_from_the_configuration(vae_folders):
    vae = StableVAE(weights=str(vae_folders["wide"]), scale=1.5305, shift=0.0609)
    assert (vae.channels, vae.downsample) == (16, 2)
    assert vae.decode(vae.latents(vae.moments(images()))).shape == (2, 3, 32, 32)


def test_another_scale_than_the_configuration_names_is_warned_of(vae_folders, caplog):
    StableVAE(weights=str(vae_folders["wide"]))
    assert "StableVAE.scale = 0.18215, but" in caplog.text and "scaling_factor = 1.5305" in caplog.text
    assert "StableVAE.shift = 0.0, but" in caplog.text and "shift_factor = 0.0609" in caplog.text


@pytest.mark.parametrize("name", ["StableVAE", "TinyVAE"])
def test_the_scale_of_the_configuration_gives_no_warning(vae_folders, caplog, name):
    vae = {"StableVAE": StableVAE, "TinyVAE": TinyVAE}[name](weights=str(vae_folders[name]))
    vae.load()
    assert caplog.text == ""


def test_a_legacy_file_and_a_path_to_a_file_give_the_same_autoencoder(folder, copied):
    torch.save(load_file(copied / FILE), copied / "diffusion_pytorch_model.bin")
    (copied / FILE).unlink()
    expected = StableVAE(weights=folder)
    for weights in (copied, copied / "diffusion_pytorch_model.bin", f"{folder}/{FILE}"):
        vae = StableVAE(weights=str(weights))
        assert vae.provenance() == expected.provenance()
        assert torch.equal(vae.moments(images()), expected.moments(images()))


def test_attention_weights_under_their_old_names_give_the_same_autoencoder(folder, copied):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(copied / FILE)
    renamed = {}
    for key, tensor in state.items():
        for new, former in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{former}.")
        renamed[key] = tensor
    assert len(renamed.keys() - state.keys()) == 16
    save_file(renamed, copied / FILE)
    vae, expected = StableVAE(weights=str(copied)), StableVAE(weights=folder)
    assert vae.provenance() == expected.provenance()
    assert torch.equal(vae.moments(images()), expected.moments(images()))
    theirs = AutoencoderKL.from_pretrained(copied, low_cpu_mem_usage=False).requires_grad_(False)
    close(vae.moments(images())[:, :4], theirs.encode(normalised(images())).latent_dist.mean)


def test_the_hub_cache_is_used_before_anything_else(vae_folders, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--lab--vae"
    shutil.copytree(vae_folders["StableVAE"], repo / "snapshots" / "abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    vae = StableVAE(weights="lab/vae")
    assert vae.downsample == 4
    assert vae.provenance() == StableVAE(weights=str(vae_folders["StableVAE"])).provenance()


# Provenance.


def test_provenance_names_the_weights_and_no_place(folder, copied):
    provenance = StableVAE(weights=folder).provenance()
    assert provenance == StableVAE(weights=str(copied)).provenance()
    assert str(Path(folder).parent) not in json.dumps(provenance)


@pytest.mark.parametrize("change", [{"scale": 1.0}, {"shift": 1.0}, {"posterior": "mean"}, {"precision": "bfloat16"}])
def test_provenance_tells_apart_what_gives_other_latents(folder, change):
    assert StableVAE(weights=folder, **change).provenance() != StableVAE(weights=folder).provenance()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"scale": 1.0, "shift": 1.0, "posterior": "mean", "batch_size": 1, "uint8_rule": "truncate"}, True),
        ({"posterior": "frozen"}, False),
        ({"precision": "bfloat16"}, False),
    ],
)
def test_a_store_serves_all_that_read_the_same_moments(folder, change, same):
    changed = StableVAE(weights=folder, **change)
    assert (changed.stored_provenance() == StableVAE(weights=folder).stored_provenance()) is same


def test_other_weights_have_another_provenance(folder, copied):
    state = load_file(copied / FILE)
    state["quant_conv.bias"][0] += 1e-3
    save_file(state, copied / FILE)
    assert StableVAE(weights=str(copied)).provenance() != StableVAE(weights=folder).provenance()


def test_a_known_hash_stands_in_for_absent_weights_in_the_provenance(folder, copied):
    expected = StableVAE(weights=folder).provenance()
    (copied / FILE).unlink()
    vae = StableVAE(weights=str(copied), weights_sha256=expected["weights_sha256"])
    assert vae.provenance() == expected
    assert vae.latents(torch.zeros(1, 8, 8, 8)).shape == (1, 4, 8, 8)  # what training from a cache needs


def test_other_weights_than_the_hash_says_are_refused(folder):
    with pytest.raises(ValueError, match="StableVAE.weights: the tensors of .* have the SHA-256 .*, not 00ff"):
        StableVAE(weights=folder, weights_sha256="00ff").load()


# What is refused.


@pytest.mark.parametrize("vae", [StableVAE, TinyVAE])
def test_offline_without_weights_the_message_names_file_page_and_binding(vae, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    autoencoder = vae()
    for use in (autoencoder.load, autoencoder.provenance, lambda: autoencoder.moments(images())):
        with pytest.raises(ValueError) as error:
            use()
        page = f"Download config.json and {FILE} from https://huggingface.co/{autoencoder.weights} into a folder"
        assert f"{page} and set {vae.__name__}.weights to its path" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "StableVAE.scale = 0.0: must be positive"),
        ({"batch_size": 0}, "StableVAE.batch_size = 0: must be at least 1"),
        ({"precision": "float16"}, "StableVAE.precision = 'float16': must be 'float32' or 'bfloat16'"),
        ({"uint8_rule": "floor"}, "StableVAE.uint8_rule = 'floor': must be 'round' or 'truncate'"),
        ({"posterior": "mode"}, "StableVAE.posterior = 'mode': must be 'sample', 'mean' or 'frozen'"),
        ({"weights": "/nowhere/vae"}, "StableVAE.weights = '/nowhere/vae' must be an existing file or folder"),
    ],
)
def test_impossible_settings_are_refused_when_built(change, message):
    with pytest.raises(ValueError, match=message):
        StableVAE(**change)


def test_an_autoencoder_of_another_class_is_refused(vae_folders):
    with pytest.raises(ValueError, match="describes AutoencoderTiny, not AutoencoderKL: set .* = @auto.*TinyVAE()"):
        StableVAE(weights=str(vae_folders["TinyVAE"]))
    with pytest.raises(ValueError, match="describes AutoencoderKL, not AutoencoderTiny: set .* = @auto.*StableVAE()"):
        TinyVAE(weights=str(vae_folders["StableVAE"]))


def test_an_autoencoder_of_grey_images_is_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"in_channels": 1}))
    with pytest.raises(ValueError, match="has other than 3 image channels"):
        StableVAE(weights=str(copied))


def test_a_folder_without_configuration_is_refused(copied):
    (copied / "config.json").unlink()
    with pytest.raises(ValueError, match="StableVAE.weights: .*copied has no config.json"):
        StableVAE(weights=str(copied))


def test_the_folder_of_a_whole_pipeline_is_told_where_its_autoencoder_lies(copied, tmp_path):
    shutil.copytree(copied, tmp_path / "pipeline" / "vae")
    with pytest.raises(ValueError, match=": set StableVAE.weights = '.*pipeline/vae'"):
        StableVAE(weights=str(tmp_path / "pipeline"))


def test_a_broken_configuration_is_refused(copied):
    (copied / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        StableVAE(weights=str(copied))


def test_a_folder_without_weights_is_refused_at_first_use(copied):
    (copied / FILE).unlink()
    vae = StableVAE(weights=str(copied))
    with pytest.raises(ValueError, match="weights: .*copied is a folder without a file .*bin"):
        vae.load()


def test_truncated_weights_are_refused(copied):
    (copied / FILE).write_bytes((copied / FILE).read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"StableVAE.weights: .*{FILE} is truncated"):
        StableVAE(weights=str(copied)).load()


def test_weights_that_lack_or_add_a_tensor_or_have_another_shape_are_refused(copied):
    state = load_file(copied / FILE)
    cases = [
        ({k: t for k, t in state.items() if k != "quant_conv.bias"}, r'Missing key\(s\) .* "quant_conv.bias"'),
        (state | {"loss.weight": torch.ones(1)}, r'Unexpected key\(s\) in state_dict: "loss.weight"'),
        (state | {"quant_conv.bias": torch.ones(2)}, r"size mismatch for quant_conv.bias: .*\[2\].*\[8\]"),
    ]
    for spoiled, message in cases:
        save_file(spoiled, copied / FILE)
        with pytest.raises(ValueError, match=message):
            StableVAE(weights=str(copied)).load()


@pytest.mark.parametrize("side", [30, 33])
def test_images_that_the_downsampling_does_not_divide_are_refused(folder, side):
    message = f"StableVAE cannot encode images of {side} pixels: set Preprocessing.image_size to a multiple of 4"
    with pytest.raises(ValueError, match=message):
        StableVAE(weights=folder).moments(images(side=side))
