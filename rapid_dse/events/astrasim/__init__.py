"""ASTRA-sim in the place of the event engine: its files, its process, its limits."""
