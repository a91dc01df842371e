"""Short programs over the engine's Python API; README.md says how to start them."""
