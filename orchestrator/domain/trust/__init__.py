"""Statistics of trust: audits of data, votes on answers, judge models, verdicts. Pure functions, no dependencies."""
