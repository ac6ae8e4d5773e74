"""How times go together: what hides behind what, and the energy of it."""
