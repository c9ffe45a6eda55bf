"""The HTTP API and the explorer: embeddings of any place, similar places, and what lies between two."""
