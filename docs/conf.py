"""The site, built by `make docs` into site/: offline, and a broken link fails.

The source root is the repository, so relative links work as on GitHub.
"""

import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

from latex2mathml.converter import convert

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from docutils.nodes import SkipNode  # noqa: E402
from pygments.lexers import PythonLexer  # noqa: E402

import redi  # noqa: E402
from redi.core import listing  # noqa: E402
from redi.core.configurables import import_all  # noqa: E402
from redi.core.gin_errors import bindable_names  # noqa: E402
from redi.core.registry import registries  # noqa: E402

project, author, version = "redi", "The redi authors", redi.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/**", "experiments/**", "benchmarks/README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
html_theme = "furo"
html_title = f"redi {version}"
html_static_path = []
templates_path = []

myst_heading_anchors = 4
myst_fence_as_directive = ["math"]
nb_execution_mode = "off"  # tests/test_tutorial.py runs the notebook; its stored outputs are shown
default_role = "literal"  # docstrings write `name`
autodoc_default_options = {"members": True, "member-order": "bysource", "ignore-module-all": True}
autodoc_typehints_format = "short"
nitpicky = True  # a broken reference to this library fails; those to other libraries are not checked, offline
nitpick_ignore_regex = [("py:.*", r"(?!redi\.).*"), ("py:.*", r"redi.*\.Result")]  # Result is a TypeVar

# Pages of the API reference: {package: description}.
PACKAGES = {
    "core": "The method: channels of the joint state, processes, samplers, the objective, averages of the weights.",
    "fusion": "How the tokens of image and representation meet in the transformer.",
    "guidance": "How sampling is steered.",
    "models": "The transformer, the joint codec, autoencoders, encoders, reducers and published weights.",
    "sampling": "Images and features from a trained model.",
    "data": "Data sets, audit, cache and loader.",
    "training": "The training loop and its parts.",
    "evaluation": "Metrics and their records.",
    "pages": "The report pages, and the page of redi.explore.",
    "runs": "Run folders: load, convert, average, share.",
    "sweeps": "Many runs from one file.",
    "runtime": "Files, checkpoints, processes and the log.",
}


def setup(app):
    """Show equations as MathML, which needs no network, and write the generated pages before Sphinx reads any."""
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
    app.add_lexer("gin", PythonLexer)
    app.connect("config-inited", lambda *_: write_generated())


def inline_math(translator, node):
    """Add an inline equation."""
    translator.body.append(convert(node.astext()))
    raise SkipNode


def display_math(translator, node):
    """Add a display equation, with space above and below."""
    translator.body.append(f'<div style="padding: 0.5em 0">{convert(node.astext(), display="block")}</div>')
    raise SkipNode


html_math_renderer = "mathml"


def write_generated():
    """Write the pages generated from the code to docs/generated. Sphinx skips files that have not changed."""
    pages = {package: modules(package) for package in PACKAGES}
    pages |= {"public_names": public_names(), "bindings": bindings()}
    folder = ROOT / "docs/generated"
    folder.mkdir(exist_ok=True)
    for name, content in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != content:
            path.write_text(content)


def modules(package: str) -> str:
    """Return the page of a package, with every module that defines a public class or function."""
    root = importlib.import_module(f"redi.{package}")
    names = [root.__name__, *(module.name for module in pkgutil.walk_packages(root.__path__, f"{root.__name__}."))]
    shown = [
        f"## {name.removeprefix('redi.')}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```"
        for name in names
        if has_public(importlib.import_module(name))
    ]
    return "\n\n".join([f"# redi.{package}", PACKAGES[package], *shown])


def has_public(module) -> bool:
    """Return whether a module defines a public class or function."""
    members = [value for name, value in vars(module).items() if not name.startswith("_")]
    return any(getattr(value, "__module__", None) == module.__name__ for value in members)


def public_names() -> str:
    """Return the page of the public names of `redi`."""
    lines = ["# Public names", "\n`import redi` loads each name when it is first used.\n", "| name | |", "|---|---|"]
    for name, (module, attribute) in sorted(redi.PUBLIC.items()):
        value = getattr(importlib.import_module(module), attribute)
        role = "class" if inspect.isclass(value) else "func"
        summary = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ").replace("|", r"\|")
        target = f"{value.__module__}.{value.__qualname__}"  # redi.core.ema re-exports EMA
        lines.append(f"| {{py:{role}}}`redi.{name} <{target}>` | {summary} |")
    kinds = ", ".join(f"`redi.{kind}`" for kind in redi.KINDS)
    return "\n".join([*lines, f"\nThe kinds of components are modules: {kinds}. [Bindings](bindings.md) lists them."])


def bindings() -> str:
    """Return the page of everything that gin can configure, as `redi.components NAME` prints it."""
    import_all()
    parts = [
        "# Bindings",
        "Every component and function that a gin file can bind, with its arguments, their defaults and their meaning. "
        "`python -m redi.components` prints the list, and `python -m redi.components train` prints one entry.",
        "## Programs and parts of every run",
        *(entry(name) for name in bindable_names() if name.startswith("redi.")),
    ]
    for kind, components in sorted(registries.items()):
        parts += [f"## {kind}", *(entry(f"{kind}.{name}") for name in components)]
    optimizers = ", ".join(f"`{name}`" for name in bindable_names() if name.startswith("torch."))
    parts += ["## Optimizers", f"{optimizers}. `python -m redi.components AdamW` prints the arguments of one."]
    return "\n\n".join(parts)


def entry(name: str) -> str:
    """Return a component or function: its description, then its bindings as a block."""
    _, *paragraphs = listing.page(name).split("\n\n")
    first = next((i for i, text in enumerate(paragraphs) if re.match(r"\w+\.\w+ = ", text)), len(paragraphs))
    shown = [f"### {name.removeprefix('redi.')}", *paragraphs[:first]]
    block = "\n\n".join(paragraphs[first:])
    return "\n\n".join([*shown, f"```text\n{block}\n```"] if block else shown)
