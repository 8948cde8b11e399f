"""The run folder: layout, records, checkpoints and provenance."""
