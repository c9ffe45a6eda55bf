"""Embedding tables: their schema, how they are made, and questions to them."""
