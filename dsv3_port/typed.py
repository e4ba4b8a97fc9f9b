"""What pydantic finds wrong, as one sentence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from .errors import PortError

_T = TypeVar("_T", bound=type)
_WORDS = {
    "bool_type": "must be true or false",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "int_type": "must be a positive integer",
}


def told(made: _T) -> _T:
    """A class decorator: its constructor raises PortError where a field is of another type or out of
    its range."""
    init: Callable[..., None] = made.__init__  # type: ignore[misc]

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **values: Any) -> None:
        try:
            init(self, *args, **values)
        except ValidationError as error:
            raise PortError(f"config: {sentence(error, list(self.__dataclass_fields__))}") from None

    made.__init__ = checked  # type: ignore[misc]
    return made


def sentence(error: ValidationError, names: Sequence[str] = ()) -> str:
    """The first finding, with the field's name and what was there; all names where fields are
    missing. names: of arguments that were given by place."""
    found = error.errors(include_url=False)
    first = found[0]
    kind, limits, value = first["type"], first.get("ctx") or {}, first["input"]
    if kind == "missing":
        return f"missing {', '.join(str(e['loc'][-1]) for e in found if e['type'] == kind)}"
    what = _WORDS.get(kind, first["msg"][0].lower() + first["msg"][1:])
    if kind == "less_than_equal":
        what = f"must be {limits['le']} at most"
    elif kind in ("greater_than", "greater_than_equal"):
        least = f"{limits['ge']} or more" if "ge" in limits else f"above {limits['gt']}"
        what = "must be a positive integer" if _whole(value) else f"must be {least}"
    shown = repr(value)
    place = [
        names[p] if isinstance(p, int) and not i and names else p
        for i, p in enumerate(first["loc"])
    ]
    return f"{'.'.join(map(str, place))} {what}, not {shown[:80]}"


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
