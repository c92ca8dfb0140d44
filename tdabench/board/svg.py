"""Elements of SVG, written and escaped."""

from __future__ import annotations

from markupsafe import Markup, escape

_ATTRIBUTES: dict[str, str] = {"class_": "class", "viewBox": "viewBox"}


def tag(name: str, *children: Markup | str, **attributes: object) -> Markup:
    """Build an element; text and attribute values are escaped, children that are elements are not."""
    written = "".join(f' {_ATTRIBUTES.get(k, k.replace("_", "-"))}="{escape(v)}"' for k, v in attributes.items())
    inside = "".join(escape(child) for child in children)
    return Markup(f"<{name}{written}>{inside}</{name}>" if children else f"<{name}{written}/>")


def text(words: str, x: float, y: float, anchor: str, css: str = "value", **attributes: object) -> Markup:
    """Build a line of text whose start, middle or end (``anchor``) is at a place."""
    return tag("text", words, x=number(x), y=number(y), text_anchor=anchor, class_=css, **attributes)


def number(value: float) -> str:
    """Write a coordinate to a tenth of a pixel: small, and the same on every machine."""
    return f"{round(value, 1) + 0.0:g}"


def line(places: list[tuple[float, float]]) -> str:
    """Write a path through places."""
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in places)
