"""AutoAttack in shards: plan, shard, merge. The verdict of an image depends on the plan alone."""

from kapdist.attack.local import run_attack
from kapdist.attack.merge import merge
from kapdist.records.attack_plan import AttackPlan
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import run_shard
from kapdist.records.summary import Summary
from kapdist.records.worst import write_worst_case

__all__ = ["AttackPlan", "Summary", "merge", "plan_attack", "run_attack", "run_shard", "write_worst_case"]
