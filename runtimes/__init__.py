"""What functions may rely on: one folder a language, each with its contract test."""
