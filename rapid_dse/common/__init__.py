"""What every room uses: columns, compiled code, the end of a process."""
