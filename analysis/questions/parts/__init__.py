"""The keys of report.json that stand beside `questions`: one module a part of the page."""
