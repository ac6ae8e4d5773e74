"""How ranks are divided: layouts, what a framework offers, where groups lie, pipeline schedules."""
