"""Changing single fields of a recipe from text, ``key=value``, and saying in which fields two recipes differ."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import RecipeError
from .recipe import Recipe

_BOOLEANS = {"true": True, "false": False}


def override(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """Returns the recipe with some fields replaced, all at once: only the result must be valid.

    Args:
        settings: ``key=value`` each. Several numbers are separated by commas (``momentum=0.9,0.8``), and those of a
            pair inside a list by a colon (``rates=4:1e-4,6:1e-5``); no limit is ``none``.

    Raises:
        RecipeError: a setting has no ``=``, names no field or comes twice, its value is not of the field's type, or
            the resulting recipe is not valid.
    """
    hints = get_type_hints(Recipe)
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise RecipeError(f"{setting!r} is no setting: expected key=value, such as epochs=3")
        if key not in hints:
            raise RecipeError(f"a recipe has no field {key!r}: expected one of {', '.join(sorted(hints))}")
        if key in changes:
            raise RecipeError(f"{key} is set twice")
        try:
            changes[key] = _parse(text, hints[key])
        except (ValueError, KeyError) as error:
            raise RecipeError(f"{key}: expected {_describe(hints[key])}, got {text!r}") from error
    return replace(recipe, **changes)


def differences(recipe: Recipe, base: Recipe) -> list[str]:
    """What :func:`override` must be given to make one recipe of another, but for what only tells where it comes from.

    Returns:
        ``key=value`` each, in the order of a recipe's fields.
    """
    names = [field.name for field in fields(Recipe) if field.name not in ("source", "measured")]
    return [f"{n}={_text(getattr(recipe, n))}" for n in names if getattr(recipe, n) != getattr(base, n)]


def _text(value: Any, separators: str = ",:") -> str:
    """What :func:`_parse` reads as that value."""
    if isinstance(value, tuple):
        return separators[0].join(_text(item, separators[1:]) for item in value)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _parse(text: str, hint: Any) -> Any:
    """The value that a text stands for, given the type it must have."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {str(value): value for value in arguments}[text]
    if origin is types.UnionType:  # X | None
        return None if text == "none" else _parse(text, arguments[0])
    if origin is tuple:
        return _parse_tuple(text, arguments)
    if hint is bool:
        return _BOOLEANS[text]
    convert: Callable[[str], Any] = hint
    return convert(text)


def _parse_tuple(text: str, arguments: tuple[Any, ...], separator: str = ",") -> tuple[Any, ...]:
    parts = text.split(separator) if text else []
    if arguments[-1] is Ellipsis:
        return tuple(_parse_tuple(part, get_args(arguments[0]), ":") for part in parts)
    return tuple(_parse(part, argument) for part, argument in zip(parts, arguments, strict=True))


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is types.UnionType:
        return f"{_describe(arguments[0])}, or none"
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return "pairs such as 4:1e-4,6:1e-5"
        return f"{len(arguments)} numbers with a comma between them"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[hint]
