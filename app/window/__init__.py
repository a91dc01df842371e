"""The desktop window: GLFW and OpenGL 3.3, drawn with pyimgui."""
