"""Which parser reads which command: any hccn_tool or npu-smi answer -> a typed reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pd_validate.facts import hccn, hccn_details, npu_smi
from pd_validate.facts.reading import Output, Reading

Parser = Callable[[Output], Reading[Any]]

HCCN_PARSERS: Mapping[str, Parser] = MappingProxyType(
    {
        "-link": hccn.parse_link,
        "-link_stat": hccn.parse_link_stat,
        "-lldp": hccn.parse_lldp,
        "-optical": hccn.parse_optical,
        "-speed": hccn.parse_speed,
        "-duplex": hccn.parse_duplex,
        "-net_health": hccn.parse_net_health,
        "-netdetect": hccn.parse_netdetect,
        "-gateway": hccn.parse_gateway,
        "-ip": hccn.parse_ip,
        "-mtu": hccn.parse_mtu,
        "-tls": hccn.parse_tls,
        "-vnic": hccn.parse_vnic,
        "-ping": hccn.parse_ping,
        "-hccs_ping": hccn.parse_hccs_ping,
        "-stat": hccn_details.parse_stat,
        "-hw_stats": hccn_details.parse_stat,
        "-route": hccn_details.parse_route,
        "-arp": hccn_details.parse_arp,
        "-pfc": hccn_details.parse_pfc,
        "-dscp_to_tc": hccn_details.parse_dscp_to_tc,
    }
)
NPU_SMI_PARSERS: Mapping[str, Parser] = MappingProxyType(
    {
        "-m": npu_smi.parse_mapping,
        "-l": npu_smi.parse_list,
        "health": npu_smi.parse_health,
        "spod-info": npu_smi.parse_spod,
    }
)


def parse(argv: Sequence[str], output: Output) -> Reading[Any]:
    """Read the answer to `argv` (with or without the program's directory).

    Commands without a parser of their own are read as `key: value` fields.
    """
    program, words = argv[0].rpartition("/")[2], list(argv[1:])
    if program == "npu-smi":
        return _npu_smi(words)(output)
    return _hccn(words)(output)


def _hccn(words: Sequence[str]) -> Parser:
    # hccn_tool -i <id> -<command> …
    command = words[2] if len(words) > 2 else ""
    return HCCN_PARSERS.get(command, hccn_details.parse_fields)


def _npu_smi(words: Sequence[str]) -> Parser:
    if list(words) == ["info"]:
        return npu_smi.parse_info
    known = (NPU_SMI_PARSERS[word] for word in words if word in NPU_SMI_PARSERS)
    return next(known, npu_smi.parse_fields)
