"""Options: typed, bounded, parsed from text; every mistake says what would be right."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdabench.errors import OptionError, TdabenchError, UnknownNameError
from tdabench.member import Quantity
from tdabench.method import MemberMethod
from tdabench.options import check_choice, describe, make, option, values


@dataclass(frozen=True)
class Thing:
    size: int = option(3, "how many", low=1, high=9, tune=(1, 3))
    damping: float = option(0.5, "added to the diagonal", low=0)
    rate: float = option(1.0, "any number")
    fast: bool = option(False, "sloppy")
    name: str = option("x", "what it is called")
    kind: Literal["all", "q-only"] = option("all", "which")
    limit: int | None = option(None, "at most", low=1)


class Bare:
    pass


def test_description_has_everything_that_is_printed():
    infos = {info.name: info for info in describe(Thing)}
    assert list(infos) == ["size", "damping", "rate", "fast", "name", "kind", "limit"]
    size = infos["size"]
    assert (size.type, size.default, size.help, size.low, size.high, size.tune) == ("int", 3, "how many", 1, 9, (1, 3))
    assert infos["kind"].type == "all | q-only"
    assert infos["limit"].type == "int | none"
    assert describe(Bare) == []


def test_text_becomes_values_of_the_declared_types():
    given = {
        "size": "7",
        "damping": "1e-3",
        "rate": "2",
        "fast": "True",
        "name": "5",
        "kind": "q-only",
        "limit": "4",
    }
    thing = make(Thing, "thing", given)
    assert values(thing) == {
        "size": 7,
        "damping": 0.001,
        "rate": 2.0,
        "fast": True,
        "name": "5",
        "kind": "q-only",
        "limit": 4,
    }
    assert [type(v) for v in values(thing).values()] == [int, float, float, bool, str, str, int]


def test_values_pass_and_what_is_not_given_is_at_its_default():
    assert values(make(Thing, "thing", {"damping": 2, "limit": None})) == values(Thing(damping=2.0))
    assert make(Thing, "thing", {"limit": "none"}).limit is None
    assert values(make(Bare, "bare", {})) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": "many"}, "thing's size must be of type int; got 'many'."),
        ({"size": "2.5"}, "thing's size must be of type int; got '2.5'."),
        ({"size": 2.5}, "thing's size must be of type int; got 2.5."),
        ({"size": True}, "thing's size must be of type int; got True."),
        ({"size": "0"}, "thing's size must be between 1 and 9; got 0."),
        ({"size": "10"}, "thing's size must be between 1 and 9; got 10."),
        ({"damping": "-0.1"}, "thing's damping must be between 0 and inf; got -0.1."),
        ({"damping": "nan"}, "thing's damping must be between 0 and inf; got nan."),
        ({"damping": "inf"}, "thing's damping must be finite; got inf."),
        ({"rate": "1e999"}, "thing's rate must be finite; got inf."),
        ({"limit": str(10**400)}, f"thing's limit must be finite; got {10**400}."),
        ({"rate": 10**400}, f"thing's rate must be of type float; got {10**400}."),
        ({"damping": None}, "thing's damping must be of type float; got None."),
        ({"fast": "yes"}, "thing's fast must be true or false; got 'yes'."),
        ({"kind": "some"}, "thing's kind must be one of all, q-only; got 'some'."),
        ({"limit": "0"}, "thing's limit must be between 1 and inf; got 0."),
        ({"limit": "few"}, "thing's limit must be of type int; got 'few'."),
    ],
)
def test_a_wrong_value_says_what_is_right(given, message):
    with pytest.raises(OptionError) as caught:
        make(Thing, "thing", given)
    assert str(caught.value) == message


@dataclass(frozen=True)
class Careless:
    power: float = option(1, "a whole number where any is meant", low=0)
    share: float = option(2, "out of its own bounds", low=0, high=1)


def test_defaults_are_of_the_declared_type_and_within_bounds():
    made = make(Careless, "careless", {"share": "0.5"})
    assert json.dumps(values(made)) == json.dumps(values(make(Careless, "careless", {"power": "1", "share": "0.5"})))
    with pytest.raises(OptionError, match="careless's share must be between 0 and 1; got 2"):
        make(Careless, "careless", {})


def test_an_unknown_option_is_guessed_at():
    with pytest.raises(
        UnknownNameError, match=r"Unknown option of thing 'dampening'. Did you mean 'damping'\? Known: "
    ):
        make(Thing, "thing", {"dampening": "1"})
    with pytest.raises(UnknownNameError, match=r"Unknown option of bare 'x'. Known: none\."):
        make(Bare, "bare", {"x": "1"})


def test_an_option_without_a_default_must_be_given():
    @dataclass(frozen=True)
    class Needy:
        size: int

    with pytest.raises(OptionError, match=r"needs the option size. Pass --set size=VALUE."):
        make(Needy, "needy", {})
    assert make(Needy, "needy", {"size": "2"}).size == 2


def test_a_type_that_no_record_can_hold_is_refused_before_anything_runs():
    @dataclass(frozen=True)
    class Listing:
        sizes: list[int]

    with pytest.raises(OptionError, match=r"declares sizes as list.*Declare it as bool, int, float, str"):
        make(Listing, "listing", {})


class Undecorated:
    centre: bool = option(False, "centred")


class OfDecorated(Thing):
    extra: bool = option(False, "more")


@pytest.mark.parametrize(("cls", "name"), [(Undecorated, "centre"), (OfDecorated, "extra")])
@pytest.mark.parametrize("given", [{}, {"centre": "true"}])
def test_an_option_of_a_class_that_is_no_dataclass_is_refused_before_anything_runs(cls, name, given):
    said = rf"mine declares {name} with tdabench\.option, and {cls.__name__} is no dataclass\. Write @dataclass"
    with pytest.raises(OptionError, match=said):
        make(cls, "mine", given)


def test_a_dataclass_that_can_be_changed_is_refused_as_state_could_hide_on_it():
    @dataclass
    class Changeable:
        size: int = 1

    with pytest.raises(OptionError, match=r"mine can be changed while it runs.*Write @dataclass\(frozen=True\)"):
        make(Changeable, "mine", {})


def test_a_type_that_only_type_checkers_import_is_refused_with_what_to_do():
    @dataclass(frozen=True)
    class Mine:
        curvature: NotThere = "hessian"  # noqa: F821

    for ask in (lambda: describe(Mine), lambda: make(Mine, "mine", {})):
        with pytest.raises(OptionError, match=r"'NotThere' is not defined\. Import it outside of `if TYPE_CHECKING`\."):
            ask()


def test_what_every_method_has_is_no_option():
    """With a type beside it, it would be one: --set uses_q=false."""

    @dataclass(frozen=True)
    class Mine(MemberMethod):
        uses_q: bool = True

    with pytest.raises(
        OptionError, match=r"mine declares uses_q, which a MemberMethod has, as an option\. Write it with"
    ):
        make(Mine, "mine", {})


def test_what_a_post_init_refuses_is_told_with_the_options():
    @dataclass(frozen=True)
    class Picky:
        low: int = option(1, "least")
        high: int = option(2, "most")

        def __post_init__(self):
            if self.low > self.high:
                raise ValueError("low is above high")

    with pytest.raises(OptionError, match="Making picky with low=3, high=2 fails: ValueError: low is above high"):
        make(Picky, "picky", {"low": "3"})


def test_an_option_may_have_the_name_of_an_attribute_of_a_base_of_its_author():
    class Base(MemberMethod):
        damping = 0.1

    @dataclass(frozen=True)
    class Mine(Base):
        damping: float = option(0.5, "added to the diagonal")

    assert make(Mine, "mine", {"damping": "0.25"}).damping == 0.25


def test_a_choice_that_a_literal_does_not_list_is_refused():
    check_choice("of", "loss", Quantity)
    with pytest.raises(OptionError, match="of must be one of 'loss', 'target'; got 'Loss'"):
        check_choice("of", "Loss", Quantity)


def test_a_constructor_of_its_own_is_refused():
    class Own:
        def __init__(self, size):
            self.size = size

    with pytest.raises(OptionError, match="Make it a dataclass"):
        make(Own, "own", {})


SIMPLE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)


@given(st.dictionaries(st.sampled_from(["size", "damping", "rate", "fast", "name", "kind", "limit"]), SIMPLE))
def test_any_values_make_a_thing_or_one_error(given):
    try:
        thing = make(Thing, "thing", given)
    except TdabenchError:
        return
    as_text = {k: str(v) for k, v in values(thing).items()}
    assert make(Thing, "thing", as_text) == thing or thing.name != thing.name.strip() or thing.name.lower() == "none"
