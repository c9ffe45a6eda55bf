"""The Dagster side of Geobacter: which assets there are, how they hang together, when they run. No domain code."""
