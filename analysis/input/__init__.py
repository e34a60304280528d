"""Tables that others wrote: reading files, finding columns, turning cells into numbers, and checking them."""
