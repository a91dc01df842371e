"""The window: GLFW, OpenGL and pyimgui around `app.window.state`."""
