"""Hydra plugins of rapid_dse. Every Hydra program in the environment imports these modules, so they import nothing heavy."""
