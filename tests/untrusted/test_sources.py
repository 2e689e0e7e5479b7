"""The library calls no function that executes the content of a file."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).resolve().parents[2] / "redi").rglob("*.py"))
REFUSED = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "xml", "runpy",
}  # fmt: skip
EXCEPTIONS = {"plots": ["xml.etree"]}  # reads the SVG that matplotlib has just drawn, and no file
# (function, what must be among its arguments); None: it must not be called at all.
CALLS = {
    "torch.load": "weights_only=True",
    "np.load": "allow_pickle=False",
    "read_array": "allow_pickle=False",
    "Image.open": "formats=",
    "torch.jit.load": None,
    "torch.hub.load": None,
    "eval": None,
    "exec": None,
    "compile": None,
    "os.system": None,
    "extractall": None,
    "extract": None,
}


def refused(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (name for name in names if name.split(".")[0] in REFUSED)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = [f"{keyword.arg}={ast.unparse(keyword.value)}" for keyword in node.keywords]
            for name, needed in CALLS.items():
                is_method = "." not in name and name not in ("eval", "exec", "compile")
                if called == name or (is_method and called.endswith(f".{name}")):
                    if needed is None or not any(argument.startswith(needed) for argument in given):
                        yield called
            yield from (argument for argument in given if argument in ("shell=True", "trust_remote_code=True"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_source_executes_what_it_reads(path):
    assert list(refused(ast.parse(path.read_text()))) == EXCEPTIONS.get(path.stem, [])


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from yaml import safe_load", "torch.load(f)", "torch.load(f, weights_only=False)", "eval(x)",
        "np.load(f, allow_pickle=True)", "archive.extractall(p)", "Image.open(f)", "run(x, shell=True)",
    ],
)  # fmt: skip
def test_the_search_finds_it(line):
    assert list(refused(ast.parse(line)))
