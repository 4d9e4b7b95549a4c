"""The work behind `spo`: one module per verb, and the rooms they share (maths, shards, engines, tasks)."""
