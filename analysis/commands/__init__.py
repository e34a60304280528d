"""What `muloco-report` is told: its arguments, and the command that fits one law."""
