"""gin files: where they are searched, what they include, and their statements."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gin

from redi.runtime.paths import local_path
from redi.runtime.spelling import did_you_mean
from redi.runtime.trusted_imports import read_text


def config_dir() -> Path:
    """Return the folder of the shipped gin files: inside the installed package, or next to it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if (installed / "base.gin").exists() else package.parent / "gin"


class GinFiles:
    """A context that changes where gin searches for files.

    Files are searched in the current folder, then among the shipped ones. An included file is first searched in the
    folder of the file that includes it. Shipped files include only shipped files.

    Args:
        of_user: a set that receives (scope, selector, argument) of the user's bindings: those outside of files, and
            those in files that are neither shipped nor included.

    Examples:
        >>> with GinFiles(set()) as files:
        ...     files.find("base.gin").parent == config_dir()
        True
    """

    def __init__(self, of_user: set[tuple[str, str, str]]):
        self.of_user = of_user
        self.chain: list[Path] = []  # the file being read, preceded by the files that include it

    def __enter__(self) -> "GinFiles":
        replaced = {"_FILE_READERS": [(self.open, self.find)], "_LOCATION_PREFIXES": [""], "bind_parameter": self.bind}
        self.before = {name: getattr(gin.config, name) for name in replaced}
        vars(gin.config).update(replaced)
        return self

    def __exit__(self, *error) -> None:
        vars(gin.config).update(self.before)

    def bind(self, key, value) -> None:
        """Bind a value as gin does, and note it in `of_user`."""
        self.before["bind_parameter"](key, value)
        if not self.chain or (len(self.chain) == 1 and not _is_shipped(self.chain[0])):
            self.of_user.add(gin.config.ParsedBindingKey.parse(key).scope_selector_arg)

    def find(self, name: str) -> Path:
        """Return the path of the file `name`. Raises ValueError if it does not exist, with the nearest shipped name.

        If the file being read has that name, another one is preferred.
        """
        including = self.chain[-1:]
        here = [] if any(map(_is_shipped, including)) else [Path()]
        folders = [*(path.parent for path in including), *here, config_dir()]
        paths = [path for folder in folders if (path := folder / local_path(name)).exists() and not path.is_dir()]
        if not paths:
            shipped = sorted(str(path.relative_to(config_dir())) for path in config_dir().rglob("*.gin"))
            where = f"neither in the current folder nor among the shipped files ({', '.join(shipped)})"
            raise ValueError(f"no gin file {name}, {where}{did_you_mean(name, shipped)}")
        return next((path for path in paths if not any(map(path.samefile, including))), paths[0])

    @contextmanager
    def open(self, name: str) -> Iterator[io.StringIO]:
        """Open the file as text. Raises ValueError if it is not UTF-8, or includes itself."""
        path = self.find(name)
        resolved = [including.resolve() for including in self.chain]
        if path.resolve() in resolved:
            cycle = " -> ".join(map(str, [*self.chain[resolved.index(path.resolve()) :], path]))
            raise ValueError(f"a gin file includes itself: {cycle}: remove one of these includes")
        file = read_text(path)
        self.chain.append(path)
        try:
            yield file
        finally:
            self.chain.pop()


def statements(text: str) -> dict[str, str]:
    r"""Parse a saved configuration into {binding: value}, with macros and without layout and comments.

    Examples:
        >>> statements("# a comment\nPCA.rank = 8\nrank = 16\n")
        {'PCA.rank': '8', 'rank': '16'}
    """
    values: dict[str, str] = {}
    key = None
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line[0].isspace() and key:
            values[key] += " " + line.strip()
        elif " = " in line:
            key, value = line.split(" = ", 1)
            values[key] = value.removesuffix("\\").strip()
        else:
            values[line] = ""  # an import
    return {key: " ".join(value.split()) for key, value in values.items()}


def _is_shipped(path: Path) -> bool:
    return path.resolve().is_relative_to(config_dir().resolve())
