"""Output for people: terminal, log file, tables, panels, colours and the layout of pictures."""
