"""The schema: what each key means, its unit and bounds."""

from rapid_dse.config.hardware import Hardware, Network, NetworkDimension
from rapid_dse.config.model import Model
from rapid_dse.config.run import Backend, Parallel, Search, Workload
from rapid_dse.config.scenario import Scenario, parse
from rapid_dse.config.software import Software

__all__ = ["Backend", "Hardware", "Model", "Network", "NetworkDimension", "Parallel", "Scenario", "Search", "Software", "Workload", "parse"]
