"""Mayfly: source code to a live URL that ends by itself."""
