"""What Muon's implementations for torch and for JAX share: its numbers, and which matrices a parameter is. No torch."""
