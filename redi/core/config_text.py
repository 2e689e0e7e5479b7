"""A saved configuration as text: its statements."""


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
