"""Files of annotation tools, a module each with the function ``read_annotations``."""
