"""Training recipes, one file each; see `mtlkit.training.load_config`."""
