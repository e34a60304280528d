"""Figures of the parts of a report, drawn from report.json's content alone."""
