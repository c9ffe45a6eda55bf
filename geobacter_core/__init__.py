"""Geobacter: a place as a vector. The core knows OpenStreetMap, tiles, triplets and encoders, and nothing of Dagster."""
