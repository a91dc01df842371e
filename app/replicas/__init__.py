"""Several copies of a model behind one address, on one machine or many, by Ray Serve."""
