"""Pseudogradients in fewer bytes: codecs for values, and a payload that checks itself."""
