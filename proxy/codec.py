"""JSON by orjson where it is installed, else by the standard library; same results."""

from __future__ import annotations

import json
from typing import Any

try:
    import orjson
except ImportError:  # optional: several times faster, not needed

    def loads(data: bytes) -> Any:
        """Parse JSON text. Raises ValueError."""
        return json.loads(data)

    def dumps(value: Any) -> bytes:
        """Compact JSON as UTF-8."""
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

else:

    def loads(data: bytes) -> Any:
        """Parse JSON text. Raises ValueError."""
        return orjson.loads(data)

    def dumps(value: Any) -> bytes:
        """Compact JSON as UTF-8."""
        try:
            return orjson.dumps(value)
        except TypeError:  # integers beyond 64 bits, lone surrogates
            return json.dumps(value, separators=(",", ":")).encode()
