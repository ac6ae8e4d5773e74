"""Inference in closed form: passes, memory, serving."""
