"""ONNX models as computation graphs: `load_onnx_file`."""

from graphs.onnx_import.importer import load_onnx_file

__all__ = ["load_onnx_file"]
