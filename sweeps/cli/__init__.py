"""What people say to a sweep and see of it."""
