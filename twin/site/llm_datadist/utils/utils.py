"""Checks of argument types and integer ranges: TypeError and ValueError, as in CANN.

None passes `check_isinstance` unless `allow_none` is False: CANN lets it through and fails
later, and its users rely on optional arguments being accepted that way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def check_isinstance(
    name: str,
    value: Any,
    classes: type | list[type],
    inner: type | None = None,
    *,
    allow_none: bool = True,
) -> None:
    """TypeError unless `value` is one of `classes` and its elements (a dict's keys) `inner`."""
    if allow_none and value is None:
        return
    allowed = classes if isinstance(classes, list) else [classes]
    if not any(isinstance(value, one) for one in allowed):
        names = [one.__name__ for one in allowed]
        raise TypeError(f"{name} only support {names}, but got {type(value)}.")
    if inner is not None:
        check_inner(name, value, inner)


def check_inner(name: str, values: Iterable[Any], inner: type) -> None:
    for value in values:
        if not isinstance(value, inner):
            raise TypeError(f"{name} inner type only support {inner}, but got {type(value)}.")


def check_dict(
    name: str, value: Mapping[Any, Any], key: type, item: Any, inner: type | None = None
) -> None:
    """Keys of type `key`, values of type `item` (their elements of `inner`); else TypeError."""
    for k, v in value.items():
        if not isinstance(k, key):
            raise TypeError(f"{name} dict key only support {key}, but got {type(k)}.")
        if not isinstance(v, item):
            raise TypeError(f"{name} dict value only support {item}, but got {type(v)}.")
        if inner is not None:
            check_inner("dict value", v, inner)


def _check_range(name: str, value: Any, low: int, high: int, kind: str) -> None:
    check_isinstance(name, value, int, allow_none=False)
    if not low <= value <= high:
        raise ValueError(f"{name}'s value is out of range,{value} is not a {kind} value.")


def check_uint16(name: str, value: Any) -> None:
    _check_range(name, value, 0, 2**16 - 1, "uint16")


def check_int32(name: str, value: Any) -> None:
    _check_range(name, value, -(2**31), 2**31 - 1, "int32")


def check_uint32(name: str, value: Any) -> None:
    _check_range(name, value, 0, 2**32 - 1, "uint32")


def check_int64(name: str, value: Any) -> None:
    _check_range(name, value, -(2**63), 2**63 - 1, "int64")


def check_uint64(name: str, value: Any) -> None:
    _check_range(name, value, 0, 2**64 - 1, "uint64")
