"""Distributed methods: DiLoCo's outer steps, and data parallel beside them."""
