"""Triton kernels, installed as `oml_fast.kernels`. Importing this package imports no Triton; its modules do."""
