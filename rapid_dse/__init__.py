"""Design-space exploration of LLM training and inference."""

__version__ = "0.1.0"
