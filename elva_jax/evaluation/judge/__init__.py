"""A language model over an OpenAI-compatible endpoint that judges open answers."""
