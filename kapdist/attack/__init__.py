"""AutoAttack in shards: plan, shard, merge. The verdict of an image depends on the plan alone."""
