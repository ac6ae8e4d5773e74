"""Packet-level figures for the ``fair`` model of the links: TCP flows in ns-3 (``pip install ns3``), written as JSON.

Hosts hang on switches by 10 Gbit/s links of 1 us. Each flow is a bulk TCP transfer; a case's time is when its last byte
is there. The ring all-reduce is its steps one after the other: 2 (N - 1) times the step that is simulated, in which all
ranks send at once.

The network loses nothing, and hosts send their flows in turns. ``--network`` gives others, which show what the figures owe
to that: queues that mark or lose packets, hosts that send what comes first.

    python benchmarks/ns3_fair.py --out tests/data/ns3/fair.json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GBPS = 10
DELAY_US = 1
MTU, SEGMENT, FRAME = 9000, 8948, 9002
STEP_US = 20
MIB = 1 << 20


@dataclass(frozen=True)
class Setting:
    """How a network's hosts and queues behave.

    ``mark``, bytes: queues mark beyond it; 0: they do not mark. ``queue``, bytes: what is beyond it is lost. ``buffer``, bytes of a socket.
    ``turns``: whether hosts send their flows in turns, acknowledgements among them, else first come first served, as switches do.
    """

    tcp: str
    mark: int
    queue: int
    buffer: int
    turns: bool = False


ROOM = 1024 * MIB  # nothing is ever lost
SETTINGS = {
    # As InfiniBand, and RoCE with priority flow control, which training clusters have: a network that loses nothing, hosts that send
    # their flows in turns (a NIC arbitrates between queue pairs, Linux between sockets), windows of several bandwidth-delay products.
    "lossless": Setting("ns3::TcpCubic", 0, ROOM, 512 << 10, turns=True),
    "lossless_128k": Setting("ns3::TcpCubic", 0, ROOM, 128 << 10, turns=True),
    "lossless_4m": Setting("ns3::TcpCubic", 0, ROOM, 4 * MIB, turns=True),
    # Alizadeh et al., "Data Center TCP" (SIGCOMM 2010), sections 3.4 and 4: 65 packets of 1,500 bytes at 10 Gbit/s, 4 MB in a switch.
    "dctcp": Setting("ns3::TcpDctcp", 65 * 1500, 4 * MIB, 4 * MIB, turns=True),
    "lossy": Setting("ns3::TcpCubic", 0, 4 * MIB, 4 * MIB, turns=True),
    # Hosts that send what comes first: acknowledgements wait behind data, and flows share by how their windows happen to stand.
    "first_come_256k": Setting("ns3::TcpCubic", 0, ROOM, 256 << 10),
    "first_come_512k": Setting("ns3::TcpCubic", 0, ROOM, 512 << 10),
    "first_come_1m": Setting("ns3::TcpCubic", 0, ROOM, MIB),
    "first_come_dctcp": Setting("ns3::TcpDctcp", 65 * 1500, 4 * MIB, 4 * MIB),
}


def cases() -> list[dict[str, Any]]:
    """Flows (src, dst) of each case,
    on one switch or on two with one link between (the first half of the hosts on the first).
    """
    out = []
    for n, suffix in ((8, ""), (16, "_16")):
        half = n // 2
        pairs = [(i, i + half) for i in range(half // 2)] + [(half // 2, half // 2 + 1)]
        groups = [flow for a, b in pairs for flow in ((a, b), (b, a))]
        one = {"hosts": n, "switches": 1, "times": 1}
        out += [
            {"name": f"ring_all_reduce{suffix}", **one, "flows": [(i, (i + 1) % n) for i in range(n)], "times": 2 * (n - 1)},
            {"name": f"all_to_all{suffix}", **one, "flows": [(i, j) for i in range(n) for j in range(n) if i != j]},
            {"name": f"incast{suffix}", **one, "flows": [(i, 0) for i in range(1, n)]},
            {"name": f"two_groups{suffix}", **one, "switches": 2, "flows": groups},
        ]
    return out


def host_queue(ns: Any, setting: Setting) -> Any:
    """Linux's own: a queue a flow, in turns, which marks what has waited for longer than the threshold takes to send."""
    control = ns.TrafficControlHelper()
    threshold = ns.TimeValue(ns.NanoSeconds(int(setting.mark * 8 / GBPS)))
    control.SetRootQueueDisc("ns3::FqCoDelQueueDisc", "MaxSize", ns.QueueSizeValue(ns.QueueSize("20000p")))
    ns.Config.SetDefault("ns3::FqCoDelQueueDisc::UseEcn", ns.BooleanValue(setting.mark > 0))
    # no two flows in one queue
    ns.Config.SetDefault("ns3::FqCoDelQueueDisc::EnableSetAssociativeHash", ns.BooleanValue(True))
    ns.Config.SetDefault("ns3::FqCoDelQueueDisc::Target", ns.StringValue("50ms"))
    ns.Config.SetDefault("ns3::FqCoDelQueueDisc::Interval", ns.StringValue("1000ms"))
    if setting.mark:
        ns.Config.SetDefault("ns3::FqCoDelQueueDisc::CeThreshold", threshold)
    return control


def switch_queue(ns: Any, setting: Setting) -> Any:
    """First come first served: it marks by its length at the moment (DCTCP's rule), and drops what it has no room for."""
    control, room = ns.TrafficControlHelper(), ns.QueueSizeValue(ns.QueueSize(f"{setting.queue}B"))
    if not setting.mark:
        control.SetRootQueueDisc("ns3::FifoQueueDisc", "MaxSize", room)
        return control
    ns.Config.SetDefault("ns3::RedQueueDisc::UseEcn", ns.BooleanValue(True))
    ns.Config.SetDefault("ns3::RedQueueDisc::UseHardDrop", ns.BooleanValue(False))
    ns.Config.SetDefault("ns3::RedQueueDisc::MeanPktSize", ns.UintegerValue(FRAME))
    ns.Config.SetDefault("ns3::RedQueueDisc::QW", ns.DoubleValue(1.0))
    ns.Config.SetDefault("ns3::RedQueueDisc::MinTh", ns.DoubleValue(setting.mark))
    ns.Config.SetDefault("ns3::RedQueueDisc::MaxTh", ns.DoubleValue(setting.mark))
    control.SetRootQueueDisc("ns3::RedQueueDisc", "MaxSize", room)
    return control


def simulate(ns: Any, case: dict[str, Any], setting: Setting, message: int) -> tuple[float, list[float]]:
    """Run one case; the time of its last byte, and of each flow's, ns."""
    hosts, switches = case["hosts"], case["switches"]
    nodes = ns.NodeContainer()
    nodes.Create(hosts + switches)
    link = ns.PointToPointHelper()
    link.SetDeviceAttribute("DataRate", ns.StringValue(f"{GBPS}Gbps"))
    link.SetDeviceAttribute("Mtu", ns.UintegerValue(MTU))
    link.SetChannelAttribute("Delay", ns.StringValue(f"{DELAY_US}us"))
    link.SetQueue("ns3::DropTailQueue<Packet>", "MaxSize", ns.QueueSizeValue(ns.QueueSize("1p")))
    ns.InternetStackHelper().Install(nodes)
    addresses, address, at_switch = [], ns.Ipv4AddressHelper(), switch_queue(ns, setting)
    at_host = host_queue(ns, setting) if setting.turns else at_switch
    ends = [(i, hosts + i * switches // hosts) for i in range(hosts)]
    ends += [(hosts, hosts + 1)] if switches == 2 else []
    for net, (a, b) in enumerate(ends):
        devices = link.Install(nodes.Get(a), nodes.Get(b))
        (at_host if a < hosts else at_switch).Install(devices.Get(0))
        at_switch.Install(devices.Get(1))
        address.SetBase(ns.Ipv4Address(f"10.1.{net}.0"), ns.Ipv4Mask("255.255.255.0"))
        addresses.append(address.Assign(devices).GetAddress(0))
    ns.Ipv4GlobalRoutingHelper.PopulateRoutingTables()
    sinks = []
    for port, (src, dst) in enumerate(case["flows"], 5000):
        local = ns.InetSocketAddress(ns.Ipv4Address.GetAny(), port).ConvertTo()
        sink = ns.PacketSinkHelper("ns3::TcpSocketFactory", local).Install(nodes.Get(dst))
        sink.Start(ns.Seconds(0))
        sinks.append(sink.Get(0))
        bulk = ns.BulkSendHelper("ns3::TcpSocketFactory", ns.InetSocketAddress(addresses[dst], port).ConvertTo())
        bulk.SetAttribute("MaxBytes", ns.UintegerValue(message))
        bulk.SetAttribute("SendSize", ns.UintegerValue(SEGMENT))
        bulk.Install(nodes.Get(src)).Start(ns.Seconds(0))
    elapsed_us, ended = 0, [0.0] * len(sinks)
    while not all(ended):
        ns.Simulator.Stop(ns.MicroSeconds(STEP_US))
        ns.Simulator.Run()
        elapsed_us += STEP_US
        for flow, sink in enumerate(sinks):
            received = ns.cppyy.gbl.ns3.DynamicCast["ns3::PacketSink", "ns3::Application"](sink).GetTotalRx()
            ended[flow] = ended[flow] or (elapsed_us * 1000.0 if received >= message else 0.0)
    ns.Simulator.Destroy()
    return elapsed_us * 1000.0, ended


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", choices=SETTINGS, default="lossless")
    parser.add_argument("--mib", type=int, nargs="+", default=[16, 64], help="sizes of the flows")
    given = parser.parse_args()
    from ns import ns

    setting = SETTINGS[given.network]
    ns.Config.SetDefault("ns3::TcpL4Protocol::SocketType", ns.TypeIdValue(ns.TypeId.LookupByName(setting.tcp)))
    ns.Config.SetDefault("ns3::TcpSocket::SegmentSize", ns.UintegerValue(SEGMENT))
    ns.Config.SetDefault("ns3::TcpSocket::SndBufSize", ns.UintegerValue(setting.buffer))
    ns.Config.SetDefault("ns3::TcpSocket::RcvBufSize", ns.UintegerValue(setting.buffer))
    # DCTCP's window falls to one segment in ns-3 (to two in Linux), whose acknowledgement a receiver would hold back for 200 ms
    ns.Config.SetDefault("ns3::TcpSocket::DelAckCount", ns.UintegerValue(1))
    ns.Config.SetDefault("ns3::TcpSocketBase::MinRto", ns.TimeValue(ns.MilliSeconds(200)))  # Linux
    results = []
    for message in [mib * MIB for mib in given.mib]:
        for case in cases():
            time_ns, ended = simulate(ns, case, setting, message)
            print(case["name"], message, time_ns * case["times"], f"first flow ends at {min(ended) / time_ns:.3f} of the last", flush=True)
            results.append(case | {"message": message, "time_ns": time_ns * case["times"]})
    facts = {"gbps": GBPS, "delay_us": DELAY_US, "payload_share": SEGMENT / FRAME, "network": given.network, "cases": results}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
