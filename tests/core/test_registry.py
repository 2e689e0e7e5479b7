import importlib.util
import sys

import gin
import pytest

import redi
from redi.core import registry as module
from redi.core.registry import Registry, configurable, identity
from redi.models.reducers.pca import PCA
from redi.runtime.spelling import did_you_mean


class Shape:
    """An interface for these tests, so that nothing is added to the registries of the library."""


class Colour:
    pass


@pytest.fixture
def shapes(monkeypatch):
    monkeypatch.setattr(module, "registries", {})
    return Registry("shapes", Shape, runtime=("canvas",))


def circle(shapes, name: str = "Circle", where: str = __name__):
    class Circle(Shape):
        """A round one."""

        def __init__(self, *, canvas=None, radius: float = 1.0):
            self.canvas, self.radius = canvas, radius

    Circle.__name__ = Circle.__qualname__ = name
    Circle.__module__ = where
    with gin.config.interactive_mode():  # the registry of gin outlives a test
        return Circle, shapes.register(Circle)


def test_the_decorator_returns_the_class_itself(shapes):
    cls, registered = circle(shapes)
    assert registered is cls and shapes["Circle"] is cls


def test_a_plain_call_does_not_feel_what_gin_binds(shapes):
    cls, _ = circle(shapes)
    gin.parse_config("Circle.radius = 5.0")
    assert cls().radius == 1.0
    assert gin.get_configurable(cls)().radius == 5.0


def test_a_configurable_function_called_plainly_does_not_feel_what_gin_binds():
    @configurable(runtime=("here",))
    def paint_a_test(*, here=0, coats=1):
        return here, coats

    gin.parse_config("paint_a_test.coats = 3")
    assert paint_a_test() == (0, 1)
    assert gin.get_configurable(paint_a_test)(here=2) == (2, 3)


def test_components_are_bound_under_their_kind_and_class_name(shapes):
    cls, _ = circle(shapes)
    gin.parse_config("shapes.Circle.radius = 2.0\nheld = @shapes.Circle()")
    assert gin.get_configurable("shapes.Circle")().radius == 2.0


def test_another_interface_is_refused(shapes):
    with pytest.raises(TypeError, match="in shapes: must derive from Shape"):
        shapes.register(Colour)
    assert not shapes


def test_an_object_is_refused_where_a_class_belongs(shapes):
    with pytest.raises(TypeError, match="in shapes: must derive"):
        shapes.register(Shape())


def test_a_second_class_of_the_same_name_is_refused(shapes):
    first, _ = circle(shapes)
    with pytest.raises(ValueError, match=f"shapes already has a Circle, from {__name__}: choose another class name"):
        circle(shapes, where="elsewhere")
    assert shapes["Circle"] is first


def test_a_notebook_cell_that_is_run_again_replaces_its_class(shapes):
    first, _ = circle(shapes, name="Redefined")

    class Redefined(Shape):
        def __init__(self, *, radius: float = 2.0):
            self.radius = radius

    Redefined.__qualname__ = first.__qualname__
    assert shapes.register(Redefined) is Redefined
    assert shapes["Redefined"] is Redefined and len(shapes) == 1
    assert gin.get_configurable("shapes.Redefined")().radius == 2.0


def test_run_time_arguments_cannot_be_bound(shapes):
    circle(shapes)
    with pytest.raises(ValueError, match="denylisted"):
        gin.parse_config("Circle.canvas = 3")


def test_registering_works_while_the_configuration_is_locked(shapes):
    gin.finalize()
    circle(shapes, name="Late")
    assert gin.config_is_locked() and "Late" in shapes


def test_names_are_listed_in_alphabetical_order(shapes):
    circle(shapes, name="Square")
    circle(shapes, name="Arc")
    assert list(shapes) == ["Arc", "Square"]


def test_an_unknown_name_lists_the_known_ones_and_the_nearest(shapes):
    circle(shapes)
    circle(shapes, name="Square")
    with pytest.raises(KeyError) as caught:
        shapes["circel"]
    assert caught.value.args[0] == "no 'circel' in shapes: Circle, Square; did you mean 'Circle'?"


def test_check_accepts_objects_and_check_class_accepts_classes(shapes):
    cls, _ = circle(shapes)
    shapes.check(cls(), "Page.shape")
    shapes.check_class(cls, "Page.shape")


def test_check_class_accepts_what_gin_hands_over_for_a_reference(shapes):
    cls, _ = circle(shapes)
    wrapped = gin.get_configurable(cls)
    assert wrapped is not cls
    shapes.check_class(wrapped, "Page.shape")


def message(check, *arguments) -> str:
    with pytest.raises(ValueError) as caught:
        check(*arguments)
    return str(caught.value)


def test_a_component_of_another_kind_is_named_with_its_kind(shapes):
    circle(shapes)
    Registry("colours", Colour)
    assert message(shapes.check, Colour(), "Page.shape") == (
        "Page.shape must be one of shapes (Circle), got Colour, which is of kind colours. "
        "For example: Page.shape = shapes.Circle(), in a gin file @shapes.Circle()"
    )


def test_any_other_value_is_shown_as_it_is(shapes):
    circle(shapes)
    assert "got 'round'. For example" in message(shapes.check, "round", "Page.shape")
    assert "got None. For example" in message(shapes.check_class, None, "Page.shape")


def test_missing_parentheses_are_shown_in_the_advice(shapes):
    cls, _ = circle(shapes)
    circle(shapes, name="Arc")
    text = message(shapes.check, cls, "Page.shape")
    assert "got the class Circle." in text and text.endswith("in a gin file @shapes.Circle()")


def test_extra_parentheses_are_left_out_of_the_advice(shapes):
    cls, _ = circle(shapes)
    circle(shapes, name="Arc")
    text = message(shapes.check_class, cls(), "Page.shape")
    assert "got an object of Circle." in text and text.endswith("in a gin file @shapes.Circle")


@pytest.mark.parametrize(
    ("name", "expected"), [("pca", "; did you mean 'PCA'?"), ("Ranodm", "; did you mean 'Random'?"), ("xyz", "")]
)
def test_the_nearest_name_is_found_whatever_its_case(name, expected):
    assert did_you_mean(name, ["PCA", "Random"]) == expected


PLUGIN = """
class Plugin:
    def rows(self):
        return ROWS
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """An instance of the class `Plugin` of a module with this text."""

    def plugin(text: str, name: str = "a_plugin", folder: str = "plugin"):
        path = tmp_path / folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        loaded = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, loaded)
        exec(compile(text, str(path), "exec"), vars(loaded))  # no byte code of an earlier text
        return loaded.Plugin()

    return plugin


def test_an_edited_plug_in_has_another_identity(plugin):
    first, second = (identity(plugin(PLUGIN.replace("ROWS", rows))) for rows in ("eye(3)", "ones(3)"))
    assert first["class"] == second["class"] == "a_plugin.Plugin"
    assert first["source_sha256"] != second["source_sha256"]


def test_the_same_source_elsewhere_has_the_same_identity(plugin):
    assert identity(plugin(PLUGIN, folder="one")) == identity(plugin(PLUGIN, folder="two"))


def test_equal_classes_of_two_modules_have_two_identities(plugin):
    first, second = identity(plugin(PLUGIN, name="one_plugin")), identity(plugin(PLUGIN, name="two_plugin"))
    assert first != second and first["source_sha256"] == second["source_sha256"]


def test_the_helpers_in_a_plugins_file_are_part_of_its_identity(plugin):
    assert identity(plugin(PLUGIN)) != identity(plugin("ROWS = 3\n" + PLUGIN))


def test_a_class_of_the_library_is_identified_by_name_and_version():
    assert identity(PCA(rank=3)) == identity(PCA(rank=4))
    assert identity(PCA()) == {"class": "redi.models.reducers.pca.PCA", "redi": redi.__version__}


def test_a_class_without_a_source_is_identified_by_name_and_version():
    names: dict = {"__name__": "typed_in"}
    exec("class Plugin: pass", names)
    assert identity(names["Plugin"]()) == {"class": "typed_in.Plugin", "redi": redi.__version__}
