"""The README's promises: its commands, its script, its links."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_two_commands_are_the_makefiles():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("quickstart", "test"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_the_script_builds_trains_and_samples_without_gin(tmp_path):
    [script] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in script.splitlines() if line.strip()]) <= 25
    shortened = script.replace("num_steps=1200", "num_steps=3").replace("image_size=16", "image_size=16, num_steps=5")
    assert shortened.count("num_steps=") == script.count("num_steps=") + 1
    subprocess.run([sys.executable, "-c", shortened], cwd=tmp_path, check=True, timeout=200)
    assert (tmp_path / "runs/script/digits.png").exists()
    assert not (tmp_path / "runs/script/config.gin").exists()


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_every_relative_link_leads_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{page} links to {target}"
