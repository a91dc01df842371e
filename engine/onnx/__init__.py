"""GPT-2 as an ONNX model: the graph, its weights, and the folder that holds both."""
