"""One self-contained page about a trained model, its predictions and their evaluation."""
