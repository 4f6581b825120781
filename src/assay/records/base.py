"""The base of all records: small, frozen, typed and JSON-able."""

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Record:
    """Base of the hand-over types: a round trip through plain JSON values."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values (dict, list, str, int, float, bool, None)."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a record from what `to_json` gave (tuples may have become lists)."""
        hints = get_type_hints(cls)
        return cls(**{name: _restore(hints[name], value) for name, value in values.items()})


def _restore(hint: Any, value: Any) -> Any:
    """Give `value`, as JSON knows it, the type that `hint` asks for."""
    origin, args = get_origin(hint), get_args(hint)
    if value is None:
        return None
    if origin is types.UnionType:
        return _restore(next(arg for arg in args if arg is not types.NoneType), value)
    if origin is tuple:
        inner = args[:1] * len(value) if args[1:] == (...,) else args
        return tuple(_restore(arg, item) for arg, item in zip(inner, value, strict=True))
    if origin is dict:
        return {key: _restore(args[1], item) for key, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_json(value)
    return value
