"""The program for Python: what ``import rapid_dse as rd`` offers."""
