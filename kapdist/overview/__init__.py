"""What there is, at one look: a config with the origin of each value, two configs, all runs of a folder."""
