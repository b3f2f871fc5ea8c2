"""The report of a fit: one HTML file that can be looked at anywhere, made from manifest and evidence."""
