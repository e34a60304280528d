"""What every page is made of: numbers, escaped text, tables, figures."""
