"""Measurements: thin scripts over the engine, each runnable on its own."""
