"""Files of other programs as options of this one's groups: Hugging Face's config.json, RAPID-LLM's hardware and model YAML."""
