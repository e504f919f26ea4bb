"""From a recipe to a run: prepare, fit, choose the operating point, test; folds, averages, searches."""
