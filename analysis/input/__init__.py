"""What studies are read from: run folders, and tables that others wrote (files, columns, cells, checks)."""
