"""Release a prefiller's KV of a request that no decoder will take. For proxies and operators.

    python -m connector.release HOST PORT TP_SIZE REQUEST_ID

HOST, PORT, TP_SIZE and REQUEST_ID are `remote_host`, `remote_port`, `remote_tp_size` and
`remote_request_id` of the prefiller's kv_transfer_params.
"""

from __future__ import annotations

import argparse
import sys

import zmq

from connector.channel import Caller
from connector.errors import TransferError
from connector.protocol import Release


def release(host: str, port: int, tp_size: int, request_id: str, timeout: float = 2.0) -> None:
    """Tell every TP rank. Raises TransferError when a rank does not answer in `timeout` seconds.

    Repeating it, or naming a request that is gone, does no harm. Ranks that a decoder is
    pulling from let go when that pull has ended.
    """
    problems: list[str] = []
    with zmq.Context() as context:
        for rank in range(tp_size):
            caller = Caller(context, host, port + rank)
            try:
                caller.tell(Release(request_id), timeout)
            except TransferError as error:
                problems.append(str(error))
            finally:
                caller.close()
    if problems:
        raise TransferError("unreachable", "; ".join(problems))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("host")
    parser.add_argument("port", type=int, help="of TP rank 0")
    parser.add_argument("tp_size", type=int)
    parser.add_argument("request_id")
    given = parser.parse_args()
    try:
        release(given.host, given.port, given.tp_size, given.request_id)
    except TransferError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
