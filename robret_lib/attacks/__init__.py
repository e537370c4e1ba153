"""Attacks on image retrieval."""
