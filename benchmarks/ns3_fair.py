"""Packet-level figures for the ``fair`` model of the links: TCP flows in ns-3 (``pip install ns3``), written as JSON.

Hosts hang on switches by 10 Gbit/s links of 1 us. Each flow is a bulk TCP transfer; a case's time is when its last byte
is there. The ring all-reduce is its steps one after the other: 2 (N - 1) times the step that is simulated, in which all
ranks send at once.

    python benchmarks/ns3_fair.py --out tests/data/ns3/fair.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

GBPS = 10
DELAY_US = 1
MESSAGE = 64 << 20
MTU, SEGMENT, FRAME = 9000, 8948, 9002
BUFFER = 512 << 10  # of a socket: far more than a link holds under way
STEP_US = 20


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


def simulate(ns: Any, case: dict[str, Any]) -> float:
    """Run one case; the time of its last byte in ns."""
    hosts, switches = case["hosts"], case["switches"]
    nodes = ns.NodeContainer()
    nodes.Create(hosts + switches)
    link = ns.PointToPointHelper()
    link.SetDeviceAttribute("DataRate", ns.StringValue(f"{GBPS}Gbps"))
    link.SetDeviceAttribute("Mtu", ns.UintegerValue(MTU))
    link.SetChannelAttribute("Delay", ns.StringValue(f"{DELAY_US}us"))
    link.SetQueue("ns3::DropTailQueue<Packet>", "MaxSize", ns.QueueSizeValue(ns.QueueSize("20000p")))
    ns.InternetStackHelper().Install(nodes)
    addresses, address = [], ns.Ipv4AddressHelper()
    ends = [(i, hosts + i * switches // hosts) for i in range(hosts)]
    ends += [(hosts, hosts + 1)] if switches == 2 else []
    for net, (a, b) in enumerate(ends):
        devices = link.Install(nodes.Get(a), nodes.Get(b))
        address.SetBase(ns.Ipv4Address(f"10.1.{net}.0"), ns.Ipv4Mask("255.255.255.0"))
        interfaces = address.Assign(devices)
        ns.TrafficControlHelper().Uninstall(devices)
        addresses.append(interfaces.GetAddress(0))
    ns.Ipv4GlobalRoutingHelper.PopulateRoutingTables()
    sinks = []
    for port, (src, dst) in enumerate(case["flows"], 5000):
        local = ns.InetSocketAddress(ns.Ipv4Address.GetAny(), port).ConvertTo()
        sink = ns.PacketSinkHelper("ns3::TcpSocketFactory", local).Install(nodes.Get(dst))
        sink.Start(ns.Seconds(0))
        sinks.append(sink.Get(0))
        bulk = ns.BulkSendHelper("ns3::TcpSocketFactory", ns.InetSocketAddress(addresses[dst], port).ConvertTo())
        bulk.SetAttribute("MaxBytes", ns.UintegerValue(MESSAGE))
        bulk.SetAttribute("SendSize", ns.UintegerValue(SEGMENT))
        bulk.Install(nodes.Get(src)).Start(ns.Seconds(0))
    elapsed_us = 0
    while any(ns.cppyy.gbl.ns3.DynamicCast["ns3::PacketSink", "ns3::Application"](s).GetTotalRx() < MESSAGE for s in sinks):
        ns.Simulator.Stop(ns.MicroSeconds(STEP_US))
        ns.Simulator.Run()
        elapsed_us += STEP_US
    ns.Simulator.Destroy()
    return elapsed_us * 1000.0


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    from ns import ns

    ns.Config.SetDefault("ns3::TcpSocket::SegmentSize", ns.UintegerValue(SEGMENT))
    ns.Config.SetDefault("ns3::TcpSocket::SndBufSize", ns.UintegerValue(BUFFER))
    ns.Config.SetDefault("ns3::TcpSocket::RcvBufSize", ns.UintegerValue(BUFFER))
    results = []
    for case in cases():
        time_ns = simulate(ns, case) * case["times"]
        print(case["name"], time_ns, flush=True)
        results.append(case | {"time_ns": time_ns})
    facts = {"gbps": GBPS, "delay_us": DELAY_US, "message": MESSAGE, "payload_share": SEGMENT / FRAME, "cases": results}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
