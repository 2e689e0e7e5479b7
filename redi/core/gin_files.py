"""gin files: where they are found, what they include, and saved ones as text."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gin


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
        self.before = [getattr(gin.config, name) for name in ("_FILE_READERS", "_LOCATION_PREFIXES", "bind_parameter")]
        self._replace([(self.open, self.find)], [""], self.bind)
        return self

    def __exit__(self, *error) -> None:
        self._replace(*self.before)

    def _replace(self, readers, prefixes, bind) -> None:
        gin.config._FILE_READERS, gin.config._LOCATION_PREFIXES, gin.config.bind_parameter = readers, prefixes, bind

    def bind(self, key, value) -> None:
        self.before[-1](key, value)
        if not self.chain or (len(self.chain) == 1 and not _is_shipped(self.chain[0])):
            self.of_user.add(gin.config.ParsedBindingKey.parse(key).scope_selector_arg)

    def find(self, name: str) -> Path | None:
        """The file that `name` stands for in the file that is being read: another one, where there is one."""
        folders = [Path(), config_dir()]
        if self.chain:
            including = self.chain[-1]
            folders = [including.parent, *folders[1:]] if _is_shipped(including) else [including.parent, *folders]
        found = [path for folder in folders if (path := folder / name).exists() and not path.is_dir()]
        others = [path for path in found if not (self.chain and path.samefile(self.chain[-1]))]
        return next(iter(others or found), None)

    @contextmanager
    def open(self, name: str) -> Iterator[io.StringIO]:
        """The file as text; while it is read, included files are looked for beside it. A byte order mark is skipped.

        Raises ValueError: it is not UTF-8, or it includes itself, also by way of others.
        """
        path = self.find(name)
        resolved = [known.resolve() for known in self.chain]
        if path.resolve() in resolved:
            circle = " -> ".join(str(file) for file in [*self.chain[resolved.index(path.resolve()) :], path])
            raise ValueError(f"a gin file that includes itself: {circle}. Drop one of these includes")
        try:
            file = io.StringIO(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            what = f"byte {error.start} is no UTF-8 text ({error.reason})"
            raise ValueError(f"{path} is no gin file: {what}. Save it in the encoding UTF-8") from None
        file.name = str(path)
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
