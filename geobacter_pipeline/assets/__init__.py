"""One module per stage. An asset resolves its inputs, calls the core once, and says what came out."""
