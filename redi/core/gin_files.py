"""gin files: where they are found, what they include, and saved ones as text."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gin

from redi.runtime.paths import local_path
from redi.runtime.spelling import did_you_mean
from redi.runtime.trusted_imports import read_text


def config_dir() -> Path:
    """The folder of the shipped gin files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if (installed / "base.gin").exists() else package.parent / "gin"


class GinFiles:
    """Context in which gin opens files as here; gin by itself looks for included ones in the current folder first.

    A named file is looked for in the current folder and among the shipped ones; an included one beside the file that
    includes it before that. Shipped files include shipped files only.

    Args:
        of_user: gets (scope, selector, argument) of the bindings in files that the user named, not shipped and not
            included, and of those in no file.
    """

    def __init__(self, of_user: set[tuple[str, str, str]]):
        self.of_user = of_user
        self.chain: list[Path] = []  # the file that is being read, after those that include it

    def __enter__(self) -> "GinFiles":
        replaced = {"_FILE_READERS": [(self.open, self.find)], "_LOCATION_PREFIXES": [""], "bind_parameter": self.bind}
        self.before = {name: getattr(gin.config, name) for name in replaced}
        vars(gin.config).update(replaced)
        return self

    def __exit__(self, *error) -> None:
        vars(gin.config).update(self.before)

    def bind(self, key, value) -> None:
        self.before["bind_parameter"](key, value)
        if not self.chain or (len(self.chain) == 1 and not _is_shipped(self.chain[0])):
            self.of_user.add(gin.config.ParsedBindingKey.parse(key).scope_selector_arg)

    def find(self, name: str) -> Path:
        """The file that `name` stands for in the file that is being read: another one, where there is one.

        Raises ValueError, with the nearest name of a shipped one: there is none.
        """
        including = self.chain[-1:]
        here = [] if any(map(_is_shipped, including)) else [Path()]
        folders = [*(path.parent for path in including), *here, config_dir()]
        found = [path for folder in folders if (path := folder / local_path(name)).exists() and not path.is_dir()]
        if not found:
            shipped = sorted(str(path.relative_to(config_dir())) for path in config_dir().rglob("*.gin"))
            where = f"neither here nor among the shipped ones ({', '.join(shipped)})"
            raise ValueError(f"no gin file {name}, {where}{did_you_mean(name, shipped)}")
        return next((path for path in found if not any(map(path.samefile, including))), found[0])

    @contextmanager
    def open(self, name: str) -> Iterator[io.StringIO]:
        """The file as text; while it is read, included files are looked for beside it.

        Raises ValueError: it is not UTF-8, or it includes itself, also by way of others.
        """
        path = self.find(name)
        resolved = [known.resolve() for known in self.chain]
        if path.resolve() in resolved:
            circle = " -> ".join(map(str, [*self.chain[resolved.index(path.resolve()) :], path]))
            raise ValueError(f"a gin file that includes itself: {circle}. Drop one of these includes")
        file = read_text(path)
        self.chain.append(path)
        try:
            yield file
        finally:
            self.chain.pop()


def statements(text: str) -> dict[str, str]:
    """A saved configuration as {binding: value}, macros included; layout and comments do not matter."""
    found: dict[str, str] = {}
    key = None
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line[0].isspace() and key:
            found[key] += " " + line.strip()
        elif " = " in line:
            key, value = line.split(" = ", 1)
            found[key] = value.removesuffix("\\").strip()
        else:
            found[line] = ""  # an import
    return {key: " ".join(value.split()) for key, value in found.items()}


def _is_shipped(path: Path) -> bool:
    return path.resolve().is_relative_to(config_dir().resolve())
