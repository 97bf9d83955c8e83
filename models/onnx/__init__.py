"""An ONNX file as a torch net: what is read, how it is made plain, and the modules that it becomes."""
