"""AutoAttack in shards: plan, shard, merge. The verdict of an image depends on the plan alone."""

from kapdist.attack.local import run_attack
from kapdist.attack.merge import merge
from kapdist.attack.plan import AttackPlan
from kapdist.attack.planning import plan_attack
from kapdist.attack.shard import run_shard
from kapdist.attack.summary import Summary
from kapdist.attack.worst import write_worst_case

__all__ = ["AttackPlan", "Summary", "merge", "plan_attack", "run_attack", "run_shard", "write_worst_case"]
