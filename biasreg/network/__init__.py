"""BIASNet, one file for each box of the paper's figures."""
