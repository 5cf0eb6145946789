"""What leaves this computer and what comes to it: models, predictions and datasets of other makers."""
