"""Is this machine fit to train and attack on? Each thing that a run needs, looked at or tried, on one line."""
