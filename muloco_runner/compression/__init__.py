"""Pseudogradients in fewer bytes: codecs for values, a payload that checks itself, and each worker's compressor."""

from muloco_runner.compression.compressor import Compressor, choose_codecs
from muloco_runner.compression.payload import PayloadError
from muloco_runner.compression.pieces import writes_rows_apart

__all__ = ["Compressor", "PayloadError", "choose_codecs", "writes_rows_apart"]
