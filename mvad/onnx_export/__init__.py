"""A fitted model as one ONNX file that scores as mvad does, without mvad."""
