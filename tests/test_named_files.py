"""The pages of docs/: the files of the repository that they name exist, and each opens with what it is for."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
FILE = re.compile(
    r"(?<![\w/.])(?:benchmarks|constraints|experiments|gin|redi|tests)/[\w./-]*\.(?:gin|json|md|py|sbatch|sh|txt)\b"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_file_that_a_page_names_exists(page):
    missing = [name for name in FILE.findall(page.read_text()) if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_opens_with_its_title_and_a_sentence(page):
    title, empty, sentence, *_ = page.read_text().splitlines()
    assert title.startswith("# ") and not empty and re.match(r"[A-Z`*]", sentence)
