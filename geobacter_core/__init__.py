"""Geobacter: a place as a vector. The core knows maps, tiles, triplets and encoders, and nothing of Dagster."""
