"""From results to pages: `build` makes report.json's content, everything else is drawn and written from it alone."""
