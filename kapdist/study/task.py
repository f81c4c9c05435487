"""`python -m kapdist.study.task WORDS` is `kapdist WORDS`, asked to stop when the study that started it is gone."""

from __future__ import annotations

import runpy

from kapdist.run.asked import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    runpy.run_module("kapdist.cli", run_name="__main__", alter_sys=True)
