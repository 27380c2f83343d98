"""How native calls fail."""

from __future__ import annotations

from llm_datadist.status import LLMStatusCode


class NativeError(Exception):
    """A native call ended with `code`. The reason goes to the log: callers see only the code."""

    def __init__(self, code: LLMStatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def refuse_if(condition: object, reason: str) -> None:
    """LLM_PARAM_INVALID if `condition` holds."""
    if condition:
        raise NativeError(LLMStatusCode.LLM_PARAM_INVALID, reason)
