"""Write random weights with the shapes of SD-VAE and DINOv2-B, to run the main configuration without real weights.

python experiments/imagenet_sample/make_weights.py --folder=weights
"""

import logging
from pathlib import Path

import torch
from absl import app, flags

FOLDER = flags.DEFINE_string("folder", "weights", "Folder for sd-vae/ and dinov2_vitb14_reg4.safetensors.")
SEED = flags.DEFINE_integer("seed", 0, "Random seed of the weights.")

# The architecture of stabilityai/sd-vae-ft-ema (its config.json); all other settings are diffusers' defaults.
SD_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 256,
}


def write_vae(folder: Path) -> None:
    """Write 83.7 M parameters in diffusers' format."""
    logging.getLogger("xformers").setLevel(logging.ERROR)  # imported by diffusers; it warns on a CPU
    from diffusers import AutoencoderKL

    AutoencoderKL(**SD_VAE).save_pretrained(folder)


def write_dinov2(file: Path) -> None:
    """Write 86.6 M parameters with timm's names and the published position embedding for 518 pixels."""
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("vit_base_patch14_reg4_dinov2.lvd142m", pretrained=False).state_dict(), file)


def main(_argv: list[str]) -> None:
    folder = Path(FOLDER.value)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED.value)
    write_vae(folder / "sd-vae")
    write_dinov2(folder / "dinov2_vitb14_reg4.safetensors")
    print(f"wrote {', '.join(sorted(str(path) for path in folder.iterdir()))}")


if __name__ == "__main__":
    app.run(main)
