"""Parser of /etc/hccn.conf: the NPU network settings that survive a reboot.

Lines are `key_<physical id>=value`; the KV transport takes the device's address from
here before it asks the device. Format: the published source of hccn_tool.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pd_validate.facts.reading import Output, Reading, Reason, failed, measured, refusal


@dataclass(frozen=True)
class HccnConf:
    """Settings by device and key, as they stand. An empty file has none.

    `unread`: lines that are no setting, with their number from 1.
    """

    settings: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    unread: tuple[tuple[int, str], ...] = ()

    def get(self, device: int, key: str) -> str | None:
        return self.settings.get(device, {}).get(key)


def parse_conf(output: Output) -> Reading[HccnConf]:
    """`cat /etc/hccn.conf`. No such file is Reason.MISSING. Of a repeated key the first counts."""
    refused = refusal(output, ())
    if refused is not None:
        return refused
    if output.exit_code != 0:
        return failed(Reason.FAILED, output)
    settings: dict[int, dict[str, str]] = {}
    unread = []
    for number, line in enumerate(output.stdout.splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        # The id is the last number of the key: route_address_<ip>_netmask_<mask>_<id>=…
        match = re.match(r"([A-Za-z].*?)_(\d+)\s*=\s*(.*)$", text)
        if match is None:
            unread.append((number, text))
            continue
        settings.setdefault(int(match[2]), {}).setdefault(match[1], match[3])
    return measured(HccnConf(settings, tuple(unread)), output)
