"""A load generator for the HTTP server that checks every text it gets."""
