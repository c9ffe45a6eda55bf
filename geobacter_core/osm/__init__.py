"""From a region's name to its extract, and from the extract to map features."""
