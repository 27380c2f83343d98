"""JSON by the fastest parser that is installed, else by the standard library.

Which parser is fast depends on the text: for a long prompt pydantic's (there where vLLM
is) takes a tenth of orjson's time if it is ASCII and twice as much if it is not.
"""

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
    try:
        from pydantic_core import from_json
    except ImportError:  # optional: faster for long prompts in English

        def loads(data: bytes) -> Any:
            """Parse JSON text. Raises ValueError."""
            return orjson.loads(data)

    else:

        def loads(data: bytes) -> Any:
            """Parse JSON text. Raises ValueError."""
            if data.isascii():
                return from_json(data, allow_inf_nan=False)
            return orjson.loads(data)

    def dumps(value: Any) -> bytes:
        """Compact JSON as UTF-8."""
        try:
            return orjson.dumps(value)
        except TypeError:  # integers beyond 64 bits, lone surrogates
            return json.dumps(value, separators=(",", ":")).encode()
