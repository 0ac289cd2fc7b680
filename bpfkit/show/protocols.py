# SPDX-License-Identifier: Apache-2.0
"""Names of IP protocols: the keywords of IANA's "Assigned Internet Protocol Numbers".

Lower case, annotations such as "(deprecated)" left out.  A number without a keyword (61, 63,
68, 99, 114, 148-254) is shown as the number itself.
"""

from __future__ import annotations

__all__ = ["protocol_name", "protocol_number"]

# In order from 0; "-" where IANA gives no keyword, "_" stands for a blank inside one.
_KEYWORDS = """
hopopt icmp igmp ggp ipv4 st tcp cbt egp igp bbn-rcc-mon nvp-ii pup argus emcon xnet chaos udp
mux dcn-meas hmp prm xns-idp trunk-1 trunk-2 leaf-1 leaf-2 rdp irtp iso-tp4 netblt mfe-nsp
merit-inp dccp 3pc idpr xtp ddp idpr-cmtp tp++ il ipv6 sdrp ipv6-route ipv6-frag idrp rsvp gre
dsr bna esp ah i-nlsp swipe narp min-ipv4 tlsp skip ipv6-icmp ipv6-nonxt ipv6-opts - cftp -
sat-expak kryptolan rvd ippc - sat-mon visa ipcv cpnx cphb wsn pvp br-sat-mon sun-nd wb-mon
wb-expak iso-ip vmtp secure-vmtp vines iptm nsfnet-igp dgp tcf eigrp ospfigp sprite-rpc larp mtp
ax.25 ipip micp scc-sp etherip encap - gmtp ifmp pnni pim aris scps qnx a/n ipcomp snp
compaq-peer ipx-in-ip vrrp pgm - l2tp ddx iatp stp srp uti smp sm ptp isis_over_ipv4 fire crtp
crudp sscopmce iplt sps pipe sctp fc rsvp-e2e-ignore mobility_header udplite mpls-in-ip manet hip
shim6 wesp rohc ethernet aggfrag nsh homa bit-emu
"""

_names: list[str] = []


def _table() -> list[str]:
    if not _names:
        for number, word in enumerate(_KEYWORDS.split()):
            _names.append(str(number) if word == "-" else word.replace("_", " "))
        _names.extend(str(number) for number in range(len(_names), 255))
        _names.append("reserved")
    return _names


def protocol_name(number: int) -> str:
    """``tcp`` for 6, ``ipv6-icmp`` for 58, ``253`` for 253.  ``number`` is 0 to 255."""
    return _table()[number]


def protocol_number(text: str) -> int:
    """The number of a keyword (any case) or of a number as text; ValueError if it is neither."""
    word = text.lower()
    if word.isascii() and word.isdigit() and int(word) < 256:
        return int(word)
    if word in ("icmpv6", "icmp6"):
        return 58
    return _table().index(word)
