"""One command, several trainings: sweep, search, cross-validation and rerun."""
