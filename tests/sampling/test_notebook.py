"""What objects show in Jupyter: tables of escaped texts, and pictures as PNG."""

import re

import pytest
import torch
from PIL import Image

from redi.core.channels import Channels
from redi.sampling.generate import Generated
from redi.sampling.notebook import shown
from redi.sampling.pictures import ColourBasis, sample_grid
from tests.fragments import EVIL, Fragment

RECORD = {
    "seed": 3, "sampler": {"name": "Heun"}, "function_evaluations": 20,
    "guidance": [{"name": "ClassifierFree", "scale": 1.5}, {"name": "Autoguidance"}],
}  # fmt: skip


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Generated(images, torch.randn(50, 5, 4, 4, generator=generator), torch.arange(50) % 2, RECORD)


def test_samples_show_how_they_were_drawn_and_the_first_images(drawn):
    fragment = Fragment(drawn._repr_html_())
    for text in ("50, the first 40 shown", "Heun, 20 evaluations", "ClassifierFree 1.5, Autoguidance", "seed 3"):
        assert text in re.sub(r"\s+", " ", fragment.text)
    first = Generated(drawn.images[:40], None, drawn.labels[:40], {})
    assert fragment.picture.tobytes() == sample_grid(first, None, None).tobytes()


def test_samples_of_a_run_show_their_features_and_class_names(drawn):
    drawn.channels, drawn.class_names = Channels(image=1, z=4), [EVIL, "two"]
    drawn.colours = ColourBasis.fit(drawn.channels, drawn.x)
    fragment = Fragment(drawn._repr_html_())
    assert "script" not in fragment.tags and fragment.tags.count("img") == 1
    drawn.images, drawn.x, drawn.labels = drawn.images[:40], drawn.x[:40], drawn.labels[:40]
    expected = sample_grid(drawn, drawn, drawn.colours, class_names=drawn.class_names)
    assert fragment.picture.tobytes() == expected.tobytes()


def test_samples_that_kept_no_images_or_no_record_show_what_there_is(drawn):
    drawn.images = None
    assert Fragment(drawn._repr_html_()).tags.count("img") == 0
    assert (
        "samples 1" in Fragment(Generated(torch.zeros(1, 3, 8, 8).byte(), None, torch.zeros(1), {})._repr_html_()).text
    )


def test_hostile_texts_stay_text():
    fragment = Fragment(shown({"folder": f"{EVIL}\udcff"}, Image.new("RGB", (2, 3))))
    assert EVIL in fragment.text and "\\udcff" in fragment.text
    assert "script" not in fragment.tags and fragment.picture.size == (2, 3)
