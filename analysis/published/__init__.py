"""What was published, as tables with their sources (`data/*.csv`), and this project's fits beside it."""
