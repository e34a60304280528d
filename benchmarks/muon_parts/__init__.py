"""What `benchmarks/muon_step.py` compares, and with what floor."""
