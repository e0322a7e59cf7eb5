"""What the report is made of: plots from plain data, and the page around them. No Ray, no file access."""
