"""Old names of renamed methods. A plug-in may still define and call them for one version."""


def keep_old_names(cls: type, **names: str) -> None:
    """Give methods that `cls` itself defines their other name, too. `names` are of the form old="new"."""
    for old, new in names.items():
        for name, other in ((old, new), (new, old)):
            if name in vars(cls) and other not in vars(cls):
                setattr(cls, other, vars(cls)[name])
