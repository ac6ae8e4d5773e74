"""search=optuna: studies over the same spaces as sweeps, and over what cannot be enumerated."""
