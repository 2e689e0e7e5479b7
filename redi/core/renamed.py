"""Methods that have a new name: for one version, a plug-in may still define and call them by the old one."""


def keep_old_names(cls: type, **names: str) -> None:
    """Gives each method that `cls` itself defines its other name too: old = "new"."""
    for old, new in names.items():
        for name, other in ((old, new), (new, old)):
            if name in vars(cls) and other not in vars(cls):
                setattr(cls, other, vars(cls)[name])
