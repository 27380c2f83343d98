"""Messages of the side channel, byte for byte where vllm-ascend v0.10.1rc1 has them too."""

from __future__ import annotations

import msgspec
import pytest

from connector.protocol import FINISHED_REPLY, Begin, Finished, Release, decode, encode


def test_finished_is_vllm_ascends_message_and_so_is_its_answer() -> None:
    sent = encode(Finished("chatcmpl-1", tp_rank=1, tp_size=2))
    assert sent == msgspec.msgpack.encode([1, ["chatcmpl-1", 1, 2]])
    assert FINISHED_REPLY == b"receiving decode finished"


@pytest.mark.parametrize(
    "message", [Finished("r", 0, 1), Release("r"), Begin("r", 3, "session", None, 45.0, 0, 1)]
)
def test_what_is_sent_is_what_arrives(message: Finished | Release | Begin) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize("frame", [[9, {}], [0, {}], [1, ["r"]], [1], {}, "r"])
def test_what_is_no_message_is_said_to_be_none(frame: object) -> None:
    with pytest.raises(ValueError, match="not a side-channel message"):
        decode(msgspec.msgpack.encode(frame))
