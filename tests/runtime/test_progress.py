"""Progress bars: text on stderr, a widget in notebooks that have ipywidgets."""

import sys
import warnings
from importlib import reload

import pytest
import tqdm.auto
import tqdm.autonotebook
import tqdm.std

from redi.runtime import progress


@pytest.fixture
def in_notebook(monkeypatch):
    """Import the module again as a Jupyter kernel without ipywidgets would."""
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", sys)
    monkeypatch.setitem(sys.modules, "IPython", type("IPython", (), {"get_ipython": staticmethod(lambda: None)}))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    for name in ("tqdm.auto", "tqdm.autonotebook", "tqdm.notebook"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    monkeypatch.undo()
    reload(progress)


def test_bars_in_a_process_that_is_not_a_notebook_are_text():
    with progress.progress(total=2) as bar:
        assert isinstance(bar, tqdm.std.tqdm) and type(bar).__module__ != "tqdm.notebook"


def test_a_notebook_without_widgets_shows_text_and_no_warning(in_notebook, capsys):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        reload(progress)
    assert shown == [] and progress.notebook_tqdm is progress.std_tqdm
