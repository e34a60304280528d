"""One question of a study a module."""
