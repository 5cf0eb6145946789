"""From raw cases to arrays in the canonical frame that the plans describe."""
