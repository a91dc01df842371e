"""The program around the engine: command line, HTTP server and window."""
