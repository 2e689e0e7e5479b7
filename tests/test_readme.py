"""The README's promises: its commands, its script, its links; and those of the pages in docs/."""

import re
import shlex
from pathlib import Path

import pytest

from redi.core import config
from redi.core.configurables import import_all
from redi.core.registry import entry_points

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_two_commands_are_the_makefiles():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("quickstart", "test"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_the_script_builds_trains_and_samples_without_gin(tmp_path, python):
    [script] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in script.splitlines() if line.strip()]) <= 25
    shortened = script.replace("num_steps=500", "num_steps=3").replace("image_size=16", "image_size=16, num_steps=5")
    shortened = shortened.replace("guidance=guidance", "guidance=guidance, sampler=redi.samplers.Euler(2)")
    assert shortened.count("num_steps=") == script.count("num_steps=") + 1 and "Euler(2)" in shortened
    done = python("-c", shortened, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/script/digits.png").exists()
    assert not (tmp_path / "runs/script/config.gin").exists()


PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", [*PAGES, "docs/tutorial.ipynb"])
def test_every_relative_link_leads_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if not target.startswith(("http", "generated/")):  # generated: written when the site is built
            assert (path.parent / target).exists(), f"{page} links to {target}"


def commands(text: str) -> list[list[str]]:
    """The commands of a page's blocks, as lists of arguments."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    lines = "".join(text for language, text in blocks if not language).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("python -m redi.")]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_parses_and_every_binding_has_an_effect(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    import_all()
    text = (ROOT / page).read_text()
    for _, _, program, *arguments in commands(text):
        assert (ROOT / f"{program.replace('.', '/')}.py").exists(), program
        names = ("--gin_file", "--gin_bindings")
        flags = {name: [a.partition("=")[2] for a in arguments if a.startswith(f"{name}=")] for name in names}
        recipe = "lightningdit.gin" if any("checkpoint=lightningdit" in a for a in arguments) else "digits.gin"
        files, bindings = flags["--gin_file"] or [recipe], flags["--gin_bindings"]  # `redi.convert` chooses a recipe
        written_on_page = [f for f in files if f"`{f}`" in text and not (config.config_dir() / f).exists()]
        if "..." in arguments or written_on_page or any(file.startswith("my") for file in files):
            continue
        config.parse(files, bindings)
        assert not config.without_effect(entry_points, among=config.of_user), (page, arguments)
