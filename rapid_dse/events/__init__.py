"""Everything event-driven: programs of ranks, graphs, the backends that run them, ASTRA-sim, timelines."""
