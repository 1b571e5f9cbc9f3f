"""Forge: from raw data to a served language model, driven by one recipe."""

__version__ = "0.1.0"
