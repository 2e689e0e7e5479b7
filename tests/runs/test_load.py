"""What an opened run shows of itself."""

import torch
from PIL import Image

import redi
from redi.core.processes import FlowMatching
from redi.sampling.pictures import ColourBasis
from tests.fragments import EVIL, Fragment


def a_run(folder, **fields) -> redi.Run:
    return redi.Run(
        torch.nn.Linear(999, 1000), redi.JointCodec(), FlowMatching(), None, {}, ColourBasis({}), step=1200,
        num_classes=2, image_size=8, folder=folder, **fields,
    )  # fmt: skip


def test_a_run_shows_its_model_and_its_samples_or_the_last_preview(tmp_path):
    (tmp_path / "previews").mkdir()
    run = a_run(tmp_path)
    assert Fragment(run._repr_html_()).picture is None
    for name, width in (("previews/step_00000004.png", 4), ("previews/step_00000008.png", 8), ("samples.png", 9)):
        Image.new("RGB", (width, 2)).save(tmp_path / name)
        assert Fragment(run._repr_html_()).picture.size == (width, 2)
    shown = Fragment(run._repr_html_()).text
    assert "Linear, 1 M parameters" in shown and "1,200" in shown and "8 x 8 pixels" in shown


def test_hostile_names_of_folder_and_classes_stay_text(tmp_path):
    shown = Fragment(a_run(tmp_path / EVIL.replace("/", "-"), class_names=[EVIL, "b"])._repr_html_())
    assert "script" not in shown.tags and "img" not in shown.tags and f"{EVIL}, b" in shown.text
    assert "\n" not in repr(a_run(tmp_path))
    assert Fragment(a_run(None)._repr_html_()).tags.count("img") == 0
