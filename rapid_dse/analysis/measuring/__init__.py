"""Measuring a chip of one's own: what is timed, what its constants are, and the files that say so."""
