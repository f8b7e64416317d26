"""Retention: `policy` decides, `plan` finds what the policy asks to remove, `prune` removes it, `limits` changes the rules."""
