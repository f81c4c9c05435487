"""What Weights & Biases and MLflow are told of a run: by processes of its own, from what lies in its directory.

A tracker cannot take back what it has, so it is told only what nothing goes back behind: the steps before the
newest checkpoint. A run that is killed and continued therefore ends there as one that was not.
"""
