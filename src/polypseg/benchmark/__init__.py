"""How fast a bundle is, by each way in which it can be computed here."""
