"""Programs of ranks: a layer, the ends of the model, a stage, the whole step."""
