"""A search of hyper-parameters: its space, study, trials and report."""
