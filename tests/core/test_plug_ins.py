"""Hashes of the source code of plug-ins."""

import importlib
import sys
import textwrap

import gin
import pytest
from torch.optim import AdamW

from redi.core.configurables import import_all
from redi.core.plug_ins import plug_ins, source_sha256, warn_of_edits
from redi.core.registry import identity, registries

import_all()


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Import modules with these texts, as a new process would."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = []

    def lab(**modules: str) -> list:
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
            sys.modules.pop(name, None)
            names.append(name)
        importlib.invalidate_caches()
        return [importlib.import_module(name) for name in modules]

    yield lab
    for name in names:
        sys.modules.pop(name, None)


def test_the_library_has_no_plug_ins():
    components = [component for registry in registries.values() for component in registry.values()]
    assert len(components) > 40 and plug_ins(*components, AdamW, None, 3, [].append, gin.config.macro) == {}
    assert source_sha256(components[0]) is None


def test_classes_and_their_objects_and_functions_are_named(lab):
    (module,) = lab(one="class A:\n    pass\n\ndef f():\n    pass\n")
    found = plug_ins(module.A, module.A(), module.f)
    assert found.keys() == {"one.A", "one.f"} and found["one.A"] == found["one.f"] == source_sha256(module.f)


def test_an_edited_base_class_makes_another_class_of_what_derives_from_it(lab):
    base, derived = "class Base:\n    x = 1\n", "from base import Base\n\nclass Derived(Base):\n    pass\n"
    before = identity(lab(base=base, derived=derived)[1].Derived())
    assert identity(lab(base=base, derived=derived)[1].Derived()) == before
    after = identity(lab(base=base.replace("1", "2"), derived=derived)[1].Derived())
    assert after["class"] == before["class"] and after["source_sha256"] != before["source_sha256"]


def test_the_source_is_that_of_the_import_whatever_became_of_the_file(lab, tmp_path):
    text = "from redi.core.registry import configurable\n\n@configurable\ndef drawn_by_one():\n    return 1\n"
    (module,) = lab(one=text)
    (tmp_path / "one.py").write_text(text.replace("1\n", "2\n"))
    imported = source_sha256(module.drawn_by_one)
    (again,) = lab(one=text.replace("1\n", "2\n"))  # a function may be registered again
    assert source_sha256(again.drawn_by_one) != imported
    assert source_sha256(lab(one=text)[0].drawn_by_one) == imported


def test_functions_of_the_same_name_of_two_modules_are_refused(lab):
    text = "from redi.core.registry import configurable\n\n@configurable\ndef drawn_by_two():\n    return 1\n"
    lab(one=text)
    with pytest.raises(ValueError, match="redi.drawn_by_two"):
        lab(two=text)


def test_a_warning_names_what_was_edited_and_nothing_else(lab, tmp_path, caplog):
    one, two = lab(one="class A:\n    pass\n", two="class B:\n    pass\n")
    record = {"plug_ins": plug_ins(one.A, two.B)}
    (one,) = lab(one="class A:\n    x = 1\n\n\nclass New:\n    pass\n")
    warn_of_edits(record, tmp_path, two.B(), 3)
    warn_of_edits({}, tmp_path, one.A())  # a checkpoint of an older version
    assert not caplog.messages
    warn_of_edits(record, tmp_path, one.A(), one.New(), two.B())
    assert caplog.messages == [f"the code of one.A was edited after {tmp_path} was written: the new code is used"]
