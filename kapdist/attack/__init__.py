"""AutoAttack in shards: plan, shard, merge. The verdict of an image depends on the plan alone."""

import kapdist

kapdist.callable_room(__name__)
