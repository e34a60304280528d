"""Distributed methods: DiLoCo's outer steps, and data parallel and primal averaging beside them."""
