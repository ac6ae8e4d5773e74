"""From a scenario and layouts to results, in closed form."""
