"""What runs beside the work on its node."""
