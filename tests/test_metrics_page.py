"""docs/metrics.md: its excerpt of metrics.json is that of the record it names."""

import json
import re
from pathlib import Path

from redi.evaluation.records import REQUIRED

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "metrics.md").read_text()


def excerpt_of(part, whole) -> bool:
    """Whether every value of `part` is in `whole`."""
    if isinstance(part, dict):
        return all(key in whole and excerpt_of(value, whole[key]) for key, value in part.items())
    return part == whole


def test_the_excerpt_is_of_the_record_and_has_every_field_of_an_entry():
    (path,) = re.findall(r"`(experiments/[\w/]+/metrics.json)`", PAGE)
    shown = json.loads(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1])
    assert excerpt_of(shown, json.loads((ROOT / path).read_text())[0])
    assert [field for field in REQUIRED if field not in shown] == []
