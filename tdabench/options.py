"""Options: the fields of a frozen dataclass, typed, documented and parsed from text.

Methods and ensembles are frozen dataclasses: the constructor stores options and does nothing else. A field made with
:func:`option` carries its help text and its bounds; ``tdabench methods NAME`` prints them.
"""

from __future__ import annotations

import dataclasses
import operator
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tdabench.authors import author_errors
from tdabench.errors import OptionError, UnknownNameError


def option(
    default: Any, about: str, *, low: float | None = None, high: float | None = None, tune: Sequence[Any] = ()
) -> Any:
    """Declare an option: a dataclass field with a default and a help text.

    Parameters
    ----------
    default
        Used where nothing else is given.
    about
        Printed by ``tdabench methods NAME``.
    low, high
        Inclusive bounds of a number.
    tune
        Values that ``tdabench tune`` tries; none for an option that is not tuned.
    """
    return dataclasses.field(default=default, metadata={"help": about, "low": low, "high": high, "tune": tuple(tune)})


@dataclass(frozen=True)
class OptionInfo:
    """What is known of one option."""

    name: str
    type: str
    default: Any
    help: str
    low: float | None
    high: float | None
    tune: tuple[Any, ...]


def describe(cls: type[Any]) -> list[OptionInfo]:
    """Return the options of a dataclass; a class without fields has none."""
    if not dataclasses.is_dataclass(cls):
        return []
    hints = _hints(cls)
    infos = []
    for field in dataclasses.fields(cls):
        default = None if field.default is dataclasses.MISSING else field.default
        meta = field.metadata
        infos.append(
            OptionInfo(
                field.name,
                _type_name(hints[field.name]),
                default,
                meta.get("help", ""),
                meta.get("low"),
                meta.get("high"),
                meta.get("tune", ()),
            )
        )
    return infos


def _hints(cls: type[Any]) -> dict[str, Any]:
    """Return the types that fields are declared with.

    Raises
    ------
    OptionError
        If one names what is not there when the class is used, as a type that is imported for type checkers alone.
    """
    try:
        return typing.get_type_hints(cls)
    except NameError as error:
        raise OptionError(
            f"{cls.__name__} declares an option with a type that is not there at run time: {error}. Import it outside"
            " of `if TYPE_CHECKING`."
        ) from None


def check_choice(what: str, value: Any, choices: Any) -> None:
    """Refuse a value that a ``Literal`` does not list; nobody else does where types are not checked.

    Raises
    ------
    OptionError
        Naming the choices.
    """
    known = typing.get_args(choices)
    if value not in known:
        raise OptionError(f"{what} must be one of {', '.join(map(repr, known))}; got {value!r}.")


def whole_number(what: str, value: Any, most: int | None = None) -> int:
    """Return a whole number, not below 0, of whatever type; names of files and random streams are made of it.

    Raises
    ------
    OptionError
        For anything else, text too, and for more than ``most``.
    """
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if number < 0 or (most is not None and number > most):
        at_most = "" if most is None else f" and at most {most}"
        raise OptionError(f"{what} must be a whole number, at least 0{at_most}; got {value!r}.")
    return number


def values(instance: Any) -> dict[str, Any]:
    """Return the options of an instance as a dict, in the order of declaration."""
    if not dataclasses.is_dataclass(instance):
        return {}
    return {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance)}


def make(cls: type[Any], what: str, given: dict[str, Any]) -> Any:
    """Construct ``cls`` from options given as text (or as values of the right type).

    Raises
    ------
    UnknownNameError
        For an option that the class does not have.
    OptionError
        For a value of the wrong type or out of range.
    """
    _check_decorated(cls, what)
    known = {info.name: info for info in describe(cls)}
    for name in given:
        if name not in known:
            raise UnknownNameError(f"option of {what}", name, known)
    _check_declared(cls, what, given)
    hints = _hints(cls)
    # Defaults, too: where a number's is written as 1, its record must not differ from that of --set NAME=1.
    chosen = {**_defaults(cls), **given}
    parsed = {k: _check(_parse(v, hints[k], f"{what}'s {k}"), known[k], what) for k, v in chosen.items()}
    with author_errors(f"Making {what} with {_shown(parsed)}", OptionError):  # a __post_init__ of its author's
        return cls(**parsed)


def _shown(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items()) or "no options"


def _defaults(cls: type[Any]) -> dict[str, Any]:
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    return {f.name: f.default for f in fields if f.init and f.default is not dataclasses.MISSING}


def _check_decorated(cls: type[Any], what: str) -> None:
    """Refuse an option that nobody made an attribute of: it would be taken for true, and be in no record."""
    for owner in cls.__mro__:
        for name, value in vars(owner).items():
            if isinstance(value, dataclasses.Field):
                raise OptionError(
                    f"{what} declares {name} with tdabench.option, and {owner.__name__} is no dataclass. "
                    "Write @dataclass(frozen=True) above it."
                )


def _check_declared(cls: type[Any], what: str, given: dict[str, Any]) -> None:
    """Refuse what the author of a class must repair: a constructor of its own, an option that no record can hold."""
    if not dataclasses.is_dataclass(cls):
        if cls.__init__ is not object.__init__:
            raise OptionError(f"{what} has a constructor of its own. Make it a dataclass; its fields are its options.")
        return
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise OptionError(
            f"{what} can be changed while it runs, so state could hide on it. Write @dataclass(frozen=True) above it, "
            "and return from fit what serving needs."
        )
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        _check_name(cls, what, field.name)
        if not _is_plain(hints[field.name]):
            raise OptionError(
                f"{what} declares {field.name} as {_type_name(hints[field.name])}. "
                "Declare it as bool, int, float, str or a Literal, or one of them or None."
            )
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if missing and field.name not in given:
            raise OptionError(f"{what} needs the option {field.name}. Pass --set {field.name}=VALUE.")


def _check_name(cls: type[Any], what: str, name: str) -> None:
    """Refuse an option with the name of what every method has: with a type beside it, it is a field."""
    for owner in cls.__mro__[1:]:
        if name in vars(owner) and owner.__module__ == "tdabench.method":
            raise OptionError(
                f"{what} declares {name}, which a {owner.__name__} has, as an option. Write it without a type"
                f" ({name} = ...), or call the option otherwise."
            )


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    if _is_union(hint):
        return " | ".join("none" if a is type(None) else _type_name(a) for a in typing.get_args(hint))
    return getattr(hint, "__name__", str(hint))


def _is_plain(hint: Any) -> bool:
    if _is_union(hint):
        kinds = [k for k in typing.get_args(hint) if k is not type(None)]
        return len(kinds) == 1 and _is_plain(kinds[0])
    return hint in (bool, int, float, str) or typing.get_origin(hint) is Literal


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _parse(value: Any, hint: Any, where: str) -> Any:
    if _is_union(hint):
        return _parse_union(value, hint, where)
    if typing.get_origin(hint) is Literal:
        choices = {str(a): a for a in typing.get_args(hint)}
        if str(value) not in choices:
            raise OptionError(f"{where} must be one of {', '.join(choices)}; got {value!r}.")
        return choices[str(value)]
    if not isinstance(value, str):
        if hint is float and type(value) is int and _is_finite(value):
            return float(value)
        if type(value) is hint:
            return value
        raise OptionError(f"{where} must be of type {_type_name(hint)}; got {value!r}.")
    return _parse_text(value, hint, where)


def _parse_union(value: Any, hint: Any, where: str) -> Any:
    kinds = typing.get_args(hint)
    if value is None or (isinstance(value, str) and value.lower() == "none"):
        return None
    return _parse(value, next(k for k in kinds if k is not type(None)), where)


def _parse_text(text: str, hint: Any, where: str) -> Any:
    if hint is str:
        return text
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise OptionError(f"{where} must be true or false; got {text!r}.")
        return text.lower() == "true"
    try:
        return hint(text)
    except ValueError:
        raise OptionError(f"{where} must be of type {_type_name(hint)}; got {text!r}.") from None


def _check(value: Any, info: OptionInfo, what: str) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        below = info.low is not None and not value >= info.low
        above = info.high is not None and not value <= info.high
        if below or above or value != value:
            low = "-inf" if info.low is None else f"{info.low:g}"
            high = "inf" if info.high is None else f"{info.high:g}"
            raise OptionError(f"{what}'s {info.name} must be between {low} and {high}; got {value!r}.")
        if not _is_finite(value):
            raise OptionError(f"{what}'s {info.name} must be finite; got {value!r}.")
    return value


def _is_finite(value: float) -> bool:
    """Return whether it can be reckoned with; a whole number may be too large for ``math.isfinite`` itself."""
    return abs(value) <= sys.float_info.max
