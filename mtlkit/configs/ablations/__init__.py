"""Tables of ablations, one file each; see `mtlkit.training.load_ablation`."""
