"""The program around the engine: window, command line, settings."""
