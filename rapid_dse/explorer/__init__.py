"""The local page over studies: what it lists, filters, shows and launches, and who may ask for it."""
