"""Settings of a training chosen from the data, the machine and the time."""
