"""What the prefiller and the decoder are asked, made from what the client asked.

By the rules of vLLM 0.10.1 to 0.32; each rule's reason stands next to it and, for
users, in docs/proxy.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from proxy.codec import dumps, loads

Json = dict[str, Any]

# The producer's side of the handshake that vLLM's PD connectors share.
_ASK_PREFILL = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}

# The prefiller's one token is thrown away (the decoder computes the last prompt token
# again and samples the first one itself), so whatever only shapes the answer is dropped
# there. Nothing is dropped that a chat template may render into the prompt: both sides
# must tokenize the same.
_NOT_FOR_PREFILL = (
    "stream_options",  # 400 without stream
    "min_tokens",  # 400 when above max_tokens
    "best_of",
    "stop",
    "stop_token_ids",  # would end as "stop": the connector hands over only what ended by length
    "logprobs",
    "top_logprobs",
    "echo",
)

_BYTES_PER_TOKEN = 4  # a guess, good enough to compare loads
_KEY_BYTES = 1024  # of the prompt, for prefix affinity
_DEFAULT_OUTPUT = 256  # tokens, where the client names no limit


class BadRequest(Exception):
    """The client's body cannot be used; the message goes to the client with 400."""


@dataclass(slots=True)
class Ask:
    """A client's request body, read once."""

    raw: bytes
    body: Json
    chat: bool
    stream: bool
    prompt_tokens: int  # estimated
    output_tokens: int  # asked for, or a guess
    key: bytes  # beginning of the prompt
    alone: str  # why only a decoder can serve it; "": prefill and decode


def read(raw: bytes, *, chat: bool) -> Ask:
    """Parse a client's body. Raises BadRequest."""
    try:
        body = loads(raw)
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest(f"the body must be a JSON object, got {type(body).__name__}")
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    output = limit if isinstance(limit, int) and 0 < limit < 1 << 31 else _DEFAULT_OUTPUT
    if chat:
        key, size = _chat_key(body)
    else:
        key, size = _prompt_key(body.get("prompt"))
    return Ask(
        raw=raw,
        body=body,
        chat=chat,
        stream=body.get("stream") is True,
        prompt_tokens=size,
        output_tokens=output,
        key=key,
        alone=_why_alone(body, chat),
    )


def _prompt_key(prompt: object) -> tuple[bytes, int]:
    if isinstance(prompt, str):
        return prompt[:_KEY_BYTES].encode(errors="replace"), len(prompt) // _BYTES_PER_TOKEN + 1
    if isinstance(prompt, list) and prompt:
        if isinstance(prompt[0], int):
            return dumps(prompt[: _KEY_BYTES // 4]), len(prompt)
        parts = [_prompt_key(part) for part in prompt if isinstance(part, str | list)]
        if parts:
            return parts[0][0], sum(size for _, size in parts)
    return b"", 1


def _chat_key(body: Json) -> tuple[bytes, int]:
    messages = body.get("messages")
    if not isinstance(messages, list):
        return b"", 1
    key = b""
    size = 0
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        text = content if isinstance(content, str) else "" if content is None else str(content)
        size += len(text) // _BYTES_PER_TOKEN + 4
        if len(key) < _KEY_BYTES:
            key += text[: _KEY_BYTES - len(key)].encode(errors="replace")
    return key, size or 1


def _why_alone(body: Json, chat: bool) -> str:
    """Why prefill and decode on two engines would not give a plain engine's answer."""
    n = body.get("n")
    if isinstance(n, int) and n > 1:
        return "n"  # n children at the decoder would all pull what the first one frees
    best_of = body.get("best_of")
    if isinstance(best_of, int) and best_of > 1:
        return "best-of"
    if body.get("use_beam_search"):
        return "beam-search"  # many short requests inside the engine
    if body.get("prompt_logprobs") is not None:
        return "prompt-logprobs"  # needs the prompt computed where it is answered
    if chat:
        if body.get("tool_choice") == "required":
            # vLLM 0.10.1 parses the one token as tool calls and fails; any other
            # choice may change the prompt.
            return "tool-choice-required"
        return ""
    if body.get("prompt_embeds") is not None:
        return "prompt-embeds"
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int):
        return "several-prompts"  # the answer carries the handover of the first one only
    if body.get("echo"):
        if body.get("logprobs") is not None:
            return "echo-logprobs"  # those are prompt logprobs
        if body.get("max_tokens") == 0:
            return "no-output"
    return ""


def prefill_body(ask: Ask) -> bytes:
    """The body for the prefiller: the same prompt, one token, its KV kept for a decoder."""
    return dumps(_one_token(ask) | {"kv_transfer_params": _ASK_PREFILL})


def decode_body(ask: Ask, kv_transfer_params: Json) -> bytes:
    """The client's body with the handover. The client's bytes stay as they are."""
    if "kv_transfer_params" in ask.body:  # a client must not choose whose KV is pulled
        return dumps(ask.body | {"kv_transfer_params": kv_transfer_params})
    closing = ask.raw.rindex(b"}")
    comma = b"," if ask.body else b""
    params = dumps(kv_transfer_params)
    return b'%b%b"kv_transfer_params":%b}' % (ask.raw[:closing], comma, params)


def alone_body(ask: Ask) -> bytes:
    """The client's body for a decoder that also prefills."""
    if "kv_transfer_params" in ask.body:
        return dumps({k: v for k, v in ask.body.items() if k != "kv_transfer_params"})
    return ask.raw


def release_body(ask: Ask, kv_transfer_params: Json) -> bytes:
    """A shortest possible decode: it pulls the KV, so that the prefiller frees it.

    The prefiller has accepted this body, so the decoder does too, whatever it finds
    wrong with the client's own.
    """
    return dumps(_one_token(ask) | {"kv_transfer_params": kv_transfer_params})


def forget_body(ask: Ask, request_id: str) -> bytes:
    """A request of one token that names another one: its KV may go, nobody will ask for it."""
    body = {"model": ask.body.get("model"), "max_tokens": 1}
    if "messages" in ask.body:
        body["messages"] = [{"role": "user", "content": "."}]
    else:
        body["prompt"] = "."
    return dumps(body | {"kv_transfer_params": {"aborted_request": [request_id]}})


# In generated text the quotes would be escaped, so this finds only the field itself.
_CACHED_TOKENS = re.compile(rb'("cached_tokens": ?)(?:\d+|null)')


def with_cached_tokens(data: bytes, cached: int) -> bytes:
    """The decoder's usage with the prefiller's count of cached prompt tokens.

    To a decoder all that it pulled is "cached": it would report the whole prompt.
    """
    if b'"cached_tokens"' not in data:
        return data
    return _CACHED_TOKENS.sub(rb"\g<1>%d" % cached, data)


def cached_tokens(answer: Json) -> int:
    """The prefiller's count of cached prompt tokens; null there means none."""
    usage = answer.get("usage")
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return cached if isinstance(cached, int) else 0


def _one_token(ask: Ask) -> Json:
    body = {k: v for k, v in ask.body.items() if k not in _NOT_FOR_PREFILL}
    body["max_tokens"] = 1
    if "max_completion_tokens" in body:
        body["max_completion_tokens"] = 1  # vLLM prefers it to max_tokens
    if "n" in body:
        body["n"] = 1
    body["stream"] = False
    body["ignore_eos"] = True  # else a first token EOS ends as "stop" and hands nothing over
    return body
