"""Train Kernel Average Pooling ResNets over many nodes, attack them in shards, believe the number."""
