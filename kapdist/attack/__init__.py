"""AutoAttack in shards: plan, shard, merge. The verdict of an image depends on the plan alone."""

from kapdist import callable_room

callable_room(__name__)
