"""The HTTP server: one worker behind it, any number of clients before it."""
