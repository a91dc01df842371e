"""The HTTP server: one worker behind it, any number of clients before it.

`application.create_app` makes the ASGI application of a running worker, `runner.ServerRunner`
serves it from a thread. Importing this package costs nothing; its modules import FastAPI.
"""
