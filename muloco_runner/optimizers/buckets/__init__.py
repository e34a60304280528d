"""Parameters that are updated together, by where they lie and what updates them."""
