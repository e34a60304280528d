"""Pseudogradients in fewer bytes: codecs for values, a payload that checks itself, and each worker's compressor."""

from muloco_runner.diloco.compression.payload import PayloadError
from muloco_runner.diloco.compression.pieces import writes_rows_apart
from muloco_runner.diloco.error_feedback import Compressor, choose_codecs

__all__ = ["Compressor", "PayloadError", "choose_codecs", "writes_rows_apart"]
