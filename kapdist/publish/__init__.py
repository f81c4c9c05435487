"""A trained network as others take it: a folder for Hugging Face's hub, timm's layout where it fits, ONNX."""
