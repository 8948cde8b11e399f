"""All that people look at: terminal, log file, tables, panels and colours."""
