"""Experiments beyond the usual ones."""
