"""The files that frameworks are launched with: a row written as one, and one read as a row."""
